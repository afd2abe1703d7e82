//! One stream of a client: what it is for, and the refusal if it cannot be.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::io::AsyncWriteExt as _;
use futures::stream::StreamExt as _;
use kftray_relay_proto::open::{Open, Reply};
use kftray_relay_proto::reason::{Refusal, RefusalKind};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use crate::carrier::Tunnel;
use crate::limits::Permit;
use crate::metrics::Kind;
use crate::relay::Core;
use crate::{expose, tcp, udp};

/// The open comes with the stream's first bytes; a stream without one is dropped after this.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// After this a dial that goes on is answered with *pending*, so that yamux' limit of 256 unacknowledged streams does not
/// hold up the opens behind it. Well above a round trip in a cluster: a dial that works is never answered twice.
pub(crate) const PENDING_AFTER: Duration = Duration::from_millis(100);

/// Bytes that are taken in while a dial runs; beyond them they stay within yamux' window, and whether the client has given up
/// is seen only after the dial.
const MEANWHILE: usize = 16 * 1024;

/// Serves one stream until its end. Without a permit it is refused.
pub(crate) async fn serve(
    core: Arc<Core>,
    tunnel: Arc<Tunnel>,
    mut stream: yamux::Stream,
    permit: Result<Permit, Refusal>,
) {
    let _permit = match permit {
        Ok(permit) => permit,
        // Whatever it asks for: what is beyond the limit is not even read.
        Err(refusal) => return refuse(&core, stream, refusal).await,
    };
    let mut input = BytesMut::new();
    let open = match timeout(OPEN_TIMEOUT, read_open(&mut stream, &mut input)).await {
        Ok(Ok(open)) => open,
        // Reset by the client, or silent: nobody hears a refusal.
        Ok(Err(None)) | Err(_) => return,
        Ok(Err(Some(refusal))) => return refuse(&core, stream, refusal).await,
    };
    if core.draining.is_cancelled() {
        let refusal = Refusal::new(RefusalKind::Draining, "the relay is going away");
        return refuse(&core, stream, refusal).await;
    }
    if let Err(refusal) = core.bounds.check_memory(Instant::now()) {
        return refuse(&core, stream, refusal).await;
    }
    let rest = input.freeze();
    match open {
        Open::Tcp { target, policy } => {
            let _live = core.metrics.stream(Kind::Tcp);
            tcp::serve(&core, stream, rest, &target, policy).await;
        }
        Open::Udp { target, policy } => {
            let _live = core.metrics.stream(Kind::Udp);
            udp::serve(&core, stream, rest, tunnel.owner, &target, policy).await;
        }
        Open::Listen(listen) => {
            let _live = core.metrics.stream(Kind::Listen);
            expose::serve(&core, &tunnel, stream, rest, listen).await;
        }
        Open::Incoming(_) => {
            let message = "only a relay announces incoming connections";
            refuse(&core, stream, Refusal::new(RefusalKind::Invalid, message)).await;
        }
    }
}

/// Reads the stream's first message; `Err(None)` if the stream ended before it was there.
async fn read_open(stream: &mut yamux::Stream, input: &mut BytesMut) -> Result<Open, Option<Refusal>> {
    loop {
        match Open::decode(input) {
            Ok(Some(open)) => return Ok(open),
            Ok(None) => {}
            Err(error) => return Err(Some(error.refusal())),
        }
        match stream.next().await {
            Some(Ok(packet)) => input.extend_from_slice(packet.as_ref()),
            Some(Err(_)) | None => return Err(None),
        }
    }
}

/// Answers a refusal and ends the stream.
pub(crate) async fn refuse(core: &Core, mut stream: yamux::Stream, refusal: Refusal) {
    if refusal.kind == RefusalKind::Denied {
        // Somebody tries the fence: an administrator may want to know.
        info!(%refusal, "denied");
    } else {
        debug!(%refusal, "refused");
    }
    core.metrics.refusal(refusal.kind);
    if reply(&mut stream, &Reply::Refused(refusal)).await {
        stream.close().await.ok();
    }
}

/// Sends a reply; false if the stream is gone.
pub(crate) async fn reply(stream: &mut yamux::Stream, reply: &Reply) -> bool {
    let mut out = BytesMut::new();
    reply.encode(&mut out);
    stream.write_all(&out).await.is_ok()
}

/// What happened while a dial ran.
pub(crate) enum Dialled<T> {
    /// It came to its end; what the client sent meanwhile.
    Done(Result<T, Refusal>, Bytes),
    /// The client gave the stream up.
    GivenUp,
}

/// Runs a dial, says *pending* if it takes long, and ends it when the client gives up.
pub(crate) async fn while_dialling<T>(
    stream: &mut yamux::Stream,
    rest: Bytes,
    dial: impl Future<Output = Result<T, Refusal>>,
) -> Dialled<T> {
    let late = tokio::time::sleep(PENDING_AFTER);
    tokio::pin!(dial, late);
    let mut pending_sent = false;
    let mut rest = rest;
    loop {
        tokio::select! {
            biased;
            result = &mut dial => return Dialled::Done(result, rest),
            () = &mut late, if !pending_sent => {
                pending_sent = true;
                if !reply(stream, &Reply::Pending).await {
                    return Dialled::GivenUp;
                }
            }
            packet = stream.next(), if rest.len() < MEANWHILE => match packet {
                Some(Ok(packet)) if rest.is_empty() => rest = Bytes::from_owner(packet),
                Some(Ok(packet)) => rest = [rest.as_ref(), packet.as_ref()].concat().into(),
                Some(Err(_)) | None => return Dialled::GivenUp,
            }
        }
    }
}
