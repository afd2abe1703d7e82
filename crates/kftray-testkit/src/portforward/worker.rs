//! The workers of a SPDY session: five of them take the frames from their queues, one at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kftray_spdy::frame::HeaderList;
use tokio::sync::mpsc;

use super::session::Session;
use super::stream::Stream;
use crate::faults::Pings;
use crate::sync::lock;

/// What a worker gets to do.
pub(super) enum Work {
    Open(Arc<Stream>, HeaderList),
    Data { id: u32, payload: Bytes, fin: bool },
    Reset(u32),
    Ping(u32),
    GoAway,
}

/// One of the five workers.
pub(super) async fn work(session: Arc<Session>, mut queue_rx: mpsc::Receiver<Work>) {
    while let Some(work) = queue_rx.recv().await {
        let result = match work {
            Work::Open(stream, headers) => session.open(stream, &headers).await,
            Work::Data { id, payload, fin } => {
                data(&session, id, payload, fin).await;
                Ok(())
            }
            Work::Reset(id) => {
                if let Some(stream) = session.stream(id) {
                    stream.finished.store(true, Ordering::SeqCst);
                    stream.close();
                    session.remove(&stream);
                }
                Ok(())
            }
            Work::Ping(id) => ping(&session, id).await,
            Work::GoAway => {
                session.go_away();
                Ok(())
            }
        };
        if let Err(error) = result {
            tracing::trace!(%error, "frame not handled");
        }
    }
}

async fn data(session: &Session, id: u32, payload: Bytes, fin: bool) {
    let Some(stream) = session.stream(id).filter(|stream| stream.replied.load(Ordering::SeqCst)) else {
        return;
    };
    let data_tx = lock(&stream.data_tx).clone();
    if let Some(data_tx) = data_tx.filter(|_| !payload.is_empty()) {
        // Here a stream whose reader has stopped stops this worker.
        tokio::select! {
            sent = data_tx.send(payload) => drop(sent),
            () = stream.closed.cancelled() => {}
        }
    }
    if fin {
        stream.finish_remote();
        if stream.finished.load(Ordering::SeqCst) && stream.remote_finished() {
            session.remove(&stream);
        }
    }
}

async fn ping(session: &Arc<Session>, id: u32) -> io::Result<()> {
    // An even id would be the answer to a ping of ours; there is none.
    if id.is_multiple_of(2) {
        return Ok(());
    }
    let pings = session.shared.faults.borrow().pings;
    match pings {
        Pings::Answer => session.send_ping(id).await,
        Pings::Late(delay) => {
            let late = Arc::clone(session);
            session.start(async move {
                tokio::time::sleep(delay).await;
                late.send_ping(id).await.ok();
            });
            Ok(())
        }
        Pings::Ignore => Ok(()),
    }
}
