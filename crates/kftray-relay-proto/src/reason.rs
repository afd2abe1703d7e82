//! Why something is refused or ended: the closed lists that faces turn into explanations.

use std::fmt;

macro_rules! reasons {
    ($(#[doc = $doc:literal])+ $name:ident: $($(#[doc = $variant_doc:literal])+ $variant:ident = $code:literal, $text:literal;)+) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)+
            /// A code that this build does not know: a failure of unknown kind, explained by its message.
            Unknown(u8),
        }

        impl $name {
            /// Every reason that has a name.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The byte on the wire.
            #[must_use]
            pub fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)+ Self::Unknown(code) => code }
            }

            /// The reason of a byte on the wire.
            #[must_use]
            pub fn from_code(code: u8) -> Self {
                match code { $($code => Self::$variant,)+ code => Self::Unknown(code) }
            }

            /// Stable name, as in logs and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ Self::Unknown(_) => "unknown" }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a hello or an open was refused.
    RefusalKind:
    /// The relay's lists forbid the target or the caller.
    Denied = 1, "denied";
    /// The cluster's DNS knows no such name.
    NameNotFound = 2, "name_not_found";
    /// The target refuses: nothing listens there.
    Refused = 3, "refused";
    /// The target (or the DNS) did not answer in time.
    TimedOut = 4, "timed_out";
    /// No way leads to the target.
    Unreachable = 5, "unreachable";
    /// More than the protocol or the relay takes.
    TooLarge = 6, "too_large";
    /// One of the relay's limits is reached; later it may work.
    Busy = 7, "busy";
    /// The token is not one of the relay's.
    Unauthorized = 8, "unauthorized";
    /// No protocol version in common.
    Version = 9, "version";
    /// A kind of open, or a field that must be understood, of a later version.
    Unsupported = 10, "unsupported";
    /// The message breaks the protocol.
    Invalid = 11, "invalid";
    /// The listener belongs to another token.
    Taken = 12, "taken";
    /// The relay is going away; open elsewhere.
    Draining = 13, "draining";
    /// The relay, or the client for an incoming connection, failed itself.
    Internal = 14, "internal";
}

reasons! {
    /// Why a direction or a flow ended.
    EndKind:
    /// This direction is complete (TCP's FIN).
    Finished = 1, "finished";
    /// The connection was reset (TCP's RST).
    Reset = 2, "reset";
    /// Nothing moved for the flow's expiry.
    Idle = 3, "idle";
    /// ICMP: nothing listens on the port.
    Refused = 4, "refused";
    /// ICMP: no way leads to the host or network.
    Unreachable = 5, "unreachable";
    /// The connection timed out.
    TimedOut = 6, "timed_out";
    /// A datagram is larger than the path to the target takes.
    TooLarge = 7, "too_large";
    /// The relay is going away.
    Draining = 8, "draining";
    /// The listener was taken over by another tunnel of the same token.
    TakenOver = 9, "taken_over";
    /// The sender failed itself.
    Internal = 10, "internal";
}

/// A refusal with its explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Refusal {
    /// The class, which programs match on.
    pub kind: RefusalKind,
    /// One plain sentence about this case for a person, without a trailing full stop; at most 1,024 bytes travel.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
