//! A Kubernetes cluster in the process: the true protocols, the true vices, and every fault as a switch.
//!
//! [`FakeCluster`] is what the tests of the adapter and the engine run against, and what `kftui demo` runs on. It needs
//! no root, no network beyond loopback and no external program, and is up in some milliseconds. Clients reach it through
//! a real socket with real TLS, by the kubeconfig that it writes; kubectl works against it.
//!
//! ```
//! use kftray_testkit::{FakeCluster, handlers};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = FakeCluster::start().await?;
//! cluster.deployment("web").replicas(3).port("http", 8080, handlers::http_hello()).create()?;
//! cluster.service("web").port(80, "http").create()?;
//! cluster.wait_ready("default", "web", 3).await?;
//! let victim = cluster.pods("default", "web").remove(0);
//! cluster.kill_pod("default", &victim);
//! cluster.wait_ready("default", "web", 3).await?;
//! println!("KUBECONFIG={}", cluster.kubeconfig_path().display());
//! # Ok(()) }
//! ```
//!
//! Where it is kinder than reality: there is one process instead of API server, kubelet and runtime, so the socket
//! buffers between them are missing; a black hole still acknowledges TCP segments (the kernel does that), so only what
//! works above TCP notices it; there is no flow schema, admission or validation worth the name.

mod api;
mod cluster;
mod controller;
mod counters;
mod faults;
mod kubeconfig;
mod pki;
mod pods;
mod portforward;
pub mod proxy;
mod sync;
mod workload;

pub use api::auth::Rule;
pub use api::connections::{Ending, Which};
pub use api::kinds::Kind;
pub use api::status::Status;
pub use cluster::{ADMIN, Builder, ClusterError, DEFAULT_NAMESPACE, FakeCluster, User};
pub use counters::{Counters, Gauge, Tally};
pub use faults::{DialFailure, Faults, Pings};
pub use kubeconfig::{Context, ExecPlugin, Kubeconfig, Login, PluginAnswer, Trust};
pub use pki::{PkiError, SERVER_NAME, ServerCertificate};
pub use pods::{BoxFuture, Handler, Inbound, PodHandler, PodIdentity, PodStream, handlers};
pub use portforward::Protocol;
pub use portforward::vices::Timings;
pub use workload::{ServiceBuilder, TargetPort, WorkloadBuilder};
