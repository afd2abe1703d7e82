//! What a caller has sent to a client that may be dead already, so that it can be offered to the next one.
//!
//! A container runtime keeps the tunnel of a client that was killed for about a second, and whatever is offered to it
//! meanwhile gets no reply. A request may be sent a second time if that does no harm (RFC 9110, 9.2.2), or if nothing of it
//! was sent yet. Hence, for HTTP: what begins as an idempotent request goes out at once and is kept until the first byte of
//! an answer; anything else waits for the client's word that it has taken the connection, a round trip, and is then sent
//! once. Raw TCP goes out at once and once.

use bytes::BytesMut;
use kftray_relay_proto::open::Mode;
use kftray_relay_proto::record::DATA_HEADER;

use crate::tcp::RECORD;

/// The most that is kept of one caller: what one read brings. Nearly every head of a request fits in.
const KEPT: usize = RECORD - DATA_HEADER;

/// Methods whose requests may be sent twice, and whether they have a body, which is then what comes behind the head.
const IDEMPOTENT: [(&[u8], bool); 6] = [
    (b"GET ", false),
    (b"HEAD ", false),
    (b"OPTIONS ", false),
    (b"TRACE ", false),
    (b"PUT ", true),
    (b"DELETE ", true),
];

/// A caller's bytes, as long as they may be sent to another client.
#[derive(Debug)]
pub(crate) struct Kept {
    mode: Mode,
    bytes: BytesMut,
}

impl Kept {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { mode, bytes: BytesMut::new() }
    }

    /// Takes note of more; false if it is too much to be kept.
    pub(crate) fn add(&mut self, more: &[u8]) -> bool {
        let fits = self.bytes.len() + more.len() <= KEPT;
        if fits {
            self.bytes.extend_from_slice(more);
        }
        fits
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether they have to wait until the client has taken the connection.
    pub(crate) fn must_wait(&self) -> bool {
        self.mode == Mode::Http && !self.may_be_repeated()
    }

    /// Whether it does no harm if a second client gets them as well.
    pub(crate) fn may_be_repeated(&self) -> bool {
        let bytes: &[u8] = &self.bytes;
        let known = IDEMPOTENT.into_iter().find(|(method, _)| bytes.starts_with(method));
        let Some((_, has_body)) = known.filter(|_| self.mode == Mode::Http) else { return false };
        // What is behind the head of a request without a body is another request, of whatever kind.
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        has_body || head.is_none_or(|head| head + 4 == bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(mode: Mode, text: &str) -> Kept {
        let mut kept = Kept::new(mode);
        assert!(kept.add(text.as_bytes()));
        kept
    }

    #[test]
    fn only_what_is_idempotent_is_sent_twice() {
        for good in ["GET / HTTP/1.1\r\n\r\n", "GET /unfinished", "PUT /x HTTP/1.1\r\n\r\nbody", "DELETE /x "]
        {
            let kept = kept(Mode::Http, good);
            assert!(kept.may_be_repeated() && !kept.must_wait(), "{good:?}");
        }
        for bad in [
            "",
            "G",
            "GETX ",
            "POST / HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n",
        ] {
            let kept = kept(Mode::Http, bad);
            assert!(!kept.may_be_repeated() && kept.must_wait(), "{bad:?}");
        }
        let raw = kept(Mode::Tcp, "GET / HTTP/1.1\r\n\r\n");
        assert!(!raw.may_be_repeated() && !raw.must_wait(), "nobody knows what it is");
    }

    #[test]
    fn no_more_than_a_read_is_kept() {
        let mut kept = Kept::new(Mode::Http);
        assert!(kept.add(&[b'x'; KEPT]));
        assert!(!kept.add(b"x"));
        assert_eq!(kept.bytes().len(), KEPT);
    }
}
