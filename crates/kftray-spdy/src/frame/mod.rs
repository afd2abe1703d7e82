//! SPDY/3.1 frames, as far as a Kubernetes port-forward uses them.
//!
//! Sources: the SPDY protocol draft 3.1 (chromium.org) and the only peer there is, `moby/spdystream` 0.5 inside the
//! container runtime. What that peer never does is parsed but not interpreted: SETTINGS, WINDOW_UPDATE (there is no flow
//! control in this protocol), CREDENTIAL.
//!
//! Layout, all numbers big endian:
//!
//! ```text
//! control |1| version 15 | type 16 | flags 8 | length 24 | payload
//! data    |0| stream id 31         | flags 8 | length 24 | payload
//! ```

#[cfg(feature = "server")]
mod dictionary;
mod encode;
#[cfg(feature = "server")]
mod inflate;
mod parse;

#[cfg(feature = "server")]
pub use dictionary::dictionary;
pub use encode::{
    Encoder, data_header, put_data, put_goaway, put_ping, put_rst_stream, put_settings, put_window_update,
};
pub use parse::Parser;

use bytes::Bytes;

/// Version in every control frame; SPDY/3.1 says 3 on the wire.
pub const VERSION: u16 = 3;

/// Length of a DATA frame's header, and of the common part of control frames, in bytes.
pub const HEADER: usize = 8;

/// Longest payload of any frame, the limit of the 24-bit length field, in bytes.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// FLAG_FIN: the sender's half of the stream ends with this frame.
const FLAG_FIN: u8 = 0x01;
/// FLAG_UNIDIRECTIONAL of SYN_STREAM: the recipient must not send.
const FLAG_UNIDIRECTIONAL: u8 = 0x02;

/// Control frame types (draft 3.1, section 2.6).
mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// A stream's number, 1 to 2^31 - 1. A client's are odd, a server's even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

impl StreamId {
    /// The highest id.
    pub const MAX: Self = Self((1 << 31) - 1);

    /// `None` outside of 1 to 2^31 - 1.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        if id == 0 || id > Self::MAX.0 { None } else { Some(Self(id)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Opened by a client (odd).
    #[must_use]
    pub const fn is_client(self) -> bool {
        self.0 % 2 == 1
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Status of RST_STREAM (draft 3.1, section 2.6.3). Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResetStatus(u32);

impl ResetStatus {
    /// A generic protocol error.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A frame for a stream that is not active.
    pub const INVALID_STREAM: Self = Self(2);
    /// Refused before any processing.
    pub const REFUSED_STREAM: Self = Self(3);
    /// The stream is no longer needed; what the runtime sends after every error, and what we send to end a pair.
    pub const CANCEL: Self = Self(5);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(6);

    /// `None` for zero, which the draft does not allow.
    #[must_use]
    pub const fn new(status: u32) -> Option<Self> {
        if status == 0 { None } else { Some(Self(status)) }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for ResetStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            1 => "PROTOCOL_ERROR",
            2 => "INVALID_STREAM",
            3 => "REFUSED_STREAM",
            4 => "UNSUPPORTED_VERSION",
            5 => "CANCEL",
            6 => "INTERNAL_ERROR",
            7 => "FLOW_CONTROL_ERROR",
            8 => "STREAM_IN_USE",
            9 => "STREAM_ALREADY_CLOSED",
            10 => "INVALID_CREDENTIALS",
            11 => "FRAME_TOO_LARGE",
            other => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}

/// Header list of SYN_STREAM, SYN_REPLY and HEADERS; names are lower case, in the order of the wire.
pub type HeaderList = Vec<(String, String)>;

/// Part of a DATA frame, handed out as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataChunk {
    /// The stream.
    pub stream: StreamId,
    /// The bytes, a slice of the input; empty only for an empty DATA frame.
    pub payload: Bytes,
    /// Last chunk of its frame.
    pub ends_frame: bool,
    /// The sender's half of the stream ends after this chunk (FIN; only on the last chunk of a frame).
    pub fin: bool,
}

/// A frame, or a part of a DATA frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Payload of a stream.
    Data(DataChunk),
    /// The peer opens a stream.
    SynStream {
        /// The new stream.
        stream: StreamId,
        /// Priority, 0 (highest) to 7.
        priority: u8,
        /// The opener sends nothing more.
        fin: bool,
        /// The opener expects nothing back.
        unidirectional: bool,
        /// The headers; `None` if the parser skips header blocks.
        headers: Option<HeaderList>,
    },
    /// The peer accepts a stream.
    SynReply {
        /// The stream.
        stream: StreamId,
        /// The peer sends nothing more.
        fin: bool,
        /// The headers; `None` if the parser skips header blocks.
        headers: Option<HeaderList>,
    },
    /// Further headers of a stream.
    Headers {
        /// The stream.
        stream: StreamId,
        /// The peer sends nothing more.
        fin: bool,
        /// The headers; `None` if the parser skips header blocks.
        headers: Option<HeaderList>,
    },
    /// The peer gives a stream up, both directions.
    RstStream {
        /// The stream.
        stream: StreamId,
        /// Why.
        status: ResetStatus,
    },
    /// A ping, to be sent back as it is if the id is of the peer's parity (even from servers, odd from clients).
    Ping {
        /// The id, never zero.
        id: u32,
    },
    /// The peer accepts no further streams.
    GoAway {
        /// Highest stream id the peer has processed; 0 for none.
        last_good: u32,
        /// 0 OK, 1 protocol error, 2 internal error.
        status: u32,
    },
    /// Settings; not interpreted.
    Settings {
        /// Number of entries.
        entries: u32,
    },
    /// A window update; there is no flow control in this protocol, Go peers ignore it and so must we.
    WindowUpdate {
        /// The stream; 0 for the session.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// A control frame of a type that is unknown; the draft wants it ignored.
    Unknown {
        /// The type on the wire.
        kind: u16,
    },
}

/// Bounds against a hostile or broken peer; the defaults are those of `moby/spdystream` 0.5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest payload of a control frame in bytes. Control frames are never buffered whole, so the default is what the
    /// length field can say.
    pub max_control: usize,
    /// Most headers of one block.
    pub max_header_count: usize,
    /// Longest name or value in bytes.
    pub max_header_field: usize,
    /// Longest decompressed header block in bytes; what stops a decompression bomb.
    pub max_header_block: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_control: MAX_PAYLOAD,
            max_header_count: 1000,
            max_header_field: 1 << 20,
            // spdystream would allow 1,000 headers of 2 MiB each; a port-forward needs 100 bytes. Room for four full fields.
            max_header_block: 4 << 20,
        }
    }
}

/// Why the bytes are no SPDY/3.1. The connection is lost after any of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A control frame of another version.
    #[error("a SPDY control frame of version {0}, only 3 is spoken")]
    Version(u16),
    /// A control frame longer than [`Limits::max_control`].
    #[error("a SPDY control frame of {len} bytes, the limit is {limit}")]
    ControlTooLong {
        /// Announced payload length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A control frame with a length that its type does not allow.
    #[error("a SPDY control frame of type {kind} with {len} bytes")]
    ControlLength {
        /// Type on the wire.
        kind: u16,
        /// Announced payload length in bytes.
        len: usize,
    },
    /// Flags that the type does not allow.
    #[error("a SPDY control frame of type {kind} with flags {flags:#04x}")]
    Flags {
        /// Type on the wire.
        kind: u16,
        /// The flags.
        flags: u8,
    },
    /// Stream id (or ping id) zero.
    #[error("a SPDY frame with id zero")]
    ZeroId,
    /// RST_STREAM with status zero.
    #[error("a SPDY RST_STREAM without a status")]
    ZeroStatus,
    /// A header block that is no zlib stream, or ends in the middle, or has something behind its end.
    #[error("a malformed SPDY header block")]
    HeaderBlock,
    /// A header name that is empty or not lower case, a name twice, or text that is not UTF-8.
    #[error("an invalid header in a SPDY header block")]
    Header,
    /// More or longer headers than [`Limits`] allow.
    #[error("a SPDY header block over the limits")]
    HeadersTooLarge,
}
