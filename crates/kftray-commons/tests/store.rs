//! The store's promises: ids, revisions, unknown fields, bounds, other programs on the same file.

#![cfg(feature = "store")]

mod common;

use std::fs;
use std::thread;

use common::{Scratch, draft, scratch, service};
use kftray_commons::store::{Directory, Form, SETTINGS, Store};
use kftray_commons::tags::Tags;
use kftray_commons::{Code, ForwardId};
use rusqlite::Connection;
use serde_json::json;

fn raw(scratch: &Scratch) -> Connection {
    Connection::open(scratch.directory.database()).expect("a second connection")
}

#[test]
fn what_is_written_down_comes_back() {
    let mut it = scratch();
    let text = r#"{"alias":"web","service":"web","namespace":"shop","local_port":8080,"remote_port":"http","context":"dev",
        "tags":{"team":"blue"},"idle_minutes":30,"via_tomorrow":{"hops":[1,2,3],"exact":12345678901234567890}}"#;
    let web = draft(text);
    let ids = it.store.add(&[web.clone(), service("api", 0, 80)]).expect("added");
    assert_eq!(ids, [ForwardId(1), ForwardId(2)]);

    drop(it.store);
    let store = Store::open(&it.directory).expect("opened again");
    let configs = store.configs().expect("read");
    assert_eq!(configs.len(), 2);
    assert_eq!((configs[0].id, configs[0].revision, configs[0].desired), (ForwardId(1), 1, false));
    let mut expected = web.spec.clone();
    expected.id = ForwardId(1);
    assert_eq!(configs[0].spec.as_ref().expect("readable"), &expected);
    assert_eq!(
        serde_json::Value::Object(configs[0].extra.clone()),
        json!({
            "idle_minutes": 30, "via_tomorrow": {"hops": [1, 2, 3], "exact": 12_345_678_901_234_567_890_u64}
        })
    );
    assert_eq!(store.config(ForwardId(2)).expect("read").expect("there"), configs[1]);
    assert_eq!(store.config(ForwardId(3)).expect("read"), None);
    assert_eq!(store.integrity().expect("read"), Vec::<String>::new());
}

/// What people and other programs see with plain SQL.
#[test]
fn the_columns_say_what_the_entry_says() {
    let mut it = scratch();
    it.store
        .add(&[
            draft(r#"{"alias":"a","service":"web","namespace":"n","local_port":1,"remote_port":"http","kubeconfig":"k"}"#),
            draft(r#"{"workload_type":"pod","target":"app=x","remote_port":2,"context":"c","protocol":"tcp"}"#),
            draft(r#"{"workload_type":"proxy","remote_address":"db","remote_port":3,"protocol":"udp"}"#),
            draft(r#"{"workload_type":"expose","alias":"e","local_port":4}"#),
        ])
        .expect("added");
    let sql = "SELECT concat_ws('|', kind, target, alias, context, kubeconfig, namespace, protocol, local_port, remote_port)
        FROM configs ORDER BY id";
    let connection = raw(&it);
    let mut statement = connection.prepare(sql).expect("columns");
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    let rows: Vec<String> = rows.map(|row| row.expect("a text")).collect();
    assert_eq!(
        rows,
        [
            "service|web|a|@current|k|n|tcp|1|http",
            "pod|app=x|c|default|tcp|2",
            "proxy|db|@current|default|udp|3",
            "expose|e|e|@current|default|tcp|4",
        ]
    );
}

#[test]
fn ids_are_never_given_again() {
    let mut it = scratch();
    let ids = it.store.add(&[service("a", 1, 1), service("b", 2, 2)]).expect("added");
    assert_eq!(it.store.remove(&ids).expect("removed"), ids);
    assert_eq!(it.store.remove(&ids).expect("nothing to do"), []);
    drop(it.store);
    let mut store = Store::open(&it.directory).expect("opened again");
    assert_eq!(store.add(&[service("c", 3, 3)]).expect("added"), [ForwardId(3)]);
}

#[test]
fn two_editors_do_not_overwrite_each_other() {
    let mut it = scratch();
    let id = it.store.add(&[service("web", 8080, 80)]).expect("added")[0];
    let changed = it.store.update(id, &service("web", 9090, 80), Some(1)).expect("changed");
    assert_eq!(changed.revision, 2);
    let same = it.store.update(id, &service("web", 9090, 80), Some(2)).expect("no difference");
    assert_eq!(same.revision, 2);
    let late = it.store.update(id, &service("web", 7070, 80), Some(1)).expect_err("refused");
    assert_eq!(late.code, Code::Conflict);
    assert!(late.message.contains("revision 2 instead of 1"), "{late}");
    assert_eq!(it.store.update(id, &service("web", 7070, 80), None).expect("forced").revision, 3);
    let missing = it.store.update(ForwardId(99), &service("web", 1, 1), None).expect_err("refused");
    assert_eq!(missing.code, Code::NotFound);
}

#[test]
fn what_could_not_work_is_not_written_and_neither_is_the_rest() {
    let mut it = scratch();
    let mut bad = service("web", 1, 1);
    bad.spec.namespace = Some("No Namespace".into());
    let problem = it.store.add(&[service("a", 1, 1), bad]).expect_err("refused");
    assert_eq!(problem.code, Code::SpecInvalid);
    assert!(problem.message.starts_with("`svc/web:1`: namespace: "), "{problem}");
    assert_eq!(it.store.configs().expect("read"), []);
}

/// A later version wrote it: it is listed, exported and kept, and can be removed.
#[test]
fn an_entry_that_cannot_be_read_is_not_lost() {
    let mut it = scratch();
    let entry = json!({"workload_type": "teleport", "alias": "beam", "to": ["mars"]});
    raw(&it)
        .execute("INSERT INTO configs (entry) VALUES (?1)", [entry.to_string()])
        .expect("written by another hand");
    let id = it.store.add(&[service("web", 8080, 80)]).expect("added")[0];
    let configs = it.store.configs().expect("read");
    assert!(configs[0].spec.is_err());
    assert_eq!(configs[0].label(), "beam");
    assert_eq!(serde_json::Value::Object(configs[0].entry.clone()), entry);
    assert!(it.store.set_group(&[configs[0].id, id], Some("x")).expect("the other one").len() == 1);
    let own = it.store.export(None, Form::Own).expect("exported");
    assert_eq!((own.count, own.left_out.len()), (2, 0));
    assert!(own.text.contains("mars"));
    let compatible = it.store.export(None, Form::Reference).expect("exported");
    assert_eq!((compatible.count, compatible.left_out.len()), (1, 1));
    assert_eq!(it.store.remove(&[configs[0].id]).expect("removed"), [configs[0].id]);
}

#[test]
fn groups_are_tags() {
    let mut it = scratch();
    let ids = it.store.add(&[service("a", 1, 1), service("b", 2, 2), service("c", 3, 3)]).expect("added");
    let changed = it.store.set_group(&ids[..2], Some(" shop ")).expect("grouped");
    assert_eq!(changed.len(), 2);
    assert_eq!(changed[0].spec.as_ref().expect("readable").tags.get(Tags::GROUP), Some("shop"));
    assert_eq!(changed[0].revision, 2);
    it.store.set_group(&ids[2..], Some("a first one")).expect("grouped");
    let groups = it.store.groups().expect("read");
    let shown: Vec<(&str, usize)> =
        groups.iter().map(|group| (group.name.as_str(), group.configs.len())).collect();
    assert_eq!(shown, [("a first one", 1), ("shop", 2)]);
    assert_eq!(it.store.set_group(&ids, None).expect("taken out").len(), 3);
    assert_eq!(it.store.groups().expect("read"), []);
    assert_eq!(it.store.set_group(&ids, None).expect("nothing to do").len(), 0);
    assert_eq!(it.store.set_group(&ids[..1], Some("a,b")).expect_err("refused").code, Code::SpecInvalid);
    assert_eq!(it.store.set_group(&[ForwardId(9)], Some("x")).expect_err("refused").code, Code::NotFound);
}

#[test]
fn desired_states_go_with_their_forward() {
    let mut it = scratch();
    let ids = it.store.add(&[service("a", 1, 1), service("b", 2, 2)]).expect("added");
    let wanted = [ids[1], ForwardId(77), ids[0]];
    assert_eq!(it.store.set_desired(&wanted, true).expect("noted"), [ids[1], ids[0]]);
    assert_eq!(it.store.set_desired(&wanted, true).expect("nothing to do"), []);
    assert_eq!(it.store.desired().expect("read"), ids);
    assert!(it.store.configs().expect("read").iter().all(|config| config.desired && config.revision == 1));
    it.store.remove(&ids[..1]).expect("removed");
    assert_eq!(it.store.desired().expect("read"), ids[1..]);
    assert_eq!(it.store.set_desired(&ids, false).expect("noted"), ids[1..]);
}

#[test]
fn histories_are_bounded_and_ordered() {
    let mut it = scratch();
    let ids = it.store.add(&[service("a", 1, 1), service("b", 2, 2)]).expect("added");
    let events: Vec<_> = (0..700).map(|n| (ids[0], 1_000 + n, format!("event {n}"))).collect();
    it.store
        .append_history(&[(ids[1], 5, "other".into()), (ForwardId(99), 5, "nobody's".into())])
        .expect("added");
    for part in events.chunks(90) {
        it.store.append_history(part).expect("added");
    }
    let all = it.store.history(ids[0], usize::MAX).expect("read");
    assert_eq!(all.len(), 500);
    assert_eq!((all[0].at, all[0].event.as_str()), (1_200, "event 200"));
    assert!(all.windows(2).all(|pair| pair[0].number < pair[1].number && pair[0].at < pair[1].at));
    let last = it.store.history(ids[0], 2).expect("read");
    assert_eq!(last, all[498..]);
    assert_eq!(it.store.history(ids[1], 10).expect("read").len(), 1);
    it.store.remove(&ids[..1]).expect("removed");
    assert_eq!(it.store.history(ids[0], 10).expect("read"), []);
}

#[test]
fn consents_are_for_one_content() {
    let mut it = scratch();
    let wishes = ["web listens on 0.0.0.0".to_owned(), "\"quoted\"".to_owned()];
    assert_eq!(it.store.consent("abc").expect("read"), None);
    it.store.grant_consent("abc", "/project/.kftray.json", &wishes).expect("granted");
    let consent = it.store.consent("abc").expect("read").expect("there");
    assert_eq!((consent.path.as_str(), consent.wishes.as_slice()), ("/project/.kftray.json", &wishes[..]));
    assert!(consent.granted_at > 1_700_000_000);
    assert_eq!(it.store.consent("abd").expect("read"), None);
    assert!(it.store.revoke_consent("abc").expect("revoked"));
    assert!(!it.store.revoke_consent("abc").expect("nothing to do"));
    assert_eq!(it.store.consents().expect("read"), []);
}

#[test]
fn transports_are_remembered_and_bounded() {
    let mut it = scratch();
    it.store.remember_transport("https://a", Some("websocket")).expect("remembered");
    it.store.remember_transport("https://a", Some("spdy")).expect("remembered");
    assert_eq!(it.store.transports().expect("read"), [("https://a".to_owned(), "spdy".to_owned())]);
    it.store.remember_transport("https://a", None).expect("forgotten");
    for n in 0..230 {
        it.store.remember_transport(&format!("https://{n}"), Some("x")).expect("remembered");
    }
    let kept = it.store.transports().expect("read");
    assert_eq!(kept.len(), 200);
    assert!(kept.iter().any(|(cluster, _)| cluster == "https://229"), "the last one is never forgotten");
}

#[test]
fn settings_take_what_they_can_mean() {
    let mut it = scratch();
    assert!(it.store.settings().expect("read").is_empty());
    it.store.set_setting("restore", Some("false")).expect("set");
    it.store.set_setting("face.theme", Some("dark")).expect("kept for whoever knows it");
    let refused = it.store.set_setting("restore", Some("maybe")).expect_err("refused");
    assert_eq!((refused.code, refused.remedy.as_str()), (Code::RequestInvalid, "Write true or false."));
    assert_eq!(it.store.set_setting("a b", Some("x")).expect_err("refused").code, Code::RequestInvalid);
    assert_eq!(
        it.store.set_setting("x", Some(&"v".repeat(70_000))).expect_err("refused").code,
        Code::RequestInvalid
    );
    let set = it.store.settings().expect("read");
    assert_eq!(
        set.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["face.theme=dark", "restore=false"]
    );
    it.store.set_setting("restore", None).expect("taken back");
    assert!(!it.store.settings().expect("read").contains_key("restore"));
    assert!(SETTINGS.len() > 10);
}

#[test]
fn foreign_writes_are_noticed_and_own_ones_are_not() {
    let mut it = scratch();
    let before = it.store.data_version().expect("read");
    let id = it.store.add(&[service("a", 1, 1)]).expect("added")[0];
    assert_eq!(it.store.data_version().expect("read"), before);
    let mut other = Store::open(&it.directory).expect("a second store");
    other.set_desired(&[id], true).expect("noted");
    assert_ne!(it.store.data_version().expect("read"), before);
    assert_eq!(it.store.desired().expect("read"), [id]);
}

/// Writers wait for each other; none is lost and none fails.
#[test]
fn many_writers_at_once() {
    const WRITERS: u16 = 4;
    const EACH: u16 = 25;
    let it = scratch();
    let writer = |number: u16| {
        let directory = it.directory.clone();
        move || {
            let mut store = Store::open(&directory).expect("opened");
            for n in 0..EACH {
                store.add(&[service(&format!("w{number}-{n}"), 1, 1)]).expect("added");
                store.append_history(&[(ForwardId(1), 1, "x".into())]).expect("added");
            }
        }
    };
    thread::scope(|scope| {
        for number in 0..WRITERS {
            scope.spawn(writer(number));
        }
    });
    let configs = it.store.configs().expect("read");
    assert_eq!(configs.len(), usize::from(WRITERS * EACH));
    assert_eq!(it.store.history(ForwardId(1), 1000).expect("read").len(), usize::from(WRITERS * EACH));
}

#[test]
fn another_programs_lock_is_told_as_such() {
    let mut it = scratch();
    let connection = raw(&it);
    connection.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let problem = it.store.add(&[service("a", 1, 1)]).expect_err("refused after five seconds");
    assert_eq!(problem.code, Code::StoreBusy);
    assert!(problem.message.contains("kftray.db"), "{problem}");
    assert_eq!(it.store.configs().expect("reading goes on"), []);
    connection.execute_batch("ROLLBACK").expect("unlocked");
    it.store.add(&[service("a", 1, 1)]).expect("added");
}

#[cfg(unix)]
#[test]
fn the_files_are_closed_to_others() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let mut it = scratch();
    it.store.add(&[service("a", 1, 1)]).expect("added");
    let mode = |name: &str| {
        fs::metadata(it.directory.path().join(name)).expect("there").permissions().mode() & 0o777
    };
    for name in ["kftray.db", "kftray.db-wal", "kftray.db-shm"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let elsewhere = Directory::at(it.temporary.path().join("elsewhere"));
    elsewhere.prepare().expect("made");
    symlink(it.directory.database(), elsewhere.database()).expect("linked");
    let problem = Store::open(&elsewhere).expect_err("refused");
    assert_eq!(problem.code, Code::DirectoryRefused);
}

#[test]
fn what_is_no_store_is_left_alone() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = Directory::at(temporary.path());
    let file = directory.database();
    fs::write(&file, "this is a text file, and long enough to be one".repeat(100)).expect("written");
    assert_eq!(Store::open(&directory).expect_err("refused").code, Code::StoreDamaged);
    fs::remove_file(&file).expect("removed");
    Connection::open(&file).expect("opened").execute_batch("CREATE TABLE recipes (id)").expect("made");
    let before = fs::read(&file).expect("read");
    let problem = Store::open(&directory).expect_err("refused");
    assert_eq!(problem.code, Code::StoreDamaged);
    assert!(problem.message.contains("another program"), "{problem}");
    assert_eq!(fs::read(&file).expect("read"), before);
}

/// Every face may be the first one, and several may be at once.
#[test]
fn many_first_starts_at_once() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = Directory::at(temporary.path().join("a/b"));
    thread::scope(|scope| {
        for number in 0..8 {
            let directory = &directory;
            scope.spawn(move || {
                let mut store = Store::open(directory).expect("opened");
                store.add(&[service(&format!("s{number}"), 1, 1)]).expect("added");
            });
        }
    });
    let store = Store::open(&directory).expect("opened");
    assert_eq!(store.configs().expect("read").len(), 8);
    assert_eq!(store.integrity().expect("read"), Vec::<String>::new());
}

/// A later version takes the file further while this one has it open.
#[test]
fn a_file_that_moved_on_is_not_written() {
    let mut it = scratch();
    it.store.add(&[service("a", 1, 1)]).expect("added");
    let later = "INSERT INTO schema_versions (version, opens_from, program) VALUES (99, 99, '9.9.9'); PRAGMA user_version = 99;";
    raw(&it).execute_batch(later).expect("as a later version does");
    let problem = it.store.add(&[service("b", 2, 2)]).expect_err("refused");
    assert_eq!(problem.code, Code::StoreTooNew);
    assert!(problem.message.contains("kftray 9.9.9"), "{problem}");
    assert_eq!(Store::open(&it.directory).expect_err("refused").code, Code::StoreTooNew);
    raw(&it).execute_batch("UPDATE schema_versions SET opens_from = 1").expect("as an addition does");
    it.store.add(&[service("b", 2, 2)]).expect("added");
}

#[test]
fn a_damaged_file_is_told() {
    let mut it = scratch();
    for number in 0..50 {
        it.store.add(&[service(&format!("s{number}"), 1, 1)]).expect("added");
    }
    drop(it.store);
    let mut bytes = fs::read(it.directory.database()).expect("read");
    let middle = 4096..bytes.len();
    bytes[middle].fill(0xA5);
    fs::write(it.directory.database(), bytes).expect("written");
    let problem = Store::open(&it.directory).and_then(|store| store.configs()).expect_err("told");
    assert_eq!(problem.code, Code::StoreDamaged);
    assert!(problem.remedy.contains("backup"), "{}", problem.remedy);
}
