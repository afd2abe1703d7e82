//! What survives a restart: forwards, which of them shall run, settings, histories. One SQLite file in the user's
//! configuration directory.
//!
//! [`Store`] blocks; whoever must not block runs it on a thread of its own. Several programs may have the file open at
//! once: a writer waits for the other one, and [`Store::data_version`] tells that somebody else has written.
//!
//! What a method has answered with `Ok` survives a power cut, except for histories and transport memories, which may
//! lose their last moments.

mod directory;
mod platform;

#[cfg(feature = "store")]
mod configs;
#[cfg(feature = "store")]
mod export;
#[cfg(feature = "store")]
mod fault;
#[cfg(feature = "store")]
mod file;
#[cfg(feature = "store")]
mod memory;
#[cfg(feature = "store")]
mod merge;
#[cfg(feature = "store")]
mod migrate;
#[cfg(feature = "store")]
mod reference;
#[cfg(feature = "store")]
mod settings;

pub use directory::{Directory, Environment, Rule};

#[cfg(feature = "store")]
pub use configs::{Draft, Group, StoredConfig};
#[cfg(feature = "store")]
pub use export::{Export, Form, LeftOut};
#[cfg(feature = "store")]
pub use file::Store;
#[cfg(feature = "store")]
pub use memory::{Consent, HistoryRow};
#[cfg(feature = "store")]
pub use merge::{Incoming, MergeOptions, MergeReport, Merged};
#[cfg(feature = "store")]
pub use reference::{ReferenceReport, Shortcut};
#[cfg(feature = "store")]
pub use settings::{Kind, Known, RELAY, SETTINGS, relay_settings};
