//! What the pool needs from the outside: upgraded connections. Dialling, TLS, proxies, credentials, the choice of protocol
//! and its memory are behind it, so that tests can hand in a pipe.

use futures::future::BoxFuture;
use kftray_portforward::ports::{DialError, Endpoint};

use crate::connect::Carrier;

/// Yields upgraded connections to a pod's runtime.
///
/// Errors carry [`Delivery::Nothing`](kftray_portforward::ports::Delivery::Nothing), since nothing of a client's bytes is
/// sent before the upgrade is done.
pub(crate) trait Upgrade: Send + Sync + 'static {
    /// A carrier for many streams: SPDY, in a WebSocket or direct, whichever is better for this cluster. The port of
    /// `endpoint` does not matter and the application is not touched. `None` when the cluster speaks neither and only
    /// [`Self::single`] is left; the implementation remembers that, so that asking again is cheap.
    fn session(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Option<Carrier>, DialError>>;

    /// A carrier for one connection with the legacy channel protocol: the runtime dials `endpoint.port` at once.
    fn single(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Carrier, DialError>>;
}
