//! The rows of a reference's database as they are, whatever columns and tables its version had.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::{Map, Value};

use crate::problem::{Code, Problem};

/// How long we wait for a reference that is just writing; its longest writes are imports of some seconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything of it that means something to us.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Contents {
    pub(super) configs: Vec<ConfigRow>,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) shortcuts: Vec<Shortcut>,
    /// Rows that are said to run.
    pub(super) running: Vec<i64>,
    /// The processes that are said to run them.
    pub(super) processes: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ConfigRow {
    pub(super) id: i64,
    /// Empty where the row held no object.
    pub(super) entry: Map<String, Value>,
}

/// A global shortcut, kept for the desktop application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortcut {
    /// Its name, unique.
    pub name: String,
    /// As in `Ctrl+Shift+F1`.
    pub keys: String,
    /// As in `toggle_window`, `start_port_forward`.
    pub action: String,
    /// What the action needs; `config_ids` lists forwards.
    pub data: Option<Value>,
    /// Whether it is on.
    pub enabled: bool,
}

/// Whether a database has the reference's table of forwards.
pub(in crate::store) fn is_reference(connection: &Connection) -> rusqlite::Result<bool> {
    let columns = columns(connection, "configs")?;
    Ok(columns.contains("id") && columns.contains("data"))
}

/// Reads it.
pub(super) fn read(path: &Path) -> Result<Contents, Problem> {
    let unreadable =
        |what: String| Problem::new(Code::ImportUnreadable, format!("{}: {what}", path.display()));
    if !path.is_file() {
        return Err(unreadable("there is no such file".to_owned()));
    }
    let contents = open_and_read(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    // After a crash of the reference its journal has to be played back, which it would do itself at its next start.
    let contents = match contents {
        Err(error) if needs_recovery(&error) => open_and_read(path, OpenFlags::SQLITE_OPEN_READ_WRITE),
        other => other,
    };
    match contents {
        Ok(Some(contents)) => Ok(contents),
        Ok(None) => Err(unreadable("it is no database of kftray with forwards in it".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

fn needs_recovery(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
    matches!(error.sqlite_error_code(), Some(CannotOpen | ReadOnly))
}

fn open_and_read(path: &Path, flags: OpenFlags) -> rusqlite::Result<Option<Contents>> {
    let mut connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // One state of the file for all tables.
    let transaction = connection.transaction()?;
    if !is_reference(&transaction)? {
        return Ok(None);
    }
    let logs = logs(&transaction)?;
    let mut contents = Contents { configs: configs(&transaction, &logs)?, ..Contents::default() };
    contents.settings = settings(&transaction)?;
    contents.shortcuts = shortcuts(&transaction)?;
    running(&transaction, &mut contents)?;
    Ok(Some(contents))
}

/// The columns of a table; none if it is not there.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<BTreeSet<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn configs(
    connection: &Connection,
    logs: &HashMap<i64, Map<String, Value>>,
) -> rusqlite::Result<Vec<ConfigRow>> {
    let mut statement = connection.prepare("SELECT id, data FROM configs ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let id: i64 = row.get(0)?;
        let entry: Option<Map<String, Value>> = serde_json::from_str(&text(row, 1)?).ok();
        let mut entry = entry.unwrap_or_default();
        // What it writes where nothing was said.
        if entry.get("local_address").and_then(Value::as_str) == Some("127.0.0.1") {
            entry.shift_remove("local_address");
        }
        for (name, value) in logs.get(&id).into_iter().flatten() {
            let said = entry.get(name).is_some_and(|said| !said.is_null());
            if !said && !entry.is_empty() {
                entry.insert(name.clone(), value.clone());
            }
        }
        Ok(ConfigRow { id, entry })
    })?;
    rows.collect()
}

/// The log settings of its second place, under the names of the first.
fn logs(connection: &Connection) -> rusqlite::Result<HashMap<i64, Map<String, Value>>> {
    const NAMES: [(&str, &str); 4] = [
        ("enabled", "http_logs_enabled"),
        ("max_file_size", "http_logs_max_file_size"),
        ("retention_days", "http_logs_retention_days"),
        ("auto_cleanup", "http_logs_auto_cleanup"),
    ];
    let there = columns(connection, "http_logs_config")?;
    if !there.contains("config_id") {
        return Ok(HashMap::new());
    }
    let mut statement = connection.prepare("SELECT * FROM http_logs_config")?;
    let rows = statement.query_map([], |row| {
        let mut entry = Map::new();
        for (column, name) in NAMES.iter().filter(|(column, _)| there.contains(*column)) {
            if let ValueRef::Integer(number) = row.get_ref(*column)? {
                entry.insert((*name).to_owned(), number.into());
            }
        }
        Ok((row.get("config_id")?, entry))
    })?;
    rows.collect()
}

fn settings(connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    if !columns(connection, "settings")?.contains("value") {
        return Ok(BTreeMap::new());
    }
    let mut statement = connection.prepare("SELECT key, value FROM settings")?;
    statement.query_map([], |row| Ok((text(row, 0)?, text(row, 1)?)))?.collect()
}

fn shortcuts(connection: &Connection) -> rusqlite::Result<Vec<Shortcut>> {
    let there = columns(connection, "shortcuts")?;
    if !["name", "shortcut_key", "action_type"].iter().all(|name| there.contains(*name)) {
        return Ok(Vec::new());
    }
    let data = if there.contains("action_data") { "action_data" } else { "NULL" };
    let config = if there.contains("config_id") { "config_id" } else { "NULL" };
    let enabled = if there.contains("enabled") { "enabled" } else { "1" };
    let mut statement = connection.prepare(&format!(
        "SELECT name, shortcut_key, action_type, {data}, {config}, {enabled} FROM shortcuts ORDER BY id"
    ))?;
    let rows = statement.query_map([], |row| {
        let data: Option<Value> = serde_json::from_str(&text(row, 3)?).ok();
        // The older form names one forward in a column of its own.
        let config: Option<i64> = row.get(4)?;
        let data = match (data, config) {
            (None, Some(id)) => Some(serde_json::json!({ "config_ids": [id] })),
            (data, _) => data,
        };
        let enabled = !matches!(row.get_ref(5)?, ValueRef::Integer(0));
        Ok(Shortcut { name: text(row, 0)?, keys: text(row, 1)?, action: text(row, 2)?, data, enabled })
    })?;
    rows.collect()
}

fn running(connection: &Connection, contents: &mut Contents) -> rusqlite::Result<()> {
    let there = columns(connection, "config_state")?;
    if !there.contains("config_id") || !there.contains("is_running") {
        return Ok(());
    }
    let process = if there.contains("process_id") { "process_id" } else { "NULL" };
    let mut statement = connection.prepare(&format!(
        "SELECT DISTINCT config_id, {process} FROM config_state WHERE is_running ORDER BY config_id"
    ))?;
    let mut rows = statement.query([])?;
    let mut processes = BTreeSet::new();
    while let Some(row) = rows.next()? {
        contents.running.push(row.get(0)?);
        // 0 is its word for a process that is gone.
        let process: Option<i64> = row.get(1)?;
        processes.extend(process.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != 0));
    }
    contents.running.dedup();
    contents.processes = processes.into_iter().collect();
    Ok(())
}

/// A text, however it is stored; empty for nothing.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    })
}
