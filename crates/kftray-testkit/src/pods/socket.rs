//! A TCP connection inside a pod, without TCP: half-close, reset, and bounded buffers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Bytes that fit between a program and the runtime in each direction. Loopback sockets start near this size.
const SOCKET_BUFFER: usize = 256 * 1024;

/// The program's end of a connection. Dropping it closes the connection (FIN); shutting it down ends only the program's
/// half.
#[derive(Debug)]
pub struct PodStream {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
}

impl PodStream {
    /// Ends the connection with RST.
    pub fn reset(self) {
        self.reset.store(true, Ordering::SeqCst);
    }
}

/// The container runtime's end.
#[derive(Debug)]
pub(crate) struct RuntimeStream {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
}

pub(crate) fn socket_pair() -> (PodStream, RuntimeStream) {
    let (program, runtime) = tokio::io::duplex(SOCKET_BUFFER);
    let reset = Arc::new(AtomicBool::new(false));
    (PodStream { io: program, reset: Arc::clone(&reset) }, RuntimeStream { io: runtime, reset })
}

impl AsyncRead for PodStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for PodStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl AsyncRead for RuntimeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        let ended = result.is_ok() && buf.filled().len() == before;
        if ended && this.reset.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for RuntimeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
