//! The first thing a client asks: who is there, and do we understand each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Millis;

/// The protocol versions of this build. `max` is raised with an addition that an older peer cannot ignore, `min` when an
/// old form is no longer served.
///
/// Version 1: the first.
pub const PROTOCOL: Versions = Versions { min: 1, max: 1 };

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Versions {
    /// The oldest that is understood.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// Who the host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hello {
    /// What it speaks.
    pub protocol: Versions,
    /// Its version, as in `kftui --version`.
    pub version: String,
    /// What tells two builds of one version apart; empty if unknown.
    #[serde(default)]
    pub build: String,
    /// Drawn anew with every start of a host; event ids are only comparable within one.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started_at: Millis,
    /// What it lives in.
    pub mode: Mode,
    /// The directory it serves.
    pub config_dir: String,
    /// Clients that follow events now.
    #[serde(default)]
    pub clients: u32,
}

/// What a host lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A process of its own.
    Background,
    /// A face; its forwards end with it.
    Embedded,
    /// A kind that this build does not know.
    #[serde(other)]
    Other,
}

impl Versions {
    /// The version both understand best, if there is one.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let best = self.max.min(other.max);
        (best >= self.min && best >= other.min).then_some(best)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.max),
            false => write!(f, "{} to {}", self.min, self.max),
        }
    }
}
