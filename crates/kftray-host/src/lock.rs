//! One host per directory: a file lock that the system gives back however the process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use kftray_commons::{Code, Problem};

/// Held for as long as the host lives. Contains its process id, for people.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    ///
    /// # Errors
    /// `conflict` if another host has it, `store_failed` if the file cannot be used.
    pub(crate) fn take(path: &Path) -> Result<Self, Problem> {
        let mut file = open(path)?;
        match file.try_lock() {
            Ok(()) => Self::sign(file, path),
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Only for the message.
                drop(file.read_to_string(&mut owner));
                let owner = owner.trim();
                let pid = if owner.is_empty() { String::new() } else { format!(" (pid {owner})") };
                let message = format!("another host{pid} serves {}", path.with_file_name("").display());
                Err(Problem::new(Code::Conflict, message)
                    .with_remedy("Use it: every kftui command finds it. `kftui host stop` ends it."))
            }
            Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
        }
    }

    /// Takes the lock as soon as it is free. Blocks.
    ///
    /// # Errors
    /// `store_failed` if the file cannot be used.
    pub(crate) fn wait(path: &Path) -> Result<Self, Problem> {
        let file = open(path)?;
        file.lock().map_err(|error| unusable(path, &error))?;
        Self::sign(file, path)
    }

    fn sign(mut file: File, path: &Path) -> Result<Self, Problem> {
        let signed = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .and_then(|()| file.flush());
        signed.map_err(|error| unusable(path, &error))?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing gives it back in any case; this only makes it sooner.
        drop(self.file.unlock());
    }
}

fn open(path: &Path) -> Result<File, Problem> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    file.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Code::StoreFailed, format!("{} cannot be locked: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_hears_who_is_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("host.lock");
        let first = Lock::take(&path).expect("free");
        let refused = Lock::take(&path).expect_err("taken");
        assert_eq!(refused.code, Code::Conflict);
        assert!(refused.message.contains(&std::process::id().to_string()), "{}", refused.message);
        drop(first);
        Lock::take(&path).expect("free again");
    }
}
