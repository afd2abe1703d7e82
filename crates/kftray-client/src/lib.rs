//! The way to the host: every face comes in here, so that all see the same truth.
//!
//! [`Client::connect`] finds a running host, [`Client::connect_or_start`] starts one if there is none and replaces one that
//! is older. Calls are one method per route; [`Client::follow`] keeps a copy of the host's whole state up to date across
//! interruptions.
//!
//! Every failure is an [`Error`](kftray_commons::api::Error) with code, sentence and remedy, whether the host said it or
//! the way to it failed.

mod calls;
mod connect;
mod follow;
mod lease;
mod platform;
mod request;
mod sse;
mod start;
mod version;

pub use calls::ClusterQuery;
pub use connect::{Client, dismiss};
pub use follow::{Follow, Link, State};
pub use lease::HeldLease;
pub use platform::place;
pub use start::StartOptions;

/// What every call answers.
pub type Result<T> = std::result::Result<T, kftray_commons::api::Error>;
