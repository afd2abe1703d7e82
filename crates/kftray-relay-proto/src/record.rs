//! Records: what follows the first messages of a stream, in both directions, until its end.
//!
//! The same framing carries TCP bytes and datagrams. For TCP the length has no meaning beyond "so many bytes more": a
//! decoder hands out what has arrived. For UDP each record is one datagram, handed out whole; empty ones exist.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::WireError;
use crate::field::{Fields, MAX_BODY, Writer, required};
use crate::reason::EndKind;

/// Largest payload of a record, bytes: the largest UDP payload over IPv4 (65,535 - 20 - 8).
pub const MAX_PAYLOAD: usize = 65_507;

/// The length field of a record that carries no payload but a message.
const CONTROL: u16 = u16::MAX;

/// Bytes before a payload.
pub const DATA_HEADER: usize = 2;

/// Kind byte and length behind [`CONTROL`].
const CONTROL_HEADER: usize = 3;

const END: u8 = 1;
const DROPPED: u8 = 2;
const FIRST: u8 = 1;
const SECOND: u8 = 2;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bytes of a TCP connection (never empty when decoded), or one datagram.
    Data(Bytes),
    /// The end of this direction ([`EndKind::Finished`]) or of the whole stream (everything else).
    End {
        /// Why.
        kind: EndKind,
        /// One plain sentence for a person; empty if there is nothing to say.
        message: String,
    },
    /// So many datagrams of this flow its sender has thrown away since the flow began, both directions together.
    Dropped(u64),
}

impl Record {
    /// The end of one direction.
    #[must_use]
    pub fn finished() -> Self {
        Self::End { kind: EndKind::Finished, message: String::new() }
    }

    /// Appends the record. Payload beyond [`MAX_PAYLOAD`] goes into further records, which is right for TCP only: do not
    /// pass larger datagrams, there are none.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data(payload) if payload.is_empty() => out.put_slice(&data_header(0)),
            Self::Data(payload) => {
                for part in payload.chunks(MAX_PAYLOAD) {
                    out.put_slice(&data_header(part.len()));
                    out.put_slice(part);
                }
            }
            Self::End { kind, message } => {
                out.put_u16(CONTROL);
                out.put_u8(END);
                Writer::new(out).bytes(FIRST, &[kind.code()]).text_if_any(SECOND, message).finish();
            }
            Self::Dropped(total) => {
                out.put_u16(CONTROL);
                out.put_u8(DROPPED);
                Writer::new(out).bytes(FIRST, &total.to_be_bytes()).finish();
            }
        }
    }
}

/// What stands before `length` bytes of payload; `length` is at most [`MAX_PAYLOAD`].
#[must_use]
pub fn data_header(length: usize) -> [u8; DATA_HEADER] {
    debug_assert!(length <= MAX_PAYLOAD, "the caller cuts payloads");
    u16::try_from(length).unwrap_or(CONTROL).to_be_bytes()
}

/// Takes one direction of a stream apart.
///
/// Chunks go in as they come from yamux; payload comes out as slices of them, without a copy unless a datagram spans
/// several chunks.
#[derive(Debug)]
pub struct Decoder {
    datagrams: bool,
    /// The beginning of a record that is not all there: header, control message, or (datagrams only) payload.
    partial: BytesMut,
    /// Bytes of the TCP payload that are still to come.
    payload_left: usize,
}

impl Decoder {
    /// For a TCP stream: payload is handed out as it comes.
    #[must_use]
    pub fn stream() -> Self {
        Self { datagrams: false, partial: BytesMut::new(), payload_left: 0 }
    }

    /// For a UDP flow: payload is handed out as whole datagrams.
    #[must_use]
    pub fn datagrams() -> Self {
        Self { datagrams: true, ..Self::stream() }
    }

    /// The next record of `chunk`, whose front is consumed; `None` when the chunk is used up.
    ///
    /// Records of unknown kinds are skipped.
    ///
    /// # Errors
    /// When the bytes are no records: the stream is lost.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Record>, WireError> {
        loop {
            if self.payload_left > 0 {
                if chunk.is_empty() {
                    return Ok(None);
                }
                let part = chunk.split_to(chunk.len().min(self.payload_left));
                self.payload_left -= part.len();
                return Ok(Some(Record::Data(part)));
            }
            let Some(head) = self.head(chunk)? else { return Ok(None) };
            match head {
                Head::Payload(length) if self.datagrams => {
                    let Some(whole) = self.take(chunk, DATA_HEADER + length) else { return Ok(None) };
                    return Ok(Some(Record::Data(whole.slice(DATA_HEADER..))));
                }
                Head::Payload(length) => {
                    self.take(chunk, DATA_HEADER);
                    self.payload_left = length;
                }
                Head::Control { kind, length } => {
                    let begin = DATA_HEADER + CONTROL_HEADER;
                    let Some(whole) = self.take(chunk, begin + length) else { return Ok(None) };
                    if let Some(record) = control(kind, &whole.slice(begin..))? {
                        return Ok(Some(record));
                    }
                }
            }
        }
    }

    /// Whether no record is half read: a stream may end here (after its `end` record) without being cut off.
    #[must_use]
    pub fn is_between_records(&self) -> bool {
        self.partial.is_empty() && self.payload_left == 0
    }

    /// Reads the head of the next record without consuming it; gathers it first if it spans chunks.
    fn head(&mut self, chunk: &mut Bytes) -> Result<Option<Head>, WireError> {
        let Some(head) = self.peek::<DATA_HEADER>(chunk) else { return Ok(None) };
        let length = u16::from_be_bytes(head);
        if length != CONTROL {
            let length = usize::from(length);
            if length > MAX_PAYLOAD {
                return Err(WireError::TooLong { what: "a record", length, limit: MAX_PAYLOAD });
            }
            return Ok(Some(Head::Payload(length)));
        }
        let Some([_, _, kind, high, low]) = self.peek(chunk) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_BODY {
            return Err(WireError::TooLong { what: "a record's message", length, limit: MAX_BODY });
        }
        Ok(Some(Head::Control { kind, length }))
    }

    /// The next `N` bytes, not consumed; what there is moves to `partial` if it is less.
    fn peek<const N: usize>(&mut self, chunk: &mut Bytes) -> Option<[u8; N]> {
        if self.partial.is_empty()
            && let Some(bytes) = chunk.first_chunk::<N>()
        {
            return Some(*bytes);
        }
        self.gather(chunk, N);
        self.partial.first_chunk::<N>().copied()
    }

    /// The next `length` bytes, consumed; what there is moves to `partial` if it is less.
    fn take(&mut self, chunk: &mut Bytes, length: usize) -> Option<Bytes> {
        if self.partial.is_empty() && chunk.len() >= length {
            return Some(chunk.split_to(length));
        }
        self.gather(chunk, length);
        (self.partial.len() >= length).then(|| self.partial.split_to(length).freeze())
    }

    fn gather(&mut self, chunk: &mut Bytes, length: usize) {
        let missing = length.saturating_sub(self.partial.len()).min(chunk.len());
        self.partial.extend_from_slice(chunk.get(..missing).unwrap_or_default());
        chunk.advance(missing);
    }
}

enum Head {
    Payload(usize),
    Control { kind: u8, length: usize },
}

fn control(kind: u8, body: &[u8]) -> Result<Option<Record>, WireError> {
    Ok(match kind {
        END => {
            let fields = Fields::parse(body, &[FIRST, SECOND])?;
            Some(Record::End {
                kind: EndKind::from_code(required(fields.byte(FIRST)?, FIRST)?),
                message: fields.text(SECOND)?.unwrap_or_default(),
            })
        }
        DROPPED => {
            let fields = Fields::parse(body, &[FIRST])?;
            Some(Record::Dropped(required(fields.u64(FIRST)?, FIRST)?))
        }
        _ => None,
    })
}
