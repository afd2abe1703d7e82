//! Requests to the host that serves now, in whatever version of the API it speaks.

use std::fmt;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kftray_commons::api::{PREFIX, Place};
use kftray_commons::{Code, Problem};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::PATIENCE;
use crate::platform;

/// The largest answer that is read: an offer of thousands of forwards.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// Asks the old host to end. Every version of the API has this.
///
/// # Errors
/// `host_unreachable` if it does not answer.
pub(crate) async fn dismiss(place: &Place) -> Result<(), Problem> {
    let asked = timeout(PATIENCE, post(place, "shutdown")).await;
    asked.map_err(|_| refused("it does not answer"))?.map(drop)
}

pub(super) async fn post(place: &Place, path: &str) -> Result<bytes::Bytes, Problem> {
    let stream = platform::connect(place).await.map_err(refused)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(refused)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its failure is the answer's.
        drop(connection.await);
    });
    let request = http::Request::post(format!("{PREFIX}/{path}"))
        .header(http::header::HOST, "kftray")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(refused)?;
    let answer = sender.send_request(request).await.map_err(refused)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(refused)?.to_bytes();
    if !status.is_success() {
        return Err(refused(format!("it answered {status}")));
    }
    Ok(body)
}

pub(super) fn refused(why: impl fmt::Display) -> Problem {
    Problem::new(Code::HostUnreachable, format!("the old host does not hand over: {why}"))
}
