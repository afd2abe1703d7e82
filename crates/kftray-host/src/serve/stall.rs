//! A stream whose reader has gone to sleep is an error: a client that does not take what it asked for must not keep
//! memory and a place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a client may take nothing while something waits for it. A face that is suspended for longer connects again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream whose writes must move.
pub(crate) struct Stall<S> {
    stream: S,
    /// Runs while `waiting`.
    alarm: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Stall<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, alarm: Box::pin(sleep(PATIENCE)), waiting: false }
    }

    /// Starts the alarm where a write waits, stops it where one has moved.
    fn watch<T>(&mut self, moved: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match moved {
            Poll::Ready(result) => {
                self.waiting = false;
                Poll::Ready(result)
            }
            Poll::Pending => {
                if !std::mem::replace(&mut self.waiting, true) {
                    self.alarm.as_mut().reset(Instant::now() + PATIENCE);
                }
                ready!(self.alarm.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(moved, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(moved, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch(moved, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_sleeps_is_an_error_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut stall = Stall::new(near);
        let writer = async {
            let written = stall.write_all(&[0; 64]).await;
            written.expect("the slow reader takes it");
            stall.write_all(&[0; 64]).await.expect_err("the sleeping one does not")
        };
        let reader = async {
            let mut buffer = [0; 16];
            for _ in 0..4 {
                sleep(PATIENCE / 2).await;
                far.read_exact(&mut buffer).await.expect("data");
            }
        };
        let (error, ()) = tokio::join!(writer, reader);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
