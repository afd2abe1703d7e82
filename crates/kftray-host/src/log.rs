//! The log of a background host: a file in its directory, of bounded size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The largest log in bytes: weeks of ordinary life, and nothing for a disk. One older part of the same size is kept.
const SIZE_MAX: u64 = 4 * 1024 * 1024;

/// A log file that begins anew when it is full, with the old part beside it as `.old`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogFile(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    /// Opens it at its end; only this user can read it.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, SIZE_MAX)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, size, limit }))))
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).file.flush()
    }
}

impl Inner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size >= self.limit {
            std::fs::rename(&self.path, self.path.with_extension("log.old"))?;
            self.file = append(&self.path)?;
            self.size = 0;
        }
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    crate::platform::private(&mut options);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("host.log");
        let mut log = LogFile::with_limit(&path, 100).expect("open");
        for number in 0..100 {
            writeln!(log, "line {number:03}").expect("written");
        }
        let sizes: u64 = std::fs::read_dir(directory.path())
            .expect("listed")
            .map(|entry| entry.expect("entry").metadata().expect("size").len())
            .sum();
        assert!(sizes <= 220, "{sizes} bytes");
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(text.ends_with("line 099\n"), "{text}");
    }
}
