//! Word of changes to files, as hints: whoever is told reads again and compares.
//!
//! Folders are watched, not files: editors and `kubectl` replace files by renaming, and a watch on a file follows the old one
//! into oblivion. A folder that does not exist is awaited by watching the nearest one that does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

/// One watch for the whole process (Linux allows 128 of them for each user, but thousands of folders in each).
pub(crate) struct FileWatch {
    changes: watch::Sender<u64>,
    watcher: Mutex<Option<RecommendedWatcher>>,
}

impl FileWatch {
    /// Starts it. When the system refuses, changes are only noticed through [`Self::nudge`].
    pub(crate) fn new() -> Self {
        let changes = watch::Sender::new(0_u64);
        let hint = changes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too, and our own reading must not wake us. An error (queue overflow) is a hint.
            if !event.is_ok_and(|event| is_read(event.kind)) {
                hint.send_modify(|count| *count = count.wrapping_add(1));
            }
        })
        .inspect_err(|error| tracing::warn!(%error, "kubeconfig changes will not be noticed"))
        .ok();
        Self { changes, watcher: Mutex::new(watcher) }
    }

    /// A receiver that changes at each hint.
    pub(crate) fn hints(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Gives a hint.
    pub(crate) fn nudge(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Makes sure that changes to these files and folders, there or not, give hints. Call it before reading them. Blocks on
    /// the disk. Folders stay watched until `self` is dropped: they are few.
    pub(crate) fn cover(&self, paths: &[PathBuf]) {
        let mut folders = BTreeSet::new();
        for path in paths {
            folders.extend(folder_of(path));
            // A link (a mounted Secret, a dotfiles folder): its own folder and the one it leads to.
            folders.extend(path.canonicalize().ok().as_deref().and_then(folder_of));
        }
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watcher) = watcher.as_mut() else { return };
        for folder in folders {
            // Again even if done before: the folder may have been replaced by another of the same name.
            if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "kubeconfig changes here will not be noticed");
            }
        }
    }
}

/// The folder to watch for a path: itself if it is one, else the nearest ancestor that exists.
fn folder_of(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn is_read(kind: EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn hinted(hints: &mut watch::Receiver<u64>) {
        tokio::time::timeout(Duration::from_secs(20), hints.changed())
            .await
            .expect("a hint within 20 s")
            .unwrap();
    }

    #[tokio::test]
    async fn hints_for_edit_replacement_and_appearance() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("kube").join("config");
        let watch = FileWatch::new();
        let mut hints = watch.hints();

        watch.cover(std::slice::from_ref(&file));
        std::fs::create_dir(home.path().join("kube")).unwrap();
        hinted(&mut hints).await;

        watch.cover(std::slice::from_ref(&file));
        hints.mark_unchanged();
        std::fs::write(&file, "1").unwrap();
        hinted(&mut hints).await;

        tokio::time::sleep(Duration::from_millis(200)).await;
        hints.mark_unchanged();
        let new = home.path().join("new");
        std::fs::write(&new, "2").unwrap();
        std::fs::rename(&new, &file).unwrap();
        hinted(&mut hints).await;
    }

    #[tokio::test]
    async fn reading_is_no_hint() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config");
        std::fs::write(&file, "1").unwrap();
        let watch = FileWatch::new();
        watch.cover(std::slice::from_ref(&file));
        let mut hints = watch.hints();
        std::fs::read(&file).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(300), hints.changed()).await.is_err());
    }
}
