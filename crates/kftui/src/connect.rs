//! The way to the host, for commands: found, or started, or the reason why not.

use anyhow::{Context as _, Result};
use kftray_client::{Client, StartOptions};
use kftray_commons::Code;
use kftray_commons::store::Directory;

use crate::render::Progress;

/// A running host is there at once; only one that starts is worth a line.
const QUIET: std::time::Duration = std::time::Duration::from_millis(300);

/// The user's host; started if none runs.
pub(crate) async fn host() -> Result<Client> {
    let directory = Directory::of_process()?;
    let connecting = Client::connect_or_start(directory.path(), StartOptions::this_program()?);
    let mut connecting = std::pin::pin!(connecting);
    let client = match tokio::time::timeout(QUIET, &mut connecting).await {
        Ok(client) => client,
        Err(_) => {
            let mut progress = Progress::on_terminal();
            progress.set(Some("starting the host".to_owned()));
            let client = connecting.await;
            progress.set(None);
            client
        }
    };
    Ok(client?)
}

/// The user's host if it runs.
pub(crate) async fn running() -> Result<Option<Client>> {
    let directory = Directory::of_process()?;
    match Client::connect(directory.path()).await {
        Ok(client) => Ok(Some(client)),
        Err(error) if error.code == Code::HostUnreachable => Ok(None),
        Err(error) => Err(error).context("the host"),
    }
}
