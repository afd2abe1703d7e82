//! The upgraded connection: raw bytes, or WebSocket messages as gorilla/websocket cuts them.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kftray_spdy::ws;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::vices::{FRAGMENT, UNBUFFERED};
use crate::api::server::ApiStream;
use crate::counters::Counters;
use crate::faults::FaultState;

/// Bytes read at once, as the API server's proxy does.
const READ: usize = 32 * 1024;

/// How bytes are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    Raw,
    WebSocket,
}

/// The way to the client, with the faults that cut and split it.
pub(crate) struct CarrierWriter {
    io: WriteHalf<ApiStream>,
    pub(crate) envelope: Envelope,
    faults: watch::Receiver<FaultState>,
    sent: u64,
    /// Cancelled when the carrier was cut on purpose; no orderly close then.
    cut: CancellationToken,
}

impl CarrierWriter {
    /// One `Write` call of the Go program at the other end of the proxies.
    pub(crate) async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self.envelope {
            Envelope::Raw => self.put(piece).await,
            Envelope::WebSocket => self.message(piece).await,
        }
    }

    /// One message, fragmented the way gorilla's `NextWriter`, `Write`, `Close` do it over a 4 KiB buffer.
    async fn message(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut opcode = ws::Opcode::Binary;
        if payload.len() > UNBUFFERED {
            self.fragment(opcode, false, payload).await?;
            return self.fragment(ws::Opcode::Continuation, true, &[]).await;
        }
        let mut rest = payload;
        while let Some((now, later)) = rest.split_at_checked(FRAGMENT).filter(|(_, later)| !later.is_empty())
        {
            self.fragment(opcode, false, now).await?;
            opcode = ws::Opcode::Continuation;
            rest = later;
        }
        self.fragment(opcode, true, rest).await
    }

    async fn fragment(&mut self, opcode: ws::Opcode, fin: bool, payload: &[u8]) -> io::Result<()> {
        let mut frame = ws::header(ws::Role::Server, opcode, fin, payload.len()).to_vec();
        frame.extend_from_slice(payload);
        self.put(&frame).await
    }

    /// Bytes as they are, past the envelope.
    pub(crate) async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (split, close_after) = {
            let faults = self.faults.borrow();
            (faults.split_writes.unwrap_or(usize::MAX), faults.close_carrier_after)
        };
        let left =
            close_after.map(|limit| usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX));
        let cut = left.filter(|&left| left < bytes.len());
        let bytes = bytes.get(..cut.unwrap_or(bytes.len())).unwrap_or_default();
        for piece in bytes.chunks(split) {
            self.io.write_all(piece).await?;
            self.io.flush().await?;
        }
        self.sent += u64::try_from(bytes.len()).unwrap_or_default();
        if cut.is_some() {
            self.cut.cancel();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    /// Cancelled when a fault has cut the carrier.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Closes in order: WebSocket close frame, TLS closure alert.
    pub(crate) async fn close(&mut self) {
        if self.cut.is_cancelled() {
            return;
        }
        if self.envelope == Envelope::WebSocket {
            let mut frame = Vec::new();
            ws::put_close(&mut frame, ws::Role::Server, 1000, "");
            self.put(&frame).await.ok();
        }
        self.io.shutdown().await.ok();
    }
}

/// The way from the client.
pub(crate) struct CarrierReader {
    io: ReadHalf<ApiStream>,
    /// `None`: raw bytes.
    parser: Option<ws::Parser>,
    buffer: BytesMut,
    counters: Arc<Counters>,
}

/// What came from the client.
pub(crate) enum Received {
    /// Payload; `ends` a message if there are messages.
    Data { payload: Bytes, ends: bool },
    /// A WebSocket ping, to be answered.
    Ping(Bytes),
    /// The end, in whatever way.
    End,
}

impl CarrierReader {
    pub(crate) async fn read(&mut self) -> io::Result<Received> {
        loop {
            if let Some(parser) = &mut self.parser {
                match parser.next(&mut self.buffer).map_err(io::Error::other)? {
                    Some(ws::Event::Data { payload, ends, .. }) => {
                        return Ok(Received::Data { payload, ends });
                    }
                    Some(ws::Event::Ping(payload)) => return Ok(Received::Ping(payload)),
                    Some(ws::Event::Pong(_)) => continue,
                    Some(ws::Event::Close { .. }) => return Ok(Received::End),
                    None => {}
                }
            } else if !self.buffer.is_empty() {
                return Ok(Received::Data { payload: self.buffer.split().freeze(), ends: false });
            }
            self.buffer.reserve(READ);
            let count = self.io.read_buf(&mut self.buffer).await?;
            if count == 0 {
                return Ok(Received::End);
            }
            self.counters.carrier_bytes_in.add(u64::try_from(count).unwrap_or_default());
        }
    }
}

/// Both ways of an upgraded connection.
pub(crate) fn split(
    stream: ApiStream,
    envelope: Envelope,
    counters: &Arc<Counters>,
    faults: watch::Receiver<FaultState>,
) -> (CarrierReader, CarrierWriter) {
    let (read, write) = tokio::io::split(stream);
    let parser = (envelope == Envelope::WebSocket).then(|| ws::Parser::new(ws::Role::Server, u64::MAX));
    let reader = CarrierReader { io: read, parser, buffer: BytesMut::new(), counters: Arc::clone(counters) };
    let cut = CancellationToken::new();
    (reader, CarrierWriter { io: write, envelope, faults, sent: 0, cut })
}

/// Answers a WebSocket ping.
pub(crate) async fn pong(writer: &Mutex<CarrierWriter>, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::new();
    ws::put_pong(&mut frame, ws::Role::Server, payload);
    writer.lock().await.put(&frame).await
}
