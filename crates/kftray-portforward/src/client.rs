//! The local end of one connection: the accepted socket, what its client has sent so far, and how it ends.
//!
//! Until the pod has answered, everything the client sends is kept, so that it can be sent again to another pod. The
//! socket ends in one of two ways: orderly, or with a reset. A reset is the default, also when the task is aborted or
//! panics: a client must never take a cut-off answer for a whole one.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::platform::{self, PeerState};

/// What is taken along with the opening of the stream: one read, the largest that fits a request with cookies.
const FIRST_READ: usize = 16 * 1024;

/// What is kept for another try: large enough for the headers and forms that clients send before they expect an answer
/// (research/datapath.md 4.10), small enough to hold for a thousand waiting connections.
pub(crate) const REPLAY_LIMIT: usize = 64 * 1024;

/// How long bytes are still read (and thrown away) after the pod's end. Closing a socket with unread bytes resets it, and
/// the reset may overtake the last bytes of the answer.
const DRAIN: Duration = Duration::from_secs(2);

/// Pause before the first keepalive probe to a client on another machine, so that a vanished one is noticed some time.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// The client will send no more.
    pub(crate) eof: bool,
    pub(crate) sent: Replay,
    orderly: bool,
}

/// What the client has sent while the pod has not answered.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    chunks: Vec<Bytes>,
    bytes: usize,
    /// How many chunks the present channel has been given.
    given: usize,
    state: ReplayState,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ReplayState {
    /// Everything is kept.
    #[default]
    Whole,
    /// More was sent than is kept, or the pod has answered: no other try.
    Over,
}

impl Client {
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        if !peer.ip().to_canonical().is_loopback() {
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        }
        Ok(Self { stream, peer, eof: false, sent: Replay::default(), orderly: false })
    }

    /// Takes what has already arrived, without waiting. The runtime does not know yet whether the socket is readable, so
    /// the socket itself is asked. Returns the number of bytes.
    pub(crate) fn take_first(&mut self) -> io::Result<usize> {
        let mut buffer = [0; FIRST_READ];
        match (&*SockRef::from(&self.stream)).read(&mut buffer) {
            Ok(0) => self.eof = true,
            Ok(length) => {
                self.sent.keep(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default()));
                return Ok(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(0)
    }

    /// While nothing can be sent on: keeps what the client sends, as long as there is room. Returns the number of bytes
    /// at the next arrival; fails when the client has gone away. Cancel-safe.
    pub(crate) async fn take_more(&mut self) -> io::Result<usize> {
        loop {
            let room = REPLAY_LIMIT.saturating_sub(self.sent.bytes).min(FIRST_READ);
            if self.eof || room == 0 {
                self.stream.ready(Interest::ERROR).await?;
                return Err(self
                    .stream
                    .take_error()?
                    .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
            }
            self.stream.readable().await?;
            let mut buffer = BytesMut::zeroed(room);
            match self.stream.try_read(&mut buffer) {
                Ok(0) => self.eof = true,
                Ok(length) => {
                    buffer.truncate(length);
                    self.sent.keep(buffer.freeze());
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the client's program still holds its socket.
    pub(crate) fn peer_state(&self) -> PeerState {
        self.stream.local_addr().map_or(PeerState::Unknown, |local| platform::peer_state(local, self.peer))
    }

    /// Ends orderly after the answer has been written and its end told: reads what still comes for a moment, then closes.
    pub(crate) async fn close(mut self) {
        self.orderly = true;
        if !self.eof {
            let deadline = Instant::now() + DRAIN;
            // On the heap: in the task it would cost every idle connection as much.
            let mut sink = vec![0; 4096];
            // The bytes go nowhere, and so do errors: the pod has ended the connection.
            while let Ok(Ok(())) = timeout_at(deadline, self.stream.readable()).await {
                match self.stream.try_read(&mut sink) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.orderly {
            // Where it fails the socket is gone already.
            drop(self.stream.set_zero_linger());
        }
    }
}

impl Replay {
    fn keep(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push(chunk);
    }

    /// All of it in one piece for the opening of a channel, which has then been given it.
    pub(crate) fn give_all(&mut self) -> Bytes {
        if self.chunks.len() > 1 {
            let whole = self.chunks.concat();
            self.chunks = vec![whole.into()];
        }
        self.given = self.chunks.len();
        self.chunks.first().cloned().unwrap_or_default()
    }

    /// The next chunk that the present channel has not been given.
    pub(crate) fn give(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.get(self.given)?.clone();
        self.given += 1;
        if self.state == ReplayState::Over {
            self.forget();
        }
        Some(chunk)
    }

    /// Whether something waits to be given.
    pub(crate) fn waits(&self) -> bool {
        self.given < self.chunks.len()
    }

    /// A chunk goes straight to the channel; keeps it for another try while there is room.
    pub(crate) fn pass(&mut self, chunk: &Bytes) {
        if self.state == ReplayState::Over {
            return;
        }
        if self.bytes + chunk.len() > REPLAY_LIMIT {
            self.close();
            return;
        }
        self.keep(chunk.clone());
        self.given = self.chunks.len();
    }

    /// The pod has answered: there will be no other try.
    pub(crate) fn close(&mut self) {
        self.state = ReplayState::Over;
        self.forget();
    }

    /// Drops what has been given.
    fn forget(&mut self) {
        self.chunks.drain(..self.given);
        self.given = 0;
    }

    /// Whether another channel could be given everything.
    pub(crate) fn is_whole(&self) -> bool {
        self.state == ReplayState::Whole
    }

    /// Whether the present channel has been given nothing.
    pub(crate) fn nothing_given(&self) -> bool {
        self.is_whole() && self.given == 0
    }

    /// Another channel starts from the beginning.
    pub(crate) fn rewind(&mut self) {
        self.given = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_gives_everything_again_until_the_pod_answers() {
        let mut replay = Replay::default();
        replay.keep(Bytes::from_static(b"ab"));
        replay.keep(Bytes::from_static(b"cd"));
        assert_eq!(replay.give_all(), "abcd");
        replay.pass(&Bytes::from_static(b"ef"));
        assert!(replay.is_whole() && !replay.nothing_given() && !replay.waits());
        replay.rewind();
        assert_eq!(replay.give_all(), "abcdef");
        replay.close();
        assert!(!replay.is_whole() && replay.give().is_none());
        replay.pass(&Bytes::from_static(b"gh"));
        assert!(!replay.waits(), "what goes straight through is not kept after the answer");
    }

    #[test]
    fn bytes_not_yet_given_survive_the_answer() {
        let mut replay = Replay::default();
        replay.keep(Bytes::from_static(b"ab"));
        assert_eq!(replay.give_all(), "ab");
        replay.keep(Bytes::from_static(b"cd"));
        replay.keep(Bytes::from_static(b"ef"));
        replay.close();
        assert_eq!(replay.give().as_deref(), Some(&b"cd"[..]));
        assert_eq!(replay.give().as_deref(), Some(&b"ef"[..]));
        assert_eq!(replay.give(), None);
    }

    #[test]
    fn too_much_for_a_replay_is_passed_but_not_kept() {
        let mut replay = Replay::default();
        replay.pass(&Bytes::from(vec![0; REPLAY_LIMIT]));
        assert!(replay.is_whole());
        replay.pass(&Bytes::from_static(b"x"));
        assert!(!replay.is_whole() && !replay.waits() && replay.chunks.is_empty());
    }
}
