//! Windows: a named pipe that only its owner can open, under a name that only those who can read the user's directory know.

use std::fs;
use std::io;
use std::path::Path;

use interprocess::os::windows::named_pipe::PipeListenerOptions;
use interprocess::os::windows::named_pipe::pipe_mode::Bytes;
use interprocess::os::windows::named_pipe::tokio::{DuplexPipeStream, PipeListener};
use interprocess::os::windows::security_descriptor::SecurityDescriptor;
use kftray_commons::api::Place;
use kftray_commons::{Code, Problem};
use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, ctrl_break, ctrl_c, ctrl_close};
use widestring::u16cstr;

/// Where clients are accepted.
pub(crate) struct Listener(PipeListener<Bytes, Bytes>);

/// A client's connection.
pub(crate) type Stream = DuplexPipeStream<Bytes>;

/// Bytes that the pipe holds in each direction: as much as a local socket does elsewhere.
const PIPE_BUFFER: u32 = 64 * 1024;

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<(Stream, ())> {
        self.0.accept().await.map(|stream| (stream, ()))
    }
}

/// The meeting place of a configuration directory. `socket` is the file that names the pipe.
pub(crate) fn place(directory: &Path) -> Place {
    Place::of(directory, None, 0)
}

/// Opens the pipe and writes its name down. Call it with the lock held: a name that is there already belongs to a host
/// that is gone.
///
/// # Errors
/// `host_unreachable` if it cannot be opened.
pub(crate) fn listen(place: &Place) -> Result<Listener, Problem> {
    let failed = |what: &str, error: io::Error| {
        Problem::new(Code::HostUnreachable, format!("the host's pipe cannot be {what}: {error}"))
    };
    let name = format!(r"\\.\pipe\kftray-{:032x}", rand::random::<u128>());
    // Protected from inheritance; everything for the owner, nothing for anybody else (SDDL of the Windows API).
    let closed = SecurityDescriptor::deserialize(u16cstr!("D:P(A;;GA;;;OW)"))
        .map_err(|error| failed("closed to others", error))?;
    let mut options = PipeListenerOptions::new().path(name.as_str());
    options.security_descriptor = Some(closed);
    options.input_buffer_size_hint = PIPE_BUFFER;
    options.output_buffer_size_hint = PIPE_BUFFER;
    let listener = options.create_tokio_duplex().map_err(|error| failed("opened", error))?;
    fs::write(&place.socket, &name).map_err(|error| failed("named", error))?;
    Ok(Listener(listener))
}

/// Connects to the host that serves a place.
pub(crate) async fn connect(place: &Place) -> io::Result<Stream> {
    let name = tokio::fs::read_to_string(&place.socket).await?;
    Stream::connect_by_path(name.trim()).await
}

/// No service hands sockets over here.
#[expect(clippy::unnecessary_wraps, reason = "the same form as where systemd does")]
pub(crate) fn given_listener() -> io::Result<Option<Listener>> {
    Ok(None)
}

/// The system has asked already: only the pipe's owner can open it.
#[expect(clippy::unnecessary_wraps, reason = "the same form as where the host has to ask")]
pub(crate) fn is_mine(_: &Stream) -> Result<(), String> {
    Ok(())
}

/// There is no limit to raise.
pub(crate) fn raise_limits() {}

/// The host was started without a console.
pub fn leave_terminal() {}

/// Files in the user's profile are closed to other users by inheritance.
pub(crate) fn private(_: &mut fs::OpenOptions) {}

/// What asks for the end.
pub(crate) struct Terminations {
    interrupt: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    /// A console that goes away means nothing to a process that has left it.
    ignore_close: bool,
}

impl Terminations {
    pub(crate) fn install(ignore_hangup: bool) -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            r#break: ctrl_break()?,
            close: ctrl_close()?,
            ignore_close: ignore_hangup,
        })
    }

    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                Some(()) = self.interrupt.recv() => return,
                Some(()) = self.r#break.recv() => return,
                Some(()) = self.close.recv() => if !self.ignore_close { return },
                else => std::future::pending().await,
            }
        }
    }
}
