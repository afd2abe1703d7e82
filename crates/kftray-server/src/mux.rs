//! yamux over one carrier: batched writes, buffered reads, and the time the other side was last heard.
//!
//! The `yamux` crate writes each frame's header and body by themselves and flushes after each frame, and reads headers in
//! pieces of 12 bytes. [`Carrier`] puts buffers in between: all frames of one poll leave in one write.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use futures::io::{AsyncRead as FuturesRead, AsyncWrite as FuturesWrite};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;
use yamux::{ConnectionError, Mode};

/// Bytes that wait for one write. Four full frames of 16 KiB: what a socket takes at once, and little against what a
/// client's streams may hold.
const WRITE_BUFFER: usize = 64 * 1024;

/// Bytes read at once.
const READ_BUFFER: usize = 64 * 1024;

/// What all streams of a carrier together may receive beyond 256 KiB each, when yamux finds a long fat path.
const WINDOW_GROWTH: usize = 32 * 1024 * 1024;

/// Streams that yamux itself takes before it ends the connection. Out of reach: the relay refuses streams beyond its own
/// limit one by one, with a reason, and the others go on.
const YAMUX_STREAMS: usize = 1 << 20;

/// yamux over `S`.
pub struct Carrier<S> {
    yamux: yamux::Connection<Io<S>>,
    io: Io<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier<S> {
    /// Begins yamux on a socket; `leftover` was read behind the hello.
    pub fn new(socket: S, leftover: BytesMut, mode: Mode, now: Instant) -> Self {
        let buffers = Buffers { socket, read: leftover, write: BytesMut::new(), heard: now };
        let io = Io(Arc::new(Mutex::new(buffers)));
        let mut config = yamux::Config::default();
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(YAMUX_STREAMS);
        let windows = YAMUX_STREAMS * yamux::DEFAULT_CREDIT as usize;
        config.set_max_connection_receive_window(windows.checked_add(WINDOW_GROWTH));
        Self { yamux: yamux::Connection::new(io.clone(), config, mode), io }
    }

    /// The next stream that the other side opens; `None` at the end. Nothing moves on any stream unless this is polled.
    pub fn poll_inbound(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<yamux::Stream, ConnectionError>>> {
        let inbound = self.yamux.poll_next_inbound(cx);
        if inbound.is_pending()
            && let Poll::Ready(Err(error)) = self.io.lock().poll_drain(cx)
        {
            return Poll::Ready(Some(Err(error.into())));
        }
        inbound
    }

    /// Opens a stream to the other side.
    pub fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, ConnectionError>> {
        self.yamux.poll_new_outbound(cx)
    }

    /// Ends all streams and the connection.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.yamux.poll_close(cx)
    }

    /// When the last bytes came.
    pub fn heard(&self) -> Instant {
        self.io.lock().heard
    }
}

struct Buffers<S> {
    socket: S,
    read: BytesMut,
    write: BytesMut,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Buffers<S> {
    /// Hands everything that waits to the socket.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.write))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write.advance(written);
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.read.reserve(READ_BUFFER);
        ready!(poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.read))?;
        self.heard = Instant::now();
        Poll::Ready(Ok(()))
    }
}

/// The socket as yamux sees it; shared with [`Carrier`], which decides when buffers are flushed.
struct Io<S>(Arc<Mutex<Buffers<S>>>);

impl<S> Clone for Io<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Io<S> {
    fn lock(&self) -> MutexGuard<'_, Buffers<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FuturesRead for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.lock();
        if buffers.read.is_empty() {
            ready!(buffers.poll_fill(cx))?;
        }
        let length = buffers.read.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..length), buffers.read.get(..length)) {
            to.copy_from_slice(from);
        }
        buffers.read.advance(length);
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FuturesWrite for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.lock();
        if buffers.write.len() >= WRITE_BUFFER {
            ready!(buffers.poll_drain(cx))?;
        }
        buffers.write.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Not yet: [`Carrier::poll_inbound`] flushes when yamux has nothing more to say.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffers = self.lock();
        ready!(buffers.poll_drain(cx))?;
        Pin::new(&mut buffers.socket).poll_shutdown(cx)
    }
}
