//! The reference's database: read in every shape that it has had, never written.
//!
//! Its rows are JSON with placeholders for "nothing", which the border knows. Its log settings are doubled in a table of
//! their own; its shortcuts refer to rows by id; its settings table also serves as a notebook, which is left alone. Facts:
//! the reference's formats from 0.27 to 0.35.

mod read;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};
use serde_json::Value;

use super::configs::Draft;
use super::file::{Durability, Failure, REFERENCE_ASIDE, Store};
use super::merge::{Incoming, MergeOptions, MergeReport, merge};
use super::settings::{self, Known};
use crate::border::{self, Defaults, EntryFault};
use crate::problem::Problem;
use crate::spec::ForwardId;
use read::Contents;

pub use read::Shortcut;
pub(super) use read::is_reference;

/// The file's usual name.
const DATABASE: &str = "configs.db";

/// Settings of the reference that are no business of ours: bookkeeping, and consents given to somebody else.
const NOT_OURS: &[&str] = &["last_update_check", "telemetry_enabled", "performance_enabled"];

/// What was taken over from a database of the reference, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReferenceReport {
    /// The file.
    pub path: PathBuf,
    /// Its forwards. The number of an entry is the id of its row.
    pub merge: MergeReport,
    /// Rows that cannot be used, with everything that is wrong with each; `entry` is the id of the row.
    pub faults: Vec<EntryFault>,
    /// What was overlooked, in sentences without full stop.
    pub warnings: Vec<String>,
    /// Settings taken over, by our name.
    pub settings: Vec<String>,
    /// Shortcuts taken over, by name.
    pub shortcuts: Vec<String>,
    /// The forwards that the reference says are running, as far as they are stored here by now.
    pub was_running: Vec<ForwardId>,
    /// The processes that it says run them. One that is alive holds the local ports.
    pub processes: Vec<u32>,
}

impl Store {
    /// Takes over a database of the reference, in one transaction. The file is only read. Settings that are set here, and
    /// shortcuts of the same name, stay as they are.
    ///
    /// # Errors
    /// [`crate::Code::ImportUnreadable`] if it is none; and as with every method of the store.
    pub fn import_reference(
        &mut self,
        path: &Path,
        options: MergeOptions,
    ) -> Result<ReferenceReport, Problem> {
        let contents = read::read(path)?;
        self.write(Durability::Full, |transaction| take(transaction, path, &contents, options))
    }

    /// Takes over the database of the reference that lies in this directory, if this store has never had a forward and
    /// has not done so before. `None` if there is nothing to take over.
    ///
    /// # Errors
    /// As [`Store::import_reference`].
    pub fn adopt_reference(&mut self) -> Result<Option<ReferenceReport>, Problem> {
        let untouched = self.read(|connection| {
            connection.query_row(
                "SELECT NOT EXISTS (SELECT 1 FROM adopted) AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'configs')",
                [],
                |row| row.get::<_, bool>(0),
            )
        })?;
        let names = [REFERENCE_ASIDE, DATABASE].map(|name| self.directory().path().join(name));
        let Some(path) = names.into_iter().find(|path| untouched && path.is_file()) else { return Ok(None) };
        let contents = read::read(&path)?;
        let report = self.write(Durability::Full, |transaction| {
            let report = take(transaction, &path, &contents, MergeOptions::default())?;
            transaction
                .execute("INSERT OR REPLACE INTO adopted (path) VALUES (?1)", [path.to_string_lossy()])?;
            Ok(report)
        })?;
        Ok(Some(report))
    }
}

fn take(
    transaction: &Transaction<'_>,
    path: &Path,
    contents: &Contents,
    options: MergeOptions,
) -> Result<ReferenceReport, Failure> {
    let mut report = ReferenceReport { path: path.to_owned(), ..ReferenceReport::default() };
    let mut incoming = Vec::new();
    let mut rows = Vec::new();
    for row in &contents.configs {
        let number = usize::try_from(row.id).unwrap_or_default();
        let read = border::read_object(&row.entry, ForwardId(0), &Defaults::default());
        let told = read.warnings.iter().map(|warning| format!("row {}: {}", row.id, warning.message));
        report.warnings.extend(told);
        match read.result {
            Ok(spec) => {
                rows.push(row.id);
                incoming.push(Incoming { number, draft: Draft { spec, extra: read.extra } });
            }
            Err(fault) => report.faults.push(EntryFault { entry: number, ..fault }),
        }
    }
    let (merged, ids) = merge(transaction, &incoming, options)?;
    report.merge = merged;
    let known: HashMap<i64, ForwardId> =
        rows.iter().zip(&ids).filter_map(|(row, id)| Some((*row, (*id)?))).collect();
    report.was_running = contents.running.iter().filter_map(|row| known.get(row).copied()).collect();
    report.processes.clone_from(&contents.processes);
    take_settings(transaction, contents, options.dry_run, &mut report)?;
    for shortcut in &contents.shortcuts {
        if options.dry_run || take_shortcut(transaction, shortcut, &known)? {
            report.shortcuts.push(shortcut.name.clone());
        }
    }
    Ok(report)
}

fn take_settings(
    connection: &Connection,
    contents: &Contents,
    dry_run: bool,
    report: &mut ReferenceReport,
) -> rusqlite::Result<()> {
    for (key, value) in &contents.settings {
        // The notebook's keys carry a colon and an id.
        if key.contains(':') || key.starts_with("ssl_hosts_written") || NOT_OURS.contains(&key.as_str()) {
            continue;
        }
        // People were told that it is about inactivity; it was not, and here it is.
        let key = if key == "disconnect_timeout_minutes" { "idle_minutes" } else { key.as_str() };
        if let Some(Err(_)) = Known::of(key).map(|known| known.accepts(value)) {
            report.warnings.push(format!("the setting {key} has the value `{value}`, which it cannot have"));
            continue;
        }
        let set: bool =
            connection.query_row("SELECT EXISTS (SELECT 1 FROM settings WHERE key = ?1)", [key], |row| {
                row.get(0)
            })?;
        let is_default = Known::of(key).is_some_and(|known| known.default == value);
        if set || is_default {
            continue;
        }
        if !dry_run {
            settings::put(connection, key, value)?;
        }
        report.settings.push(key.to_owned());
    }
    Ok(())
}

/// Whether it is new here.
fn take_shortcut(
    connection: &Connection,
    shortcut: &Shortcut,
    known: &HashMap<i64, ForwardId>,
) -> rusqlite::Result<bool> {
    let data = shortcut.data.as_ref().map(|data| translated(data, known).to_string());
    let rows = connection.execute(
        "INSERT INTO shortcuts (name, keys, action, data, enabled) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        params![shortcut.name, shortcut.keys, shortcut.action, data, shortcut.enabled],
    )?;
    Ok(rows > 0)
}

/// The same with our ids; rows that were not taken over are left out.
fn translated(data: &Value, known: &HashMap<i64, ForwardId>) -> Value {
    let mut data = data.clone();
    let ids = data.get_mut("config_ids").and_then(Value::as_array_mut);
    if let Some(ids) = ids {
        *ids = ids.iter().filter_map(|id| known.get(&id.as_i64()?)).map(|id| id.0.into()).collect();
    }
    data
}

impl Store {
    /// The shortcuts that were taken over, by name; ids in their data are ours.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn shortcuts(&self) -> Result<Vec<Shortcut>, Problem> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT name, keys, action, data, enabled FROM shortcuts ORDER BY name")?;
            let rows = statement.query_map([], |row| {
                let data: Option<String> = row.get(3)?;
                Ok(Shortcut {
                    name: row.get(0)?,
                    keys: row.get(1)?,
                    action: row.get(2)?,
                    data: data.and_then(|text| serde_json::from_str(&text).ok()),
                    enabled: row.get(4)?,
                })
            })?;
            rows.collect()
        })
    }
}
