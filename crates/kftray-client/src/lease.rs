//! A lease that lasts as long as this program holds it.

use http::Method;
use http_body_util::BodyExt as _;
use kftray_commons::Code;
use kftray_commons::api::{Error, Lease, LeaseId};

use crate::request::{Answer, Question, ask};
use crate::sse::Reader;
use crate::{Client, Result};

/// Held by an open connection: forwards that were started with [`Self::id`] end when this is dropped, or when this program
/// ends in whatever way.
pub struct HeldLease {
    id: LeaseId,
    answer: Answer,
}

impl HeldLease {
    /// The number to start forwards with.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Waits until the host is gone, and the lease with it.
    pub async fn lost(&mut self) {
        while let Some(Ok(_)) = self.answer.body.frame().await {}
    }
}

impl std::fmt::Debug for HeldLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldLease").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Client {
    /// Takes a lease.
    ///
    /// # Errors
    /// As every call.
    pub async fn hold_lease(&self) -> Result<HeldLease> {
        let mut answer = ask(&self.place, Question::new(Method::GET, "/leases/hold")).await?;
        let mut reader = Reader::default();
        let cut = || Error::new(Code::HostUnreachable, "the host went away before it gave a lease");
        loop {
            let frame = answer.body.frame().await.ok_or_else(cut)?.map_err(|_| cut())?;
            let Ok(bytes) = frame.into_data() else { continue };
            let events = reader.push(&bytes).map_err(|_| cut())?;
            if let Some(event) = events.into_iter().find(|event| event.name == "lease") {
                let lease: Lease = serde_json::from_str(&event.data).map_err(|error| {
                    Error::new(Code::VersionMismatch, format!("the lease is not understood: {error}"))
                })?;
                return Ok(HeldLease { id: lease.id, answer });
            }
        }
    }
}
