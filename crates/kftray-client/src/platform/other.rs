//! Systems whose local sockets are not served yet.

use std::path::Path;
use std::process::Stdio;

use kftray_commons::Code;
use kftray_commons::api::{Error, Place};

use crate::Result;

/// Never made.
pub(crate) type Stream = tokio::io::DuplexStream;

/// The meeting place of a configuration directory.
#[must_use]
pub fn place(directory: &Path) -> Place {
    Place::of(directory, None, 0)
}

/// Says that it cannot.
#[expect(clippy::unused_async, reason = "the same form as on systems that wait here")]
pub(crate) async fn open(_: &Place) -> Result<Stream> {
    Err(Error::new(Code::Unsupported, "a host is not served on this system yet"))
}

/// Nothing to do.
pub(crate) fn detach(command: &mut tokio::process::Command) {
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(false);
}

/// Makes a directory, if it is not there.
pub(crate) fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)
}
