//! The two ends of the hello as small state machines: bytes in, bytes out, a verdict.

use bytes::BytesMut;

use crate::WireError;
use crate::hello::{Answer, ClientHello, ServerHello};
use crate::reason::{Refusal, RefusalKind};
use crate::token::TokenHash;
use crate::version::Versions;

/// Why a client has no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// What answers is no relay.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The relay refuses.
    #[error("{refusal}")]
    Refused {
        /// Why; `version` means that the relay is too old or too new.
        refusal: Refusal,
        /// The versions the relay speaks.
        versions: Versions,
    },
    /// The relay chose a version that was not offered.
    #[error("the relay chose version {0}, which was not offered")]
    NotOffered(u16),
}

/// The client's end.
#[derive(Debug)]
pub struct ClientHandshake {
    offered: Versions,
}

impl ClientHandshake {
    /// Begins: appends the hello to `out`.
    #[must_use]
    pub fn new(hello: &ClientHello, out: &mut BytesMut) -> Self {
        hello.encode(out);
        Self { offered: hello.versions }
    }

    /// Reads the relay's answer; `None` until all of it is there. What is left in `input` afterwards belongs to yamux.
    ///
    /// # Errors
    /// When the relay refuses or is none. The carrier is of no use then.
    pub fn advance(&self, input: &mut BytesMut) -> Result<Option<ServerHello>, HandshakeError> {
        match Answer::decode(input)? {
            None => Ok(None),
            Some(Answer::Accepted(hello)) if self.offered.contains(hello.version) => Ok(Some(hello)),
            Some(Answer::Accepted(hello)) => Err(HandshakeError::NotOffered(hello.version)),
            Some(Answer::Refused { refusal, versions }) => Err(HandshakeError::Refused { refusal, versions }),
        }
    }
}

/// Whom a relay lets in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The versions it speaks.
    pub versions: Versions,
    /// The tokens it knows; `None` = any token (a relay that an administrator opened to all who reach it).
    pub tokens: Option<Vec<TokenHash>>,
    /// What it says of itself. `version` is filled in.
    pub software: String,
    /// Random per process.
    pub instance: [u8; 8],
    /// Most streams per carrier.
    pub max_streams: u32,
}

/// How the relay's end of a hello came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let in: the answer is in `out`, yamux follows.
    Accepted {
        /// Who.
        hello: ClientHello,
        /// The version both speak.
        version: u16,
    },
    /// Turned away: the answer is in `out`; write it and close.
    Refused(Refusal),
}

impl Admission {
    /// Reads a hello and appends the answer to `out`; `None` until all of the hello is there. What is left in `input`
    /// afterwards belongs to yamux.
    ///
    /// The version is looked at before the token: a stranger learns no more than the versions, which are no secret, and an
    /// owner with another version learns what is really wrong.
    ///
    /// # Errors
    /// When the bytes are no hello. There is nothing to answer to somebody who speaks another protocol: close.
    pub fn advance(&self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Verdict>, WireError> {
        let Some(hello) = ClientHello::decode(input)? else { return Ok(None) };
        let Some(version) = self.versions.common(hello.versions) else {
            let message = format!(
                "the relay ({}) speaks protocol {}, the client {}",
                self.software, self.versions, hello.versions
            );
            return Ok(Some(self.refuse(Refusal::new(RefusalKind::Version, message), out)));
        };
        if !self.knows(&hello) {
            let message = "the token is not one that this relay was created for";
            return Ok(Some(self.refuse(Refusal::new(RefusalKind::Unauthorized, message), out)));
        }
        Answer::Accepted(ServerHello {
            version,
            software: self.software.clone(),
            instance: self.instance,
            max_streams: self.max_streams,
        })
        .encode(out);
        Ok(Some(Verdict::Accepted { hello, version }))
    }

    /// Appends a refusal of the relay's own, such as `busy`.
    pub fn refuse(&self, refusal: Refusal, out: &mut BytesMut) -> Verdict {
        Answer::Refused { refusal: refusal.clone(), versions: self.versions }.encode(out);
        Verdict::Refused(refusal)
    }

    /// Compares with every hash, always: the time tells nothing about which one fits.
    fn knows(&self, hello: &ClientHello) -> bool {
        self.tokens
            .as_ref()
            .is_none_or(|tokens| tokens.iter().fold(false, |known, hash| hash.matches(&hello.token) | known))
    }
}
