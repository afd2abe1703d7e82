//! What a stream is for (its first message) and the other side's reply.

use std::time::Duration;

use bytes::{BufMut as _, BytesMut};

use crate::WireError;
use crate::field::{Fields, Writer, required, take_body};
use crate::reason::{Refusal, RefusalKind};

/// Longest host name, bytes (RFC 1035, 2.3.4, in text form with a trailing dot); addresses are shorter.
pub const MAX_HOST: usize = 254;

/// The first message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// Client to relay: a TCP connection. TCP records follow.
    Tcp {
        /// Where to.
        target: Target,
        /// How.
        policy: Policy,
    },
    /// Client to relay: a UDP flow. Each record is one datagram.
    Udp {
        /// Where to.
        target: Target,
        /// How.
        policy: Policy,
    },
    /// Client to relay: accept connections for this client until the stream ends.
    Listen(Listen),
    /// Relay to client: a connection that a listener accepted. TCP records follow.
    Incoming(Incoming),
}

/// A host and port as the cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// A name, an IPv4 address, or an IPv6 address without brackets; 1 to [`MAX_HOST`] bytes.
    pub host: String,
    /// 1 to 65,535.
    pub port: u16,
}

/// What the client wishes about a connection or flow; the relay's own limits come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Policy {
    /// Give up connecting after this; the relay's default is 10 s. Whole milliseconds travel.
    pub connect_timeout: Option<Duration>,
    /// Only addresses of this family.
    pub family: Option<Family>,
    /// End a silent UDP flow after this; the relay's default is 120 s. Whole seconds travel.
    pub idle: Option<Duration>,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A listener for the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// The exposure's name; the relay repeats it in [`Incoming`] and shows it in logs and metrics.
    pub name: String,
    /// The port to accept on; one of those the relay was created with.
    pub port: u16,
    /// What is spoken on it.
    pub mode: Mode,
    /// Callers let in, as CIDRs (`10.0.0.0/8`, `::1/128`) or single addresses; empty = all.
    pub callers: Vec<String>,
}

/// What is spoken on a listener. It matters only when no tunnel is there to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Anything: without a tunnel a caller is disconnected.
    Tcp,
    /// HTTP/1.x (or something that bears an HTTP answer): without a tunnel a caller gets a 503 page.
    Http,
}

/// A connection that a listener accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incoming {
    /// The listener's name.
    pub name: String,
    /// The listener's port.
    pub port: u16,
    /// The caller's address and port as the relay saw them.
    pub peer: String,
}

/// The answer to an [`Open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The answer takes time; it will come. May be repeated.
    Pending,
    /// It is open.
    Opened {
        /// The address that was dialled, for showing; empty for listeners and incoming connections.
        address: String,
        /// The port that was dialled or is listened on; 0 for incoming connections.
        port: u16,
    },
    /// It is not; the stream ends.
    Refused(Refusal),
}

mod kind {
    pub(super) const TCP: u8 = 1;
    pub(super) const UDP: u8 = 2;
    pub(super) const LISTEN: u8 = 3;
    pub(super) const INCOMING: u8 = 4;
}

mod target_tag {
    pub(super) const HOST: u8 = 1;
    pub(super) const PORT: u8 = 2;
    pub(super) const CONNECT_TIMEOUT: u8 = 3;
    pub(super) const FAMILY: u8 = 4;
    pub(super) const IDLE: u8 = 5;
    pub(super) const KNOWN: &[u8] = &[HOST, PORT, CONNECT_TIMEOUT, FAMILY, IDLE];
}

mod listen_tag {
    pub(super) const NAME: u8 = 1;
    pub(super) const PORT: u8 = 2;
    pub(super) const MODE: u8 = 3;
    pub(super) const CALLERS: u8 = 4;
    pub(super) const KNOWN: &[u8] = &[NAME, PORT, MODE, CALLERS];
}

mod incoming_tag {
    pub(super) const NAME: u8 = 1;
    pub(super) const PORT: u8 = 2;
    pub(super) const PEER: u8 = 3;
    pub(super) const KNOWN: &[u8] = &[NAME, PORT, PEER];
}

mod reply_kind {
    pub(super) const PENDING: u8 = 1;
    pub(super) const OPENED: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
}

const FIRST: u8 = 1;
const SECOND: u8 = 2;

impl Open {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Tcp { target, policy } => encode_target(out, kind::TCP, target, *policy),
            Self::Udp { target, policy } => encode_target(out, kind::UDP, target, *policy),
            Self::Listen(listen) => {
                out.put_u8(kind::LISTEN);
                let mode = match listen.mode {
                    Mode::Tcp => 1,
                    Mode::Http => 2,
                };
                let mut writer = Writer::new(out)
                    .text(listen_tag::NAME, &listen.name)
                    .bytes(listen_tag::PORT, &listen.port.to_be_bytes())
                    .bytes(listen_tag::MODE, &[mode]);
                for caller in &listen.callers {
                    writer = writer.text(listen_tag::CALLERS, caller);
                }
                writer.finish();
            }
            Self::Incoming(incoming) => {
                out.put_u8(kind::INCOMING);
                Writer::new(out)
                    .text(incoming_tag::NAME, &incoming.name)
                    .bytes(incoming_tag::PORT, &incoming.port.to_be_bytes())
                    .text(incoming_tag::PEER, &incoming.peer)
                    .finish();
            }
        }
    }

    /// Takes the message from the front of `input`; `None` until all of it is there. Consumes nothing before that.
    ///
    /// # Errors
    /// When the bytes are not an open; answer with [`WireError::refusal`].
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(&code) = input.first() else { return Ok(None) };
        if !(kind::TCP..=kind::INCOMING).contains(&code) {
            return Err(WireError::Unsupported { what: "open of kind", code });
        }
        let Some((_, body)) = take_body(input, 1, "an open")? else { return Ok(None) };
        Ok(Some(match code {
            kind::TCP => {
                let (target, policy) = decode_target(&body)?;
                Self::Tcp { target, policy }
            }
            kind::UDP => {
                let (target, policy) = decode_target(&body)?;
                Self::Udp { target, policy }
            }
            kind::LISTEN => Self::Listen(decode_listen(&body)?),
            _ => {
                let fields = Fields::parse(&body, incoming_tag::KNOWN)?;
                Self::Incoming(Incoming {
                    name: required(fields.text(incoming_tag::NAME)?, incoming_tag::NAME)?,
                    port: required(fields.u16(incoming_tag::PORT)?, incoming_tag::PORT)?,
                    peer: required(fields.text(incoming_tag::PEER)?, incoming_tag::PEER)?,
                })
            }
        }))
    }
}

fn encode_target(out: &mut BytesMut, kind: u8, target: &Target, policy: Policy) {
    out.put_u8(kind);
    let mut writer = Writer::new(out)
        .text(target_tag::HOST, &target.host)
        .bytes(target_tag::PORT, &target.port.to_be_bytes());
    if let Some(timeout) = policy.connect_timeout {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        writer = writer.bytes(target_tag::CONNECT_TIMEOUT, &millis.to_be_bytes());
    }
    if let Some(family) = policy.family {
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        writer = writer.bytes(target_tag::FAMILY, &[family]);
    }
    if let Some(idle) = policy.idle {
        let seconds = u32::try_from(idle.as_secs()).unwrap_or(u32::MAX);
        writer = writer.bytes(target_tag::IDLE, &seconds.to_be_bytes());
    }
    writer.finish();
}

fn decode_target(body: &[u8]) -> Result<(Target, Policy), WireError> {
    let fields = Fields::parse(body, target_tag::KNOWN)?;
    let host = required(fields.text(target_tag::HOST)?, target_tag::HOST)?;
    if host.len() > MAX_HOST {
        return Err(WireError::TooLong { what: "a host name", length: host.len(), limit: MAX_HOST });
    }
    let port = required(fields.u16(target_tag::PORT)?, target_tag::PORT)?;
    if host.is_empty() {
        return Err(WireError::Field { tag: target_tag::HOST });
    }
    if port == 0 {
        return Err(WireError::Field { tag: target_tag::PORT });
    }
    let family = match fields.byte(target_tag::FAMILY)? {
        None => None,
        Some(4) => Some(Family::V4),
        Some(6) => Some(Family::V6),
        Some(_) => return Err(WireError::Field { tag: target_tag::FAMILY }),
    };
    let millis = |value: u32| Duration::from_millis(value.into());
    let seconds = |value: u32| Duration::from_secs(value.into());
    let policy = Policy {
        connect_timeout: fields.u32(target_tag::CONNECT_TIMEOUT)?.map(millis),
        family,
        idle: fields.u32(target_tag::IDLE)?.map(seconds),
    };
    Ok((Target { host, port }, policy))
}

fn decode_listen(body: &[u8]) -> Result<Listen, WireError> {
    let fields = Fields::parse(body, listen_tag::KNOWN)?;
    let mode = match required(fields.byte(listen_tag::MODE)?, listen_tag::MODE)? {
        1 => Mode::Tcp,
        2 => Mode::Http,
        code => return Err(WireError::Unsupported { what: "listen mode", code }),
    };
    Ok(Listen {
        name: required(fields.text(listen_tag::NAME)?, listen_tag::NAME)?,
        port: required(fields.u16(listen_tag::PORT)?, listen_tag::PORT)?,
        mode,
        callers: fields.texts(listen_tag::CALLERS)?,
    })
}

impl Reply {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Pending => {
                out.put_u8(reply_kind::PENDING);
                Writer::new(out).finish();
            }
            Self::Opened { address, port } => {
                out.put_u8(reply_kind::OPENED);
                Writer::new(out).text_if_any(FIRST, address).bytes(SECOND, &port.to_be_bytes()).finish();
            }
            Self::Refused(refusal) => {
                out.put_u8(reply_kind::REFUSED);
                Writer::new(out)
                    .bytes(FIRST, &[refusal.kind.code()])
                    .text_if_any(SECOND, &refusal.message)
                    .finish();
            }
        }
    }

    /// Takes the message from the front of `input`; `None` until all of it is there. Consumes nothing before that.
    ///
    /// # Errors
    /// When the bytes are not a reply.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some(&code) = input.first() else { return Ok(None) };
        if !(reply_kind::PENDING..=reply_kind::REFUSED).contains(&code) {
            return Err(WireError::Unsupported { what: "reply of kind", code });
        }
        let Some((_, body)) = take_body(input, 1, "a reply")? else { return Ok(None) };
        let fields = Fields::parse(&body, &[FIRST, SECOND])?;
        Ok(Some(match code {
            reply_kind::PENDING => Self::Pending,
            reply_kind::OPENED => Self::Opened {
                address: fields.text(FIRST)?.unwrap_or_default(),
                port: fields.u16(SECOND)?.unwrap_or_default(),
            },
            _ => Self::Refused(Refusal {
                kind: RefusalKind::from_code(required(fields.byte(FIRST)?, FIRST)?),
                message: fields.text(SECOND)?.unwrap_or_default(),
            }),
        }))
    }
}

impl WireError {
    /// The refusal that tells the other side about its mistake.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Unsupported { .. } => RefusalKind::Unsupported,
            Self::TooLong { .. } => RefusalKind::TooLarge,
            Self::Magic | Self::Field { .. } | Self::Missing { .. } => RefusalKind::Invalid,
        };
        Refusal::new(kind, self.to_string())
    }
}
