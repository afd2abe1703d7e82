//! A refusal, as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::problem::{Code, Problem};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Error {
    /// Stable code; `docs/errors.md` lists them with cause and cure.
    pub code: Code,
    /// One plain sentence.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// More for programs, by code: the present config with `conflict`, the list of faults with `spec_invalid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub details: Option<Box<Value>>,
}

impl Error {
    /// With the code's general remedy.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Problem::new(code, message).into()
    }

    /// The same with more for programs.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// As a problem, without the details.
    #[must_use]
    pub fn problem(self) -> Problem {
        Problem { code: self.code, message: self.message, remedy: self.remedy }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { code: problem.code, message: problem.message, remedy: problem.remedy, details: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The HTTP status of each code that is not answered with 500.
const STATUS: &[(Code, u16)] = &[
    (Code::RequestInvalid, 400),
    (Code::SpecInvalid, 400),
    (Code::ImportUnreadable, 400),
    (Code::PeerRefused, 403),
    (Code::Forbidden, 403),
    (Code::NotFound, 404),
    (Code::TargetMissing, 404),
    (Code::ContextMissing, 404),
    (Code::KubeconfigMissing, 404),
    (Code::Conflict, 409),
    (Code::RequestTooLarge, 413),
    (Code::VersionMismatch, 426),
    (Code::TooManyClients, 429),
    (Code::Overloaded, 429),
    (Code::Unsupported, 501),
    (Code::ClusterUnreachable, 502),
    (Code::ClusterError, 502),
    (Code::Unauthorized, 502),
    (Code::ProxyRefused, 502),
    (Code::HostEnding, 503),
    (Code::StoreBusy, 503),
    (Code::StoreFailed, 507),
    (Code::StoreTooNew, 507),
    (Code::StoreDamaged, 507),
    (Code::DirectoryRefused, 507),
];

/// The HTTP status that goes with a code. A program reads the code; the status is for tools that only know HTTP.
#[must_use]
pub fn status_of(code: Code) -> u16 {
    STATUS.iter().find(|(known, _)| *known == code).map_or(500, |(_, status)| *status)
}
