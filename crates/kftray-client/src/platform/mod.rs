//! The local socket of each operating system, with the same functions for each.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

pub use system::place;
pub(crate) use system::{detach, open, private_directory};
