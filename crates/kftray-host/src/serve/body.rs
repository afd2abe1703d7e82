//! Bodies of requests: bounded in size and time, and what is wrong with them is said with its place.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kftray_commons::Code;
use kftray_commons::api::Error;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Refusal;

/// The largest ordinary request: a thousand ad hoc forwards, or a selection of 5,000 ids.
const ORDINARY_MAX: usize = 1024 * 1024;

/// The largest import: 5,000 configs of the largest usual size, several times over.
const IMPORT_MAX: usize = 16 * 1024 * 1024;

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a body that is too large is read and thrown away, so that its client hears why it is refused instead of
/// a broken pipe; and how long that may take.
const DISCARDED_MAX: usize = 512 * 1024 * 1024;
const DISCARD_PATIENCE: Duration = Duration::from_secs(10);

/// A JSON body of ordinary size. An absent body is the value's default form, `{}`. The content type does not matter: on
/// this socket there is no browser to be kept out, and `curl -d` says another one.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body of the size of an import.
#[derive(Debug)]
pub(crate) struct ImportBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        read(request, ORDINARY_MAX).await.map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ImportBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        read(request, IMPORT_MAX).await.map(Self)
    }
}

async fn read<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Refusal> {
    let body = request.into_body();
    let announced = axum::body::HttpBody::size_hint(&body).lower();
    if announced > limit as u64 {
        discard(body).await;
        return Err(too_large(limit));
    }
    let mut body = body;
    let collected = timeout(PATIENCE, Limited::new(&mut body, limit).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            return Err(too_large(limit));
        }
        Ok(Err(error)) => {
            return Err(Error::new(Code::RequestInvalid, format!("the body was cut off: {error}")).into());
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            let message = format!("the body did not come within {seconds} s");
            return Err(Error::new(Code::RequestInvalid, message).into());
        }
    };
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(text).map_err(|error| {
        Error::new(Code::RequestInvalid, format!("the body is not what belongs here: {error}")).into()
    })
}

async fn discard(mut body: axum::body::Body) {
    let reading = async {
        let mut left = DISCARDED_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(size) else { return };
            left = rest;
        }
    };
    // Whoever sends longer hears nothing but the end of the connection.
    drop(timeout(DISCARD_PATIENCE, reading).await);
}

fn too_large(limit: usize) -> Refusal {
    let message = format!("the body is larger than {} KiB", limit / 1024);
    Error::new(Code::RequestTooLarge, message).into()
}
