//! yamux over one carrier: batched writes, buffered reads, and the time the other side was last heard.
//!
//! The `yamux` crate writes each frame's header and body by themselves and flushes after each frame, and reads headers in
//! pieces of 12 bytes. [`Carrier`] puts buffers in between: all small frames of one poll leave in one write. Large bodies pass
//! the buffers by, in both directions: they go with the system call that moves what lies before and behind them.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use futures::io::{AsyncRead as FuturesRead, AsyncWrite as FuturesWrite};
use kftray_relay_proto::hello::Purpose;
use kftray_relay_proto::pace::Pace;
use kftray_relay_proto::pings::Pings;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use yamux::{ConnectionError, Mode};

/// Largest body of a frame that is sent, and so the largest record (65,509 bytes with its header). Nearly twice what the
/// container runtime copies at once: below it the relay's own system calls cost more than they need, above it small frames
/// only wait longer.
pub(crate) const FRAME: usize = 60 * 1024;

/// Bytes of small frames that wait for one write: some hundred of them, and little against what a client's streams may hold.
const WRITE_BUFFER: usize = 64 * 1024;

/// Bytes read ahead: some hundred small frames.
const READ_BUFFER: usize = 16 * 1024;

/// A body from this size on is not copied through the buffers: a copy of less is cheaper than a system call of its own.
const DIRECT: usize = 4 * 1024;

/// What all streams of a carrier together may receive beyond 256 KiB each, when yamux finds a long fat path: what one upload
/// needs at 80 MB/s over 100 ms, and little enough for a container of 128 MiB with several clients.
const WINDOW_GROWTH: usize = 8 * 1024 * 1024;

/// Streams that yamux itself takes before it ends the connection. Out of reach: the relay refuses streams beyond its own
/// limit one by one, with a reason, and the others go on.
const YAMUX_STREAMS: usize = 1 << 20;

/// yamux over a TCP connection.
pub struct Carrier {
    yamux: yamux::Connection<Io>,
    io: Io,
}

impl Carrier {
    /// Begins yamux on a socket; `leftover` was read behind the hello.
    pub fn new(socket: TcpStream, leftover: &[u8], mode: Mode, purpose: Purpose, now: Instant) -> Self {
        let mut read = leftover.to_vec();
        read.resize(READ_BUFFER.max(leftover.len()), 0);
        let buffers = Buffers {
            socket,
            read,
            begin: 0,
            end: leftover.len(),
            write: BytesMut::new(),
            pings: Pings::default(),
            ping_due: None,
            pace: Pace::of(purpose),
            streams: 0,
            turn: None,
            failed: None,
            heard: now,
        };
        let io = Io(Arc::new(Mutex::new(buffers)));
        let mut config = yamux::Config::default();
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(YAMUX_STREAMS);
        let windows = YAMUX_STREAMS * yamux::DEFAULT_CREDIT as usize;
        config.set_max_connection_receive_window(windows.checked_add(WINDOW_GROWTH));
        config.set_split_send_size(FRAME);
        Self { yamux: yamux::Connection::new(io.clone(), config, mode), io }
    }

    /// How many streams there are: many share writes.
    pub fn has_streams(&self, streams: usize) {
        self.io.lock().streams = streams;
    }

    /// The next stream that the other side opens; `None` at the end. Nothing moves on any stream unless this is polled.
    pub fn poll_inbound(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<yamux::Stream, ConnectionError>>> {
        let inbound = self.yamux.poll_next_inbound(cx);
        if inbound.is_ready() {
            return inbound;
        }
        let mut buffers = self.io.lock();
        let Poll::Ready(Err(error)) = buffers.poll_turn(cx) else { return Poll::Pending };
        buffers.failed = Some(error);
        drop(buffers);
        // yamux hears of it with its next flush, and ends all streams.
        self.yamux.poll_next_inbound(cx)
    }

    /// Opens a stream to the other side.
    pub fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, ConnectionError>> {
        self.yamux.poll_new_outbound(cx)
    }

    /// Says goodbye and ends the connection. Streams that somebody still waits on do not hear of it (rust-yamux issue 216): a
    /// connection that is lost is to be dropped instead, which ends them.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.yamux.poll_close(cx)
    }

    /// When the last bytes came.
    pub fn heard(&self) -> Instant {
        self.io.lock().heard
    }
}

struct Buffers {
    socket: TcpStream,
    /// What was read ahead lies in `begin..end`.
    read: Vec<u8>,
    begin: usize,
    end: usize,
    write: BytesMut,
    pings: Pings,
    /// When the ping that is held back is due.
    ping_due: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// Streams of the carrier, which decide about it.
    streams: usize,
    /// When what waits may go.
    turn: Option<Pin<Box<Sleep>>>,
    /// Why what waited could not be handed on; yamux is still to hear of it.
    failed: Option<io::Error>,
    heard: Instant,
}

impl Buffers {
    /// Hands on what waits as soon as it is due.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ping_due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready())
            && let Some(ping) = self.pings.release()
        {
            self.ping_due = None;
            self.write.extend_from_slice(&ping);
        }
        if self.write.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Some(due) = self.pace.due(Instant::now().into_std(), self.streams) {
            let turn = self.turn.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            ready!(turn.as_mut().poll(cx));
        }
        self.poll_drain(cx)
    }

    /// Hands everything that waits to the socket.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.write))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write.advance(written);
        }
        self.flushed();
        Poll::Ready(Ok(()))
    }

    /// Writes what waits and `bytes` behind it; says how many of `bytes` were taken.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let both = [IoSlice::new(&self.write), IoSlice::new(bytes)];
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &both))?;
            let waited = self.write.len();
            self.write.advance(written.min(waited));
            if written >= waited {
                self.flushed();
            }
            if written == 0 || written > waited {
                // Nothing at all makes yamux say so.
                return Poll::Ready(Ok(written.saturating_sub(waited)));
            }
        }
    }

    /// Nothing waits any more.
    fn flushed(&mut self) {
        self.turn = None;
        self.pace.flushed(Instant::now().into_std());
    }

    /// Reads ahead.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = ReadBuf::new(&mut self.read);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut space))?;
        (self.begin, self.end) = (0, space.filled().len());
        self.heard = Instant::now();
        Poll::Ready(Ok(()))
    }

    /// Fills `out` first and reads ahead with what follows. Nothing must be there that was read before.
    fn poll_read_through(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let mut both = [IoSliceMut::new(out), IoSliceMut::new(&mut self.read)];
            match self.socket.try_read_vectored(&mut both) {
                Ok(length) => {
                    self.heard = Instant::now();
                    (self.begin, self.end) = (0, length.saturating_sub(out.len()));
                    return Poll::Ready(Ok(length.min(out.len())));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// The socket as yamux sees it; shared with [`Carrier`], which decides when buffers are flushed.
#[derive(Clone)]
struct Io(Arc<Mutex<Buffers>>);

impl Io {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FuturesRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.lock();
        if buffers.begin == buffers.end {
            if out.len() >= DIRECT {
                return buffers.poll_read_through(cx, out);
            }
            ready!(buffers.poll_fill(cx))?;
        }
        let there = buffers.read.get(buffers.begin..buffers.end).unwrap_or_default();
        let length = there.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..length), there.get(..length)) {
            to.copy_from_slice(from);
        }
        buffers.begin += length;
        Poll::Ready(Ok(length))
    }
}

impl FuturesWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.lock();
        if bytes.len() >= DIRECT {
            let written = ready!(buffers.poll_write_through(cx, bytes))?;
            buffers.pings.passed(bytes.get(..written).unwrap_or_default());
            return Poll::Ready(Ok(written));
        }
        if buffers.write.len() >= WRITE_BUFFER {
            ready!(buffers.poll_drain(cx))?;
        }
        if buffers.pings.hold(bytes) {
            buffers.ping_due = Some(Box::pin(sleep(Pings::HOLD)));
            return Poll::Ready(Ok(bytes.len()));
        }
        if let Some(stream) = buffers.pings.passed(bytes) {
            buffers.pace.frame(stream);
        }
        buffers.write.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Not yet: [`Carrier::poll_inbound`] flushes when yamux has nothing more to say.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.lock().failed.take().map_or(Ok(()), Err))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffers = self.lock();
        ready!(buffers.poll_drain(cx))?;
        ready!(Pin::new(&mut buffers.socket).poll_shutdown(cx))?;
        // To its end: a socket that is closed with bytes unread resets the connection, and what is on its way with it.
        loop {
            ready!(buffers.poll_fill(cx))?;
            if buffers.end == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use std::time::Duration;

    use futures::stream::Stream as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Closed with bytes unread, a socket resets the connection and takes along what the other side has yet to get.
    #[tokio::test]
    async fn a_closed_carrier_stays_until_the_other_side_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        let mut carrier = Carrier::new(near, &[], Mode::Server, Purpose::Tcp, Instant::now());
        let soon = Duration::from_millis(200);
        for _ in 0..2 {
            far.write_all(b"what it says meanwhile").await.unwrap();
            assert!(timeout(soon, poll_fn(|cx| carrier.poll_close(cx))).await.is_err());
        }
        let mut goodbye = Vec::new();
        far.read_to_end(&mut goodbye).await.unwrap();
        assert_eq!(goodbye.len(), 12, "one header: {goodbye:?}");
        drop(far);
        poll_fn(|cx| carrier.poll_close(cx)).await.unwrap();
    }

    /// What waits is written after yamux has had its say, so that yamux does not see by itself that it could not be.
    #[tokio::test]
    async fn streams_hear_of_a_write_that_failed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let near = listener.accept().await.unwrap().0.into_std().unwrap();
        let another_handle = near.try_clone().unwrap();
        let near = TcpStream::from_std(near).unwrap();
        let mut carrier = Carrier::new(near, &[], Mode::Server, Purpose::Expose, Instant::now());
        let mut stream = poll_fn(|cx| carrier.poll_outbound(cx)).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(carrier.poll_inbound(&mut cx).is_pending());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut waiting = Context::from_waker(&waker);
        assert!(Pin::new(&mut stream).poll_next(&mut waiting).is_pending());

        another_handle.shutdown(std::net::Shutdown::Write).unwrap();
        let mut second = poll_fn(|cx| carrier.poll_outbound(cx)).await.unwrap();
        assert!(Pin::new(&mut second).poll_write(&mut cx, b"x").is_ready());
        let end = poll_fn(|cx| carrier.poll_inbound(cx)).await;
        assert!(matches!(end, Some(Err(ConnectionError::Io(_)))), "{end:?}");
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(matches!(Pin::new(&mut stream).poll_next(&mut waiting), Poll::Ready(None | Some(Err(_)))));
    }
}
