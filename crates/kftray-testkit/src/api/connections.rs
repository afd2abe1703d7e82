//! The TCP connections that exist, so that faults can freeze and end them from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::portforward::Protocol;
use crate::sync::lock;

/// Which connections a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Requests and watches.
    Rest,
    /// Upgraded to a port-forward.
    Carriers,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// TCP RST.
    Reset,
    /// TCP FIN, no TLS closure alert: the stream is cut short.
    Close,
}

/// One connection as seen from outside.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    frozen: watch::Sender<bool>,
    ending: watch::Sender<Option<Ending>>,
    carrier: Mutex<Option<Protocol>>,
    registry: Arc<Connections>,
}

impl Connection {
    pub(crate) fn frozen(&self) -> watch::Receiver<bool> {
        self.frozen.subscribe()
    }

    /// Waits until the connection is to end from outside.
    pub(crate) async fn ended(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        loop {
            if let Some(ending) = *ending.borrow_and_update() {
                return ending;
            }
            if ending.changed().await.is_err() {
                // The sender is in `self`: unreachable, but never a reason to end anything.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn mark_carrier(&self, protocol: Protocol) {
        *lock(&self.carrier) = Some(protocol);
    }

    /// Ends it; also usable by the connection's own code.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.send_replace(Some(ending));
    }

    fn is(&self, which: Which) -> bool {
        match which {
            Which::All => true,
            Which::Rest => lock(&self.carrier).is_none(),
            Which::Carriers => lock(&self.carrier).is_some(),
        }
    }
}

/// Takes the connection out of the registry when its task ends.
#[derive(Debug)]
pub(crate) struct Registered(pub(crate) Arc<Connection>);

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.0.registry.open).connections.remove(&self.0.id);
    }
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Arc<Connection>>,
}

/// All open connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
}

impl Connections {
    pub(crate) fn register(self: &Arc<Self>, frozen: bool) -> Registered {
        let mut open = lock(&self.open);
        let id = open.next;
        open.next += 1;
        let connection = Arc::new(Connection {
            id,
            frozen: watch::Sender::new(frozen),
            ending: watch::Sender::new(None),
            carrier: Mutex::new(None),
            registry: Arc::clone(self),
        });
        open.connections.insert(id, Arc::clone(&connection));
        Registered(connection)
    }

    pub(crate) fn freeze(&self, which: Which) {
        self.each(which, |connection| {
            connection.frozen.send_replace(true);
        });
    }

    pub(crate) fn thaw(&self) {
        self.each(Which::All, |connection| {
            connection.frozen.send_replace(false);
        });
    }

    pub(crate) fn end(&self, which: Which, ending: Ending) {
        self.each(which, |connection| connection.end(ending));
    }

    fn each(&self, which: Which, action: impl Fn(&Connection)) {
        lock(&self.open)
            .connections
            .values()
            .filter(|connection| connection.is(which))
            .for_each(|c| action(c));
    }
}
