//! Importing again must not double anything: which stored forward an entry means, and what becomes of it.
//!
//! An entry can only mean a stored forward to the same thing: same kubeconfig, context, namespace, protocol, kind and
//! name ([`Core`]). Among those the ports, the addresses and the alias decide, in ranks ([`Rank`]); the best ranks are
//! settled first, each stored forward is given away once. Where two stored forwards, or two entries, fit equally well, nobody can
//! know which is meant: the entry is told as conflicting and changes nothing. What fits none is new.
//!
//! Unlike in the reference, an entry without context means the same as `@current`, entries that differ only in their
//! ports stay apart, and a new local port changes the stored forward where only one can be meant.

mod plan;

use serde_json::{Map, Value};

use super::configs::{self, Draft, StoredConfig};
use super::file::{Durability, Failure, Store};
use crate::border;
use crate::problem::Problem;
use crate::spec::ForwardId;
use plan::{Step, plan};

/// An entry to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its number in its source, from 1.
    pub number: usize,
    /// What it says.
    pub draft: Draft,
}

/// How to take entries over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeOptions {
    /// Only say what would happen.
    pub dry_run: bool,
    /// Remove the stored forwards that no entry means. Those that this version cannot read stay.
    pub replace: bool,
    /// Leave the stored forwards that an entry means as they are, and only add what is new.
    pub only_new: bool,
}

/// What became of one entry, or of one stored forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Number of the entry in its source; `None` for a stored forward that was removed.
    pub number: Option<usize>,
    /// The stored forward; `None` for one that would be new in a dry run, and for a conflicting one.
    pub id: Option<ForwardId>,
    /// What people call it.
    pub label: String,
    /// What changes, field by field, or why nothing does; clauses without full stop.
    pub details: Vec<String>,
}

/// What an import did, or would do. Each in the order of the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergeReport {
    /// Whether it only says what would happen.
    pub dry_run: bool,
    /// New.
    pub added: Vec<Merged>,
    /// Stored, with other content.
    pub changed: Vec<Merged>,
    /// Stored and equal.
    pub unchanged: Vec<Merged>,
    /// Left out, because it cannot be known which stored forward is meant, or because the source says the same thing
    /// once more.
    pub conflicting: Vec<Merged>,
    /// Removed, because [`MergeOptions::replace`] was asked for.
    pub removed: Vec<Merged>,
}

impl Incoming {
    /// The usable entries of a text.
    #[must_use]
    pub fn of(import: &border::Import) -> Vec<Self> {
        let usable = import.entries.iter().filter_map(|entry| {
            let draft = Draft { spec: entry.result.as_ref().ok()?.clone(), extra: entry.extra.clone() };
            Some(Self { number: entry.number, draft })
        });
        usable.collect()
    }
}

impl MergeReport {
    /// Whether it changed anything, or would.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Store {
    /// Takes entries over in one transaction: all that the report says, or nothing.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn import(&mut self, incoming: &[Incoming], options: MergeOptions) -> Result<MergeReport, Problem> {
        self.write(Durability::Full, |transaction| {
            let report = merge(transaction, incoming, options)?.0;
            Ok(report)
        })
    }
}

/// Does it on an open transaction. The second part is the stored forward of each incoming one, where it has one then.
pub(super) fn merge(
    transaction: &rusqlite::Transaction<'_>,
    incoming: &[Incoming],
    options: MergeOptions,
) -> Result<(MergeReport, Vec<Option<ForwardId>>), Failure> {
    let stored = configs::all(transaction)?;
    let plan = plan(&stored, incoming);
    let mut report = MergeReport { dry_run: options.dry_run, ..MergeReport::default() };
    let mut ids = Vec::new();
    for (entry, step) in incoming.iter().zip(&plan.steps) {
        let mut merged = Merged {
            number: Some(entry.number),
            id: None,
            label: entry.draft.spec.label(),
            details: Vec::new(),
        };
        match step {
            Step::Add => {
                if !options.dry_run {
                    merged.id = Some(configs::insert(transaction, &entry.draft)?);
                }
                ids.push(merged.id);
                report.added.push(merged);
            }
            Step::Match { stored: at, draft } => {
                let found = &stored[*at];
                merged.id = Some(found.id);
                ids.push(merged.id);
                merged.label = draft.spec.label();
                merged.details = differences(&found.entry, &draft.entry());
                if options.only_new || merged.details.is_empty() {
                    merged.details.clear();
                    report.unchanged.push(merged);
                } else {
                    if !options.dry_run {
                        configs::replace(transaction, found, draft)?;
                    }
                    report.changed.push(merged);
                }
            }
            Step::Conflict { candidates } => {
                merged.details = vec![ambiguous(&stored, candidates)];
                ids.push(None);
                report.conflicting.push(merged);
            }
            Step::Double { stored: at, of } => {
                merged.details = vec![format!(
                    "it would make {} the same as {}; give it the alias or the ports of the one that is meant",
                    named(&stored[*at]),
                    named(&stored[*of])
                )];
                ids.push(None);
                report.conflicting.push(merged);
            }
            Step::Superseded { by } => {
                let by = incoming.get(*by).map_or(0, |later| later.number);
                merged.details = vec![format!("entry {by} says the same once more, and counts")];
                ids.push(None);
                report.conflicting.push(merged);
            }
        }
    }
    if options.replace {
        let gone: Vec<&StoredConfig> = plan.untouched.iter().filter_map(|at| stored.get(*at)).collect();
        if !options.dry_run {
            configs::delete(transaction, &gone.iter().map(|config| config.id).collect::<Vec<_>>())?;
        }
        let removed = |config: &&StoredConfig| Merged {
            number: None,
            id: Some(config.id),
            label: config.label(),
            details: Vec::new(),
        };
        report.removed = gone.iter().map(removed).collect();
    }
    Ok((report, ids))
}

fn named(config: &StoredConfig) -> String {
    format!("`{}` (id {})", config.label(), config.id.0)
}

fn ambiguous(stored: &[StoredConfig], candidates: &[usize]) -> String {
    let names: Vec<String> = candidates.iter().filter_map(|at| stored.get(*at)).map(named).collect();
    match names.as_slice() {
        [] => "too many forwards go to the same thing to tell which is meant; give it the ports it has here"
            .to_owned(),
        [one] => format!(
            "this and another entry could both be {one}; give each the alias or the ports that it has here"
        ),
        _ => format!(
            "it could be {}; give it the alias or the ports of the one that is meant",
            names.join(" or ")
        ),
    }
}

/// What is different, field by field. What looks like a secret is not written out.
fn differences(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    const SECRET: &[&str] = &["auth", "token", "secret", "password"];
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let differing = names.filter(|name| before.get(*name) != after.get(*name));
    let shown = |value: Option<&Value>| match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    differing
        .map(|name| {
            if SECRET.iter().any(|word| name.contains(word)) {
                return format!("{name}: another value");
            }
            format!("{name}: {} -> {}", shown(before.get(name)), shown(after.get(name)))
        })
        .collect()
}
