//! yamux' pings, held back for some milliseconds, so that its windows become as large as the way between client and relay
//! needs.
//!
//! The `yamux` crate doubles a stream's window as long as half of it is used up within two round trips, and measures the round
//! trip with a ping that it sends when a carrier begins, and every 10 s. That ping finds the way empty. A transfer fills the
//! queues of the four processes in between (session, API server, kubelet, container runtime), and then a round trip takes many
//! times as long: the window stays too small, and the transfer waits for credit.

/// Bytes of a frame's header (hashicorp's specification of yamux: version, type, flags, stream, length).
const HEADER: usize = 12;

const DATA: u8 = 0;
const PING: u8 = 2;
/// The flag of a ping that asks.
const SYN: u8 = 1;

/// Follows the frames that yamux writes, and takes its pings out. What is written must be a header as a whole, or bytes of the
/// body that it announced: that is how the `yamux` crate writes.
#[derive(Debug, Default)]
pub struct Pings {
    /// Bytes of a body that are still to come.
    body: usize,
    held: Option<[u8; HEADER]>,
}

impl Pings {
    /// How long a ping is held back. With 5 ms a window becomes what 200 MB/s use in some 10 ms, 2 to 4 MiB.
    pub const HOLD: std::time::Duration = std::time::Duration::from_millis(5);

    /// Whether this is a ping. Then it is kept here and must not be sent before [`Pings::HOLD`] is over.
    pub fn hold(&mut self, written: &[u8]) -> bool {
        let Ok(header) = <[u8; HEADER]>::try_from(written) else { return false };
        let [_, kind, _, flags, ..] = header;
        let is_ping = self.body == 0 && kind == PING && flags & SYN != 0;
        if is_ping {
            self.held = Some(header);
        }
        is_ping
    }

    /// Takes note of bytes that were written. Returns the stream of the frame that begins with them.
    pub fn passed(&mut self, written: &[u8]) -> Option<u32> {
        if self.body > 0 {
            self.body = self.body.saturating_sub(written.len());
            return None;
        }
        let [_, kind, _, _, s0, s1, s2, s3, length @ ..] = <[u8; HEADER]>::try_from(written).ok()?;
        if kind == DATA {
            self.body = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        }
        Some(u32::from_be_bytes([s0, s1, s2, s3]))
    }

    /// The ping that was held back, if it may stand here: between two frames.
    pub fn release(&mut self) -> Option<[u8; HEADER]> {
        if self.body > 0 { None } else { self.held.take() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let [a, b, c, d] = length.to_be_bytes();
        vec![0, kind, 0, flags, 0, 0, 0, 1, a, b, c, d]
    }

    #[test]
    fn a_ping_stands_between_frames() {
        let mut pings = Pings::default();
        let (ping, pong, data) = (header(PING, SYN, 7), header(PING, 2, 7), header(DATA, SYN, 24));
        assert!(!pings.hold(&pong) && !pings.hold(&data) && !pings.hold(b"short"));
        assert!(pings.hold(&ping));
        pings.passed(&pong);
        assert_eq!(pings.passed(&data), Some(1));
        assert_eq!(pings.release(), None, "a body is to come");
        // Bytes of a body that look like a ping are none.
        assert!(!pings.hold(&ping));
        assert_eq!(pings.passed(&ping), None);
        assert_eq!(pings.release(), None);
        pings.passed(&[0; 12]);
        assert_eq!(pings.release().map(Vec::from), Some(ping));
        assert_eq!(pings.release(), None);
    }
}
