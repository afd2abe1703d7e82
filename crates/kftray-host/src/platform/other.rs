//! Systems whose local sockets are not served yet: the host says so.

use std::io;
use std::path::Path;

use kftray_commons::api::Place;
use kftray_commons::{Code, Problem};

/// Never made.
pub(crate) struct Listener;

/// Never made.
pub(crate) type Stream = tokio::io::DuplexStream;

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<(Stream, ())> {
        std::future::pending().await
    }
}

pub(crate) fn place(directory: &Path) -> Place {
    Place::of(directory, None, 0)
}

pub(crate) fn listen(_: &Place) -> Result<Listener, Problem> {
    Err(Problem::new(Code::Unsupported, "a host is not served on this system yet"))
}

pub(crate) fn given_listener() -> io::Result<Option<Listener>> {
    Ok(None)
}

pub(crate) fn is_mine(_: &Stream) -> Result<(), String> {
    Err("users are not told apart on this system yet".to_owned())
}

pub(crate) fn raise_limits() {}

pub fn leave_terminal() {}

pub(crate) fn private(_: &mut std::fs::OpenOptions) {}

/// Signals that ask for the end.
pub(crate) struct Terminations;

impl Terminations {
    pub(crate) fn install(_: bool) -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
