//! The handle of one connection in a session.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use kftray_portforward::ports::{Channel, ChannelError, HalfClose};
use kftray_spdy::connection::PairId;
use tokio::time::Instant;

use super::Session;

/// One connection. Dropping it before its end resets its streams, so that a cancelled download does not clog the session.
#[derive(Debug)]
pub(crate) struct SessionChannel {
    session: Arc<Session>,
    pair: PairId,
}

impl SessionChannel {
    pub(super) fn new(session: Arc<Session>, pair: PairId) -> Self {
        Self { session, pair }
    }

    /// Ready at once if the session was known to be alive when the connection was opened. Else the client's bytes are
    /// withheld until the session is heard, and so long this waits. False if it was lost instead. Until then the
    /// connection has delivered nothing and can be given up.
    pub(crate) async fn heard(&self) -> bool {
        std::future::poll_fn(|cx| self.session.shared.lock().poll_heard(self.pair, cx)).await
    }
}

impl Channel for SessionChannel {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let pair = self.pair;
        self.session.shared.with(|state| state.poll_recv(Instant::now(), pair, cx))
    }

    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.session.shared.lock().poll_send_ready(self.pair, cx)
    }

    fn send(&mut self, data: Bytes) {
        let pair = self.pair;
        self.session.shared.with(|state| state.send(Instant::now(), pair, data));
    }

    fn finish(&mut self) {
        let pair = self.pair;
        self.session.shared.with(|state| state.finish(pair));
    }

    fn half_close(&self) -> HalfClose {
        HalfClose::Withheld
    }

    fn close(&mut self) -> bool {
        let pair = self.pair;
        self.session.shared.lock().close(Instant::now(), pair);
        // A drop would reset the streams, and the reset may overtake what the client has sent.
        false
    }
}

impl Drop for SessionChannel {
    fn drop(&mut self) {
        let pair = self.pair;
        self.session.shared.with(|state| state.release(Instant::now(), pair));
    }
}
