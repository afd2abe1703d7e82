//! Everything between "this pod" and an open byte stream towards it: name look-up, TCP, proxies, TLS, the HTTP upgrade and the
//! choice of protocol.
//!
//! kube-rs can do the upgrade too, but dials without `TCP_NODELAY` (a 40 ms stall for each new connection), knows only the
//! oldest of the three protocols, and matches `NO_PROXY` against the proxy's own name (`docs/decisions`).

mod carrier;

pub use carrier::{Carrier, CarrierIo, Protocol};
