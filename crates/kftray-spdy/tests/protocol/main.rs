//! The promises of the crate, one module per protocol.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a test fails by panicking, its helpers too"
)]

mod chain;
mod channel;
mod client;
mod frames;
mod websocket;
