//! Unix: a socket in the file system. The kernel names the user at the other end.

use std::io;
use std::path::Path;
use std::process::Stdio;

use kftray_commons::api::{Error, Place};
use kftray_commons::{Code, Problem};
use nix::unistd::Uid;
use tokio::net::UnixStream;

use crate::Result;

/// A connection to the host.
pub(crate) type Stream = UnixStream;

/// The meeting place of a configuration directory for this user.
#[must_use]
pub fn place(directory: &Path) -> Place {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(std::path::PathBuf::from);
    Place::of(directory, runtime.as_deref().filter(|path| path.is_absolute()), Uid::effective().as_raw())
}

/// Connects, and makes sure that the host belongs to this user: in a directory that others can write, anybody could
/// have put a socket there.
pub(crate) async fn open(place: &Place) -> Result<Stream> {
    let failed = |error: io::Error| {
        let absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        let socket = place.socket.display();
        match absent {
            true => {
                Error::new(Code::HostUnreachable, format!("no host runs for {}", place.directory.display()))
            }
            false => Error::new(Code::HostUnreachable, format!("{socket} cannot be opened: {error}")),
        }
    };
    let stream = UnixStream::connect(&place.socket).await.map_err(failed)?;
    let peer = stream.peer_cred().map_err(failed)?;
    let me = Uid::effective().as_raw();
    if peer.uid() != me {
        let message = format!(
            "the host at {} belongs to user {}, this is user {me}",
            place.socket.display(),
            peer.uid()
        );
        return Err(Problem::new(Code::PeerRefused, message).into());
    }
    Ok(stream)
}

/// A command whose process shall outlive this one: it hears nothing of this terminal. The host itself leaves the
/// terminal's session as soon as it runs.
pub(crate) fn detach(command: &mut tokio::process::Command) {
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(false);
}

/// Makes a directory that only this user can enter, if it is not there.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
