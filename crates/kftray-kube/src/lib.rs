//! Kubernetes behind the engine's traits: kubeconfig, credentials, watches, port-forward transports, session pool.
//!
//! Life of a connection: `resolve` turns a target into endpoints over the shared REST client of a [`Cluster`]; `pool` keeps
//! one session per pod, opened by [`Cluster::upgrade`]; `session` carries the streams. What the Kubernetes API cannot do goes by
//! way of `relay`, over the same pool.

mod cluster;
mod config;
mod connect;
pub mod diagnose;
pub mod discover;
mod pool;
mod ports;
mod relay;
mod resolve;
mod session;

pub use cluster::{Cluster, ClusterState, Clusters};
pub use config::{Contexts, Environment, KnownContext};
pub use connect::{
    Asked, Carrier, CarrierIo, Protocol, Transport, TransportChoice, TransportMemory, request_problem,
};
pub use ports::{KubeOptions, KubePorts};
pub use relay::deploy;
pub use resolve::Resolver;
