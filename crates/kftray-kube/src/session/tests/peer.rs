//! The other end of an in-memory carrier: a scripted SPDY server, with or without a WebSocket around it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kftray_portforward::ports::{Channel, ChannelError};
use kftray_spdy::frame::{self, Encoder, Frame, Limits, ResetStatus, StreamId};
use kftray_spdy::ws;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::task::AbortOnDropHandle;

use crate::connect::{Carrier, Protocol};

/// Bytes the pipe holds in each direction; as a socket would.
pub(crate) const PIPE: usize = 64 * 1024;

/// A scripted server.
pub(crate) struct Peer {
    pub(crate) io: DuplexStream,
    input: BytesMut,
    websocket: Option<ws::Parser>,
    parser: frame::Parser,
    encoder: Encoder,
    frames: VecDeque<Frame>,
    /// Answers PINGs by itself.
    pub(crate) pongs: bool,
    /// WebSocket messages seen.
    pub(crate) messages: usize,
}

/// A pair of streams that the client opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) error: StreamId,
    pub(crate) data: StreamId,
    pub(crate) port: u16,
}

impl Peer {
    /// A carrier and its other end.
    pub(crate) fn carrier(protocol: Protocol) -> (Carrier, Self) {
        let (near, far) = tokio::io::duplex(PIPE);
        let websocket =
            (protocol == Protocol::WebSocketTunnel).then(|| ws::Parser::new(ws::Role::Server, u64::MAX));
        let peer = Self {
            io: far,
            input: BytesMut::new(),
            websocket,
            parser: frame::Parser::server(Limits::default()),
            encoder: Encoder::new(),
            frames: VecDeque::new(),
            pongs: true,
            messages: 0,
        };
        (Carrier { io: Box::new(near), protocol }, peer)
    }

    /// The next frame; `None` when the client has closed.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.frames.pop_front() {
                let Frame::Ping { id } = frame else { return Some(frame) };
                if !self.pongs {
                    return Some(frame);
                }
                self.put(|out, _| frame::put_ping(out, id)).await;
            }
            if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
            self.parse();
        }
    }

    fn parse(&mut self) {
        let mut pieces = Vec::new();
        match &mut self.websocket {
            None => pieces.push(self.input.split().freeze()),
            Some(parser) => {
                while let Some(event) = parser.next(&mut self.input).expect("WebSocket frames") {
                    if let ws::Event::Data { payload, ends, .. } = event {
                        self.messages += usize::from(ends);
                        pieces.push(payload);
                    }
                }
            }
        }
        for mut piece in pieces {
            while let Some(frame) = self.parser.next(&mut piece).expect("SPDY frames") {
                self.frames.push_back(frame);
            }
        }
    }

    /// Writes what `build` appends.
    pub(crate) async fn put(&mut self, build: impl FnOnce(&mut Vec<u8>, &mut Encoder)) {
        let mut out = Vec::new();
        build(&mut out, &mut self.encoder);
        if self.websocket.is_some() {
            // As the API server does: a large message is one frame without the end and an empty one with it.
            let mut framed = Vec::new();
            framed.extend_from_slice(&ws::header(ws::Role::Server, ws::Opcode::Binary, false, out.len()));
            framed.append(&mut out);
            framed.extend_from_slice(&ws::header(ws::Role::Server, ws::Opcode::Continuation, true, 0));
            out = framed;
        }
        // The client may be gone; the test sees that elsewhere.
        if self.io.write_all(&out).await.is_err() {
            tracing::debug!("the client is gone");
        }
    }

    pub(crate) async fn data(&mut self, stream: StreamId, payload: &[u8], fin: bool) {
        self.put(|out, _| frame::put_data(out, stream, payload, fin)).await;
    }

    pub(crate) async fn rst(&mut self, stream: StreamId) {
        self.put(|out, _| frame::put_rst_stream(out, stream, ResetStatus::CANCEL)).await;
    }

    /// Takes the opening of a pair in, in kubectl's order, and answers it.
    pub(crate) async fn accept(&mut self) -> Pair {
        let pair = self.syns().await;
        self.put(|out, encoder| {
            encoder.syn_reply(out, pair.error, &[], false);
            encoder.syn_reply(out, pair.data, &[], false);
        })
        .await;
        pair
    }

    /// The same without an answer.
    pub(crate) async fn syns(&mut self) -> Pair {
        let (error, port) = self.syn("error").await;
        let (data, _) = self.syn("data").await;
        match self.frame().await {
            Some(Frame::Data(chunk)) if chunk.stream == error && chunk.fin && chunk.payload.is_empty() => {}
            other => panic!("no end of the error stream: {other:?}"),
        }
        Pair { error, data, port }
    }

    async fn syn(&mut self, kind: &str) -> (StreamId, u16) {
        let Some(Frame::SynStream { stream, fin: false, headers: Some(headers), .. }) = self.frame().await
        else {
            panic!("no SYN of the {kind} stream")
        };
        let header = |name| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(header("streamtype"), Some(kind));
        assert!(header("requestid").is_some());
        (stream, header("port").and_then(|port| port.parse().ok()).expect("a port"))
    }

    /// Exactly `len` bytes of one stream; other frames may not come between.
    pub(crate) async fn take(&mut self, stream: StreamId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.frame().await {
                Some(Frame::Data(chunk)) if chunk.stream == stream && !chunk.fin => {
                    bytes.extend_from_slice(&chunk.payload);
                }
                other => panic!("instead of data of {stream}: {other:?}"),
            }
        }
        assert_eq!(bytes.len(), len);
        bytes
    }

    /// Expects the client to give a pair up.
    pub(crate) async fn reset_of(&mut self, pair: Pair) {
        for stream in [pair.data, pair.error] {
            match self.frame().await {
                Some(Frame::RstStream { stream: reset, .. }) if reset == stream => {}
                other => panic!("instead of a reset of {stream}: {other:?}"),
            }
        }
    }

    /// Echoes every stream until the client is gone; returns how many were opened.
    pub(crate) fn echo(mut self) -> AbortOnDropHandle<usize> {
        background(async move {
            let mut opened = 0;
            while let Some(frame) = self.frame().await {
                if let Frame::SynStream { stream, .. } = frame {
                    opened += 1;
                    self.put(|out, encoder| encoder.syn_reply(out, stream, &[], false)).await;
                } else if let Frame::Data(chunk) = frame
                    && chunk.stream.get() % 4 == 3
                {
                    self.data(chunk.stream, &chunk.payload, chunk.fin).await;
                    if chunk.fin
                        && let Some(error) = StreamId::new(chunk.stream.get() - 2)
                    {
                        self.data(error, b"", true).await;
                    }
                }
            }
            opened / 2
        })
    }
}

/// A task that ends with its handle.
pub(crate) fn background<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(work))
}

/// Bytes that tell a lost, doubled or moved piece.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31 + at / 251 + seed * 7) % 251) as u8).collect()
}

pub(crate) async fn recv<C: Channel + ?Sized>(channel: &mut C) -> Result<Option<Bytes>, ChannelError> {
    // On paused time a test that waits in vain would spin for ever.
    let waited =
        tokio::time::timeout(Duration::from_secs(3600), std::future::poll_fn(|cx| channel.poll_recv(cx)));
    waited.await.expect("something within an hour")
}

/// Waits for room and queues.
pub(crate) async fn send<C: Channel + ?Sized>(channel: &mut C, data: &[u8]) -> Result<(), ChannelError> {
    for piece in data.chunks(64 * 1024) {
        std::future::poll_fn(|cx| channel.poll_send_ready(cx)).await?;
        channel.send(Bytes::copy_from_slice(piece));
    }
    Ok(())
}

/// Exactly `len` bytes.
pub(crate) async fn recv_exact<C: Channel + ?Sized>(channel: &mut C, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        bytes.extend_from_slice(&recv(channel).await.expect("data").expect("more data"));
    }
    assert_eq!(bytes.len(), len);
    bytes
}

/// Everything up to the orderly end.
pub(crate) async fn recv_all<C: Channel + ?Sized>(channel: &mut C) -> Result<Vec<u8>, ChannelError> {
    let mut bytes = Vec::new();
    while let Some(piece) = recv(channel).await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
