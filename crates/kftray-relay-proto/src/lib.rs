//! What a kftray client and its relay in the cluster say to each other, without any input or output.
//!
//! The client reaches the relay's tunnel port by a Kubernetes port-forward; each such byte stream is a *carrier*:
//!
//! ```text
//! client                                   relay
//!   ClientHello  ------------------------->           versions, token                  [hello], [handshake]
//!                <-------------------------  Answer   accepted with a version, or refused
//!   ===== yamux (hashicorp's specification; the client is the yamux client) =====
//!   stream: Open, records...  ------------>           a host and port, TCP or UDP      [open], [record]
//!                <------------  Reply, records...
//!   stream: Open(Listen)  ---------------->           "accept for me on this port"
//!                <------------  Reply, and an End record if the listener is taken away
//!                <------------  stream: Incoming, records...    one per accepted connection
//!   Reply, records...  ------------------->
//! ```
//!
//! # Layout
//! All numbers are unsigned and big endian. Texts are UTF-8.
//!
//! ```text
//! ClientHello  "KFTRELAY" u16 length, fields             fields: 1 versions (u16 lowest, u16 highest), 2 token (32 bytes),
//!                                                          3 client (text), 4 purpose (u8: 1 tcp, 2 udp, 3 expose)
//! Answer       "KFTRELAY" u8 status, u16 length, fields  status 1 accepted: 1 version (u16), 2 software (text),
//!                                                          3 instance (8 bytes), 4 most streams of this carrier (u32)
//!                                                        status 2 refused: 1 reason (u8), 2 message (text),
//!                                                          3 versions (u16 lowest, u16 highest)
//! Open         u8 kind, u16 length, fields               kind 1 tcp, 2 udp: 1 host (text), 2 port (u16),
//!                                                          3 connect timeout (u32 ms), 4 family (u8: 4 or 6),
//!                                                          5 idle expiry (u32 s; UDP only)
//!                                                        kind 3 listen: 1 name (text), 2 port (u16), 3 mode (u8: 1 tcp, 2 http),
//!                                                          4 allowed callers (text, a CIDR; may repeat)
//!                                                        kind 4 incoming (from the relay): 1 name (text), 2 port (u16),
//!                                                          3 peer (text, address and port)
//! Reply        u8 kind, u16 length, fields               kind 1 pending: none (the answer takes time)
//!                                                        kind 2 opened: 1 address (text), 2 port (u16)
//!                                                        kind 3 refused: 1 reason (u8), 2 message (text)
//! record       u16 length 0..=65507, payload             bytes of a TCP connection, or exactly one datagram
//!              u16 65535, u8 kind, u16 length, fields    kind 1 end: 1 reason (u8), 2 message (text)
//!                                                        kind 2 dropped: 1 datagrams lost so far (u64)
//! field        u8 tag, u16 length, value
//! ```
//!
//! # Rules
//! * Records may follow an `Open` or `Incoming` at once, without waiting for the reply; whoever refuses drops them.
//! * `pending` may come any number of times before the one `opened` or `refused`. A relay sends it when a dial takes long,
//!   so that the opener of many slow streams is not held up by yamux' limit of unacknowledged streams.
//! * A TCP direction ends with an `end` record of reason *finished*; the other direction goes on (true half-close). yamux'
//!   own FIN is sent only after both directions have ended. A stream that ends without an `end` record was cut off: the
//!   receiver resets its TCP connection, so that a truncated answer is never taken for a whole one.
//! * An `end` record with any other reason ends both directions.
//! * A UDP stream is one flow. Its `end` record carries why it ended (idle, ICMP unreachable). `dropped` is cumulative and
//!   counts what the sender of the record has thrown away of this flow in either direction.
//! * An `Open` of kind listen is held until its stream ends; then the relay stops accepting.
//! * The token says who somebody is. A relay compares its SHA-256 with those it was created with. A listener belongs to the
//!   token that opened it: the same token may take it over, another is refused (*taken*).
//!
//! # Growth
//! * The hello never changes its layout, in no version: that is what lets any two versions tell each other apart. The relay
//!   chooses the highest version both know; with none in common it refuses with its own range.
//! * A receiver skips fields it does not know, unless the tag's highest bit is set: then it must refuse (*unsupported*). It
//!   skips records of unknown kinds. It takes an unknown reason as a failure of unknown kind and shows the message.
//! * So without a new version one may: add a field (old receivers skip it, and that must be harmless), add a record kind, add
//!   a reason. Everything else needs a new version: `vectors/vN.txt` holds every message of version N as bytes, tests
//!   compare the code with them, `vectors/frozen.txt` holds each file's SHA-256, and `cargo xtask check` refuses a vector file
//!   that differs from its hash, or a hash that differs from the last release.
//! * A version is supported for at least a year after the release that follows it: relays installed by administrators
//!   outlive clients, and the reverse.

pub mod handshake;
pub mod hello;
pub mod open;
pub mod pace;
pub mod pings;
pub mod reason;
pub mod record;
pub mod token;
pub mod version;

mod field;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

/// Why bytes are not this protocol. The carrier (in a hello) or the stream (elsewhere) is lost after any of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not a hello of this protocol.
    #[error("this is not the relay's protocol")]
    Magic,
    /// A part is longer than this protocol allows.
    #[error("{what} of {length} bytes is longer than {limit}")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length, bytes.
        length: usize,
        /// The most allowed, bytes.
        limit: usize,
    },
    /// A field ends outside its message, or has the wrong length for its type.
    #[error("field {tag} is malformed")]
    Field {
        /// The field's tag.
        tag: u8,
    },
    /// A message lacks a field that it must have.
    #[error("field {tag} is missing")]
    Missing {
        /// The field's tag.
        tag: u8,
    },
    /// A message of a kind that this version does not know, or a field that must be understood and is not.
    #[error("{what} {code} is not known to this version")]
    Unsupported {
        /// Which part.
        what: &'static str,
        /// Its code.
        code: u8,
    },
}
