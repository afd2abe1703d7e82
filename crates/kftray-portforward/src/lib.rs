//! The forwarding engine: the lifecycle of a forward, its listeners, its connections and its counters.
//!
//! [`Engine::start`] takes a [`Config`] and gives a [`Forward`]; everything that happens afterwards is told by
//! [`Forward::status`] and [`Forward::events`]. Kubernetes is only known through [`ports`].

mod accept;
mod choice;
mod client;
pub mod config;
mod connection;
mod counters;
mod directory;
mod engine;
mod event;
mod forward;
mod listener;
mod machine;
mod platform;
pub mod ports;
mod pump;
mod reverse;
mod supervisor;
mod udp;

pub use config::{Balance, Config, DEFAULT_HOLD, ExposeConfig, ForwardConfig, Limits, LocalAddress};
pub use engine::Engine;
pub use event::{Call, Event, ReadyVia, Snapshot};
pub use forward::Forward;
pub use listener::probe;
