//! The way to the host: the one in the background, started if need be; where that cannot start, one in this window.

use kftray_client::{Client, StartOptions};
use kftray_commons::api::{Error, Mode};
use kftray_commons::store::Directory;
use kftray_commons::{Code, Problem};
use kftray_host::{Host, HostOptions};

/// A host was found.
pub(super) struct Linked {
    pub(super) client: Client,
    /// The host, where it lives in this process. Its forwards end with it.
    pub(super) host: Option<Host>,
    /// Why it lives in this process although that was not asked for.
    pub(super) because: Option<Problem>,
}

/// Finds or starts the host of a configuration directory; with `embedded` it is started in this process unless one runs.
///
/// # Errors
/// There is none and none can be started, not even here: why the first attempt failed.
pub(super) async fn link(directory: Directory, embedded: bool) -> Result<Linked, Problem> {
    if embedded {
        return here(directory, None).await;
    }
    let because = match background(&directory).await {
        Ok(client) => return Ok(Linked { client, host: None, because: None }),
        // One runs, and we do not understand each other or it is not ours: another beside it would not help.
        Err(error) if error.code != Code::HostUnreachable => return Err(error.problem()),
        Err(error) => error.problem(),
    };
    here(directory, Some(because.clone())).await.map_err(|_| because)
}

async fn background(directory: &Directory) -> Result<Client, Error> {
    Client::connect_or_start(directory.path(), StartOptions::this_program()?).await
}

async fn here(directory: Directory, because: Option<Problem>) -> Result<Linked, Problem> {
    let host = match Host::start(HostOptions::new(directory.clone(), Mode::Embedded)).await {
        Ok(host) => Some(host),
        // Somebody else's came first: it is as good.
        Err(problem) if problem.code == Code::Conflict => None,
        Err(problem) => return Err(problem),
    };
    let client = Client::connect(directory.path()).await.map_err(Error::problem)?;
    let because = because.filter(|_| host.is_some());
    Ok(Linked { client, host, because })
}
