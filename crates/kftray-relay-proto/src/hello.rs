//! The hello: the first message of each side on a carrier. Its layout is the same in every version.

use bytes::{BufMut as _, BytesMut};

use crate::WireError;
use crate::field::{Fields, Writer, required, take_body};
use crate::reason::{Refusal, RefusalKind};
use crate::token::Token;
use crate::version::Versions;

/// The first bytes of each side.
pub const MAGIC: &[u8; 8] = b"KFTRELAY";

/// What a carrier is for; a relay shows it and may spread carriers by it, nothing else depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// TCP connections, or unknown.
    Tcp,
    /// UDP flows.
    Udp,
    /// Listeners.
    Expose,
}

impl Purpose {
    /// Stable name, as in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Expose => "expose",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
            Self::Expose => 3,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            2 => Self::Udp,
            3 => Self::Expose,
            _ => Self::Tcp,
        }
    }
}

/// What the client says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The versions the client speaks; usually [`crate::version::SUPPORTED`].
    pub versions: Versions,
    /// Whose tunnel this is.
    pub token: Token,
    /// Program, version, user and machine, for the relay's log: `kftui/1.2.0 jane@laptop`. May be empty.
    pub client: String,
    /// What the carrier is for.
    pub purpose: Purpose,
}

/// What the relay says of itself when it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHello {
    /// The version that both speak from now on.
    pub version: u16,
    /// The relay's program and version: `kftray-server/1.2.0`.
    pub software: String,
    /// Random per process: two carriers with the same instance end in the same relay.
    pub instance: [u8; 8],
    /// Most streams open at a time on this carrier; an open beyond is refused with `busy`.
    pub max_streams: u32,
}

/// The relay's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// yamux follows.
    Accepted(ServerHello),
    /// The relay closes the carrier.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The versions the relay speaks.
        versions: Versions,
    },
}

mod client_tag {
    pub(super) const VERSIONS: u8 = 1;
    pub(super) const TOKEN: u8 = 2;
    pub(super) const CLIENT: u8 = 3;
    pub(super) const PURPOSE: u8 = 4;
    pub(super) const KNOWN: &[u8] = &[VERSIONS, TOKEN, CLIENT, PURPOSE];
}

mod accepted_tag {
    pub(super) const VERSION: u8 = 1;
    pub(super) const SOFTWARE: u8 = 2;
    pub(super) const INSTANCE: u8 = 3;
    pub(super) const MAX_STREAMS: u8 = 4;
    pub(super) const KNOWN: &[u8] = &[VERSION, SOFTWARE, INSTANCE, MAX_STREAMS];
}

mod refused_tag {
    pub(super) const REASON: u8 = 1;
    pub(super) const MESSAGE: u8 = 2;
    pub(super) const VERSIONS: u8 = 3;
    pub(super) const KNOWN: &[u8] = &[REASON, MESSAGE, VERSIONS];
}

const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;

impl ClientHello {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        Writer::new(out)
            .bytes(client_tag::VERSIONS, &self.versions.to_bytes())
            .bytes(client_tag::TOKEN, self.token.bytes())
            .text_if_any(client_tag::CLIENT, &self.client)
            .bytes(client_tag::PURPOSE, &[self.purpose.code()])
            .finish();
    }

    /// Takes the message from the front of `input`; `None` until all of it is there. Consumes nothing before that.
    ///
    /// # Errors
    /// As soon as a byte does not fit: [`WireError::Magic`] and the others.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, WireError> {
        check_magic(input)?;
        let Some((_, body)) = take_body(input, MAGIC.len(), "a hello")? else { return Ok(None) };
        let fields = Fields::parse(&body, client_tag::KNOWN)?;
        Ok(Some(Self {
            versions: Versions::from_bytes(required(
                fields.array(client_tag::VERSIONS)?,
                client_tag::VERSIONS,
            )?),
            token: Token::new(required(fields.array(client_tag::TOKEN)?, client_tag::TOKEN)?),
            client: fields.text(client_tag::CLIENT)?.unwrap_or_default(),
            purpose: fields.byte(client_tag::PURPOSE)?.map_or(Purpose::Tcp, Purpose::from_code),
        }))
    }
}

impl Answer {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(MAGIC);
        match self {
            Self::Accepted(hello) => {
                out.put_u8(ACCEPTED);
                Writer::new(out)
                    .bytes(accepted_tag::VERSION, &hello.version.to_be_bytes())
                    .text_if_any(accepted_tag::SOFTWARE, &hello.software)
                    .bytes(accepted_tag::INSTANCE, &hello.instance)
                    .bytes(accepted_tag::MAX_STREAMS, &hello.max_streams.to_be_bytes())
                    .finish();
            }
            Self::Refused { refusal, versions } => {
                out.put_u8(REFUSED);
                Writer::new(out)
                    .bytes(refused_tag::REASON, &[refusal.kind.code()])
                    .text_if_any(refused_tag::MESSAGE, &refusal.message)
                    .bytes(refused_tag::VERSIONS, &versions.to_bytes())
                    .finish();
            }
        }
    }

    /// Takes the message from the front of `input`; `None` until all of it is there. Consumes nothing before that.
    ///
    /// # Errors
    /// As soon as a byte does not fit: [`WireError::Magic`] and the others.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, WireError> {
        check_magic(input)?;
        let status_at = MAGIC.len();
        let Some(&status) = input.get(status_at) else { return Ok(None) };
        if status != ACCEPTED && status != REFUSED {
            return Err(WireError::Unsupported { what: "status", code: status });
        }
        let Some((_, body)) = take_body(input, status_at + 1, "an answer")? else { return Ok(None) };
        if status == ACCEPTED {
            let fields = Fields::parse(&body, accepted_tag::KNOWN)?;
            return Ok(Some(Self::Accepted(ServerHello {
                version: required(fields.u16(accepted_tag::VERSION)?, accepted_tag::VERSION)?,
                software: fields.text(accepted_tag::SOFTWARE)?.unwrap_or_default(),
                instance: required(fields.array(accepted_tag::INSTANCE)?, accepted_tag::INSTANCE)?,
                max_streams: required(fields.u32(accepted_tag::MAX_STREAMS)?, accepted_tag::MAX_STREAMS)?,
            })));
        }
        let fields = Fields::parse(&body, refused_tag::KNOWN)?;
        let kind = required(fields.byte(refused_tag::REASON)?, refused_tag::REASON)?;
        let versions = required(fields.array(refused_tag::VERSIONS)?, refused_tag::VERSIONS)?;
        Ok(Some(Self::Refused {
            refusal: Refusal {
                kind: RefusalKind::from_code(kind),
                message: fields.text(refused_tag::MESSAGE)?.unwrap_or_default(),
            },
            versions: Versions::from_bytes(versions),
        }))
    }
}

/// Fails at the first byte that differs, so that a stranger is shown the door before it has sent eight.
fn check_magic(input: &[u8]) -> Result<(), WireError> {
    let have = input.len().min(MAGIC.len());
    if input.get(..have) == MAGIC.get(..have) { Ok(()) } else { Err(WireError::Magic) }
}
