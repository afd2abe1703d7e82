//! Unix: the socket in the file system, the kernel's word about who is at its other end, signals, limits.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kftray_commons::api::Place;
use kftray_commons::{Code, Problem};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where clients are accepted.
pub(crate) type Listener = UnixListener;

/// A client's connection.
pub(crate) type Stream = UnixStream;

/// Files that a process may have open at most, however many the system would allow: some programs that are started with a
/// larger limit close every possible number first.
const FILES_MAX: u64 = 65_536;

/// The meeting place of a configuration directory for this user.
pub(crate) fn place(directory: &Path) -> Place {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    Place::of(directory, runtime.as_deref().filter(|path| path.is_absolute()), Uid::effective().as_raw())
}

/// Opens the socket. Call it with the lock held: what is there already belongs to a host that is gone.
///
/// # Errors
/// `directory_refused` if the socket's directory is not this user's alone, `host_unreachable` if it cannot be opened.
pub(crate) fn listen(place: &Place) -> Result<Listener, Problem> {
    let failed = |what: &str, error: io::Error| {
        let socket = place.socket.display();
        Problem::new(Code::HostUnreachable, format!("{socket} cannot be {what}: {error}"))
    };
    if place.socket_directory != place.directory {
        own_directory(&place.socket_directory)?;
    }
    match fs::remove_file(&place.socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("replaced", error)),
    }
    // Between bind and chmod the directory (0700) keeps others out.
    let listener = UnixListener::bind(&place.socket).map_err(|error| failed("opened", error))?;
    let closed = fs::set_permissions(&place.socket, fs::Permissions::from_mode(0o600));
    closed.map_err(|error| failed("closed to others", error))?;
    Ok(listener)
}

/// Connects to the host that serves a place, which must be this user's.
pub(crate) async fn connect(place: &Place) -> io::Result<Stream> {
    let stream = UnixStream::connect(&place.socket).await?;
    is_mine(&stream).map_err(io::Error::other)?;
    Ok(stream)
}

/// Makes sure of a directory outside the configuration directory: `/tmp` is everybody's.
fn own_directory(path: &Path) -> Result<(), Problem> {
    let refused = |why: String| Problem::new(Code::DirectoryRefused, format!("{} {why}", path.display()));
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(refused(format!("cannot be made: {error}"))),
    }
    let found = fs::symlink_metadata(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    if !found.is_dir() || found.uid() != Uid::effective().as_raw() || found.mode() & 0o077 != 0 {
        return Err(refused("is not a directory of this user alone".to_owned()));
    }
    Ok(())
}

/// The socket that systemd opened for us, if it did.
pub(crate) fn given_listener() -> io::Result<Option<Listener>> {
    let given = listenfd::ListenFd::from_env().take_unix_listener(0)?;
    let Some(given) = given else { return Ok(None) };
    given.set_nonblocking(true)?;
    UnixListener::from_std(given).map(Some)
}

/// Whether the same user is at the other end, by the kernel's word at the time of the connection.
pub(crate) fn is_mine(stream: &Stream) -> Result<(), String> {
    let me = Uid::effective().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == me => Ok(()),
        Ok(peer) => Err(format!("this host belongs to user {me}, the client is user {}", peer.uid())),
        Err(error) => Err(format!("the client's user is not known: {error}")),
    }
}

/// Lets this process have as many files open as it may.
pub(crate) fn raise_limits() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(FILES_MAX);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Leaves the terminal it was started from, so that closing that does not end it.
pub fn leave_terminal() {
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "stays in its session");
    }
}

/// A file that only this user can read, if it is made now.
pub(crate) fn private(options: &mut fs::OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.mode(0o600);
}

/// Signals that ask for the end.
pub(crate) struct Terminations {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// A terminal that goes away means nothing to a process that has left it.
    ignore_hangup: bool,
}

impl Terminations {
    pub(crate) fn install(ignore_hangup: bool) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            ignore_hangup,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hangup.recv() => if !self.ignore_hangup { return },
            }
        }
    }
}
