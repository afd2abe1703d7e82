//! UDP forwards: one task per local socket that sorts datagrams by their peer, and one per flow.
//!
//! ```text
//! local programs --datagrams--> [socket's task] --inbox per peer--> [flow's task] <==> DatagramChannel (relay)
//!       ^                                                                |
//!       +----------------------------- answers --------------------------+
//! ```
//!
//! The socket is drained until it would block, so that a burst reaches the relay's carrier in one write; no timer collects
//! anything.

mod backlog;
mod expiry;
mod flow;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug_span, error, warn};

use backlog::Inbox;
pub(crate) use backlog::Room;

use crate::connection::Shared;
use crate::platform;
use flow::Flow;

/// Flows of one forward. Programs that ask from a new port each time (DNS) have as many as they send in 15 seconds; this
/// is 270 of them a second. Each costs a task here, a stream and a socket at the relay.
pub(crate) const FLOWS: usize = 4_096;

/// What may wait for flows in the whole process, in bytes: 128 flows that all wait with all they may.
pub(crate) const WAITING: usize = 32 * 1024 * 1024;

/// The largest datagram: 65,535 minus the headers of IPv4 and UDP is 65,507; over IPv6 one may be 20 bytes larger.
const DATAGRAM_MAX: usize = 65_535;

/// Datagrams taken from the socket in one go, before answers and ends have their turn.
const BURST: usize = 256;

/// Pause after an error of the socket that is not one peer's: it would repeat at once.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Receives until the forward stops. Flows have no end of their own to be waited for, so that the grace is not for them.
pub(crate) async fn run(shared: Arc<Shared>, socket: UdpSocket) {
    let mut stop = shared.about.stop_signal();
    let mut listener = Listener {
        socket: Arc::new(socket),
        flows: HashMap::new(),
        tasks: JoinSet::new(),
        buffer: vec![0; DATAGRAM_MAX],
        full: false,
        shared,
    };
    loop {
        tokio::select! {
            biased;
            () = stop.stopped() => break,
            Some(ended) = listener.tasks.join_next_with_id() => listener.ended(ended),
            ready = listener.socket.readable() => {
                if let Err(error) = ready.and_then(|()| listener.drain()) {
                    warn!(forward = listener.shared.config.name, %error, "cannot receive for now");
                    sleep(ERROR_PAUSE).await;
                }
            }
        }
    }
    listener.finish().await;
}

struct Listener {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    /// By peer; a flow that has ended may still be here until its task is joined.
    flows: HashMap<SocketAddr, Known>,
    tasks: JoinSet<()>,
    buffer: Vec<u8>,
    /// A flow was refused for want of room; said once until one fits again.
    full: bool,
}

struct Known {
    inbox: Arc<Inbox>,
    task: Id,
}

impl Listener {
    /// Takes datagrams until there is none, or enough for one turn.
    fn drain(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..BURST {
            match self.socket.try_recv_from(&mut self.buffer) {
                Ok((length, peer)) => {
                    let datagram = Bytes::copy_from_slice(self.buffer.get(..length).unwrap_or_default());
                    self.give(peer, datagram, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // A peer that is gone (Windows tells it on the next receive); the others are not concerned.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives a datagram to its flow, or begins one.
    fn give(&mut self, peer: SocketAddr, datagram: Bytes, now: Instant) {
        let tally = &self.shared.about.tally;
        let datagram = match self.flows.get(&peer).map(|known| known.inbox.push(datagram.clone(), now)) {
            Some(Ok(dropped)) => return tally.dropped(dropped),
            Some(Err(datagram)) => datagram,
            None => datagram,
        };
        let Some(permits) = self.permits() else {
            tally.flow_refused();
            tally.dropped(1);
            if !std::mem::replace(&mut self.full, true) {
                warn!(forward = self.shared.config.name, %peer, "there are as many UDP flows as there may be");
            }
            return;
        };
        self.full = false;
        let inbox = Arc::new(Inbox::new(Arc::clone(&self.shared.process.datagrams)));
        // It was just made.
        tally.dropped(inbox.push(datagram, now).unwrap_or(1));
        let flow = Flow {
            shared: Arc::clone(&self.shared),
            socket: Arc::clone(&self.socket),
            peer,
            inbox: Arc::clone(&inbox),
        };
        let span = debug_span!("flow", forward = self.shared.config.name);
        let task = async move {
            flow.run().await;
            drop(permits);
        };
        let task = self.tasks.spawn(task.instrument(span)).id();
        self.flows.insert(peer, Known { inbox, task });
    }

    fn permits(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = Arc::clone(&self.shared.flows).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.shared.process.flows).try_acquire_owned().ok()?;
        Some([own, all])
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    self.shared.about.tally.failed();
                    error!(forward = self.shared.config.name, %error, "a flow's task panicked");
                }
                error.id()
            }
        };
        // Ends come together when a carrier is lost.
        let mut gone = vec![id];
        while let Some(more) = self.tasks.try_join_next_with_id() {
            gone.push(more.map_or_else(|error| error.id(), |(id, ())| id));
        }
        self.flows.retain(|_, known| {
            let ended = gone.contains(&known.task);
            if ended {
                // Nothing, unless it panicked.
                self.shared.about.tally.dropped(known.inbox.close());
            }
            !ended
        });
    }

    async fn finish(mut self) {
        self.tasks.shutdown().await;
        for known in self.flows.values() {
            self.shared.about.tally.dropped(known.inbox.close());
        }
        if let Ok(address) = self.socket.local_addr() {
            self.shared.about.tally.dropped(platform::datagrams_lost(address));
        }
    }
}
