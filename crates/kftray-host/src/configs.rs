//! Configs: written to the store, published in the order in which they were written, and what runs follows them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::api::{
    Config, ConfigPut, EndedBy, Error, ExportForm, ExportReport, ExportRequest, GroupInfo, GroupList,
    GroupPut, HistoryKind, ImportFormat, ImportReport, ImportRequest, ImportedEntry, RefusedEntry, Summary,
};
use kftray_commons::border::{self, Defaults, EntryFault};
use kftray_commons::spec::Listen;
use kftray_commons::store::{
    Draft, Form, Incoming, LeftOut, MergeOptions, MergeReport, Merged, Store, StoredConfig,
};
use kftray_commons::tags::Tags;
use kftray_commons::target::ContextRef;
use kftray_commons::{Code, ForwardId, ForwardSpec, Problem, Workload};
use serde_json::{Map, Value, json};

use crate::board::Board;
use crate::core::Core;
use crate::forwards::{Lifetime, Wanted, plan};
use crate::select::select;
use crate::settings;

/// Our fields of an entry that the border does not know.
const IDLE_FIELD: &str = "idle_minutes";
const TTL_FIELD: &str = "ttl_minutes";

/// A stored config as everybody sees it.
pub(crate) fn published(stored: &StoredConfig) -> Config {
    let mut summary = match &stored.spec {
        Ok(spec) => summary(spec),
        Err(fault) => Summary { unsupported: Some(first_fault(fault)), ..Summary::default() },
    };
    summary.label = stored.label();
    (summary.idle_minutes, summary.ttl_minutes) = limits(&stored.extra);
    Config {
        id: stored.id,
        revision: stored.revision,
        desired: stored.desired,
        spec: stored.entry.clone(),
        summary,
    }
}

/// What a spec means, in words.
pub(crate) fn summary(spec: &ForwardSpec) -> Summary {
    let Listen { hosts, port, .. } = &spec.listen;
    Summary {
        label: spec.label(),
        alias: spec.alias.clone(),
        kind: spec.workload.kind().to_owned(),
        target: spec.workload.to_string(),
        remote: remote(spec),
        namespace: spec.namespace.clone(),
        context: match &spec.cluster.context {
            ContextRef::Current => None,
            ContextRef::Named(name) => Some(name.clone()),
        },
        kubeconfig: spec.cluster.kubeconfig.clone(),
        protocol: spec.protocol.to_string(),
        public: matches!(&spec.workload, Workload::Expose(expose) if expose.is_public()),
        local_hosts: hosts.clone(),
        local_port: port.number(),
        tags: spec.tags.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        group: spec.tags.group().map(str::to_owned),
        idle_minutes: None,
        ttl_minutes: None,
        unsupported: None,
    }
}

fn remote(spec: &ForwardSpec) -> String {
    match &spec.workload {
        Workload::Service { port, .. } | Workload::Pod { port, .. } | Workload::Owner { port, .. } => {
            port.to_string()
        }
        Workload::Proxy { port, .. } => port.to_string(),
        Workload::Expose(expose) => expose.local_port.to_string(),
    }
}

/// Idle limit and time to live of an entry, in minutes.
pub(crate) fn limits(extra: &Map<String, Value>) -> (Option<u32>, Option<u32>) {
    (minutes(extra, IDLE_FIELD), minutes(extra, TTL_FIELD))
}

/// Both as the fields of an entry; none is 0, which the settings do not replace.
pub(crate) fn limit_fields(lifetime: Lifetime) -> Map<String, Value> {
    // Rounded up: the rest of a minute must not become 0.
    let minutes =
        |limit: Option<Duration>| Value::from(limit.map_or(0, |limit| limit.as_secs().div_ceil(60).max(1)));
    [(IDLE_FIELD, lifetime.idle), (TTL_FIELD, lifetime.ttl)]
        .map(|(field, limit)| (field.to_owned(), minutes(limit)))
        .into_iter()
        .collect()
}

/// Minutes in an entry: a number, or a number as text.
fn minutes(extra: &Map<String, Value>, field: &str) -> Option<u32> {
    match extra.get(field)? {
        Value::Number(number) => number.as_u64().and_then(|minutes| u32::try_from(minutes).ok()),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn first_fault(fault: &EntryFault) -> String {
    fault.problems().next().map_or_else(|| "the entry cannot be read".to_owned(), |problem| problem.message)
}

/// Brings the board to what is stored, whoever wrote it. Runs on the store's thread.
///
/// # Errors
/// What the store says.
pub(crate) fn publish_all(store: &Store, board: &Board) -> Result<(), Problem> {
    let stored = store.configs()?;
    let ids: BTreeSet<ForwardId> = stored.iter().map(|config| config.id).collect();
    for gone in board.configs().iter().filter(|config| !ids.contains(&config.id)) {
        board.remove_config(gone.id);
    }
    for config in &stored {
        board.put_config(Arc::new(published(config)));
    }
    board.put_settings(settings::read(store.settings()?));
    Ok(())
}

/// A new config.
///
/// # Errors
/// `spec_invalid` with every fault, what the store says.
pub(crate) async fn add(core: &Core, put: ConfigPut) -> Result<Arc<Config>, Error> {
    let draft = draft(put)?;
    let board = Arc::clone(core.board());
    let added = core.archive().call(move |store| {
        let id = store.add(std::slice::from_ref(&draft))?.into_iter().next();
        let stored = match id {
            Some(id) => store.config(id)?,
            None => None,
        };
        let stored = stored.ok_or_else(|| Problem::new(Code::Internal, "the store gave no id"))?;
        let config = Arc::new(published(&stored));
        board.put_config(Arc::clone(&config));
        Ok(config)
    });
    Ok(added.await?)
}

/// Changes a config, and what runs by it.
///
/// # Errors
/// `not_found`, `conflict` with the present config in the details, `spec_invalid`, what the store says.
pub(crate) async fn update(core: &Arc<Core>, id: ForwardId, put: ConfigPut) -> Result<Arc<Config>, Error> {
    let revision = put.revision;
    let mut draft = draft(put)?;
    draft.spec.id = id;
    let board = Arc::clone(core.board());
    let updated = core.archive().call(move |store| {
        let stored = store.update(id, &draft, revision)?;
        let config = Arc::new(published(&stored));
        board.put_config(Arc::clone(&config));
        Ok((config, stored))
    });
    match updated.await {
        Ok((config, stored)) => {
            follow(core, &stored).await;
            Ok(config)
        }
        Err(problem) if problem.code == Code::Conflict => {
            let present = core.board().config(id);
            let error = Error::from(problem);
            Err(match present.and_then(|config| serde_json::to_value(&*config).ok()) {
                Some(present) => error.with_details(present),
                None => error,
            })
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Removes a config and ends what runs by it. Answers what was removed.
///
/// # Errors
/// `not_found`, what the store says.
pub(crate) async fn remove(core: &Arc<Core>, id: ForwardId) -> Result<Arc<Config>, Error> {
    let known = core.board().config(id);
    let board = Arc::clone(core.board());
    let removed = core.archive().call(move |store| {
        let removed = store.remove(&[id])?;
        board.remove_config(id);
        Ok(!removed.is_empty())
    });
    let removed = removed.await?;
    gone(core, id).await;
    match known {
        Some(config) if removed => Ok(config),
        Some(_) | None => Err(no_config(id).into()),
    }
}

/// Imports a text or a file.
///
/// # Errors
/// `request_invalid` for a text that cannot be meant, what the store says.
pub(crate) async fn import(core: &Arc<Core>, request: ImportRequest) -> Result<ImportReport, Error> {
    let ImportRequest { text, path, format, dry_run, replace, only_new } = request;
    let options = MergeOptions { dry_run, replace, only_new };
    let database = match (format, path.as_deref()) {
        (ImportFormat::Database, None) => {
            let message = "a database is imported by its path, not by its text";
            return Err(Error::new(Code::RequestInvalid, message));
        }
        (ImportFormat::Database, Some(path)) => Some(path.to_owned()),
        (ImportFormat::Auto, Some(path)) if crate::reference::is_database(Path::new(path)).await => {
            Some(path.to_owned())
        }
        (ImportFormat::Auto | ImportFormat::Json, _) => None,
    };
    let report = match (database, path) {
        (Some(path), _) => crate::reference::import(core, path.into(), options).await?,
        (None, Some(path)) => import_text(core, &read_file(path).await?, options).await?,
        (None, None) => import_text(core, &text, options).await?,
    };
    if !dry_run {
        follow_all(core).await?;
    }
    Ok(report)
}

async fn read_file(path: String) -> Result<String, Problem> {
    if !Path::new(&path).is_absolute() {
        return Err(Problem::new(Code::RequestInvalid, format!("{path} is no absolute path")));
    }
    let bytes = tokio::fs::read(&path).await.map_err(|error| {
        Problem::new(Code::NotFound, format!("{path} cannot be read: {error}")).with_remedy("Check the path.")
    })?;
    String::from_utf8(bytes).map_err(|_| Problem::new(Code::SpecInvalid, format!("{path} is not UTF-8 text")))
}

async fn import_text(core: &Core, text: &str, options: MergeOptions) -> Result<ImportReport, Problem> {
    let read = border::import(text, &Defaults::open());
    let incoming = Incoming::of(&read);
    let board = Arc::clone(core.board());
    let merged = core.archive().call(move |store| {
        let report = store.import(&incoming, options)?;
        publish_all(store, &board)?;
        Ok(report)
    });
    let mut report = import_report(merged.await?);
    report.faults = read.faults().map(refused).collect();
    if read.entries.is_empty() {
        report.faults.push(RefusedEntry {
            entry: 0,
            alias: None,
            problems: vec![
                Problem::new(Code::SpecInvalid, "there is no entry in it")
                    .with_remedy("Write {\"service\": \"web\", \"local_port\": 8080, \"remote_port\": 80}."),
            ],
        });
    }
    let warnings = read.warnings.iter().chain(read.entries.iter().flat_map(|entry| &entry.warnings));
    report.warnings = warnings.map(|warning| format!("{}: {}", warning.place, warning.message)).collect();
    Ok(report)
}

fn refused(fault: &EntryFault) -> RefusedEntry {
    RefusedEntry { entry: fault.entry, alias: fault.alias.clone(), problems: fault.problems().collect() }
}

/// A store's report for a face.
pub(crate) fn import_report(report: MergeReport) -> ImportReport {
    let entries = |merged: Vec<Merged>| -> Vec<ImportedEntry> {
        let entry =
            |merged: Merged| ImportedEntry { id: merged.id, label: merged.label, details: merged.details };
        merged.into_iter().map(entry).collect()
    };
    ImportReport {
        dry_run: report.dry_run,
        added: entries(report.added),
        changed: entries(report.changed),
        unchanged: entries(report.unchanged),
        conflicting: entries(report.conflicting),
        removed: entries(report.removed),
        faults: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Configs as a text.
///
/// # Errors
/// `not_found` for a selection that names nothing, what the store says.
pub(crate) async fn export(core: &Core, request: ExportRequest) -> Result<ExportReport, Problem> {
    let ids = if request.selection.is_empty() || request.selection.all {
        None
    } else {
        let chosen = select(&core.board().configs(), &[], &request.selection);
        if let Some(nothing) = chosen.unmatched.first() {
            return Err(Problem::new(Code::NotFound, format!("nothing is called {nothing}")));
        }
        Some(chosen.ids)
    };
    let form = match request.form {
        ExportForm::Own => Form::Own,
        ExportForm::Reference => Form::Reference,
    };
    let export = core.archive().call(move |store| store.export(ids.as_deref(), form)).await?;
    let told = |left: Vec<LeftOut>| {
        left.into_iter().map(|left| format!("{}: {}", left.label, left.reason)).collect()
    };
    Ok(ExportReport {
        text: export.text,
        count: export.count,
        left_out: told(export.left_out),
        warnings: told(export.warnings),
    })
}

/// All groups, from what is published.
pub(crate) fn groups(core: &Core) -> GroupList {
    let mut groups = std::collections::BTreeMap::<String, GroupInfo>::new();
    for config in core.board().configs() {
        let Some(name) = &config.summary.group else { continue };
        let group = groups
            .entry(name.clone())
            .or_insert_with(|| GroupInfo { name: name.clone(), ..GroupInfo::default() });
        group.configs.push(config.id);
        group.desired += u32::from(config.desired);
    }
    GroupList { groups: groups.into_values().collect() }
}

/// Puts configs into a group and takes others out.
///
/// # Errors
/// `not_found`, `spec_invalid` for a name that no group may have, what the store says.
pub(crate) async fn put_group(
    core: &Arc<Core>,
    name: String,
    change: GroupPut,
) -> Result<GroupList, Problem> {
    let board = Arc::clone(core.board());
    let changed = core.archive().call(move |store| {
        let mut changed = store.set_group(&change.add, Some(&name))?;
        let of_it: BTreeSet<ForwardId> = store
            .groups()?
            .into_iter()
            .filter(|group| group.name == name)
            .flat_map(|group| group.configs)
            .collect();
        let leaving: Vec<ForwardId> = change.remove.into_iter().filter(|id| of_it.contains(id)).collect();
        changed.extend(store.set_group(&leaving, None)?);
        for stored in &changed {
            board.put_config(Arc::new(published(stored)));
        }
        Ok(())
    });
    changed.await?;
    Ok(groups(core))
}

/// Takes all configs out of a group.
///
/// # Errors
/// `not_found` if there is no such group, what the store says.
pub(crate) async fn remove_group(core: &Arc<Core>, name: String) -> Result<GroupList, Problem> {
    let of_it = groups(core).groups.into_iter().find(|group| group.name == name);
    let Some(group) = of_it else {
        return Err(Problem::new(Code::NotFound, format!("there is no group {name}")));
    };
    put_group(core, name, GroupPut { add: Vec::new(), remove: group.configs }).await
}

/// Reads an entry, with the group in its own place.
fn draft(put: ConfigPut) -> Result<Draft, Error> {
    let ConfigPut { spec, revision: _, group } = put;
    let (mut draft, _) = Draft::read(&spec).map_err(|fault| invalid(&fault))?;
    if let Some(group) = group {
        draft.spec.tags.remove(Tags::GROUP);
        if !group.is_empty() {
            draft.spec.tags.set(Tags::GROUP, &group).map_err(|fault| {
                Error::new(Code::SpecInvalid, format!("the group's name cannot be used: {fault}"))
            })?;
        }
    }
    Ok(draft)
}

/// All that is wrong with an entry: the first fault as the message, every one in the details.
pub(crate) fn invalid(fault: &EntryFault) -> Error {
    let problems: Vec<Problem> = fault.problems().collect();
    let first = problems.first().cloned();
    let first = first.unwrap_or_else(|| Problem::new(Code::SpecInvalid, "the entry cannot be read"));
    let faults: Vec<Value> = fault
        .faults
        .iter()
        .map(|fault| {
            let place = [fault.place.line, fault.place.column];
            json!({ "field": fault.field, "message": fault.message, "remedy": fault.remedy, "place": place })
        })
        .collect();
    Error::from(first).with_details(json!({ "faults": faults }))
}

/// What runs shall be what is written: an edited forward starts anew if the edit concerns how it runs.
async fn follow(core: &Arc<Core>, stored: &StoredConfig) {
    let id = stored.id;
    let (Some((running, origin)), Ok(spec)) = (core.fleet().running_spec(id), &stored.spec) else { return };
    core.chronicle().tell(id, HistoryKind::Edited, "edited".to_owned(), None);
    if plan(&running, "") == plan(spec, "") {
        core.board().change_forward(id, |state| state.label = stored.label());
        return;
    }
    let lifetime = core.lifetime(id);
    let wanted = Wanted { id, spec: spec.clone(), origin, lifetime, listeners: Vec::new() };
    if let Err(problem) = core.fleet().restart(wanted).await {
        core.board().change_forward(id, |state| state.last_problem = Some(problem));
    }
    core.recheck(origin.lease()).await;
}

/// The same for everything that runs, after many configs may have changed.
///
/// # Errors
/// What the store says.
pub(crate) async fn follow_all(core: &Arc<Core>) -> Result<(), Problem> {
    let running: Vec<ForwardId> =
        core.board().forwards().iter().map(|forward| forward.id).filter(|id| core.is_config(*id)).collect();
    for id in running {
        match core.archive().call(move |store| store.config(id)).await? {
            Some(stored) => {
                let changed = core
                    .fleet()
                    .running_spec(id)
                    .is_some_and(|(running, _)| stored.spec.as_ref().is_ok_and(|spec| *spec != running));
                if changed {
                    follow(core, &stored).await;
                }
            }
            None => gone(core, id).await,
        }
    }
    Ok(())
}

/// A config is gone: so is its forward.
async fn gone(core: &Arc<Core>, id: ForwardId) {
    core.fleet().stop(id, EndedBy::Removed).await;
    core.board().remove_forward(id);
    core.fleet().forget(id);
}

/// There is no such config.
pub(crate) fn no_config(id: ForwardId) -> Problem {
    Problem::new(Code::NotFound, format!("there is no config {}", id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_time_is_rounded_up_and_never_becomes_no_limit() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let rest = |ran| limits(&limit_fields(Lifetime { idle: None, ttl: seconds(1_800) }.after(ran)));
        assert_eq!(rest(Duration::ZERO), (Some(0), Some(30)));
        assert_eq!(rest(Duration::from_secs(61)), (Some(0), Some(29)));
        assert_eq!(rest(Duration::from_millis(1_799_500)), (Some(0), Some(1)));
        assert_eq!(rest(Duration::from_secs(9_999)), (Some(0), Some(1)));
        let idle = limits(&limit_fields(Lifetime { idle: seconds(600), ttl: None }.after(Duration::MAX)));
        assert_eq!(idle, (Some(10), Some(0)));
    }
}
