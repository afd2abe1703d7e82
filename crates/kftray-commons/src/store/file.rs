//! The file itself: opened, recognised, brought to the present version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::migrate::{self, APPLICATION_ID, MIGRATIONS};
use super::{Directory, fault, platform, reference};
use crate::problem::{Code, Problem};

/// How long a writer waits for another program's write. Ours take milliseconds; the reference's import of a long list can
/// take a second or two.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The write-ahead log is cut back to this size after a checkpoint, in bytes: enough for any one change.
const JOURNAL_SIZE: i64 = 4 * 1024 * 1024;
/// Under this name a database of the reference that is in our place is put aside.
pub(super) const REFERENCE_ASIDE: &str = "kftray.reference.db";

/// The store. One connection; `Send`, not `Sync`.
#[derive(Debug)]
pub struct Store {
    pub(super) connection: Connection,
    directory: Directory,
    file: PathBuf,
}

/// How much a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Nothing.
    Full,
    /// What was written since the last full write. The file stays whole.
    Relaxed,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    /// No tables yet.
    Empty,
    /// The reference's.
    Reference,
    Other,
}

impl Store {
    /// Opens the store of a directory; makes both if they are not there, brings an older file to the present version
    /// (with a backup beside it).
    ///
    /// A database of the reference that is called `kftray.db` is put aside as `kftray.reference.db`;
    /// [`Store::adopt_reference`] takes it over, as it does with a `configs.db`.
    ///
    /// # Errors
    /// [`Code::DirectoryRefused`], [`Code::StoreTooNew`], [`Code::StoreDamaged`], [`Code::StoreBusy`],
    /// [`Code::StoreFailed`].
    pub fn open(directory: &Directory) -> Result<Self, Problem> {
        directory.prepare()?;
        let file = directory.database();
        let mut connection = connect(&file)?;
        match kind_of(&connection).map_err(|error| fault::problem(&file, &error))? {
            Kind::Ours | Kind::Empty => {}
            Kind::Reference => {
                drop(connection);
                put_aside(&file)?;
                connection = connect(&file)?;
            }
            Kind::Other => {
                let message = format!("{} is a database of another program", file.display());
                let remedy = "Move it away, or set KFTRAY_CONFIG to another directory.";
                return Err(Problem::new(Code::StoreDamaged, message).with_remedy(remedy));
            }
        }
        prepare(&connection).map_err(|error| fault::problem(&file, &error))?;
        migrate::run(&mut connection, &file, MIGRATIONS)?;
        write_ahead(&connection).map_err(|error| fault::problem(&file, &error))?;
        Ok(Self { connection, directory: directory.clone(), file })
    }

    /// The directory it lives in.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A number that changes when another connection, of this process or another, has written. Own writes do not count.
    ///
    /// # Errors
    /// [`Code::StoreFailed`] and its kin.
    pub fn data_version(&self) -> Result<u64, Problem> {
        let version = self.connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0));
        Ok(version.map_err(|error| self.fault(&error))?.unsigned_abs())
    }

    /// Reads the whole file and says what is wrong with it; nothing if it is whole.
    ///
    /// # Errors
    /// [`Code::StoreDamaged`] and its kin if it cannot even be read.
    pub fn integrity(&self) -> Result<Vec<String>, Problem> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut found = Vec::new();
            for check in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
                let mut statement = self.connection.prepare(check)?;
                let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
                for row in rows {
                    found.push(row?);
                }
            }
            found.retain(|line| line != "ok");
            Ok(found)
        };
        read().map_err(|error| self.fault(&error))
    }

    /// A failure of this file.
    pub(super) fn fault(&self, error: &rusqlite::Error) -> Problem {
        fault::problem(&self.file, error)
    }

    /// Does `work` in one transaction that takes the write lock at once, so that two writers wait for each other instead
    /// of failing half-way. An error leaves everything as it was.
    pub(super) fn write<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, Problem> {
        let run = || -> Result<T, Failure> {
            let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", synchronous)?;
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            migrate::still_ours(&transaction, &self.file)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|failure| match failure {
            Failure::Told(problem) => problem,
            Failure::Sqlite(error) => fault::problem(&self.file, &error),
        })
    }

    /// Does `work` on one state of the file.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Problem> {
        work(&self.connection).map_err(|error| self.fault(&error))
    }
}

/// Why a transaction was given up.
#[derive(Debug)]
pub(super) enum Failure {
    /// For a reason that can be told as it is.
    Told(Problem),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

/// Opens a file that only this user can read, and makes it if it is not there.
fn connect(file: &Path) -> Result<Connection, Problem> {
    let failed = |error: &io::Error| Problem::new(Code::StoreFailed, format!("{}: {error}", file.display()));
    match fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => {
            let message = format!("{} is no regular file", file.display());
            let remedy = "Put the file itself there instead of a link to it.";
            return Err(Problem::new(Code::DirectoryRefused, message).with_remedy(remedy));
        }
        Ok(found) => platform::close_to_others(file, &found).map_err(|error| failed(&error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => match platform::create_private_file(file) {
            // SQLite gives its journals the mode of the file.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&error)),
        },
        Err(error) => return Err(failed(&error)),
    }
    let open = || {
        let connection = Connection::open(file)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    };
    open().map_err(|error| fault::problem(file, &error))
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Schemas written by others may not call functions with side effects.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update_and_check(None, "journal_size_limit", JOURNAL_SIZE, |_| Ok(()))
}

/// Readers and a writer at once. After the first transaction, so that a file without a table is never in this mode. A file
/// system without shared memory keeps the old journal, which is as safe; and so it is while another program has the file
/// open in it, until the next start.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
    match mode {
        Err(error) if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DatabaseBusy) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a database is, by what is in it.
pub(super) fn kind_of(connection: &Connection) -> rusqlite::Result<Kind> {
    // One state of the file for all questions: another program may be making its tables just now.
    let _state = connection.unchecked_transaction()?;
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id == APPLICATION_ID {
        return Ok(Kind::Ours);
    }
    let tables: i64 =
        connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))?;
    Ok(match tables {
        0 if id == 0 => Kind::Empty,
        _ if reference::is_reference(connection)? => Kind::Reference,
        _ => Kind::Other,
    })
}

/// Renames a database of the reference that is where ours belongs. Nothing is ever overwritten.
fn put_aside(file: &Path) -> Result<(), Problem> {
    let aside = file.with_file_name(REFERENCE_ASIDE);
    if aside.exists() {
        let message = format!(
            "{} is a database of the reference, and {} is there already",
            file.display(),
            aside.display()
        );
        let remedy = "Move one of the two to another directory; `kftui import FILE` reads it.";
        return Err(Problem::new(Code::StoreDamaged, message).with_remedy(remedy));
    }
    fs::rename(file, &aside).map_err(|error| {
        Problem::new(Code::StoreFailed, format!("{} cannot be renamed: {error}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ForwardId, ForwardSpec, Workload};
    use crate::store::Draft;
    use crate::target::RemotePort;

    #[test]
    fn a_full_disk_loses_nothing() {
        let temporary = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(&Directory::at(temporary.path())).expect("a new store");
        let web = Workload::Service { name: "web".into(), port: RemotePort::Name("http".into()) };
        let mut draft = Draft::new(ForwardSpec::new(ForwardId(0), web));
        store.add(std::slice::from_ref(&draft)).expect("added");
        let pages: i64 =
            store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("pages");
        // As a disk with room for two pages more.
        store
            .connection
            .pragma_update_and_check(None, "max_page_count", pages + 2, |_| Ok(()))
            .expect("limited");
        draft.extra.insert("filler".into(), "x".repeat(1000).into());
        let problem = store.add(&vec![draft.clone(); 200]).expect_err("no room");
        assert_eq!(problem.code, Code::StoreFailed);
        assert!(problem.message.contains("full"), "{problem}");
        assert_eq!(store.configs().expect("read").len(), 1);
        assert_eq!(store.integrity().expect("read"), Vec::<String>::new());
        store.add(&[draft]).expect("there is room for one");
    }
}
