//! Windows: a named pipe whose name, made anew by each host, stands in a file of the configuration directory. Nobody who
//! cannot read the user's directory can guess it, so nobody else's pipe is taken for the host's.

use std::io;
use std::path::Path;
use std::process::Stdio;

use interprocess::os::windows::named_pipe::pipe_mode::Bytes;
use interprocess::os::windows::named_pipe::tokio::DuplexPipeStream;
use kftray_commons::Code;
use kftray_commons::api::{Error, Place};

use crate::Result;

/// A connection to the host.
pub(crate) type Stream = DuplexPipeStream<Bytes>;

/// The meeting place of a configuration directory. `socket` is the file that names the pipe.
#[must_use]
pub fn place(directory: &Path) -> Place {
    Place::of(directory, None, 0)
}

/// Connects to the pipe that the host has named.
pub(crate) async fn open(place: &Place) -> Result<Stream> {
    let failed = |error: io::Error| {
        let message = match error.kind() {
            // A file without a pipe was left by a host that was killed.
            io::ErrorKind::NotFound => format!("no host runs for {}", place.directory.display()),
            _ => format!("the host's pipe cannot be opened: {error}"),
        };
        Error::new(Code::HostUnreachable, message)
    };
    let name = tokio::fs::read_to_string(&place.socket).await.map_err(failed)?;
    Stream::connect_by_path(name.trim()).await.map_err(failed)
}

/// A command whose process shall outlive this one: it has no console, so that closing ours does not end it.
pub(crate) fn detach(command: &mut tokio::process::Command) {
    /// `DETACHED_PROCESS` of the Windows API's process creation flags.
    const DETACHED_PROCESS: u32 = 0x0000_0008;
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(false).creation_flags(DETACHED_PROCESS);
}

/// Makes a directory, if it is not there. In the user's profile it is closed to other users by inheritance.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}
