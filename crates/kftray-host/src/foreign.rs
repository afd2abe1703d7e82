//! Other programs may write to the store: a script, a version of ours that knows no host. What they wrote is seen here as
//! soon as the file changes.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::configs::{follow_all, publish_all};
use crate::core::Core;

/// A transaction touches several files; one look after the last touch is enough.
const SETTLE: Duration = Duration::from_millis(50);

/// Watches until the end.
pub(crate) async fn watch(core: Arc<Core>) {
    let (hints_tx, mut hints) = watch::channel(0_u64);
    let database = core.directory.database();
    let name = database.file_name().map(OsStr::to_os_string).unwrap_or_default();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = event.map_or(true, |event| {
            !event.kind.is_access()
                && event.paths.iter().any(|path| {
                    let file = path.file_name().unwrap_or_default().as_encoded_bytes();
                    file.starts_with(name.as_encoded_bytes())
                })
        });
        if concerns {
            hints_tx.send_modify(|count| *count = count.wrapping_add(1));
        }
    });
    let watching = watcher.and_then(|mut watcher: RecommendedWatcher| {
        watcher.watch(core.directory.path(), RecursiveMode::NonRecursive).map(|()| watcher)
    });
    let _watcher = match watching {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "what other programs write will be seen at the next start");
            return std::future::pending().await;
        }
    };
    let mut known = version(&core).await;
    while hints.changed().await.is_ok() {
        sleep(SETTLE).await;
        hints.mark_unchanged();
        // Our own writes do not change it.
        let now = version(&core).await;
        if now == known {
            continue;
        }
        known = now;
        if let Err(problem) = take(&core).await {
            tracing::warn!(%problem, "what another program wrote cannot be read");
        }
    }
}

async fn version(core: &Core) -> Option<u64> {
    core.archive().call(|store| store.data_version()).await.ok()
}

async fn take(core: &Arc<Core>) -> Result<(), kftray_commons::Problem> {
    tracing::info!("another program has written to the store");
    let board = Arc::clone(core.board());
    core.archive().call(move |store| publish_all(store, &board)).await?;
    follow_all(core).await
}
