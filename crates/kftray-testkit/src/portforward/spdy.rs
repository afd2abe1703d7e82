//! SPDY directly on the upgraded connection.

use std::sync::Arc;

use super::carrier::Envelope;
use super::{Target, session};
use crate::api::server::ApiStream;
use crate::cluster::Shared;

/// Serves a session until it ends.
pub(crate) async fn serve(shared: &Arc<Shared>, target: Target, stream: ApiStream) {
    session::serve(shared, target, stream, Envelope::Raw).await;
}
