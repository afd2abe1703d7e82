//! What came of wishes: told where they were made, or in a line at the bottom.

use std::path::{Path, PathBuf};

use kftray_commons::Code;
use kftray_commons::ForwardId;
use kftray_commons::api::{
    Action as Deed, ActionOutcome, ActionReport, Config, ConfigPut, Error, ImportReport, ImportRequest,
    ImportedEntry,
};
use serde_json::json;

use super::super::dialogs::{Ask, Prompt, Report, Tone, Yes};
use super::super::message::{Answer, Effect, ExportFault, Exported, Outcome, Save, Then};
use super::super::model::{Mode, Model, NoticeKind};
use super::super::picker::Load;
use super::super::text::count;
use super::commands;

/// Most entries of one kind that an import lists.
const LISTED: usize = 12;

pub(super) fn take(model: &mut Model, outcome: Outcome, effects: &mut Vec<Effect>) {
    match outcome {
        Outcome::Acted(deed, result) => acted(model, deed, result),
        Outcome::Saved { save, results, started } => {
            saved(model, &save, &results);
            if let Some(started) = started {
                failures(model, "Not started", started);
            }
        }
        Outcome::Deleted(results) => deleted(model, &results),
        Outcome::History(id, result) => {
            if let Some((known, _, history)) = &mut model.history
                && *known == id
            {
                *history = Some(result.unwrap_or_default());
            }
        }
        Outcome::Listed(number, answer) => listed(model, number, answer, effects),
        Outcome::Imported(request, result) => imported(model, request, result),
        Outcome::Exported { path, result } => exported(model, path, result),
        Outcome::Looked(folder, seen) => {
            for mode in model.modes_mut() {
                if let Mode::Prompt(prompt) = mode
                    && let Prompt::Import(line) | Prompt::Export { line, .. } = prompt.as_mut()
                {
                    line.looked(&folder, seen.clone());
                }
            }
        }
        Outcome::Settings(Ok(())) => {}
        Outcome::Settings(Err(error)) => refuse(model, "The setting was not changed", &error),
        Outcome::FreePort { id, port } => free_port(model, id, port, effects),
    }
}

fn refuse(model: &mut Model, title: &str, error: &Error) {
    model.push(Mode::Report(Report::failure(title, &error.message, &error.remedy)));
}

fn acted(model: &mut Model, deed: Deed, result: Result<ActionReport, Error>) {
    if let Ok(report) = &result {
        let done = report.results.iter().filter(|one| one.outcome != ActionOutcome::Failed).count();
        let word = match deed {
            Deed::Start => "started",
            Deed::Stop => "stopped",
            Deed::Restart => "restarted",
        };
        match report.results.as_slice() {
            [one] if one.outcome != ActionOutcome::Failed => {
                let text = format!("{word} {}", one.label);
                model.say(NoticeKind::Done, text);
            }
            _ if done > 0 => model.say(NoticeKind::Done, format!("{word} {done}")),
            _ => {}
        }
    }
    let title = match deed {
        Deed::Start => "Not started",
        Deed::Stop => "Not stopped",
        Deed::Restart => "Not restarted",
    };
    failures(model, title, result);
}

/// Reports what failed of an action, if anything did.
fn failures(model: &mut Model, title: &str, result: Result<ActionReport, Error>) {
    let report = match result {
        Ok(report) => report,
        Err(error) => return refuse(model, title, &error),
    };
    let mut lines = Vec::new();
    for one in report.results.iter().filter(|one| one.outcome == ActionOutcome::Failed) {
        lines.push((Tone::Heading, one.label.clone()));
        if let Some(problem) = &one.problem {
            lines.push((Tone::Bad, problem.message.clone()));
            lines.push((Tone::Plain, problem.remedy.clone()));
        }
        lines.push((Tone::Plain, String::new()));
    }
    lines.extend(report.unmatched.iter().map(|name| (Tone::Bad, format!("{name} is not there any more"))));
    if !lines.is_empty() {
        model.push(Mode::Report(Report { title: title.to_owned(), lines, top: 0, next: None }));
    }
}

fn saved(model: &mut Model, save: &Save, results: &[Result<Config, Error>]) {
    let written: Vec<&Config> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let errors: Vec<&Error> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    if save.form {
        if let Some(error) = errors.first() {
            refuse_form(model, error);
            return;
        }
        close(model, |mode| matches!(mode, Mode::Form(_)));
    }
    // Whoever came to the form from a picker is done with that too.
    for mode in model.modes_mut() {
        if let Mode::Picker(picker) = mode {
            picker.busy = false;
        }
    }
    if let Some(first) = written.first() {
        close(model, |mode| matches!(mode, Mode::Picker(_)));
        if save.puts.iter().any(|(id, _)| id.is_none()) {
            commands::show(model, first.id);
        }
        let what = match written.as_slice() {
            [one] => one.summary.label.clone(),
            several => count(several.len(), "forward"),
        };
        let word = match (save.puts.iter().any(|(id, _)| id.is_none()), save.then) {
            (true, Then::Start) => "added and started",
            (true, Then::Nothing | Then::Restart) => "added",
            (false, Then::Start | Then::Restart) => "saved and started",
            (false, Then::Nothing) => "saved",
        };
        model.say(NoticeKind::Done, format!("{word} {what}"));
    }
    if let Some(error) = errors.first() {
        let title = if errors.len() == 1 {
            "Not saved".to_owned()
        } else {
            format!("{} were not saved", errors.len())
        };
        refuse(model, &title, error);
    }
}

/// What the host has against a form stays in the form.
fn refuse_form(model: &mut Model, error: &Error) {
    let present: Option<Config> = error
        .details
        .clone()
        .filter(|_| error.code == Code::Conflict)
        .and_then(|details| serde_json::from_value(*details).ok());
    for mode in model.modes_mut() {
        if let Mode::Form(form) = mode {
            form.busy = false;
            form.refusal = Some(format!("{}. {}", error.message, error.remedy));
            if let (Some((_, revision)), Some(present)) = (&mut form.of, &present) {
                *revision = present.revision;
                form.refusal = Some(
                    "It was changed elsewhere meanwhile. Enter again overwrites that; Esc leaves it."
                        .to_owned(),
                );
            }
        }
    }
}

/// Closes what is like this, wherever it is.
fn close(model: &mut Model, like: impl Fn(&Mode) -> bool) {
    let mut kept = Vec::new();
    loop {
        let mode = model.pop();
        if matches!(mode, Mode::List) {
            break;
        }
        if !like(&mode) {
            kept.push(mode);
        }
    }
    kept.into_iter().rev().for_each(|mode| model.push(mode));
}

fn deleted(model: &mut Model, results: &[(ForwardId, Result<(), Error>)]) {
    let gone = results.iter().filter(|(_, result)| result.is_ok()).count();
    model.list.ticks.retain(|id| !results.iter().any(|(gone, result)| gone == id && result.is_ok()));
    if gone > 0 {
        model.say(NoticeKind::Done, format!("deleted {}; u puts back", count(gone, "forward")));
    }
    if let Some(error) = results.iter().find_map(|(_, result)| result.as_ref().err()) {
        refuse(model, "Not deleted", error);
    }
}

/// The answer about a cluster goes to the picker that asked, if it is still about the same.
fn listed(model: &mut Model, number: u64, outcome: Answer, effects: &mut Vec<Effect>) {
    fn load<T>(result: Result<T, Error>) -> Load<T> {
        result.map_or_else(Load::Failed, Load::There)
    }
    let mut pickers = model
        .modes_mut()
        .iter_mut()
        .filter_map(|mode| if let Mode::Picker(picker) = mode { Some(picker) } else { None });
    let Some(picker) = pickers.next() else { return };
    // An answer to an earlier question is about another place.
    match outcome {
        Answer::Contexts(result) if picker.contexts.awaits(number) => picker.contexts = load(result),
        Answer::Namespaces(result) if picker.namespaces.awaits(number) => picker.namespaces = load(result),
        Answer::Services(result) if picker.services.awaits(number) => picker.services = load(result),
        Answer::Workloads(result) if picker.workloads.awaits(number) => picker.workloads = load(result),
        Answer::Contexts(_) | Answer::Namespaces(_) | Answer::Services(_) | Answer::Workloads(_) => return,
    }
    // Whoever has begun to type or move keeps the place.
    if picker.cursor == 0 && picker.filter.is_empty() {
        picker.settle();
    }
    effects.extend(picker.skip());
}

fn imported(model: &mut Model, request: ImportRequest, result: Result<ImportReport, Error>) {
    for mode in model.modes_mut() {
        if let Mode::Prompt(prompt) = mode
            && let Prompt::Import(line) = prompt.as_mut()
        {
            line.busy = false;
            if let Err(error) = &result {
                line.fault = Some(format!("{}. {}", error.message, error.remedy));
                return;
            }
        }
    }
    match result {
        Err(error) => refuse(model, "Not imported", &error),
        Ok(report) => {
            close(model, |mode| matches!(mode, Mode::Prompt(_)));
            if report.dry_run {
                model.push(Mode::Report(preview(request, &report)));
                return;
            }
            let changed = report.added.len() + report.changed.len();
            model.say(NoticeKind::Done, format!("imported {}", count(changed, "forward")));
            if let Some(id) = report.added.first().and_then(|entry| entry.id) {
                commands::show(model, id);
            }
        }
    }
}

/// What an import would do.
fn preview(request: ImportRequest, report: &ImportReport) -> Report {
    let mut lines = Vec::new();
    let mut part = |title: &str, entries: &[ImportedEntry]| {
        if entries.is_empty() {
            return;
        }
        lines.push((Tone::Heading, format!("{title} {}", entries.len())));
        for entry in entries.iter().take(LISTED) {
            let details = entry.details.join(", ");
            let gap = if details.is_empty() { "" } else { ": " };
            lines.push((Tone::Plain, format!("  {}{gap}{details}", entry.label)));
        }
        if entries.len() > LISTED {
            lines.push((Tone::Dim, format!("  and {} more", entries.len() - LISTED)));
        }
    };
    part("New", &report.added);
    part("Changed", &report.changed);
    part("Changed here and there; ours is kept", &report.conflicting);
    part("Removed", &report.removed);
    if !report.unchanged.is_empty() {
        lines.push((Tone::Dim, format!("Known already: {}", report.unchanged.len())));
    }
    for refused in &report.faults {
        let alias = refused.alias.as_ref().map(|alias| format!(" ({alias})")).unwrap_or_default();
        lines.push((Tone::Heading, format!("Entry {}{alias} cannot be used", refused.entry)));
        for problem in &refused.problems {
            lines.push((Tone::Bad, format!("  {}", problem.message)));
            lines.push((Tone::Plain, format!("  {}", problem.remedy)));
        }
    }
    lines.extend(report.warnings.iter().map(|warning| (Tone::Dim, warning.clone())));
    let works = report.added.len() + report.changed.len() + report.removed.len();
    if lines.is_empty() {
        lines.push((Tone::Plain, "There is no forward in it.".to_owned()));
    }
    let next = (works > 0)
        .then(|| ("import".to_owned(), Effect::Import(ImportRequest { dry_run: false, ..request })));
    Report { title: "Import".to_owned(), lines, top: 0, next }
}

fn exported(model: &mut Model, path: PathBuf, result: Result<Exported, ExportFault>) {
    let mut ids = Vec::new();
    let mut fault = None;
    for mode in model.modes_mut() {
        if let Mode::Prompt(prompt) = mode
            && let Prompt::Export { line, ids: wanted } = prompt.as_mut()
        {
            line.busy = false;
            ids.clone_from(wanted);
            if let Err(ExportFault::Other(problem)) = &result {
                line.fault = Some(format!("{}. {}", problem.message, problem.remedy));
                fault = Some(());
            }
        }
    }
    match result {
        Ok(Exported { count: number, remarks }) => {
            close(model, |mode| matches!(mode, Mode::Prompt(_)));
            let text = format!("exported {} to {}", count(number, "forward"), shown(&path));
            if remarks.is_empty() {
                model.say(NoticeKind::Done, text);
                return;
            }
            let remarks = remarks.into_iter().map(|remark| (Tone::Plain, remark));
            let lines =
                [(Tone::Heading, text), (Tone::Plain, String::new())].into_iter().chain(remarks).collect();
            model.push(Mode::Report(Report { title: "Exported".to_owned(), lines, top: 0, next: None }));
        }
        Err(ExportFault::Exists) => {
            let lines = vec![format!("{} is there already.", shown(&path))];
            let effect = Effect::Export { path, ids, replace: true };
            model.push(Mode::Ask(Ask { title: "Replace the file?".to_owned(), lines, yes: Yes::Do(effect) }));
        }
        Err(ExportFault::Other(problem)) if fault.is_none() => {
            model.push(Mode::Report(Report::failure("Not exported", &problem.message, &problem.remedy)));
        }
        Err(ExportFault::Other(_)) => {}
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A forward moves to the port that is free.
fn free_port(model: &mut Model, id: ForwardId, port: Option<u16>, effects: &mut Vec<Effect>) {
    let Some(config) = model.data.get(id).and_then(|entry| entry.config.clone()) else { return };
    let Some(port) = port else {
        model.say(NoticeKind::Failed, "no port above it is free");
        return;
    };
    let mut spec = config.spec.clone();
    spec.insert("local_port".to_owned(), json!(port));
    let put = ConfigPut { spec, revision: Some(config.revision), group: None };
    effects.push(Effect::Save(Save { puts: vec![(Some(id), put)], then: Then::Restart, form: false }));
}
