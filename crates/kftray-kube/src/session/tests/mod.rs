//! Tests of a session over in-memory carriers, on paused time.

mod ends;
mod flow;
mod life;
mod open;
pub(crate) mod peer;

use std::sync::{Arc, Weak};

use super::{Budget, Observer, Session};
use crate::connect::Protocol;
use peer::Peer;

/// Nobody is told anything.
struct Nobody;

impl Observer for Nobody {
    fn changed(&self) {}

    fn may_close(&self, _number: u64) -> bool {
        true
    }
}

pub(crate) const BOTH: [Protocol; 2] = [Protocol::WebSocketTunnel, Protocol::Spdy];

fn session_with(protocol: Protocol, number: u64, budget: &Arc<Budget>) -> (Arc<Session>, Peer) {
    let (carrier, peer) = Peer::carrier(protocol);
    let observer: Weak<dyn Observer> = Weak::<Nobody>::new();
    (Session::start(carrier, number, "ns/pod".into(), Arc::clone(budget), observer), peer)
}

/// A session whose first PING is answered.
async fn session(protocol: Protocol) -> (Arc<Session>, Peer) {
    let (session, mut peer) = session_with(protocol, 0, &Arc::default());
    let (proved, ()) = tokio::join!(session.prove(None), async {
        tokio::select! {
            frame = peer.frame() => panic!("{frame:?}"),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
        }
    });
    proved.expect("an answered PING");
    (session, peer)
}
