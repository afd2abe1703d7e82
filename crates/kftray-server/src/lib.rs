//! The relay: what runs in the cluster for a kftray client, as a library, so that tests run it in their own process.
//!
//! ```text
//! port-forward -> carrier (hello, yamux) -> stream -> tcp | udp -> dial (resolve, reach) -> the cluster
//!                     ^                              listen -> expose (ports, owners)
//!                     +-- incoming connections <-----------------+
//! ```
//!
//! Everything runs on one thread. What a client may do is bounded by [`settings`]; what it may reach by [`reach`].

pub mod health;
pub mod legacy;
pub mod mux;
pub mod reach;
pub mod relay;
pub mod resolve;
pub mod settings;

mod carrier;
mod dial;
mod expose;
mod kept;
mod limits;
mod metrics;
mod page;
mod stalls;
mod stream;
mod tcp;
mod udp;
