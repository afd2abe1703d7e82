//! When a flow that says nothing any more is forgotten.

use std::time::Duration;

use tokio::time::Instant;

/// Silence of both directions after which a flow ends: RFC 4787 (REQ-5) asks NATs for at least two minutes.
const IDLE: Duration = Duration::from_secs(120);

/// The same after an answer from port 53: resolvers ask from a new port each time and are done with one answer; the rest
/// is for a retransmission.
const IDLE_ANSWERED: Duration = Duration::from_secs(15);

/// The port of DNS.
const DNS: u16 = 53;

/// The silence of one flow.
#[derive(Debug)]
pub(crate) struct Expiry {
    last: Instant,
    answered: bool,
    dns: bool,
}

impl Expiry {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last: now, answered: false, dns: false }
    }

    /// The flow goes to this port of the cluster now.
    pub(crate) fn goes_to(&mut self, port: u16) {
        self.dns = port == DNS;
    }

    /// A datagram from the local peer.
    pub(crate) fn asked(&mut self, now: Instant) {
        self.last = now;
        // The next question waits for its answer as long as the first.
        self.answered = false;
    }

    /// A datagram from the cluster.
    pub(crate) fn answered(&mut self, now: Instant) {
        (self.last, self.answered) = (now, true);
    }

    /// When the flow ends if nothing more comes.
    pub(crate) fn deadline(&self) -> Instant {
        self.last + if self.dns && self.answered { IDLE_ANSWERED } else { IDLE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn both_directions_refresh_and_an_answered_question_is_forgotten_soon() {
        let begin = Instant::now();
        let seconds = |expiry: &Expiry| (expiry.deadline() - begin).as_secs();
        let mut expiry = Expiry::new(begin);
        expiry.goes_to(5_353);
        expiry.asked(begin + Duration::from_secs(1));
        expiry.answered(begin + Duration::from_secs(2));
        assert_eq!(seconds(&expiry), 122);
        expiry.goes_to(53);
        assert_eq!(seconds(&expiry), 17);
        expiry.asked(begin + Duration::from_secs(10));
        assert_eq!(seconds(&expiry), 130);
    }
}
