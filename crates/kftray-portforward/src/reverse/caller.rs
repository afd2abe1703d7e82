//! One caller's connection.

use std::sync::Arc;

use kftray_commons::{Code, Problem};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use crate::event::Event;
use crate::ports::Inbound;

/// Serves one caller to its end.
pub(crate) async fn serve(shared: Arc<Shared>, inbound: Inbound, permit: OwnedSemaphorePermit) {
    let _open = shared.about.tally.accepted();
    shared.about.tally.failed();
    let message = format!("{} is not carried yet", shared.config.offer.name);
    let problem = Problem::new(Code::Unsupported, message);
    shared.about.tell(Event::CallFailed { caller: inbound.peer, problem });
    drop(permit);
}
