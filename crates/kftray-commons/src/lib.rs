//! What every part of kftray agrees on, and nothing else: what a forward is, how it is written down, what state it can be
//! in, and how a failure is told.
//!
//! Pure: no sockets, no runtime, no clock, no Kubernetes.

pub mod problem;
pub mod status;
pub mod target;

pub use problem::{Code, Cure, Problem};
pub use status::{Counters, Status};
pub use target::{ClusterRef, ContextRef, RemotePort, Target, TargetObject, WorkloadKind};
