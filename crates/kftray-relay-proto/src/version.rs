//! Version ranges, and which version two programs speak.

use std::fmt;

/// The versions this crate speaks. Raise `highest` with a new `vectors/vN.txt`; see the crate's rules of growth.
pub const SUPPORTED: Versions = Versions { lowest: 1, highest: 1 };

/// A closed range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Versions {
    /// The oldest.
    pub lowest: u16,
    /// The newest.
    pub highest: u16,
}

impl Versions {
    /// The highest version that both ranges have, if any. A range that is empty has none in common with anything.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let lowest = self.lowest.max(other.lowest);
        let highest = self.highest.min(other.highest);
        let neither_is_empty = self.lowest <= self.highest && other.lowest <= other.highest;
        (neither_is_empty && lowest <= highest).then_some(highest)
    }

    /// Whether the range holds this version.
    #[must_use]
    pub fn contains(self, version: u16) -> bool {
        (self.lowest..=self.highest).contains(&version)
    }

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let [a, b] = self.lowest.to_be_bytes();
        let [c, d] = self.highest.to_be_bytes();
        [a, b, c, d]
    }

    pub(crate) fn from_bytes([a, b, c, d]: [u8; 4]) -> Self {
        Self { lowest: u16::from_be_bytes([a, b]), highest: u16::from_be_bytes([c, d]) }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            write!(f, "{}", self.lowest)
        } else {
            write!(f, "{} to {}", self.lowest, self.highest)
        }
    }
}
