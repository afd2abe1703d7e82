//! The host: the one process per user that owns all forwards, and the API it serves to every face.
//!
//! [`Host::start`] takes the directory's lock, opens the store, serves the socket and starts what shall run;
//! [`Host::wait`] goes on until somebody asks for the end, or nobody needs it any more.
//!
//! ```text
//!  client --HTTP--> serve --> routes --> use cases (configs, actions, leases, pickers, settings)
//!                                          |            |
//!                                       archive       fleet --> engine, kube
//!                                          |            |
//!                                          +--> board --+--> events to every client
//! ```

mod actions;
mod archive;
mod board;
mod clock;
mod configs;
mod core;
pub mod doctor;
mod endpoint;
pub mod errors;
mod foreign;
mod forwards;
mod handover;
mod history;
mod host;
mod leases;
mod lock;
pub mod log;
mod memory;
mod network;
mod pickers;
mod platform;
mod reference;
mod routes;
mod select;
mod serve;
mod settings;
pub mod systemd;
mod tasks;

pub use host::{Host, HostOptions, place};
pub use platform::leave_terminal;
pub use routes::document;
