//! Everything between "this pod" and an open byte stream towards it: name look-up, TCP, proxies, TLS, the HTTP upgrade and the
//! choice of protocol.
//!
//! kube-rs can do the upgrade too, but dials without `TCP_NODELAY` (a 40 ms stall for each new connection), knows only the
//! oldest of the three protocols, and matches `NO_PROXY` against the proxy's own name (`docs/decisions`).

mod answer;
mod carrier;
mod dial;
mod head;
mod no_proxy;
mod origin;
mod rest;
mod route;
mod tcp;
mod tls;
mod transport;
mod tunnel;
mod upgrade;

pub(crate) use answer::unauthorized;
pub use answer::{Asked, request_problem};
pub use carrier::{Carrier, CarrierIo, Protocol};
pub(crate) use dial::Dialer;
pub(crate) use origin::Origin;
pub(crate) use rest::Rest;
pub(crate) use route::{ProxyKind, Route};
pub(crate) use tls::{Tls, Trust};
pub(crate) use transport::session_order;
pub use transport::{Transport, TransportChoice, TransportMemory};
pub(crate) use upgrade::{Refusal, RefusalKind, Wish, upgrade};

/// How we introduce ourselves to API servers and proxies; it shows in audit logs.
pub(crate) const USER_AGENT: &str = concat!("kftray/", env!("CARGO_PKG_VERSION"));
