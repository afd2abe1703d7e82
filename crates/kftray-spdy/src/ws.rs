//! WebSocket frames (RFC 6455) as a carrier of bytes.
//!
//! A WebSocket here is only an envelope for a byte stream, so the parser hands out payload slices as they arrive and never
//! assembles a message: the API server sends messages over 8 KiB as one large non-final frame and an empty final one, and
//! smaller ones in 4 KiB fragments (gorilla/websocket over net/http's 4 KiB buffers). Clients mask with key zero, which
//! RFC 6455 section 5.3 cannot tell from a random key on the wire, which gorilla accepts, and which leaves the payload
//! untouched: no masking pass, no copy.
//!
//! Extensions are never negotiated, so every reserved bit is a protocol error. The opening handshake is the dialler's.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest frame header: 2 bytes, 8 bytes of length, 4 bytes of mask key (RFC 6455 section 5.2).
pub const MAX_HEADER: usize = 14;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const MAX_CONTROL: usize = 125;

/// Which end of the connection *we* are: clients mask what they send, servers must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Client,
    /// We accepted.
    Server,
}

/// Frame types (RFC 6455 section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation,
    /// First frame of a text message; a byte carrier refuses it.
    Text,
    /// First frame of a binary message.
    Binary,
    /// Connection close.
    Close,
    /// Ping.
    Ping,
    /// Answer to a ping.
    Pong,
}

impl Opcode {
    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    const fn is_control(self) -> bool {
        self.bits() & 0x8 != 0
    }
}

/// An encoded frame header, 2 to 14 bytes; use it as a byte slice (for vectored writes).
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::ops::Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

/// The header of a frame with `len` payload bytes. A client's header carries mask key zero, so the payload follows as it
/// is. `fin` marks the last frame of a message.
#[must_use]
pub fn header(role: Role, opcode: Opcode, fin: bool, len: usize) -> Header {
    let mut bytes = [0; MAX_HEADER];
    bytes[0] = opcode.bits() | if fin { 0x80 } else { 0 };
    let mask_bit = match role {
        Role::Client => 0x80,
        Role::Server => 0,
    };
    let mut used = 2;
    if let (Ok(short), true) = (u8::try_from(len), len < 126) {
        bytes[1] = mask_bit | short;
    } else if let Ok(medium) = u16::try_from(len) {
        bytes[1] = mask_bit | 126;
        bytes[2..4].copy_from_slice(&medium.to_be_bytes());
        used = 4;
    } else {
        bytes[1] = mask_bit | 127;
        bytes[2..10].copy_from_slice(&(len as u64).to_be_bytes());
        used = 10;
    }
    if role == Role::Client {
        used += 4; // the key: four zero bytes, already there
    }
    Header { bytes, len: used }
}

/// Appends a whole binary message in one frame.
pub fn put_binary(out: &mut impl BufMut, role: Role, payload: &[u8]) {
    out.put_slice(&header(role, Opcode::Binary, true, payload.len()));
    out.put_slice(payload);
}

/// Turns a batch that was built behind [`MAX_HEADER`] bytes of room into one binary message without moving it: writes the
/// header right before `batch[MAX_HEADER..]` and returns the index where the frame begins.
///
/// Returns `None`, and writes nothing, when `batch` is shorter than the room.
#[must_use]
pub fn prefix_binary(batch: &mut [u8], role: Role) -> Option<usize> {
    let len = batch.len().checked_sub(MAX_HEADER)?;
    let header = header(role, Opcode::Binary, true, len);
    let begin = MAX_HEADER - header.len();
    batch.get_mut(begin..MAX_HEADER)?.copy_from_slice(&header);
    Some(begin)
}

/// Appends a ping. At most [`MAX_CONTROL`] bytes of the payload are sent.
pub fn put_ping(out: &mut impl BufMut, role: Role, payload: &[u8]) {
    put_control(out, role, Opcode::Ping, payload);
}

/// Appends a pong; answer each [`Event::Ping`] with its payload. At most [`MAX_CONTROL`] bytes are sent.
pub fn put_pong(out: &mut impl BufMut, role: Role, payload: &[u8]) {
    put_control(out, role, Opcode::Pong, payload);
}

/// Appends a close frame with a status code (RFC 6455 section 7.4) and a reason, cut to 123 bytes.
pub fn put_close(out: &mut impl BufMut, role: Role, code: u16, reason: &str) {
    let mut end = reason.len().min(MAX_CONTROL - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    out.put_slice(&header(role, Opcode::Close, true, end + 2));
    out.put_u16(code);
    out.put_slice(reason.as_bytes().get(..end).unwrap_or_default());
}

fn put_control(out: &mut impl BufMut, role: Role, opcode: Opcode, payload: &[u8]) {
    let payload = payload.get(..MAX_CONTROL).unwrap_or(payload);
    out.put_slice(&header(role, opcode, true, payload.len()));
    out.put_slice(payload);
}

/// What the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Payload of a binary message, as much as has arrived; may be empty when only the end of a message came.
    Data {
        /// The bytes, unmasked; a slice of the buffer that was read into.
        payload: Bytes,
        /// These are the first bytes of a message. A byte carrier ignores it, the channel protocol needs it.
        begins: bool,
        /// These are the last bytes of a message.
        ends: bool,
    },
    /// Answer with [`put_pong`] and the same payload.
    Ping(Bytes),
    /// The answer to our ping (or an unsolicited one).
    Pong(Bytes),
    /// The peer closes; answer with [`put_close`] and the same code, then shut the socket. Nothing comes after it.
    Close {
        /// Status code, if the peer gave one.
        code: Option<u16>,
        /// The reason in words, often empty; invalid UTF-8 is replaced.
        reason: String,
    },
}

/// Why the bytes are no WebSocket frames. The connection is lost after any of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A reserved bit is set although no extension was negotiated.
    #[error("reserved bits set in a WebSocket frame (first byte {0:#04x})")]
    ReservedBits(u8),
    /// An opcode that RFC 6455 reserves.
    #[error("unknown WebSocket opcode {0:#x}")]
    UnknownOpcode(u8),
    /// A text message where only bytes are carried.
    #[error("a WebSocket text message on a binary channel")]
    Text,
    /// A control frame without the FIN bit.
    #[error("a fragmented WebSocket control frame")]
    FragmentedControl,
    /// A control frame longer than [`MAX_CONTROL`].
    #[error("a WebSocket control frame of {0} bytes")]
    OversizedControl(u64),
    /// A length field in a longer form than needed, or with its highest bit set.
    #[error("a malformed WebSocket frame length")]
    MalformedLength,
    /// A frame longer than the parser's limit.
    #[error("a WebSocket frame of {len} bytes, the limit is {limit}")]
    TooLong {
        /// Announced payload length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A client's frame without a mask.
    #[error("an unmasked WebSocket frame from a client")]
    Unmasked,
    /// A server's frame with a mask.
    #[error("a masked WebSocket frame from a server")]
    Masked,
    /// A continuation without a message to continue.
    #[error("a WebSocket continuation frame outside of a message")]
    StrayContinuation,
    /// A new message inside an unfinished one.
    #[error("a new WebSocket message inside an unfinished one")]
    InterruptedMessage,
    /// A close frame with a payload of one byte, or a code that must not be sent.
    #[error("a malformed WebSocket close frame")]
    MalformedClose,
}

/// The payload of a data frame that is still arriving.
#[derive(Clone, Copy, Debug)]
struct Payload {
    left: u64,
    mask: [u8; 4],
    /// Bytes of this frame already unmasked, modulo 4.
    phase: u8,
    begins: bool,
    fin: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Payload(Payload),
    Closed,
}

/// Incremental parser: feed it a growing [`BytesMut`], it consumes what it understands from the front.
#[derive(Clone, Debug)]
pub struct Parser {
    role: Role,
    max_frame: u64,
    state: State,
    in_message: bool,
}

/// A decoded frame header.
struct FrameHeader {
    opcode: Opcode,
    fin: bool,
    len: u64,
    mask: [u8; 4],
    /// Bytes of the header itself.
    size: usize,
}

impl Parser {
    /// `role` is ours (a [`Role::Client`] parser reads a server's frames). `max_frame` bounds the payload of one frame in
    /// bytes; nothing is buffered, so the bound is only against nonsense. `u64::MAX` means none.
    #[must_use]
    pub const fn new(role: Role, max_frame: u64) -> Self {
        Self { role, max_frame, state: State::Header, in_message: false }
    }

    /// The next event, or `None` when `input` holds no more of one: read more bytes behind what is left in it.
    ///
    /// Payloads are split off `input` without a copy. What stays in `input` is at most an unfinished header or control
    /// frame (139 bytes). After [`Event::Close`] everything else is discarded.
    ///
    /// # Errors
    /// Any violation of RFC 6455; the parser must not be used afterwards.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        loop {
            match self.state {
                State::Header => {
                    let Some(header) = self.read_header(input)? else { return Ok(None) };
                    if header.opcode.is_control() {
                        return self.read_control(&header, input);
                    }
                    let begins = self.enter_message(&header)?;
                    input.advance(header.size);
                    let FrameHeader { fin, len, mask, .. } = header;
                    if len == 0 && !fin && !begins {
                        continue; // carries nothing at all
                    }
                    self.state = State::Payload(Payload { left: len, mask, phase: 0, begins, fin });
                }
                State::Payload(payload) => return Ok(self.read_payload(payload, input)),
                State::Closed => {
                    input.clear();
                    return Ok(None);
                }
            }
        }
    }

    fn read_header(&self, input: &[u8]) -> Result<Option<FrameHeader>, Error> {
        let &[first, second, ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Error::ReservedBits(first));
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(Error::UnknownOpcode(first & 0x0f))?;
        let fin = first & 0x80 != 0;
        let masked = second & 0x80 != 0;
        match self.role {
            Role::Client if masked => return Err(Error::Masked),
            Role::Server if !masked => return Err(Error::Unmasked),
            Role::Client | Role::Server => {}
        }
        if opcode.is_control() && !fin {
            return Err(Error::FragmentedControl);
        }
        let (len, mut size) = match second & 0x7f {
            126 => {
                let Some(raw) = input.get(2..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
                let len = u16::from_be_bytes(*raw);
                if len < 126 {
                    return Err(Error::MalformedLength);
                }
                (u64::from(len), 4)
            }
            127 => {
                let Some(raw) = input.get(2..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
                let len = u64::from_be_bytes(*raw);
                if len <= u64::from(u16::MAX) || len > i64::MAX as u64 {
                    return Err(Error::MalformedLength);
                }
                (len, 10)
            }
            short => (u64::from(short), 2),
        };
        if opcode.is_control() && len > MAX_CONTROL as u64 {
            return Err(Error::OversizedControl(len));
        }
        if len > self.max_frame {
            return Err(Error::TooLong { len, limit: self.max_frame });
        }
        let mut mask = [0; 4];
        if masked {
            let Some(key) = input.get(size..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
            mask = *key;
            size += 4;
        }
        Ok(Some(FrameHeader { opcode, fin, len, mask, size }))
    }

    /// Checks the order of fragments; true if the frame begins a message.
    fn enter_message(&mut self, header: &FrameHeader) -> Result<bool, Error> {
        let begins = header.opcode != Opcode::Continuation;
        if header.opcode == Opcode::Text {
            return Err(Error::Text);
        }
        match (self.in_message, begins) {
            (false, false) => return Err(Error::StrayContinuation),
            (true, true) => return Err(Error::InterruptedMessage),
            (true, false) | (false, true) => self.in_message = !header.fin,
        }
        Ok(begins)
    }

    fn read_payload(&mut self, mut payload: Payload, input: &mut BytesMut) -> Option<Event> {
        let take = usize::try_from(payload.left).unwrap_or(usize::MAX).min(input.len());
        if take == 0 && payload.left > 0 {
            return None;
        }
        let mut bytes = input.split_to(take);
        payload.phase = unmask(&mut bytes, payload.mask, payload.phase);
        payload.left -= take as u64;
        let begins = std::mem::take(&mut payload.begins);
        let done = payload.left == 0;
        self.state = if done { State::Header } else { State::Payload(payload) };
        Some(Event::Data { payload: bytes.freeze(), begins, ends: done && payload.fin })
    }

    fn read_control(&mut self, header: &FrameHeader, input: &mut BytesMut) -> Result<Option<Event>, Error> {
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if input.len() < header.size.saturating_add(len) {
            return Ok(None);
        }
        input.advance(header.size);
        let mut payload = input.split_to(len);
        unmask(&mut payload, header.mask, 0);
        let payload = payload.freeze();
        Ok(Some(match header.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            Opcode::Close | Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                self.state = State::Closed;
                let (code, reason) = read_close(&payload)?;
                Event::Close { code, reason }
            }
        }))
    }
}

fn read_close(payload: &[u8]) -> Result<(Option<u16>, String), Error> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok((None, String::new())) } else { Err(Error::MalformedClose) };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455 section 7.4: below 1000 unused; 1004, 1005, 1006 and 1015 must never be on the wire.
    if code < 1000 || matches!(code, 1004..=1006 | 1015) {
        return Err(Error::MalformedClose);
    }
    Ok((Some(code), String::from_utf8_lossy(reason).into_owned()))
}

/// XORs `bytes` with the key, whose first `phase` bytes are already used up; returns the next phase.
fn unmask(bytes: &mut [u8], key: [u8; 4], phase: u8) -> u8 {
    if key == [0; 4] {
        return 0; // the phase of a zero key does not matter
    }
    let mut key = key;
    key.rotate_left(usize::from(phase & 3));
    // Whole words first: the compiler turns this loop into vector instructions.
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, mask) in word.iter_mut().zip(key) {
            *byte ^= mask;
        }
    }
    let tail = words.into_remainder();
    for (byte, mask) in tail.iter_mut().zip(key) {
        *byte ^= mask;
    }
    (phase + u8::try_from(tail.len()).unwrap_or_default()) & 3
}
