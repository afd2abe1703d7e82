//! The log of a background host: a file in its directory, of bounded size.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

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

/// What is written to a log, as it is written; a log that begins anew is followed.
#[derive(Debug)]
pub struct LogTail {
    path: PathBuf,
    file: Option<File>,
    /// Bytes of the file that have been read.
    at: u64,
    /// Something in the directory has changed.
    hints: watch::Receiver<u64>,
    _watcher: RecommendedWatcher,
}

impl LogTail {
    /// From so many bytes on. The file need not be there yet; its directory must.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let (hints_tx, hints) = watch::channel(0_u64);
        let told = move |_: notify::Result<notify::Event>| {
            hints_tx.send_modify(|count| *count = count.wrapping_add(1));
        };
        let mut watcher = notify::recommended_watcher(told).map_err(io::Error::other)?;
        // The directory: the file itself is another one after it was full.
        let directory = path.parent().unwrap_or(Path::new("."));
        watcher.watch(directory, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        Ok(Self { path: path.to_owned(), file: None, at: from, hints, _watcher: watcher })
    }

    /// Waits until something has been written; that.
    ///
    /// # Errors
    /// What the system says.
    pub async fn more(&mut self) -> io::Result<Vec<u8>> {
        loop {
            self.hints.mark_unchanged();
            let news = self.news()?;
            if !news.is_empty() {
                return Ok(news);
            }
            self.hints.changed().await.map_err(io::Error::other)?;
        }
    }

    fn news(&mut self) -> io::Result<Vec<u8>> {
        let mut news = Vec::new();
        if let Some(file) = &mut self.file {
            self.at += file.read_to_end(&mut news)? as u64;
        }
        let length = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(news),
            Err(error) => return Err(error),
        };
        let anew = length < self.at;
        if anew || self.file.is_none() {
            let mut file = File::open(&self.path)?;
            self.at = if anew { 0 } else { self.at };
            file.seek(SeekFrom::Start(self.at))?;
            self.at += file.read_to_end(&mut news)? as u64;
            self.file = Some(file);
        }
        Ok(news)
    }
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

    #[tokio::test]
    async fn it_is_followed_beyond_its_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("host.log");
        let mut tail = LogTail::open(&path, 0).expect("watched");
        let mut seen = String::new();
        let mut log = None;
        for number in 0..30 {
            let log = log.get_or_insert_with(|| LogFile::with_limit(&path, 100).expect("open"));
            let line = format!("line {number:03}\n");
            log.write_all(line.as_bytes()).expect("written");
            while !seen.ends_with(&line) {
                let more = tokio::time::timeout(std::time::Duration::from_secs(30), tail.more()).await;
                seen += &String::from_utf8(more.expect("in time").expect("read")).expect("text");
            }
        }
        let expected: String = (0..30).map(|number| format!("line {number:03}\n")).collect();
        assert_eq!(seen, expected, "every line once, although the file began anew twice");
    }
}
