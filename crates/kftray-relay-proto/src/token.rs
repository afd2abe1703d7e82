//! The token that says whose tunnel this is, and the hash that alone is written into the pod's specification.
//!
//! A port-forward to the relay's loopback address already proves rights in its namespace. The token keeps somebody with
//! those rights, and no others, from borrowing the relay's whole reach.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// 32 random bytes, known to the client alone. Never shown: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

/// The SHA-256 of a token. Not secret: it stands in the pod's specification, as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

/// A text is not a token or not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not 32 bytes in base64url without padding.
    #[error("a token is 32 bytes in base64url without padding (43 characters)")]
    Token,
    /// Not a SHA-256.
    #[error("a token's hash is a SHA-256 as 64 hexadecimal digits")]
    Hash,
}

impl Token {
    /// A token of these bytes, which must come from a cryptographic random source or key derivation.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, for the hello.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the relay is told of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }

    /// The secret as text, for the client's own state file (mode 0600) only.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Token)?;
        bytes.try_into().map(Self).map_err(|_| TokenError::Token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl TokenHash {
    /// Whether `token` is the one, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, token: &Token) -> bool {
        self.0.ct_eq(&token.hash().0).into()
    }
}

impl FromStr for TokenHash {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(TokenError::Hash);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = str::from_utf8(pair).map_err(|_| TokenError::Hash)?;
            // `from_str_radix` would take a sign.
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(TokenError::Hash);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| TokenError::Hash)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self})")
    }
}
