//! The tunnel: SPDY bytes in WebSocket messages. The API server unwraps them; everything behind it is plain SPDY.

use std::sync::Arc;

use base64::Engine as _;
use ring::digest;

use super::carrier::Envelope;
use super::{Target, session};
use crate::api::server::ApiStream;
use crate::cluster::Shared;

/// Serves a tunnelled session until it ends.
pub(crate) async fn serve(shared: &Arc<Shared>, target: Target, stream: ApiStream) {
    session::serve(shared, target, stream, Envelope::WebSocket).await;
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub(crate) fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    #[test]
    fn accept_key_of_the_rfc() {
        assert_eq!(super::accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
