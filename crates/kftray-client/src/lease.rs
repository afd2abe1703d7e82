//! A lease that lasts as long as this program holds it, whatever becomes of the host that gave it.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use kftray_commons::Code;
use kftray_commons::api::{Error, Lease, LeaseId, Place};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::request::{Answer, Question, ask};
use crate::sse::{Event, Reader};
use crate::{Client, Result};

/// How long a host that takes over is looked for: it serves before the one before has ended.
const SUCCESSION: Duration = Duration::from_secs(10);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Held by an open connection: forwards that were started with [`Self::id`] end when this is dropped, or when this program
/// ends in whatever way. A host that takes over from the one that gave it goes on with it.
#[derive(Debug)]
pub struct HeldLease {
    id: LeaseId,
    lost: watch::Receiver<bool>,
    /// Holds the connection.
    _task: JoinSet<()>,
}

impl HeldLease {
    /// The number to start forwards with.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Waits until the host is gone, and the lease with it.
    pub async fn lost(&mut self) {
        // Without a sender it is lost as well.
        drop(self.lost.wait_for(|lost| *lost).await);
    }
}

impl Client {
    /// Takes a lease.
    ///
    /// # Errors
    /// As every call.
    pub async fn hold_lease(&self) -> Result<HeldLease> {
        let (id, mut stream) = hold(&self.place, "/leases/hold").await?;
        let (lost_tx, lost) = watch::channel(false);
        let place = self.place.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            while stream.ends_with_a_successor().await {
                match again(&place, id).await {
                    Some(next) => stream = next,
                    None => break,
                }
            }
            lost_tx.send_replace(true);
        });
        Ok(HeldLease { id, lost, _task: task })
    }
}

/// The connection that holds a lease.
struct Stream {
    answer: Answer,
    reader: Reader,
}

impl Stream {
    /// The next event; none when the connection has ended.
    async fn next(&mut self) -> Option<Vec<Event>> {
        let frame = self.answer.body.frame().await?.ok()?;
        match frame.into_data() {
            Ok(bytes) => self.reader.push(&bytes).ok(),
            Err(_) => Some(Vec::new()),
        }
    }

    /// Waits for the end of the host; whether another one may go on with the lease.
    async fn ends_with_a_successor(&mut self) -> bool {
        let mut told = None;
        while let Some(events) = self.next().await {
            if let Some(ending) = events.into_iter().find(|event| event.name == "ending") {
                told = Some(ending.data.contains("true"));
            }
        }
        told.unwrap_or(false)
    }
}

/// Takes a lease, a new one or the one that is named.
async fn hold(place: &Place, path: &str) -> Result<(LeaseId, Stream)> {
    let answer = ask(place, Question::new(Method::GET, path)).await?;
    let mut stream = Stream { answer, reader: Reader::default() };
    let cut = || Error::new(Code::HostUnreachable, "the host went away before it gave a lease");
    loop {
        let events = stream.next().await.ok_or_else(cut)?;
        if let Some(event) = events.into_iter().find(|event| event.name == "lease") {
            let lease: Lease = serde_json::from_str(&event.data).map_err(|error| {
                Error::new(Code::VersionMismatch, format!("the lease is not understood: {error}"))
            })?;
            return Ok((lease.id, stream));
        }
    }
}

/// Goes on with a lease at the host that has taken over; none if there is no such host, or it knows nothing of it.
async fn again(place: &Place, id: LeaseId) -> Option<Stream> {
    let deadline = Instant::now() + SUCCESSION;
    loop {
        match hold(place, &format!("/leases/hold?lease={id}")).await {
            Ok((_, stream)) => return Some(stream),
            // The one before may still answer, or nobody yet.
            Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(error) => {
                tracing::debug!(%error, "the lease is lost");
                return None;
            }
        }
    }
}
