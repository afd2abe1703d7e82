//! Doing what the model wishes: calls to the host, files, free ports. Each wish is one task with one outcome.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use kftray_client::{Client, ClusterQuery};
use kftray_commons::api::{Action as Deed, ActionRequest, Error, ExportRequest, ImportRequest, Selection};
use kftray_commons::{Code, ForwardId, Problem};
use tokio::task::spawn_blocking;

use super::message::{Answer, Effect, ExportFault, Exported, Outcome, Save, Seen, Then, Where};

/// Entries of a history that are shown.
const HISTORY: u32 = 50;

/// How far above a busy port another one is looked for, as in the reference.
const PORTS: u16 = 100;

/// Most names of a folder that are read; more helps nobody to choose.
const NAMES: usize = 2000;

/// Does it. `None`: there is nothing to tell of it. Quitting and copying are the loop's own business.
pub(super) async fn run(client: Option<Client>, effect: Effect) -> Option<Outcome> {
    let host = client.ok_or_else(no_host);
    Some(match effect {
        Effect::Quit | Effect::Copy(_) => return None,
        Effect::Act(deed, ids) => Outcome::Acted(deed, act(host, deed, ids).await),
        Effect::Save(save) => self::save(host, save).await,
        Effect::Delete(ids) => delete(host, ids).await,
        Effect::History(id) => {
            Outcome::History(id, ask(host, async |host: Client| host.history(id, HISTORY).await).await)
        }
        Effect::Contexts(number) => {
            let result = ask(host, async |host: Client| host.contexts(None).await).await;
            Outcome::Listed(number, Answer::Contexts(result))
        }
        Effect::Namespaces(number, place) => {
            let result = ask(host, async |host: Client| host.namespaces(&query(&place)).await).await;
            Outcome::Listed(number, Answer::Namespaces(result))
        }
        Effect::Services(number, place) => {
            let result = ask(host, async |host: Client| host.services(&query(&place)).await).await;
            Outcome::Listed(number, Answer::Services(result))
        }
        Effect::Workloads(number, place) => {
            let result = ask(host, async |host: Client| host.workloads(&query(&place)).await).await;
            Outcome::Listed(number, Answer::Workloads(result))
        }
        Effect::Import(request) => {
            let result = ask(host, async |host: Client| host.import(&absolute(&request)).await).await;
            Outcome::Imported(request, result)
        }
        Effect::Export { path, ids, replace } => export(host, path, ids, replace).await,
        Effect::Look(folder) => {
            let looked = folder.clone();
            let seen = spawn_blocking(move || look(&looked)).await.unwrap_or_default();
            Outcome::Looked(folder, seen)
        }
        Effect::Settings(patch) => {
            let result = ask(host, async |host: Client| host.set_settings(&patch).await.map(drop)).await;
            Outcome::Settings(result)
        }
        Effect::FreePort { id, host, above } => {
            let port = spawn_blocking(move || free_port(&host, above)).await.ok().flatten();
            Outcome::FreePort { id, port }
        }
    })
}

/// A call, where there is a host.
async fn ask<T>(
    host: Result<Client, Error>,
    call: impl AsyncFnOnce(Client) -> Result<T, Error>,
) -> Result<T, Error> {
    call(host?).await
}

async fn delete(host: Result<Client, Error>, ids: Vec<ForwardId>) -> Outcome {
    let mut results = Vec::new();
    for id in ids {
        let result = match &host {
            Ok(client) => client.remove_config(id).await.map(drop),
            Err(error) => Err(error.clone()),
        };
        results.push((id, result));
    }
    Outcome::Deleted(results)
}

fn no_host() -> Error {
    Error::new(Code::HostUnreachable, "there is no connection to the host yet")
}

fn query(place: &Where) -> ClusterQuery {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ClusterQuery {
        kubeconfig: place.kubeconfig.clone(),
        context: some(&place.context),
        namespace: some(&place.namespace),
    }
}

/// The host has a folder of its own: it is told the whole path.
fn absolute(request: &ImportRequest) -> ImportRequest {
    let path = request.path.as_ref().map(|path| {
        std::path::absolute(path).map_or_else(|_| path.clone(), |path| path.display().to_string())
    });
    ImportRequest { path, ..request.clone() }
}

async fn act(
    host: Result<Client, Error>,
    deed: Deed,
    ids: Vec<ForwardId>,
) -> Result<kftray_commons::api::ActionReport, Error> {
    host?.act(deed, &ActionRequest { selection: Selection::ids(ids), ..ActionRequest::default() }).await
}

async fn save(host: Result<Client, Error>, save: Save) -> Outcome {
    let mut results = Vec::new();
    for (id, put) in &save.puts {
        results.push(match (&host, id) {
            (Err(error), _) => Err(error.clone()),
            (Ok(client), Some(id)) => client.put_config(*id, put).await,
            (Ok(client), None) => client.add_config(put).await,
        });
    }
    let ids: Vec<ForwardId> = results.iter().flatten().map(|config| config.id).collect();
    let started = match save.then {
        Then::Nothing => None,
        Then::Start | Then::Restart if ids.is_empty() => None,
        Then::Start => Some(act(host, Deed::Start, ids).await),
        Then::Restart => Some(act(host, Deed::Restart, ids).await),
    };
    Outcome::Saved { save, results, started }
}

async fn export(host: Result<Client, Error>, path: PathBuf, ids: Vec<ForwardId>, replace: bool) -> Outcome {
    let selection = if ids.is_empty() { Selection::all() } else { Selection::ids(ids) };
    let report = match host {
        Ok(client) => client.export(&ExportRequest { selection, ..ExportRequest::default() }).await,
        Err(error) => Err(error),
    };
    let result = match report {
        Err(error) => Err(ExportFault::Other(error.problem())),
        Ok(report) => {
            let to = path.clone();
            let remarks = report.left_out.into_iter().chain(report.warnings).collect();
            let written = spawn_blocking(move || write(&to, &report.text, replace)).await;
            match written {
                Ok(Ok(())) => Ok(Exported { count: report.count, remarks }),
                Ok(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => Err(ExportFault::Exists),
                Ok(Err(error)) => Err(ExportFault::Other(cannot(&path, &error.to_string()))),
                Err(error) => Err(ExportFault::Other(cannot(&path, &error.to_string()))),
            }
        }
    };
    Outcome::Exported { path, result }
}

fn cannot(path: &Path, error: &str) -> Problem {
    Problem::new(Code::RequestInvalid, format!("{} cannot be written: {error}", path.display()))
        .with_remedy("Choose a file in a folder of yours.")
}

fn write(path: &Path, text: &str, replace: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    if replace {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Names in a folder, folders first; nothing where it cannot be read.
fn look(folder: &Path) -> Vec<Seen> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let seen = entries.flatten().take(NAMES).filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(Seen { folder: entry.path().is_dir(), name })
    });
    let mut seen: Vec<Seen> = seen.collect();
    seen.sort_by(|one, other| (!one.folder, &one.name).cmp(&(!other.folder, &other.name)));
    seen
}

/// The next port that can be bound on every address of the host name.
fn free_port(host: &str, above: u16) -> Option<u16> {
    let from = above.max(1023).checked_add(1)?;
    (from..=from.saturating_add(PORTS)).find(|port| is_free(host, *port))
}

fn is_free(host: &str, port: u16) -> bool {
    let Ok(addresses) = (host, port).to_socket_addrs() else { return false };
    let mut bound = 0;
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(_) => bound += 1,
            // A machine without IPv6 still has names that say so.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(_) => return false,
        }
    }
    bound > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_not_free() {
        let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = busy.local_addr().expect("an address").port();
        assert!(!is_free("127.0.0.1", port));
        assert!(free_port("127.0.0.1", port.saturating_sub(1)).is_none_or(|free| free != port));
    }

    #[test]
    fn a_file_is_replaced_only_when_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        write(&path, "[]", false).expect("written");
        assert_eq!(write(&path, "[1]", false).expect_err("exists").kind(), io::ErrorKind::AlreadyExists);
        write(&path, "[2]", true).expect("replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "[2]");
        assert_eq!(look(folder.path()), [Seen { folder: false, name: "out.json".to_owned() }]);
    }
}
