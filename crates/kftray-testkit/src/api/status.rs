//! `v1 Status`: what the API answers when it does not answer with an object. Clients show its text to people, so the
//! sentences are the API server's own (apimachinery `pkg/api/errors/errors.go`).

use http::StatusCode;
use serde_json::{Value, json};

use super::kinds::Kind;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Status {
    /// HTTP status.
    pub code: StatusCode,
    /// Machine-readable word, for example `NotFound`.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
}

impl Status {
    /// Any status with the reason that belongs to its code.
    #[must_use]
    pub fn new(code: StatusCode, message: impl Into<String>) -> Self {
        let reason = match code.as_u16() {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 => "Conflict",
            410 => "Expired",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        Self { code, reason, message: message.into(), retry_after: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized")
    }

    pub(crate) fn not_found(kind: Kind, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{} \"{name}\" not found", qualified(kind)))
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "the server could not find the requested resource")
    }

    pub(crate) fn exists(kind: Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(kind));
        Self { reason: "AlreadyExists", ..Self::new(StatusCode::CONFLICT, message) }
    }

    pub(crate) fn conflict(kind: Kind, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes \
                 to the latest version and try again",
                qualified(kind)
            ),
        )
    }

    pub(crate) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(StatusCode::GONE, format!("too old resource version: {asked} ({oldest})"))
    }

    /// The JSON body.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let (Some(seconds), Some(map)) = (self.retry_after, body.as_object_mut()) {
            map.insert("details".to_owned(), json!({ "retryAfterSeconds": seconds }));
        }
        body
    }
}

/// `pods`, `deployments.apps`: how error sentences name a resource.
pub(crate) fn qualified(kind: Kind) -> String {
    match kind.group() {
        "" => kind.plural().to_owned(),
        group => format!("{}.{group}", kind.plural()),
    }
}
