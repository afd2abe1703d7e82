//! One stream of a SPDY session: its states, its headers, and the pair it belongs to.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};
use kftray_spdy::frame::{HeaderList, StreamId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::runtime::Source;
use crate::counters::Entered;
use crate::sync::lock;

/// One stream, half of a forwarded connection.
pub(super) struct Stream {
    pub(super) id: StreamId,
    /// session worker --payload of DATA--> copy into the pod; gone once the client has finished.
    pub(super) data_tx: Mutex<Option<mpsc::Sender<Bytes>>>,
    pub(super) data_rx: Mutex<Option<mpsc::Receiver<Bytes>>>,
    /// SYN_REPLY is out; DATA that comes before is dropped.
    pub(super) replied: AtomicBool,
    /// We have sent FIN or RST.
    pub(super) finished: AtomicBool,
    /// Nobody reads any more: reset, or the session is over.
    pub(super) closed: CancellationToken,
    pub(super) _entered: Entered,
}

impl Stream {
    /// The client's half is over.
    pub(super) fn finish_remote(&self) {
        *lock(&self.data_tx) = None;
    }

    pub(super) fn remote_finished(&self) -> bool {
        lock(&self.data_tx).is_none()
    }

    pub(super) fn close(&self) {
        self.finish_remote();
        self.closed.cancel();
    }
}

/// The two streams of a forwarded connection, in the order they come.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) data: Option<(Arc<Stream>, u16)>,
    pub(super) error: Option<Arc<Stream>>,
    pub(super) complete: CancellationToken,
}

pub(super) enum Role {
    Data(u16),
    Error,
}

/// The request id and the role of a stream; `None` if the headers are not acceptable.
pub(super) fn read_headers(stream: &Stream, headers: &HeaderList) -> Option<(String, Role)> {
    let get = |name: &str| headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let port: u16 = get("port")?.parse().ok().filter(|&port| port > 0)?;
    let (role, implied) = match get("streamtype")? {
        "error" => (Role::Error, stream.id.get()),
        "data" => (Role::Data(port), stream.id.get().saturating_sub(2)),
        _ => return None,
    };
    // Clients older than request ids open the error stream right before the data stream.
    let request = get("requestid").map_or_else(|| implied.to_string(), str::to_owned);
    Some((request, role))
}

/// DATA frames are handled whole; the parser hands them out in parts.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) parts: BytesMut,
}

impl Assembly {
    pub(super) fn push(&mut self, payload: Bytes, ends: bool) -> Option<Bytes> {
        if ends && self.parts.is_empty() {
            return Some(payload);
        }
        self.parts.extend_from_slice(&payload);
        ends.then(|| self.parts.split().freeze())
    }
}

/// What the client sends on a data stream.
pub(super) struct StreamSource {
    pub(super) stream: Arc<Stream>,
    pub(super) data_rx: mpsc::Receiver<Bytes>,
}

impl Source for StreamSource {
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            bytes = self.data_rx.recv() => bytes,
            () = self.stream.closed.cancelled() => None,
        }
    }
}
