//! What every part of kftray agrees on, and nothing else: what a forward is, how it is written down, what state it can be
//! in, and how a failure is told.
//!
//! Pure: no sockets, no runtime, no clock, no Kubernetes. The one exception is [`store`], which keeps a file.

pub mod access;
pub mod api;
pub mod border;
pub mod check;
pub mod event;
pub mod names;
pub mod problem;
pub mod relay;
pub mod selector;
pub mod spec;
pub mod status;
pub mod store;
pub mod tags;
pub mod target;

pub use access::{Access, Network, Secret};
pub use event::Event;
pub use problem::{Code, Cure, Problem};
pub use spec::{ForwardId, ForwardSpec, Via, Workload};
pub use status::{Counters, Status};
pub use target::{ClusterRef, ContextRef, RemotePort, Target, TargetObject, WorkloadKind};
