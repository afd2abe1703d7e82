//! What is remembered about forwards, project files and clusters.

use rusqlite::{OptionalExtension as _, params};

use super::Store;
use super::configs::{id_of, number};
use super::file::Durability;
use crate::problem::Problem;
use crate::spec::ForwardId;

/// Events kept of one forward: some days of one that fails every half minute come to thousands, and nobody reads those.
const HISTORY_MAX: i64 = 500;
/// Clusters whose transport is remembered. Short-lived ones (tests, kind) come and go.
const TRANSPORTS_MAX: i64 = 200;
/// Consents that are remembered; every edit of a project file makes a new one.
const CONSENTS_MAX: i64 = 1000;

/// One event of a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Grows with time; of all forwards together.
    pub number: u64,
    /// The forward.
    pub id: ForwardId,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// What happened, as it was given to [`Store::append_history`].
    pub event: String,
}

/// A project file that was allowed what widens exposure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    /// Hash of its content.
    pub hash: String,
    /// Where it was then.
    pub path: String,
    /// What was agreed to, in words.
    pub wishes: Vec<String>,
    /// When, in seconds since the Unix epoch.
    pub granted_at: u64,
}

impl Store {
    /// Adds events (forward, milliseconds since the Unix epoch, text) and forgets the oldest ones beyond 500 per
    /// forward. Events of forwards that are not written down are passed over.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn append_history(&mut self, events: &[(ForwardId, u64, String)]) -> Result<(), Problem> {
        self.write(Durability::Relaxed, |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO history (config_id, at, event) SELECT id, ?2, ?3 FROM configs WHERE id = ?1",
            )?;
            let mut forget = transaction.prepare_cached(
                "DELETE FROM history WHERE config_id = ?1 AND id <=
                 (SELECT id FROM history WHERE config_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?;
            let mut touched = Vec::new();
            for (id, at, event) in events {
                let at = i64::try_from(*at).unwrap_or(i64::MAX);
                if insert.execute(params![number(*id), at, event])? > 0 && !touched.contains(id) {
                    touched.push(*id);
                }
            }
            for id in touched {
                forget.execute([number(id), HISTORY_MAX])?;
            }
            Ok(())
        })
    }

    /// The last events of a forward, oldest first, at most `limit`.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn history(&self, id: ForwardId, limit: usize) -> Result<Vec<HistoryRow>, Problem> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, config_id, at, event FROM history WHERE config_id = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map([number(id), limit], |row| {
                Ok(HistoryRow {
                    number: row.get::<_, i64>(0)?.unsigned_abs(),
                    id: id_of(row, 1)?,
                    at: row.get::<_, i64>(2)?.unsigned_abs(),
                    event: row.get(3)?,
                })
            })?;
            let mut rows: Vec<HistoryRow> = rows.collect::<Result<_, _>>()?;
            rows.reverse();
            Ok(rows)
        })
    }

    /// Whether a project file with this content was allowed what it asks for, and what that was.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn consent(&self, hash: &str) -> Result<Option<Consent>, Problem> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT hash, path, wishes, granted_at FROM consents WHERE hash = ?1")?;
            statement.query_row([hash], consent).optional()
        })
    }

    /// Every consent, the newest first.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn consents(&self) -> Result<Vec<Consent>, Problem> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT hash, path, wishes, granted_at FROM consents ORDER BY granted_at DESC, hash",
            )?;
            statement.query_map([], consent)?.collect()
        })
    }

    /// Remembers a yes. Beyond a thousand the oldest are forgotten.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn grant_consent(&mut self, hash: &str, path: &str, wishes: &[String]) -> Result<(), Problem> {
        let wishes = serde_json::Value::from(wishes).to_string();
        self.write(Durability::Full, |transaction| {
            transaction.execute(
                "INSERT INTO consents (hash, path, wishes) VALUES (?1, ?2, ?3)
                 ON CONFLICT (hash) DO UPDATE SET path = excluded.path, wishes = excluded.wishes, granted_at = unixepoch()",
                [hash, path, &wishes],
            )?;
            transaction.execute(
                "DELETE FROM consents WHERE hash IN
                 (SELECT hash FROM consents WHERE hash <> ?1 ORDER BY granted_at DESC, hash LIMIT -1 OFFSET ?2)",
                params![hash, CONSENTS_MAX - 1],
            )?;
            Ok(())
        })
    }

    /// Takes a yes back; whether there was one.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn revoke_consent(&mut self, hash: &str) -> Result<bool, Problem> {
        self.write(Durability::Full, |transaction| {
            Ok(transaction.execute("DELETE FROM consents WHERE hash = ?1", [hash])? > 0)
        })
    }

    /// What was learnt about the way to each cluster: cluster and text, as they were given.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn transports(&self) -> Result<Vec<(String, String)>, Problem> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT cluster, memory FROM transports ORDER BY cluster")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Remembers what was learnt about the way to a cluster; `None` forgets it. Beyond 200 clusters those not heard of
    /// for longest are forgotten.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn remember_transport(&mut self, cluster: &str, memory: Option<&str>) -> Result<(), Problem> {
        self.write(Durability::Relaxed, |transaction| {
            let Some(memory) = memory else {
                transaction.execute("DELETE FROM transports WHERE cluster = ?1", [cluster])?;
                return Ok(());
            };
            transaction.execute(
                "INSERT INTO transports (cluster, memory) VALUES (?1, ?2)
                 ON CONFLICT (cluster) DO UPDATE SET memory = excluded.memory, updated_at = unixepoch()",
                [cluster, memory],
            )?;
            transaction.execute(
                "DELETE FROM transports WHERE cluster IN
                 (SELECT cluster FROM transports WHERE cluster <> ?1 ORDER BY updated_at DESC, cluster LIMIT -1 OFFSET ?2)",
                params![cluster, TRANSPORTS_MAX - 1],
            )?;
            Ok(())
        })
    }
}

fn consent(row: &rusqlite::Row<'_>) -> rusqlite::Result<Consent> {
    let wishes: String = row.get(2)?;
    Ok(Consent {
        hash: row.get(0)?,
        path: row.get(1)?,
        wishes: serde_json::from_str(&wishes).unwrap_or_default(),
        granted_at: row.get::<_, i64>(3)?.unsigned_abs(),
    })
}
