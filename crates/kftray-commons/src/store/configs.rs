//! Forwards that are written down, and which of them shall run.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Map, Value};

use super::Store;
use super::file::{Durability, Failure};
use crate::border::{self, Defaults, EntryFault, Warning};
use crate::problem::{Code, Problem};
use crate::spec::{ForwardId, ForwardSpec};
use crate::tags::{TagFault, Tags};

/// A forward to write down. Its spec's id means nothing: the store gives one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The forward.
    pub spec: ForwardSpec,
    /// Fields of its entry that this version does not know; kept as they are.
    pub extra: Map<String, Value>,
}

/// A forward that is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// Its number; never given again after it is gone.
    pub id: ForwardId,
    /// Grows with every change of the entry, from 1.
    pub revision: u64,
    /// Whether somebody wants it to run.
    pub desired: bool,
    /// The entry as it is stored, with the fields that this version does not know.
    pub entry: Map<String, Value>,
    /// What it means to this version, or why it means nothing: a later version, or a foreign hand, wrote it. Such a one
    /// can be listed, exported, replaced and removed.
    pub spec: Result<ForwardSpec, EntryFault>,
    /// The fields that this version does not know.
    pub extra: Map<String, Value>,
}

/// A group: the forwards with the same value of the tag [`Tags::GROUP`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its forwards, by id.
    pub configs: Vec<ForwardId>,
}

impl Draft {
    /// A forward without anything that this version does not know.
    #[must_use]
    pub fn new(spec: ForwardSpec) -> Self {
        Self { spec, extra: Map::new() }
    }

    /// Reads an entry as leniently as one of a file. The second part is what was overlooked.
    ///
    /// # Errors
    /// Everything that is wrong with it; places count in its compact JSON text.
    pub fn read(entry: &Map<String, Value>) -> Result<(Self, Vec<Warning>), EntryFault> {
        let read = border::read_object(entry, ForwardId(0), &Defaults::open());
        Ok((Self { spec: read.result?, extra: read.extra }, read.warnings))
    }

    /// Its entry.
    #[must_use]
    pub fn entry(&self) -> Map<String, Value> {
        border::object(&self.spec, &self.extra)
    }
}

impl StoredConfig {
    /// What people call it: alias, else target and port; of an entry that cannot be read its alias or number.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.spec {
            Ok(spec) => spec.label(),
            Err(fault) => fault.alias.clone().unwrap_or_else(|| format!("#{}", self.id.0)),
        }
    }

    /// As a draft, if this version can read it.
    #[must_use]
    pub fn draft(&self) -> Option<Draft> {
        let spec = self.spec.as_ref().ok()?.clone();
        Some(Draft { spec, extra: self.extra.clone() })
    }
}

impl Store {
    /// Every forward, by id.
    ///
    /// # Errors
    /// [`Code::StoreFailed`] and its kin, as with every method of the store.
    pub fn configs(&self) -> Result<Vec<StoredConfig>, Problem> {
        self.read(all)
    }

    /// One forward; `None` if there is none of that id.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn config(&self, id: ForwardId) -> Result<Option<StoredConfig>, Problem> {
        self.read(|connection| one(connection, id))
    }

    /// Writes new forwards down, all or none; their ids in the same order.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] names the first that could not work; and as with every method of the store.
    pub fn add(&mut self, drafts: &[Draft]) -> Result<Vec<ForwardId>, Problem> {
        self.write(Durability::Full, |transaction| {
            drafts.iter().map(|draft| insert(transaction, draft)).collect::<Result<_, Failure>>()
        })
    }

    /// Replaces a forward. `revision` is the one that was edited; `None` replaces whatever is there. Without a
    /// difference nothing is written and the revision stays.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Conflict`] if it has another revision by now; [`Code::SpecInvalid`]; and as with
    /// every method of the store.
    pub fn update(
        &mut self,
        id: ForwardId,
        draft: &Draft,
        revision: Option<u64>,
    ) -> Result<StoredConfig, Problem> {
        self.write(Durability::Full, |transaction| {
            let found = one(transaction, id)?.ok_or_else(|| missing(id))?;
            if let Some(edited) = revision
                && edited != found.revision
            {
                let label = found.label();
                let message = format!(
                    "`{label}` was changed meanwhile (revision {} instead of {edited})",
                    found.revision
                );
                return Err(Problem::new(Code::Conflict, message).into());
            }
            replace(transaction, &found, draft)?;
            Ok(one(transaction, id)?.ok_or_else(|| missing(id))?)
        })
    }

    /// Removes forwards with all that belongs to them; those that were there. Their ids are never given again.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn remove(&mut self, ids: &[ForwardId]) -> Result<Vec<ForwardId>, Problem> {
        self.write(Durability::Full, |transaction| Ok(delete(transaction, ids)?))
    }

    /// Puts forwards into a group, or takes them out of theirs. Those that changed, as they are now.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::SpecInvalid`] for a name that no tag may have; and as with every method of the store.
    pub fn set_group(
        &mut self,
        ids: &[ForwardId],
        group: Option<&str>,
    ) -> Result<Vec<StoredConfig>, Problem> {
        let group = group.map(str::trim).filter(|name| !name.is_empty());
        self.write(Durability::Full, |transaction| {
            let mut changed = Vec::new();
            for id in ids {
                let found = one(transaction, *id)?.ok_or_else(|| missing(*id))?;
                // One that this version cannot read keeps its group.
                let Some(mut draft) = found.draft() else { continue };
                set_tag(&mut draft.spec.tags, group).map_err(|fault| {
                    Problem::new(Code::SpecInvalid, format!("the group's name cannot be used: {fault}"))
                        .with_remedy("Use a shorter name without `,` and `=`.")
                })?;
                if replace(transaction, &found, &draft)? {
                    changed.extend(one(transaction, *id)?);
                }
            }
            Ok(changed)
        })
    }

    /// Every group, by name.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn groups(&self) -> Result<Vec<Group>, Problem> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT name, config_id FROM groups ORDER BY name, config_id")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, id_of(row, 1)?)))?;
            let mut groups: Vec<Group> = Vec::new();
            for row in rows {
                let (name, id) = row?;
                match groups.last_mut().filter(|group| group.name == name) {
                    Some(group) => group.configs.push(id),
                    None => groups.push(Group { name, configs: vec![id] }),
                }
            }
            Ok(groups)
        })
    }

    /// The forwards that somebody wants to run, by id.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn desired(&self) -> Result<Vec<ForwardId>, Problem> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT config_id FROM desired ORDER BY config_id")?;
            statement.query_map([], |row| id_of(row, 0))?.collect()
        })
    }

    /// Notes that forwards shall run, or shall not. Ids that are not there are passed over; those that changed.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn set_desired(&mut self, ids: &[ForwardId], desired: bool) -> Result<Vec<ForwardId>, Problem> {
        let sql = if desired {
            "INSERT INTO desired (config_id) SELECT id FROM configs WHERE id = ?1 ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM desired WHERE config_id = ?1"
        };
        self.write(Durability::Full, |transaction| {
            let mut statement = transaction.prepare_cached(sql)?;
            let mut changed = Vec::new();
            for id in ids {
                if statement.execute([number(*id)])? > 0 {
                    changed.push(*id);
                }
            }
            Ok(changed)
        })
    }
}

/// SQLite's integers are signed; no id of ours is beyond.
pub(super) fn number(id: ForwardId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

pub(super) fn id_of(row: &Row<'_>, column: usize) -> rusqlite::Result<ForwardId> {
    Ok(ForwardId(row.get::<_, i64>(column)?.unsigned_abs()))
}

const COLUMNS: &str = "SELECT configs.id, revision, entry, desired.config_id IS NOT NULL
    FROM configs LEFT JOIN desired ON desired.config_id = configs.id";

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<StoredConfig>> {
    let mut statement = connection.prepare_cached(&format!("{COLUMNS} ORDER BY configs.id"))?;
    statement.query_map([], stored)?.collect()
}

pub(super) fn one(connection: &Connection, id: ForwardId) -> rusqlite::Result<Option<StoredConfig>> {
    let mut statement = connection.prepare_cached(&format!("{COLUMNS} WHERE configs.id = ?1"))?;
    statement.query_row([number(id)], stored).optional()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredConfig> {
    let id = id_of(row, 0)?;
    let text: String = row.get(2)?;
    // The table takes nothing but objects.
    let entry: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    let read = border::read_object(&entry, id, &Defaults::open());
    Ok(StoredConfig {
        id,
        revision: row.get::<_, i64>(1)?.unsigned_abs(),
        desired: row.get(3)?,
        entry,
        spec: read.result,
        extra: read.extra,
    })
}

pub(super) fn insert(connection: &Connection, draft: &Draft) -> Result<ForwardId, Failure> {
    check(draft)?;
    let mut statement = connection.prepare_cached("INSERT INTO configs (entry) VALUES (?1)")?;
    let id = statement.insert([Value::Object(draft.entry()).to_string()])?;
    Ok(ForwardId(id.unsigned_abs()))
}

/// Whether there was a difference.
pub(super) fn replace(connection: &Connection, found: &StoredConfig, draft: &Draft) -> Result<bool, Failure> {
    check(draft)?;
    let entry = draft.entry();
    if entry == found.entry {
        return Ok(false);
    }
    let mut statement = connection.prepare_cached(
        "UPDATE configs SET entry = ?2, revision = revision + 1, updated_at = unixepoch() WHERE id = ?1",
    )?;
    statement.execute(params![number(found.id), Value::Object(entry).to_string()])?;
    Ok(true)
}

pub(super) fn delete(connection: &Connection, ids: &[ForwardId]) -> rusqlite::Result<Vec<ForwardId>> {
    let mut statement = connection.prepare_cached("DELETE FROM configs WHERE id = ?1")?;
    let mut gone = Vec::new();
    for id in ids {
        if statement.execute([number(*id)])? > 0 {
            gone.push(*id);
        }
    }
    Ok(gone)
}

/// What is stored can be read again: it has passed the same checks as a file's entry.
fn check(draft: &Draft) -> Result<(), Problem> {
    match Draft::read(&draft.entry()) {
        Ok(_) => Ok(()),
        Err(fault) => {
            let label = draft.spec.label();
            let said: Vec<String> = fault
                .faults
                .iter()
                .map(|fault| match &fault.field {
                    Some(field) => format!("{field}: {}", fault.message),
                    None => fault.message.clone(),
                })
                .collect();
            let remedy = fault.faults.first().map(|fault| fault.remedy.clone()).unwrap_or_default();
            Err(Problem::new(Code::SpecInvalid, format!("`{label}`: {}", said.join("; ")))
                .with_remedy(remedy))
        }
    }
}

fn missing(id: ForwardId) -> Problem {
    Problem::new(Code::NotFound, format!("there is no forward {}", id.0))
        .with_remedy("`kftui list` shows every forward with its id.")
}

fn set_tag(tags: &mut Tags, group: Option<&str>) -> Result<(), TagFault> {
    match group {
        Some(name) => tags.set(Tags::GROUP, name),
        None => {
            tags.remove(Tags::GROUP);
            Ok(())
        }
    }
}
