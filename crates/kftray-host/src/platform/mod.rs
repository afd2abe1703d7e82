//! What differs between operating systems, with the same functions for each.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

pub use system::leave_terminal;
pub(crate) use system::{
    Listener, Stream, Terminations, connect, given_listener, is_mine, listen, place, private, raise_limits,
};
