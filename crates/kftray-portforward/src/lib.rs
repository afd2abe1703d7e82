//! The forwarding engine: the lifecycle of a forward, its listeners, its connections and its counters.
//!
//! Kubernetes is only known through [`ports`].

pub mod ports;
