//! Databases of the reference are taken over as they mean it, and it reads what we export.

#![cfg(feature = "store")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Scratch, incoming, scratch, service};
use kftray_commons::store::{Directory, Form, MergeOptions, ReferenceReport, Store};
use kftray_commons::{Code, ForwardId};
use rusqlite::Connection;
use serde_json::json;

const TABLES: &str = include_str!("data/reference/tables-0.35.sql");
const ALL_KINDS: &str = include_str!("data/reference/all-kinds-0.35.1.sql");
const ALL_KINDS_JSON: &str = include_str!("data/reference/all-kinds.json");
const EXPORTED: &str = include_str!("data/reference/exported-0.35.1.json");
const TWICE: &str = include_str!("data/reference/imported-twice-0.35.1.sql");
const OLDER: &str = include_str!("data/reference/older.sql");
const NOTEBOOK: &str = include_str!("data/reference/notebook.sql");

fn database(path: &Path, parts: &[&str]) {
    let connection = Connection::open(path).expect("made");
    for part in parts {
        connection.execute_batch(part).expect("SQL");
    }
}

/// A new store, and what came of importing a database made of these parts.
fn imported(parts: &[&str]) -> (Scratch, ReferenceReport) {
    let mut it = scratch();
    let path = it.temporary.path().join("a database of the reference.db");
    database(&path, parts);
    let before = fs::read(&path).expect("read");
    let dry = MergeOptions { dry_run: true, ..MergeOptions::default() };
    let foretold = it.store.import_reference(&path, dry).expect("dry");
    assert_eq!(it.store.configs().expect("read"), []);
    assert!(it.store.settings().expect("read").is_empty());
    let report = it.store.import_reference(&path, MergeOptions::default()).expect("imported");
    assert_eq!(foretold.merge.added.len(), report.merge.added.len());
    assert_eq!((&foretold.settings, &foretold.shortcuts), (&report.settings, &report.shortcuts));
    assert_eq!(fs::read(&path).expect("read"), before, "the reference's file is never written");
    let again = it.store.import_reference(&path, MergeOptions::default()).expect("imported");
    assert!(again.merge.is_quiet(), "{again:?}");
    assert_eq!((again.settings.len(), again.shortcuts.len()), (0, 0));
    (it, report)
}

fn own(store: &Store) -> String {
    store.export(None, Form::Own).expect("exported").text
}

#[test]
fn every_kind_as_0_35_writes_it() {
    let (mut it, report) = imported(&[TABLES, ALL_KINDS]);
    assert_eq!((report.merge.added.len(), report.faults.len(), report.warnings.len()), (8, 0, 0));
    assert_eq!(report.shortcuts, ["Toggle Window"]);
    assert_eq!(report.settings, Vec::<String>::new());
    insta::assert_snapshot!(own(&it.store));
    // The file that it was made from says the same, but for what the reference chose itself.
    let report = it.store.import(&incoming(ALL_KINDS_JSON), MergeOptions::default()).expect("imported");
    assert_eq!((report.unchanged.len(), report.is_quiet()), (8, true), "{report:?}");
}

/// Its export says the same as its database, and what we write for it says the same as its export.
#[test]
fn its_export_and_ours_for_it() {
    let (mut of_database, _) = imported(&[TABLES, ALL_KINDS]);
    let report = of_database.store.import(&incoming(EXPORTED), MergeOptions::default()).expect("imported");
    assert_eq!((report.unchanged.len(), report.is_quiet()), (8, true), "{report:?}");

    let mut of_export = scratch();
    of_export.store.import(&incoming(EXPORTED), MergeOptions::default()).expect("imported");
    assert_eq!(own(&of_export.store), own(&of_database.store));

    let ours = of_export.store.export(None, Form::Reference).expect("exported");
    let lists = [EXPORTED, ours.text.as_str()].map(|text| serde_json::from_str(text).expect("JSON"));
    let [mut theirs, mut ours]: [Vec<serde_json::Map<String, serde_json::Value>>; 2] = lists;
    // Two words for the same thing each.
    for entry in theirs.iter_mut().chain(&mut ours) {
        if entry["context"] == "current-context" {
            entry["context"] = json!("@current");
        }
        if entry.get("local_address") == Some(&json!("localhost")) {
            entry.shift_remove("local_address");
        }
    }
    assert_eq!(ours, theirs);
}

/// It imports a forward without a context again and again; we do not, and say what we found.
#[test]
fn its_doubles_are_told() {
    let (mut it, report) = imported(&[TABLES, TWICE]);
    assert_eq!(report.merge.added.len(), 9);
    let report = it.store.import(&incoming(ALL_KINDS_JSON), MergeOptions::default()).expect("imported");
    assert_eq!(
        (report.unchanged.len(), report.conflicting.len(), report.is_quiet()),
        (7, 1, true),
        "{report:?}"
    );
    assert!(
        report.conflicting[0].details[0].starts_with("it could be `service-tcp-33241` (id 2) or"),
        "{report:?}"
    );
}

#[test]
fn shapes_of_older_versions() {
    let (it, report) = imported(&[OLDER]);
    let rows = |list: &[kftray_commons::store::Merged]| -> Vec<usize> {
        list.iter().filter_map(|merged| merged.number).collect()
    };
    assert_eq!(rows(&report.merge.added), [3, 7, 12]);
    let faults: Vec<usize> = report.faults.iter().map(|fault| fault.entry).collect();
    assert_eq!(faults, [8, 9], "a row of placeholders, and one that is no JSON");
    assert_eq!((report.was_running.as_slice(), report.processes.len()), (&[ForwardId(1)][..], 0));
    insta::assert_snapshot!(own(&it.store));
}

#[test]
fn settings_shortcuts_and_what_runs() {
    let (it, report) = imported(&[TABLES, NOTEBOOK]);
    assert_eq!(report.merge.added.len(), 2);
    assert_eq!(report.faults.iter().map(|fault| fault.entry).collect::<Vec<_>>(), [6]);
    assert_eq!(report.was_running, [ForwardId(1), ForwardId(2)]);
    assert_eq!(report.processes, [4242]);
    assert_eq!(report.warnings, ["the setting mcp_server_port has the value `70000`, which it cannot have"]);
    let settings = it.store.settings().expect("read");
    let shown: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        shown,
        [
            r#"config_view={"group_by":"tag:team","filters":[{"field":"namespace","values":["shop"]}]}"#,
            "idle_minutes=30",
            "network_monitor=false",
            "setting_of_tomorrow=on",
            "window_size_preset=large",
        ]
    );
    let shortcuts = it.store.shortcuts().expect("read");
    let data: Vec<_> =
        shortcuts.iter().map(|one| (one.name.as_str(), one.enabled, one.data.clone())).collect();
    assert_eq!(
        data,
        [
            ("Old", true, Some(json!({"config_ids": [2]}))),
            ("Shop", false, Some(json!({"config_ids": [2, 1]}))),
            ("Toggle Window", true, None),
        ]
    );
    let configs = it.store.configs().expect("read");
    let logs: Vec<_> =
        configs.iter().map(|config| config.spec.as_ref().expect("readable").http_logs.clone()).collect();
    assert_eq!(
        (logs[0].enabled, logs[0].max_file_size, logs[0].retention_days, logs[0].auto_cleanup),
        (true, 2048, 3, false)
    );
    assert!(!logs[1].enabled, "the row itself counts more than the second place");
    assert_eq!(it.store.desired().expect("read"), [], "nothing starts by itself after an import");
}

#[test]
fn what_is_set_here_stays() {
    let mut it = scratch();
    it.store.set_setting("idle_minutes", Some("5")).expect("set");
    let path = it.temporary.path().join("configs.db");
    database(&path, &[TABLES, NOTEBOOK]);
    let report = it.store.import_reference(&path, MergeOptions::default()).expect("imported");
    assert!(!report.settings.contains(&"idle_minutes".to_owned()));
    assert_eq!(it.store.settings().expect("read")["idle_minutes"], "5");
}

#[test]
fn a_configs_db_is_adopted_once_and_only_by_a_new_store() {
    let mut it = scratch();
    assert_eq!(it.store.adopt_reference().expect("nothing there"), None);
    database(&it.directory.path().join("configs.db"), &[TABLES, ALL_KINDS]);
    let report = it.store.adopt_reference().expect("adopted").expect("there");
    assert_eq!(report.merge.added.len(), 8);
    assert_eq!(it.store.adopt_reference().expect("done already"), None);
    let ids: Vec<ForwardId> = it.store.configs().expect("read").iter().map(|config| config.id).collect();
    it.store.remove(&ids).expect("removed");
    drop(it.store);
    let mut store = Store::open(&it.directory).expect("opened again");
    assert_eq!(store.adopt_reference().expect("done already"), None);

    let mut used = scratch();
    used.store.add(&[service("mine", 1, 1)]).expect("added");
    database(&used.directory.path().join("configs.db"), &[TABLES, ALL_KINDS]);
    assert_eq!(used.store.adopt_reference().expect("not asked for"), None);
}

/// The user documents call the reference's file by our name.
#[test]
fn a_kftray_db_of_the_reference_is_put_aside_and_adopted() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = Directory::at(temporary.path());
    database(&directory.database(), &[TABLES, ALL_KINDS]);
    let before = fs::read(directory.database()).expect("read");
    let mut store = Store::open(&directory).expect("opened");
    assert_eq!(fs::read(temporary.path().join("kftray.reference.db")).expect("put aside"), before);
    assert_eq!(store.adopt_reference().expect("adopted").expect("there").merge.added.len(), 8);

    // A second one is not put over the first.
    drop(store);
    fs::remove_file(directory.database()).expect("removed");
    database(&directory.database(), &[TABLES]);
    assert_eq!(Store::open(&directory).expect_err("refused").code, Code::StoreDamaged);
    assert_eq!(fs::read(temporary.path().join("kftray.reference.db")).expect("still there"), before);
}

#[test]
fn what_is_no_database_of_the_reference_is_told() {
    let mut it = scratch();
    let path = |name: &str| it.temporary.path().join(name);
    fs::write(path("text"), "hello ".repeat(1000)).expect("written");
    database(&path("other"), &["CREATE TABLE recipes (id)"]);
    let ours = it.directory.database();
    for (file, word) in [
        (path("missing"), "no such file"),
        (path("text"), "not a database"),
        (path("other"), "no database of kftray"),
        (ours, "no database of kftray"),
        (it.temporary.path().to_owned(), "no such file"),
    ] {
        let problem = it.store.import_reference(&file, MergeOptions::default()).expect_err("refused");
        assert_eq!(problem.code, Code::ImportUnreadable, "{}", file.display());
        assert!(problem.message.contains(word), "{problem}");
    }
}

/// A version of it that writes ahead, with its journal still beside the file.
#[test]
fn a_file_in_use_is_read_as_it_is() {
    let mut it = scratch();
    let path = it.temporary.path().join("configs.db");
    let writer = Connection::open(&path).expect("made");
    writer.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).expect("set");
    writer.execute_batch(TABLES).expect("SQL");
    writer.execute_batch(ALL_KINDS).expect("SQL");
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM configs;").expect("half-way through something");
    let report = it.store.import_reference(&path, MergeOptions::default()).expect("imported");
    assert_eq!(report.merge.added.len(), 8);
}

/// The program itself, where it is installed.
#[cfg(unix)]
mod program {
    use std::process::{Command, Stdio};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// Long enough for a machine that is busy with other tests.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[expect(clippy::print_stdout, reason = "the reason for which a test did not run")]
    fn installed() -> Option<PathBuf> {
        let named = std::env::var_os("KFTRAY_REFERENCE_KFTUI").map(PathBuf::from);
        if named.is_none() {
            println!("SKIPPED: KFTRAY_REFERENCE_KFTUI does not name the reference's kftui");
        }
        named
    }

    /// Saves the entries of a text with the reference; its database.
    fn saved(program: &Path, home: &Path, text: &str) -> PathBuf {
        let directory = home.join("reference");
        fs::create_dir_all(&directory).expect("made");
        let child = Command::new(program)
            .args(["--json", text, "--save", "--non-interactive", "--no-update-check"])
            .env_clear()
            .env("HOME", home)
            .env("KFTRAY_CONFIG", &directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        let (sender, ended) = channel();
        thread::spawn(move || sender.send(child.wait_with_output()));
        let output = match ended.recv_timeout(PATIENCE) {
            Ok(output) => output.expect("it ends"),
            Err(_) => {
                kill(pid, Signal::SIGKILL).expect("killed");
                panic!("the reference did not end");
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
        directory.join("configs.db")
    }

    #[test]
    fn it_reads_our_export_and_we_read_its_database() {
        let Some(program) = installed() else { return };
        let mut it = scratch();
        let text = r#"[
            {"service":"named","namespace":"n","remote_port":"http","local_port":7001},
            {"workload_type":"deployment","target":"web","namespace":"n","remote_port":80,"local_port":7002},
            {"workload_type":"pod","target":"app in (a, b)","remote_port":80,"local_port":7003,"local_address":"0.0.0.0","tomorrow":{"x":[1]}},
            {"service":"open","remote_port":80,"alias":"Ein Name mit \"Zeichen\" und ü","tags":{"group":"shop","team":"blue"}}
        ]"#;
        it.store.import(&incoming(ALL_KINDS_JSON), MergeOptions::default()).expect("imported");
        it.store.import(&incoming(text), MergeOptions::default()).expect("imported");
        let before = it.store.configs().expect("read");
        let export = it.store.export(None, Form::Reference).expect("exported");
        assert_eq!((export.count, export.left_out.len()), (10, 2), "{export:?}");

        let home = tempfile::tempdir().expect("a directory");
        let path = saved(&program, home.path(), &export.text);
        let report = it.store.import_reference(&path, MergeOptions::default()).expect("imported");
        assert_eq!(
            (report.faults.len(), report.merge.added.len(), report.merge.conflicting.len()),
            (0, 0, 0),
            "{report:?}"
        );
        assert_eq!(report.merge.unchanged.len() + report.merge.changed.len(), 10);
        // It has chosen a local port where none was asked for; nothing else is another.
        for changed in &report.merge.changed {
            assert!(
                changed.details.iter().all(|detail| detail.starts_with("local_port: nothing -> ")),
                "{changed:?}"
            );
        }
        assert_eq!(report.merge.changed.len(), 2, "{report:?}");
        let after = it.store.configs().expect("read");
        assert_eq!(after.len(), before.len());
        assert_eq!(after[9].extra, before[9].extra, "what the reference does not know is not lost here");
    }

    #[test]
    fn a_new_database_of_it_is_adopted() {
        let Some(program) = installed() else { return };
        let it = scratch();
        let path = saved(&program, it.temporary.path(), ALL_KINDS_JSON);
        let home = Directory::at(path.parent().expect("a directory"));
        let mut store = Store::open(&home).expect("ours beside it");
        let report = store.adopt_reference().expect("adopted").expect("there");
        assert_eq!((report.merge.added.len(), report.faults.len()), (8, 0));
        // The reference goes on with its own file.
        let again = saved(&program, it.temporary.path(), ALL_KINDS_JSON);
        assert!(again.is_file());
        let fixture = {
            let (it, _) = imported(&[TABLES, ALL_KINDS]);
            it.store.configs().expect("read")
        };
        let entries = |configs: Vec<kftray_commons::store::StoredConfig>| -> Vec<_> {
            // But for the port that it draws by lot, and the alias made from it.
            configs
                .into_iter()
                .filter(|config| config.entry.get("service") != Some(&json!("api")))
                .map(|config| config.entry)
                .collect()
        };
        assert_eq!(
            entries(store.configs().expect("read")),
            entries(fixture),
            "the committed rows are what it writes"
        );
    }
}
