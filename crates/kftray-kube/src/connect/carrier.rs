//! What an upgrade yields: a byte stream to the pod's runtime, and what is spoken on it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The three ways to speak port-forward with an API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// SPDY/3.1 inside WebSocket binary messages (KEP-4006; API servers from 1.31 on).
    #[serde(rename = "websocket")]
    WebSocketTunnel,
    /// SPDY/3.1 right after the upgrade (every API server; dies in some gateways).
    Spdy,
    /// WebSocket with one channel pair per port (`v4.channel.k8s.io`): one connection for each upgrade.
    Legacy,
}

impl Protocol {
    /// Every protocol, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::WebSocketTunnel, Self::Spdy, Self::Legacy];

    /// The name people see and write: `websocket`, `spdy`, `legacy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocketTunnel => "websocket",
            Self::Spdy => "spdy",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A byte stream that can carry a port-forward session.
pub trait CarrierIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> CarrierIo for T {}

/// An upgraded connection. Whatever the server sent behind its `101` comes out of `io` first.
pub struct Carrier {
    /// The bytes, both ways. Dropping it closes the connection.
    pub io: Box<dyn CarrierIo>,
    /// What is spoken on it.
    pub protocol: Protocol,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// A stream in front of which some already received bytes are read.
pub(crate) struct Prefixed<T> {
    prefix: Bytes,
    inner: T,
}

impl<T> Prefixed<T> {
    /// `prefix` is delivered before anything `inner` yields.
    pub(crate) fn new(prefix: Bytes, inner: T) -> Self {
        Self { prefix, inner }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn prefix_comes_before_the_stream() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut io = Prefixed::new(Bytes::from_static(b"first "), near);
        far.write_all(b"second").await.unwrap();
        drop(far);
        let mut text = String::new();
        io.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "first second");
    }

    #[test]
    fn names_are_stable() {
        for protocol in Protocol::ALL {
            let json = serde_json::to_string(&protocol).unwrap();
            assert_eq!(json, format!("\"{protocol}\""));
        }
    }
}
