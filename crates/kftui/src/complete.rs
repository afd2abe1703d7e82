//! Names for the shell's completion: from the running host, else from the store. Silent and quick, whatever is wrong: a
//! completion that complains is worse than none.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::engine::{PathCompleter, ValueCompleter as _};
use kftray_client::Client;
use kftray_commons::api::Snapshot;
use kftray_commons::store::{Directory, Store, StoredConfig};
use kftray_commons::tags::Tags;

use crate::shown::Forward;

/// The variable by which a shell's script asks this program for candidates.
pub(crate) const VARIABLE: &str = "_KFTUI_COMPLETE";

/// Somebody waits with the finger on the key.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is known of one forward.
struct Known {
    name: String,
    about: String,
    group: Option<String>,
    tags: Vec<String>,
}

/// Names of forwards.
pub(crate) fn forwards(current: &OsStr) -> Vec<CompletionCandidate> {
    let all = known().into_iter().map(|one| (one.name, Some(one.about)));
    candidates(current, all)
}

/// Names of forwards, and files.
pub(crate) fn runnable(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut all = forwards(current);
    all.extend(PathCompleter::any().complete(current));
    all
}

/// Names of groups.
pub(crate) fn groups(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, known().into_iter().filter_map(|one| Some((one.group?, None))))
}

/// Names of settings.
pub(crate) fn settings(current: &OsStr) -> Vec<CompletionCandidate> {
    let named = |known: &kftray_commons::store::Known| (known.key.to_owned(), Some(known.meaning.to_owned()));
    candidates(current, kftray_commons::store::SETTINGS.iter().map(named))
}

/// Tags, `key` and `key=value`.
pub(crate) fn tags(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, known().into_iter().flat_map(|one| one.tags).map(|tag| (tag, None)))
}

fn candidates(
    current: &OsStr,
    all: impl Iterator<Item = (String, Option<String>)>,
) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let mut all: Vec<_> = all.filter(|(name, _)| name.starts_with(current)).collect();
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    let candidate =
        |(name, about): (String, Option<String>)| CompletionCandidate::new(name).help(about.map(Into::into));
    all.into_iter().map(candidate).collect()
}

fn known() -> Vec<Known> {
    let Ok(directory) = Directory::of_process() else { return Vec::new() };
    match asked(&directory) {
        Some(snapshot) => Forward::all(&snapshot).into_iter().map(from_host).collect(),
        None => stored(&directory).unwrap_or_default(),
    }
}

fn from_host(one: Forward) -> Known {
    let tag = |(key, value): (&String, &String)| {
        if value.is_empty() { key.clone() } else { format!("{key}={value}") }
    };
    Known {
        tags: one.tags.iter().map(tag).collect(),
        about: format!("{} ({})", one.target, one.state),
        name: one.name,
        group: one.group,
    }
}

fn asked(directory: &Directory) -> Option<Snapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asking = async { Client::connect(directory.path()).await?.snapshot().await };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await }).ok()?.ok()
}

/// Without a host nobody else writes the file.
fn stored(directory: &Directory) -> Option<Vec<Known>> {
    if !directory.database().is_file() {
        return None;
    }
    let store = Store::open(directory).ok()?;
    let one = |config: StoredConfig| {
        let spec = config.spec.ok()?;
        let tag = |(key, value): (&str, &str)| {
            if value.is_empty() { key.to_owned() } else { format!("{key}={value}") }
        };
        Some(Known {
            name: spec.label(),
            about: spec.workload.to_string(),
            group: spec.tags.get(Tags::GROUP).map(str::to_owned),
            tags: spec.tags.iter().map(tag).collect(),
        })
    };
    Some(store.configs().ok()?.into_iter().filter_map(one).collect())
}
