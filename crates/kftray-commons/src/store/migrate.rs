//! Versions of the file, and who may open which.
//!
//! Every version says from which version on a program may still open the file (`opens_from`): an addition that an older
//! program can overlook leaves that number as it was; anything else raises it to itself. The rule is written into the file
//! (`schema_versions`), so that an older program can read it about versions that it has never heard of.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use super::fault;
use super::platform::create_private_file;
use crate::problem::{Code, Problem};

/// Marks the file as ours (`PRAGMA application_id`), whatever its name: "kfry".
pub(super) const APPLICATION_ID: i32 = 0x6b66_7279;

/// Backups that are kept; older ones go.
const BACKUPS_KEPT: usize = 3;

/// One step from the version before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Migration {
    /// The version that it leads to, counted from 1 without gaps.
    pub(super) version: u32,
    /// The lowest version that a program must know to open the file afterwards.
    pub(super) opens_from: u32,
    /// The statements.
    pub(super) sql: &'static str,
}

/// Every version there has been.
pub(super) const MIGRATIONS: &[Migration] =
    &[Migration { version: 1, opens_from: 1, sql: include_str!("schema/v1.sql") }];

/// Whether this program may still write, after another one has had the file in between: a later version may have taken
/// it further while we had it open.
///
/// # Errors
/// [`Code::StoreTooNew`], or what SQLite could not do.
pub(super) fn still_ours(connection: &Connection, file: &Path) -> Result<(), Problem> {
    let found = version(connection).map_err(|error| fault::problem(file, &error))?;
    may_open(connection, file, found, MIGRATIONS.last().map_or(0, |last| last.version))
}

/// Brings the file to the last version of `migrations`. A file that has one is backed up first.
///
/// # Errors
/// [`Code::StoreTooNew`], or what SQLite could not do; the file is as before then.
pub(super) fn run(connection: &mut Connection, file: &Path, migrations: &[Migration]) -> Result<(), Problem> {
    let known = migrations.last().map_or(0, |last| last.version);
    let failed = |error: &rusqlite::Error| fault::problem(file, error);
    let before = version(connection).map_err(|error| failed(&error))?;
    may_open(connection, file, before, known)?;
    if before >= known {
        return Ok(());
    }
    if before > 0 {
        backup(connection, file, before)?;
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|error| failed(&error))?;
    // Another program may have been quicker while we waited for the lock.
    let now = version(&transaction).map_err(|error| failed(&error))?;
    may_open(&transaction, file, now, known)?;
    let apply = |migration: &Migration| -> rusqlite::Result<()> {
        transaction.execute_batch(migration.sql)?;
        transaction.execute(
            "INSERT INTO schema_versions (version, opens_from, program) VALUES (?1, ?2, ?3)",
            (migration.version, migration.opens_from, env!("CARGO_PKG_VERSION")),
        )?;
        transaction.pragma_update(None, "user_version", migration.version)
    };
    let result = migrations.iter().filter(|migration| migration.version > now).try_for_each(apply);
    let result = result.and_then(|()| transaction.pragma_update(None, "application_id", APPLICATION_ID));
    result.and_then(|()| transaction.commit()).map_err(|error| failed(&error))
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Whether a program that knows versions up to `known` may work with a file of version `found`.
fn may_open(connection: &Connection, file: &Path, found: u32, known: u32) -> Result<(), Problem> {
    if found <= known {
        return Ok(());
    }
    let rule = "SELECT opens_from, program FROM schema_versions WHERE opens_from > ?1 ORDER BY opens_from DESC LIMIT 1";
    let refusing: Option<(u32, String)> = connection
        .query_row(rule, [known], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .map_err(|error| fault::problem(file, &error))?;
    let Some((needed, program)) = refusing else { return Ok(()) };
    let name = file.display();
    let message = format!(
        "{name} was last written by kftray {program} in a way that needs version {needed} of the file; this program knows version {known}"
    );
    let remedy = format!(
        "Use kftray {program} or later. To go back to this version, stop every kftray and put a backup of version {known} ({}.backup-v{known}-*) in its place.",
        file.file_name().unwrap_or_default().to_string_lossy()
    );
    Err(Problem::new(Code::StoreTooNew, message).with_remedy(remedy))
}

/// Copies the file as it is now to `NAME.backup-vVERSION-N`, and removes the oldest backups.
fn backup(connection: &Connection, file: &Path, version: u32) -> Result<PathBuf, Problem> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let failed = |what: &dyn std::fmt::Display| {
        Problem::new(Code::StoreFailed, format!("no backup of {} can be made: {what}", file.display()))
    };
    let mut there = backups(file).map_err(|error| failed(&error))?;
    let number = there.last().map_or(1, |(number, _)| number.saturating_add(1));
    let copy = file.with_file_name(format!("{name}.backup-v{version}-{number}"));
    // SQLite takes an empty file for the target; made by us it is closed to others from the start.
    let target = create_private_file(&copy).map_err(|error| failed(&error))?;
    let path = copy.to_str().ok_or_else(|| failed(&"its path is not UTF-8"))?;
    connection.execute("VACUUM INTO ?1", [path]).map_err(|error| failed(&error))?;
    target.sync_all().map_err(|error| failed(&error))?;
    there.push((number, copy.clone()));
    let surplus = there.len().saturating_sub(BACKUPS_KEPT);
    for (_, old) in there.drain(..surplus) {
        // One that cannot be removed is no reason not to go on.
        drop(std::fs::remove_file(old));
    }
    Ok(copy)
}

/// The backups beside the file, oldest first, with their numbers.
fn backups(file: &Path) -> std::io::Result<Vec<(u32, PathBuf)>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.backup-v");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(file.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let known = entry.file_name();
        let number =
            known.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|rest| rest.rsplit_once('-'));
        if let Some(number) = number.and_then(|(_, number)| number.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Migration =
        Migration { version: 2, opens_from: 1, sql: "ALTER TABLE configs ADD COLUMN colour TEXT" };
    const THIRD: Migration = Migration {
        version: 3,
        opens_from: 3,
        sql: "ALTER TABLE settings RENAME COLUMN value TO words; CREATE TABLE notes (id INTEGER PRIMARY KEY)",
    };

    struct File {
        directory: tempfile::TempDir,
        path: PathBuf,
    }

    impl File {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("kftray.db");
            Self { directory, path }
        }

        fn migrate(&self, extra: &[Migration]) -> Result<Connection, Problem> {
            let mut connection =
                Connection::open(&self.path).map_err(|error| fault::problem(&self.path, &error))?;
            run(&mut connection, &self.path, &[MIGRATIONS, extra].concat())?;
            Ok(connection)
        }

        fn backups(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.directory.path()).expect("read");
            let names = entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = names.filter(|name| name.contains("backup")).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn versions_are_counted_without_gaps() {
        for (migration, version) in MIGRATIONS.iter().zip(1..) {
            assert_eq!(migration.version, version);
            assert!((1..=version).contains(&migration.opens_from));
        }
    }

    #[test]
    fn a_new_file_needs_no_backup_and_an_older_one_gets_it() {
        let file = File::new();
        let connection = file.migrate(&[]).expect("made");
        connection.execute("INSERT INTO configs (entry) VALUES ('{}')", []).expect("a row");
        assert_eq!(file.backups(), Vec::<String>::new());
        drop(connection);

        let connection = file.migrate(&[SECOND]).expect("migrated");
        let colours: i64 = connection
            .query_row("SELECT count(*) - count(colour) FROM configs", [], |row| row.get(0))
            .expect("a column");
        assert_eq!(colours, 1);
        assert_eq!(file.backups(), ["kftray.db.backup-v1-1"]);
        drop(connection);
        file.migrate(&[SECOND]).expect("nothing to do");
        assert_eq!(file.backups().len(), 1);

        // The backup is a file of the version before, with everything in it.
        let backup = file.directory.path().join("kftray.db.backup-v1-1");
        let old = Connection::open(backup).expect("opened");
        assert_eq!(version(&old).expect("read"), 1);
        assert_eq!(
            old.query_row("SELECT count(*) FROM configs", [], |row| row.get::<_, i64>(0)).expect("read"),
            1
        );
        assert_eq!(super::super::file::kind_of(&old).expect("read"), super::super::file::Kind::Ours);
    }

    #[test]
    fn an_older_program_opens_what_it_can_and_refuses_the_rest() {
        let file = File::new();
        file.migrate(&[SECOND]).expect("made by a later version");
        file.migrate(&[]).expect("an addition does not keep an older one out");
        file.migrate(&[SECOND, THIRD]).expect("migrated by one later still");
        for known in [&[][..], &[SECOND]] {
            let problem = file.migrate(known).expect_err("refused");
            assert_eq!(problem.code, Code::StoreTooNew);
            let needs =
                format!("needs version 3 of the file; this program knows version {}", known.len() + 1);
            assert!(problem.message.contains(&needs), "{problem}");
            assert!(problem.remedy.contains(&format!("backup-v{}-*", known.len() + 1)), "{}", problem.remedy);
        }
        file.migrate(&[SECOND, THIRD]).expect("who knows it opens it");
    }

    #[test]
    fn a_migration_that_fails_leaves_everything_as_it_was() {
        let file = File::new();
        drop(file.migrate(&[]).expect("made"));
        let wrong = Migration {
            version: 2,
            opens_from: 2,
            sql: "CREATE TABLE half (id); SELECT wrong FROM nowhere;",
        };
        assert!(file.migrate(&[wrong]).is_err());
        let connection = file.migrate(&[]).expect("opens as before");
        assert_eq!(version(&connection).expect("read"), 1);
        let half: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'half'", [], |row| row.get(0))
            .expect("read");
        assert_eq!(half, 0);
    }

    #[test]
    fn the_last_backups_are_kept() {
        let file = File::new();
        let connection = file.migrate(&[]).expect("made");
        for number in 1..=5 {
            let copy = backup(&connection, &file.path, number).expect("copied");
            assert!(copy.ends_with(format!("kftray.db.backup-v{number}-{number}")), "{}", copy.display());
        }
        assert_eq!(
            file.backups(),
            ["kftray.db.backup-v3-3", "kftray.db.backup-v4-4", "kftray.db.backup-v5-5"]
        );
    }
}
