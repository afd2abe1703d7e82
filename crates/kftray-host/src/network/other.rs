//! Systems whose events are not watched yet.

use std::convert::Infallible;
use std::io;

use super::Hint;

/// Never opened.
pub(super) struct Hints(Infallible);

impl Hints {
    pub(super) fn open() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    #[expect(clippy::unused_async, reason = "the same form as on systems that wait here")]
    pub(super) async fn next(&mut self) -> Hint {
        match self.0 {}
    }
}

/// Nothing is known.
pub(super) fn fingerprint() -> Vec<String> {
    Vec::new()
}
