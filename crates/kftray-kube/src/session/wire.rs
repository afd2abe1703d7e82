//! Frames to bytes and back: SPDY directly on the carrier, or inside WebSocket binary messages.

use bytes::{Bytes, BytesMut};
use kftray_commons::{Code, Problem};
use kftray_spdy::frame::{self, Frame, Limits};
use kftray_spdy::ws;

use super::limits::{COPY_BELOW, READ_BUFFER, READ_ROOM};
use super::state::{Batch, Item};

#[derive(Debug)]
enum Framing {
    Direct,
    WebSocket {
        parser: ws::Parser,
        /// Pongs and close frames; they stand between messages, never inside of one.
        answers: Vec<u8>,
    },
}

/// The codec of one session.
#[derive(Debug)]
pub(super) struct Wire {
    framing: Framing,
    frames: frame::Parser,
    input: BytesMut,
}

impl Wire {
    /// `websocket`: inside binary messages, else direct.
    pub(super) fn new(websocket: bool) -> Self {
        let framing = if websocket {
            Framing::WebSocket { parser: ws::Parser::new(ws::Role::Client, u64::MAX), answers: Vec::new() }
        } else {
            Framing::Direct
        };
        Self { framing, frames: frame::Parser::client(Limits::default()), input: BytesMut::new() }
    }

    /// The buffer to read into, with room for a TLS record at least. Bytes in it stay in one piece until [`Self::parse`].
    pub(super) fn input(&mut self) -> &mut BytesMut {
        if self.input.capacity() - self.input.len() < READ_ROOM {
            // Takes the old allocation again if all slices of it are gone.
            self.input.reserve(READ_BUFFER);
        }
        &mut self.input
    }

    /// The read buffer is full: parse before the next read, or its bytes would have to move.
    pub(super) fn is_full(&self) -> bool {
        self.input.capacity() - self.input.len() < READ_ROOM
    }

    /// Gives an empty read buffer back: idle sessions are many.
    pub(super) fn shrink(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Takes apart what was read.
    pub(super) fn parse(&mut self, frames: &mut Vec<Frame>) -> Result<(), Problem> {
        let Self { framing, frames: parser, input } = self;
        match framing {
            Framing::Direct => spdy(parser, input.split().freeze(), frames),
            Framing::WebSocket { parser: websocket, answers } => {
                while let Some(event) = websocket.next(input).map_err(|error| garbage(&error))? {
                    match event {
                        ws::Event::Data { payload, .. } => spdy(parser, payload, frames)?,
                        ws::Event::Ping(payload) => ws::put_pong(answers, ws::Role::Client, &payload),
                        ws::Event::Pong(_) => {}
                        ws::Event::Close { code, reason } => return Err(closed(code, &reason)),
                    }
                }
                Ok(())
            }
        }
    }

    /// Something waits to be written that no batch contains.
    pub(super) fn has_answers(&self) -> bool {
        match &self.framing {
            Framing::Direct => false,
            Framing::WebSocket { answers, .. } => !answers.is_empty(),
        }
    }

    /// Appends a batch to `out`, which is empty, as one message; returns where it begins.
    pub(super) fn encode(&mut self, batch: &mut Batch, out: &mut Vec<u8>) -> usize {
        let room = match &self.framing {
            Framing::Direct => 0,
            Framing::WebSocket { .. } => ws::MAX_HEADER,
        };
        out.resize(room, 0);
        out.append(&mut batch.control);
        for item in batch.items.drain(..) {
            match item {
                Item::Header(header) => out.extend_from_slice(&header),
                Item::Piece(piece) => out.extend_from_slice(&piece),
            }
        }
        let mut begin = room;
        if let Framing::WebSocket { answers, .. } = &mut self.framing {
            if out.len() > room {
                begin = ws::prefix_binary(out, ws::Role::Client).unwrap_or(room);
            }
            out.append(answers);
        }
        begin
    }
}

fn spdy(parser: &mut frame::Parser, mut bytes: Bytes, frames: &mut Vec<Frame>) -> Result<(), Problem> {
    while let Some(mut frame) = parser.next(&mut bytes).map_err(|error| garbage(&error))? {
        if let Frame::Data(chunk) = &mut frame
            && chunk.payload.len() < COPY_BELOW
        {
            chunk.payload = Bytes::copy_from_slice(&chunk.payload);
        }
        frames.push(frame);
    }
    Ok(())
}

fn garbage(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        Code::ConnectionLost,
        format!("the cluster's side of the port-forward does not speak the protocol: {error}"),
    )
}

fn closed(code: Option<u16>, reason: &str) -> Problem {
    let code = code.map(|code| format!(" with code {code}")).unwrap_or_default();
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Problem::new(Code::ConnectionLost, format!("the API server closed the WebSocket{code}{reason}"))
}
