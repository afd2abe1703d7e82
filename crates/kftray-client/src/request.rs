//! One request, one connection: on a local socket a connection costs less than the bookkeeping of a pool, and a host that
//! was replaced is never asked by mistake.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kftray_commons::Code;
use kftray_commons::api::{Error, PREFIX, Place};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{Result, platform, version};

/// How long the host may take to accept a connection and to begin its answer where nothing but itself is asked.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The same where a cluster is asked: a credential plugin may open a browser, a VPN may be slow.
pub(crate) const PATIENT: Duration = Duration::from_secs(120);

/// The largest answer that is read: several times the state of 5,000 configs.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

/// What shall be asked.
pub(crate) struct Question {
    pub(crate) method: Method,
    /// Below [`PREFIX`], with query.
    pub(crate) path: String,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) last_event: Option<String>,
    pub(crate) limit: Duration,
}

impl Question {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, last_event: None, limit: SOON }
    }

    /// With a JSON body.
    pub(crate) fn with<T: serde::Serialize>(mut self, body: &T) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        self.body = Some(body);
        Ok(self)
    }

    pub(crate) fn patient(mut self) -> Self {
        self.limit = PATIENT;
        self
    }
}

/// An answer whose body has not been read. The connection lives as long as it does.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Incoming,
    /// Drives the connection.
    _connection: JoinSet<()>,
}

/// Asks; the answer's head has come.
pub(crate) async fn ask(place: &Place, question: Question) -> Result<Answer> {
    let limit = question.limit;
    timeout(limit, exchange(place, question)).await.unwrap_or_else(|_| Err(silent(place, limit)))
}

async fn exchange(place: &Place, question: Question) -> Result<Answer> {
    let lost = |error: hyper::Error| {
        Error::new(Code::HostUnreachable, format!("the host went away while it was asked: {error}"))
    };
    let stream = platform::open(place).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its failure is told to whoever waits for the answer.
        drop(connection.await);
    });
    let mut request = Request::builder()
        .method(question.method)
        .uri(format!("{PREFIX}{}", question.path))
        .header(header::HOST, "kftray")
        .header(version::HEADER, version::header());
    if question.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some(last) = question.last_event {
        request = request.header("last-event-id", last);
    }
    let request = request
        .body(Full::new(Bytes::from(question.body.unwrap_or_default())))
        .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(lost)?;
    let (head, body) = answer.into_parts();
    let answer = Answer { status: head.status, body, _connection: driver };
    if answer.status.is_success() { Ok(answer) } else { Err(answer.refusal().await) }
}

impl Answer {
    /// The whole body.
    pub(crate) async fn bytes(self) -> Result<Bytes> {
        let body = Limited::new(self.body, ANSWER_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            Error::new(Code::HostUnreachable, format!("the host's answer was cut off: {error}"))
        })
    }

    /// The body as a value.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(Code::VersionMismatch, format!("the host's answer is not understood: {error}"))
        })
    }

    /// What a refusal says.
    async fn refusal(self) -> Error {
        let status = self.status;
        let bytes = match timeout(SOON, self.bytes()).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return error,
            Err(_) => Bytes::new(),
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|_| match status {
            StatusCode::NOT_FOUND => Error::new(Code::VersionMismatch, "the host does not know this request"),
            _ => Error::new(Code::HostUnreachable, format!("the host answered with status {status}")),
        })
    }
}

fn silent(place: &Place, limit: Duration) -> Error {
    let seconds = limit.as_secs();
    let directory = place.directory.display();
    let message = format!("the host of {directory} did not answer within {seconds} s");
    let mut error = Error::new(Code::HostUnreachable, message);
    error.remedy = "Look at `kftui host logs`; `kftui host stop` ends it.".to_owned();
    error
}
