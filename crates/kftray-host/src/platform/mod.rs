//! What differs between operating systems, with the same functions for each.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(not(unix))]
mod other;
#[cfg(not(unix))]
use other as system;

pub use system::leave_terminal;
pub(crate) use system::{
    Listener, Stream, Terminations, given_listener, is_mine, listen, place, private, raise_limits,
};
