//! Answers: JSON, and refusals as the API has them.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use kftray_commons::api::{Error, status_of};
use kftray_commons::{Code, Problem};

/// What a handler answers.
pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// A refusal on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Box<Error>);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(Box::new(error))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Error::from(problem).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(status_of(self.0.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(*self.0)).into_response()
    }
}

/// There is nothing at this path.
pub(crate) async fn path_unknown(uri: Uri) -> Refusal {
    Error::new(Code::NotFound, format!("there is nothing at {}", uri.path())).into()
}

/// There is something, but not with this method.
pub(crate) async fn method_unknown(method: http::Method, uri: Uri) -> Refusal {
    Error::new(Code::RequestInvalid, format!("{} does not take {method}", uri.path())).into()
}
