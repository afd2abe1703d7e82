//! Writing SPDY/3.1 frames.
//!
//! Header blocks must be a zlib stream, one for the whole connection, but nothing says that it must compress: a deflate
//! stream may consist of stored blocks (RFC 1951 section 3.2.4). The first block of a connection is preceded by the zlib
//! header `78 01` (RFC 1950, no preset dictionary; Go's reader accepts that), each is followed by an empty stored block.
//! Without that flush marker Go's decoder waits for more input and fails for good.

use bytes::BufMut;

use super::{FLAG_FIN, FLAG_UNIDIRECTIONAL, HEADER, MAX_PAYLOAD, ResetStatus, StreamId, VERSION, kind};

/// Zlib header: deflate, 32 KiB window, no dictionary, fastest (RFC 1950 section 2.2).
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// Empty stored block, not the last one: what zlib writes for a sync flush.
const SYNC_FLUSH: [u8; 5] = [0x00, 0x00, 0x00, 0xff, 0xff];
/// Longest stored block (its length has 16 bits).
const MAX_STORED: usize = u16::MAX as usize;

/// The 8 bytes in front of `len` bytes of payload.
///
/// Lengths above [`MAX_PAYLOAD`] cannot be said and are cut to it; split the payload before.
#[must_use]
pub fn data_header(stream: StreamId, len: usize, fin: bool) -> [u8; HEADER] {
    let flags = if fin { FLAG_FIN } else { 0 };
    header(stream.get(), flags, len)
}

/// Appends a DATA frame. Payloads longer than [`MAX_PAYLOAD`] are split over several frames.
pub fn put_data(out: &mut impl BufMut, stream: StreamId, payload: &[u8], fin: bool) {
    let mut rest = payload;
    while let Some((frame, more)) = rest.split_at_checked(MAX_PAYLOAD).filter(|(_, more)| !more.is_empty()) {
        out.put_slice(&data_header(stream, frame.len(), false));
        out.put_slice(frame);
        rest = more;
    }
    out.put_slice(&data_header(stream, rest.len(), fin));
    out.put_slice(rest);
}

/// Appends RST_STREAM.
pub fn put_rst_stream(out: &mut impl BufMut, stream: StreamId, status: ResetStatus) {
    put_control(out, kind::RST_STREAM, 0, 8);
    out.put_u32(stream.get());
    out.put_u32(status.get());
}

/// Appends PING. Ids of a client are odd, of a server even; an answer repeats the id.
pub fn put_ping(out: &mut impl BufMut, id: u32) {
    put_control(out, kind::PING, 0, 4);
    out.put_u32(id);
}

/// Appends GOAWAY; `last_good` is the highest stream id that was processed (0 for none), `status` 0 OK, 1 protocol error,
/// 2 internal error.
pub fn put_goaway(out: &mut impl BufMut, last_good: u32, status: u32) {
    put_control(out, kind::GOAWAY, 0, 8);
    out.put_u32(last_good & StreamId::MAX.get());
    out.put_u32(status);
}

/// Appends SETTINGS with entries of id (24 bits) and value. No peer interprets them; tests send them.
pub fn put_settings(out: &mut impl BufMut, entries: &[(u32, u32)]) {
    // 1,000 entries are far beyond the eight that exist, and keep the frame within its length field.
    let entries = entries.get(..1000).unwrap_or(entries);
    put_control(out, kind::SETTINGS, 0, 4 + 8 * entries.len());
    out.put_u32(u32::try_from(entries.len()).unwrap_or_default());
    for (id, value) in entries {
        out.put_u32(id & 0x00ff_ffff);
        out.put_u32(*value);
    }
}

/// Appends WINDOW_UPDATE. No peer interprets it; tests send it.
pub fn put_window_update(out: &mut impl BufMut, stream: u32, delta: u32) {
    put_control(out, kind::WINDOW_UPDATE, 0, 8);
    out.put_u32(stream & StreamId::MAX.get());
    out.put_u32(delta & StreamId::MAX.get());
}

fn put_control(out: &mut impl BufMut, kind: u16, flags: u8, len: usize) {
    out.put_slice(&header(0x8000_0000 | (u32::from(VERSION) << 16) | u32::from(kind), flags, len));
}

/// Both kinds of frame header: a first word, then flags and a 24-bit length.
fn header(first: u32, flags: u8, len: usize) -> [u8; HEADER] {
    let second = (u32::from(flags) << 24) | u32::try_from(len.min(MAX_PAYLOAD)).unwrap_or_default();
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&first.to_be_bytes());
    bytes[4..].copy_from_slice(&second.to_be_bytes());
    bytes
}

/// Writes the frames with header blocks, whose zlib stream spans the connection. One per connection and direction.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    zlib_started: bool,
}

impl Encoder {
    /// For a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { zlib_started: false }
    }

    /// Appends SYN_STREAM with priority 0 (highest). Header names must be lower case (draft 3.1, section 2.6.10; Go's
    /// reader refuses others); all headers together at most 1 MiB.
    pub fn syn_stream(
        &mut self,
        out: &mut impl BufMut,
        stream: StreamId,
        headers: &[(&str, &str)],
        fin: bool,
    ) {
        self.syn_stream_with(out, stream, headers, fin, false);
    }

    /// As [`Encoder::syn_stream`], with FLAG_UNIDIRECTIONAL.
    pub fn syn_stream_with(
        &mut self,
        out: &mut impl BufMut,
        stream: StreamId,
        headers: &[(&str, &str)],
        fin: bool,
        unidirectional: bool,
    ) {
        let flags = if fin { FLAG_FIN } else { 0 } | if unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
        put_control(out, kind::SYN_STREAM, flags, 10 + self.block_len(headers));
        out.put_u32(stream.get());
        out.put_u32(0); // not associated to another stream
        out.put_u16(0); // priority 0, credential slot 0
        self.put_block(out, headers);
    }

    /// Appends SYN_REPLY.
    pub fn syn_reply(
        &mut self,
        out: &mut impl BufMut,
        stream: StreamId,
        headers: &[(&str, &str)],
        fin: bool,
    ) {
        self.stream_and_block(out, kind::SYN_REPLY, stream, headers, fin);
    }

    /// Appends HEADERS.
    pub fn headers(&mut self, out: &mut impl BufMut, stream: StreamId, headers: &[(&str, &str)], fin: bool) {
        self.stream_and_block(out, kind::HEADERS, stream, headers, fin);
    }

    fn stream_and_block(
        &mut self,
        out: &mut impl BufMut,
        kind: u16,
        stream: StreamId,
        headers: &[(&str, &str)],
        fin: bool,
    ) {
        put_control(out, kind, if fin { FLAG_FIN } else { 0 }, 4 + self.block_len(headers));
        out.put_u32(stream.get());
        self.put_block(out, headers);
    }

    /// Length of the encoded block.
    fn block_len(&self, headers: &[(&str, &str)]) -> usize {
        let raw = raw_len(headers);
        let start = if self.zlib_started { 0 } else { ZLIB_HEADER.len() };
        start + raw + 5 * raw.div_ceil(MAX_STORED) + SYNC_FLUSH.len()
    }

    fn put_block(&mut self, out: &mut impl BufMut, headers: &[(&str, &str)]) {
        if !std::mem::replace(&mut self.zlib_started, true) {
            out.put_slice(&ZLIB_HEADER);
        }
        let mut stored = Stored { out, left: raw_len(headers), room: 0 };
        stored.put_len(headers.len());
        for (name, value) in headers {
            stored.put_len(name.len());
            stored.put(name.as_bytes());
            stored.put_len(value.len());
            stored.put(value.as_bytes());
        }
        out.put_slice(&SYNC_FLUSH);
    }
}

/// Uncompressed length of a block: the count, then length and bytes of each name and value.
fn raw_len(headers: &[(&str, &str)]) -> usize {
    4 + headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>()
}

/// Writes bytes as stored deflate blocks (RFC 1951 section 3.2.4) of a length known before.
struct Stored<'a, B> {
    out: &'a mut B,
    /// Bytes still to come, the ones of the open block included.
    left: usize,
    /// Bytes still to come in the open block.
    room: usize,
}

impl<B: BufMut> Stored<'_, B> {
    fn put_len(&mut self, len: usize) {
        self.put(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.room == 0 {
                self.room = self.left.min(MAX_STORED);
                let len = u16::try_from(self.room).unwrap_or(u16::MAX);
                self.out.put_u8(0); // not the last block, type 00, padding to the byte
                self.out.put_u16_le(len);
                self.out.put_u16_le(!len);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.room.max(1)));
            self.out.put_slice(now);
            self.room = self.room.saturating_sub(now.len());
            self.left = self.left.saturating_sub(now.len());
            bytes = later;
        }
    }
}
