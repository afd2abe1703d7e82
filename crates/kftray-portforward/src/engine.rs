//! The engine: what all forwards of a process share, and where forwards are started.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::config::{Config, Limits};
use crate::forward::Forward;
use crate::ports::{Dial, Resolve};
use crate::udp::{self, Room};

/// Starts forwards. Cheap to clone; forwards live by their own handles, not by the engine's.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Process>,
}

/// What all forwards of one engine share.
pub(crate) struct Process {
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) dial: Arc<dyn Dial>,
    /// One permit per connection that waits for a pod.
    pub(crate) held: Arc<Semaphore>,
    /// One permit per open connection.
    pub(crate) open: Arc<Semaphore>,
    /// One permit per UDP flow.
    pub(crate) flows: Arc<Semaphore>,
    /// Room for datagrams that wait for their flows.
    pub(crate) datagrams: Arc<Room>,
    /// Counts changes of network, wake-ups included.
    pub(crate) network: watch::Sender<u64>,
}

impl Engine {
    /// An engine over a way to find pods and a way to reach them.
    #[must_use]
    pub fn new(resolve: Arc<dyn Resolve>, dial: Arc<dyn Dial>, limits: Limits) -> Self {
        Self { shared: Arc::new(Process::new(resolve, dial, limits)) }
    }

    /// Starts a forward and returns at once; what becomes of it is told by the handle. Whatever goes wrong, a busy port
    /// included, is a status and never a panic.
    ///
    /// Must be called inside a tokio runtime with I/O and time.
    #[must_use]
    pub fn start(&self, config: impl Into<Config>) -> Forward {
        self.start_with(config, Vec::new())
    }

    /// The same with TCP listeners that are open already, those of [`Forward::listeners`] in another process: they are used
    /// in place of new ones, whatever the configuration says about addresses and port. Without any, new ones are opened; an
    /// expose and a UDP forward have no use for them.
    #[must_use]
    pub fn start_with(&self, config: impl Into<Config>, listeners: Vec<std::net::TcpListener>) -> Forward {
        Forward::start(Arc::clone(&self.shared), config.into(), listeners)
    }

    /// The machine woke up or changed network: every transport proves itself now, and nobody waits for a backoff.
    pub fn network_changed(&self) {
        self.shared.dial.network_changed();
        self.shared.network.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

impl Process {
    pub(crate) fn new(resolve: Arc<dyn Resolve>, dial: Arc<dyn Dial>, limits: Limits) -> Self {
        Self {
            resolve,
            dial,
            held: Arc::new(Semaphore::new(limits.held.min(Semaphore::MAX_PERMITS))),
            open: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            flows: Arc::new(Semaphore::new(limits.flows.min(Semaphore::MAX_PERMITS))),
            datagrams: Room::new(udp::WAITING),
            network: watch::Sender::new(0),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("held_free", &self.shared.held.available_permits())
            .field("connections_free", &self.shared.open.available_permits())
            .finish_non_exhaustive()
    }
}
