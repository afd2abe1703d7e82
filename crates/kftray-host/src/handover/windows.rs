//! Windows: listeners are not handed over; a new host asks the old one to end and waits.

use std::sync::Arc;

use kftray_commons::api::Place;
use kftray_commons::{Code, Problem};

use super::{Offer, Taken};
use crate::core::Core;

#[expect(clippy::unused_async, reason = "the same form as on systems that wait here")]
pub(crate) async fn offer(_: &Arc<Core>) -> Result<Offer, Problem> {
    Err(Problem::new(Code::Unsupported, "listeners cannot be handed over on this system"))
}

#[expect(clippy::unused_async, reason = "the same form as on systems that wait here")]
pub(crate) async fn take(_: &Place) -> Result<Taken, Problem> {
    Err(Problem::new(Code::Unsupported, "listeners cannot be handed over on this system"))
}
