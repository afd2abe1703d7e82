//! Which stored forward an entry means: the rules, case by case, and that importing again changes nothing.

#![cfg(feature = "store")]

mod common;

use common::{incoming, scratch};
use kftray_commons::border::{self, Defaults};
use kftray_commons::store::{Form, Incoming, MergeOptions, MergeReport, Store};
use kftray_commons::{ContextRef, ForwardId};
use proptest::prelude::*;

/// `added/changed/unchanged/conflicting/removed`.
fn counts(report: &MergeReport) -> String {
    let MergeReport { dry_run: _, added, changed, unchanged, conflicting, removed } = report;
    let all = [added, changed, unchanged, conflicting, removed];
    all.map(|list| list.len().to_string()).join("/")
}

/// Imports one text after the other into a new store: the last report, and what is there then.
fn after(texts: &[&str]) -> (MergeReport, Vec<String>) {
    let mut it = scratch();
    let mut last = MergeReport::default();
    for text in texts {
        let entries = incoming(text);
        let dry = it
            .store
            .import(&entries, MergeOptions { dry_run: true, ..MergeOptions::default() })
            .expect("dry");
        last = it.store.import(&entries, MergeOptions::default()).expect("imported");
        assert_eq!(counts(&dry), counts(&last), "a dry run foretells what happens");
    }
    (last, list(&it.store))
}

fn list(store: &Store) -> Vec<String> {
    let configs = store.configs().expect("read");
    let line = |config: &kftray_commons::store::StoredConfig| {
        let spec = config.spec.as_ref().expect("readable");
        let (port, hosts) = (spec.listen.port.number(), spec.listen.hosts.join(","));
        let alias = spec.alias.as_deref().unwrap_or("-");
        format!("{} {alias} {hosts}:{port} {}", config.id.0, spec.workload)
    };
    configs.iter().map(line).collect()
}

const WEB: &str = r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80}"#;

#[test]
fn the_same_again_changes_nothing() {
    let all = include_str!("data/reference/all-kinds.json");
    let (report, there) = after(&[all, all, all]);
    assert_eq!(counts(&report), "0/0/8/0/0");
    assert_eq!(there.len(), 8);
}

#[test]
fn silence_keeps_what_is_stored() {
    let named = r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"alias":"shop","tomorrow":1}"#;
    let open = r#"{"service":"web","namespace":"shop","remote_port":80}"#;
    let (report, there) = after(&[named, open]);
    assert_eq!(counts(&report), "0/0/1/0/0");
    assert_eq!(there, ["1 shop localhost:8080 svc/web:80"]);
}

#[test]
fn no_context_is_the_current_one_and_default_is_no_kubeconfig() {
    let current = r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"context":"@current","kubeconfig":"default"}"#;
    let placeholder = r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"context":"current-context","kubeconfig":""}"#;
    let (report, there) = after(&[WEB, current, placeholder]);
    assert_eq!(counts(&report), "0/0/1/0/0");
    assert_eq!(there.len(), 1);
}

#[test]
fn another_place_is_another_forward() {
    for other in [
        r#"{"service":"web","namespace":"test","local_port":8080,"remote_port":80}"#,
        r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"context":"prod"}"#,
        r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"kubeconfig":"other"}"#,
        r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":80,"protocol":"udp"}"#,
        r#"{"service":"api","namespace":"shop","local_port":8080,"remote_port":80}"#,
        r#"{"target":"web","namespace":"shop","local_port":8080,"remote_port":80,"workload_type":"deployment"}"#,
        r#"{"target":"web","namespace":"shop","local_port":8080,"remote_port":80,"workload_type":"pod"}"#,
    ] {
        let (report, there) = after(&[WEB, other]);
        assert_eq!((counts(&report).as_str(), there.len()), ("1/0/0/0/0", 2), "{other}");
    }
}

#[test]
fn a_changed_port_changes_the_only_one_that_can_be_meant() {
    let local = r#"{"service":"web","namespace":"shop","local_port":9090,"remote_port":80}"#;
    let (report, there) = after(&[WEB, local]);
    assert_eq!(counts(&report), "0/1/0/0/0");
    assert_eq!(report.changed[0].id, Some(ForwardId(1)));
    assert_eq!(report.changed[0].details, ["local_port: 8080 -> 9090"]);
    assert_eq!(there, ["1 - localhost:9090 svc/web:80"]);

    let remote = r#"{"service":"web","namespace":"shop","local_port":8080,"remote_port":81}"#;
    let (_, there) = after(&[WEB, remote]);
    assert_eq!(there, ["1 - localhost:8080 svc/web:81"]);

    // Both others: another port of the same Service, such as its metrics.
    let metrics = r#"{"service":"web","namespace":"shop","local_port":9100,"remote_port":9100}"#;
    let (report, there) = after(&[WEB, metrics]);
    assert_eq!((counts(&report).as_str(), there.len()), ("1/0/0/0/0", 2));
}

#[test]
fn an_alias_tells_which_one() {
    let two = r#"[{"alias":"a","service":"web","local_port":1001,"remote_port":80},{"alias":"b","service":"web","local_port":1002,"remote_port":80}]"#;
    let both = r#"{"alias":"b","service":"web","local_port":2002,"remote_port":81}"#;
    let (report, there) = after(&[two, both]);
    assert_eq!(counts(&report), "0/1/0/0/0");
    assert_eq!(there, ["1 a localhost:1001 svc/web:80", "2 b localhost:2002 svc/web:81"]);

    // A third name is a third forward.
    let third = r#"{"alias":"c","service":"web","local_port":1003,"remote_port":80}"#;
    let (report, there) = after(&[two, third]);
    assert_eq!((counts(&report).as_str(), there.len()), ("1/0/0/0/0", 3));

    // The reference makes up aliases; those tell nothing, and take no name away.
    let made_up = r#"{"alias":"service-tcp-1001","service":"web","local_port":1001,"remote_port":80}"#;
    let (report, there) = after(&[two, made_up]);
    assert_eq!(counts(&report), "0/0/1/0/0");
    assert_eq!(there[0], "1 a localhost:1001 svc/web:80");
}

#[test]
fn addresses_keep_equal_ports_apart() {
    let two = r#"[{"service":"web","local_address":"127.0.0.2","local_port":80,"remote_port":80},
                  {"service":"web","local_address":"127.0.0.3","local_port":80,"remote_port":80}]"#;
    let (report, there) = after(&[two, two]);
    assert_eq!((counts(&report).as_str(), there.len()), ("0/0/2/0/0", 2));
}

#[test]
fn what_cannot_be_known_is_told_and_left_alone() {
    let two = r#"[{"service":"web","local_port":1001,"remote_port":80},{"service":"web","local_port":1002,"remote_port":80}]"#;
    let moved = r#"{"service":"web","local_port":2001,"remote_port":80}"#;
    let (report, there) = after(&[two, moved]);
    assert_eq!((counts(&report).as_str(), there.len()), ("0/0/0/1/0", 2));
    assert_eq!(
        report.conflicting[0].details,
        [
            "it could be `svc/web:80` (id 1) or `svc/web:80` (id 2); give it the alias or the ports of the one that is meant"
        ]
    );

    let both = r#"[{"service":"web","local_port":2001,"remote_port":80},{"service":"web","local_port":2002,"remote_port":80}]"#;
    let (report, there) = after(&[WEB.replace("shop", "default").as_str(), both]);
    assert_eq!((counts(&report).as_str(), there.len()), ("0/0/0/2/0", 1));
}

#[test]
fn the_last_of_equal_entries_counts() {
    let twice = r#"[{"service":"web","local_port":8080,"remote_port":80,"alias":"first"},
                    {"service":"web","local_port":8080,"remote_port":80,"alias":"second"}]"#;
    let (report, there) = after(&[twice]);
    assert_eq!(counts(&report), "1/0/0/1/0");
    assert_eq!(report.conflicting[0].details, ["entry 2 says the same once more, and counts"]);
    assert_eq!(there, ["1 second localhost:8080 svc/web:80"]);

    // Two that may take any port are two if a person named them so.
    let open = r#"[{"service":"web","remote_port":80,"alias":"first"},{"service":"web","remote_port":80,"alias":"second"}]"#;
    let (report, there) = after(&[open, open]);
    assert_eq!((counts(&report).as_str(), there.len()), ("0/0/2/0/0", 2));
}

/// As the reference leaves them behind: the same forward twice.
#[test]
fn stored_twins_are_each_met_once() {
    let mut it = scratch();
    let twin = incoming(WEB).remove(0).draft;
    it.store.add(&[twin.clone(), twin]).expect("added");
    let report = it.store.import(&incoming(WEB), MergeOptions::default()).expect("imported");
    assert_eq!(counts(&report), "0/0/1/0/0");
    assert_eq!(report.unchanged[0].id, Some(ForwardId(1)));
}

#[test]
fn an_expose_is_known_by_its_alias() {
    let app = r#"{"workload_type":"expose","alias":"app","namespace":"n","local_port":3000}"#;
    let moved = r#"{"workload_type":"expose","alias":"app","namespace":"n","local_port":3001,"exposure_protocol":"tcp"}"#;
    let (report, there) = after(&[app, moved]);
    assert_eq!((counts(&report).as_str(), there.len()), ("0/1/0/0/0", 1));
}

/// Importing many forwards to one thing again is no matter of every pair.
#[test]
fn a_crowd_is_recognised_and_not_guessed_at() {
    let crowd = |first: u32| -> String {
        let line = |port: u32| format!(r#"{{"service":"web","local_port":{port},"remote_port":80}}"#);
        (first..first + 2_000).map(line).collect::<Vec<_>>().join("\n")
    };
    let mut it = scratch();
    it.store.import(&incoming(&crowd(1_000)), MergeOptions::default()).expect("imported");
    let again = it.store.import(&incoming(&crowd(1_000)), MergeOptions::default()).expect("imported");
    assert_eq!(counts(&again), "0/0/2000/0/0");
    let moved = it.store.import(&incoming(&crowd(2_000)), MergeOptions::default()).expect("imported");
    assert_eq!(counts(&moved), "0/0/1000/1000/0");
    assert!(
        moved.conflicting[0].details[0].starts_with("too many forwards go to the same thing"),
        "{moved:?}"
    );
    assert_eq!(it.store.configs().expect("read").len(), 2_000);
}

/// The reference knows neither the relay nor credentials: its list must not take them away.
#[test]
fn silence_opens_no_door() {
    let ours = r#"[{"workload_type":"expose","alias":"app","local_port":3000,"exposure_bearer_token":"t"},
                   {"service":"web","local_port":8080,"remote_port":80,"via":"relay"}]"#;
    let theirs = r#"[{"workload_type":"expose","alias":"app","local_port":3000},{"service":"web","local_port":8080,"remote_port":80}]"#;
    let mut it = scratch();
    it.store.import(&incoming(ours), MergeOptions::default()).expect("imported");
    let before = it.store.configs().expect("read");
    let report = it.store.import(&incoming(theirs), MergeOptions::default()).expect("imported");
    assert_eq!(counts(&report), "0/0/2/0/0");
    assert_eq!(it.store.configs().expect("read"), before);
    let export = it.store.export(None, Form::Reference).expect("exported");
    assert_eq!((export.count, export.left_out.len()), (1, 1));
    assert!(!export.text.contains("exposure_bearer_token"));
}

#[test]
fn replacing_removes_the_rest_and_keeps_ids() {
    let mut it = scratch();
    let first = r#"[{"service":"a","remote_port":1},{"service":"b","remote_port":2},{"service":"c","remote_port":3}]"#;
    it.store.import(&incoming(first), MergeOptions::default()).expect("imported");
    let entry = r#"{"workload_type":"teleport"}"#;
    rusqlite::Connection::open(it.directory.database())
        .expect("opened")
        .execute("INSERT INTO configs (entry) VALUES (?1)", [entry])
        .expect("written by a later version");
    let next =
        incoming(r#"[{"service":"c","remote_port":3,"local_port":33},{"service":"d","remote_port":4}]"#);
    let dry = MergeOptions { replace: true, dry_run: true, only_new: false };
    let foretold = it.store.import(&next, dry).expect("dry");
    assert_eq!((counts(&foretold).as_str(), it.store.configs().expect("read").len()), ("1/1/0/0/2", 4));
    let report =
        it.store.import(&next, MergeOptions { replace: true, ..MergeOptions::default() }).expect("imported");
    assert_eq!(counts(&report), "1/1/0/0/2");
    let ids: Vec<u64> = it.store.configs().expect("read").iter().map(|config| config.id.0).collect();
    assert_eq!(ids, [3, 4, 5], "what this version cannot read stays");
}

#[test]
fn only_new_leaves_the_known_as_they_are() {
    let mut it = scratch();
    it.store.import(&incoming(WEB), MergeOptions::default()).expect("imported");
    let next = r#"[{"service":"web","namespace":"shop","local_port":9090,"remote_port":80},{"service":"new","remote_port":1}]"#;
    let options = MergeOptions { only_new: true, ..MergeOptions::default() };
    let report = it.store.import(&incoming(next), options).expect("imported");
    assert_eq!(counts(&report), "1/0/1/0/0");
    assert_eq!(list(&it.store)[0], "1 - localhost:8080 svc/web:80");
}

#[test]
fn a_namespace_left_to_the_context_stays_so() {
    let mut it = scratch();
    let mut own = incoming(WEB).remove(0);
    own.draft.spec.namespace = None;
    it.store.import(&[own], MergeOptions::default()).expect("imported");
    let exported = it.store.export(None, Form::Reference).expect("exported");
    let report = it.store.import(&incoming(&exported.text), MergeOptions::default()).expect("imported");
    assert_eq!(counts(&report), "0/0/1/0/0");
    assert_eq!(it.store.configs().expect("read")[0].spec.as_ref().expect("readable").namespace, None);
}

#[test]
fn two_forwards_are_not_made_one() {
    let entry = |more: &str| format!(r#"{{"service":"web","remote_port":80{more}}}"#);
    let mut it = scratch();
    let stored = [
        entry(r#","local_port":8080,"alias":"a","local_address":"127.0.0.2""#),
        entry(r#","local_port":8080,"alias":"a""#),
    ];
    it.store
        .import(&incoming(&format!("[{}]", stored.join(","))), MergeOptions::default())
        .expect("imported");
    let before = list(&it.store);
    // The first is the second one there; what the other leaves open would make the first one there the same.
    let open = format!("[{},{}]", entry(r#","alias":"a""#), entry(""));
    for _ in 0..2 {
        let report = it.store.import(&incoming(&open), MergeOptions::default()).expect("imported");
        assert_eq!(counts(&report), "0/0/1/1/0");
        assert_eq!(
            report.conflicting[0].details,
            [
                "it would make `a` (id 1) the same as `a` (id 2); give it the alias or the ports of the one that is meant"
            ]
        );
        assert_eq!(list(&it.store), before);
    }
}

#[test]
fn secrets_are_not_written_into_reports() {
    let before = r#"{"service":"web","remote_port":80,"some_token":"hunter2"}"#;
    let (report, _) = after(&[before, &before.replace("hunter2", "hunter3")]);
    assert_eq!(report.changed[0].details, ["some_token: another value"]);
}

/// Entries that may mean the same thing in many ways.
fn entry() -> impl Strategy<Value = serde_json::Value> {
    let kind = prop::sample::select(vec!["service", "pod", "proxy", "expose", "deployment"]);
    let alias = prop::option::of(prop::sample::select(vec!["a", "b", "service-tcp-1"]));
    let address = prop::option::of(prop::sample::select(vec!["127.0.0.2", "127.0.0.3"]));
    (kind, 0_u16..3, 1_u16..3, alias, address, any::<bool>()).prop_map(|(kind, local, remote, alias, address, current)| {
        let expose = kind == "expose";
        serde_json::json!({
            "workload_type": kind, "service": "web", "target": "web", "remote_address": "db", "namespace": "n",
            "local_port": if expose { local + 1 } else { local }, "remote_port": remote,
            "alias": alias.or(expose.then_some("e")), "local_address": address,
            "context": if current { Some("@current") } else { None },
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..ProptestConfig::default() })]

    /// Whatever a file says: after it has been imported, importing it again, our export or the compatible one adds
    /// nothing and changes nothing.
    #[test]
    fn importing_again_is_quiet(entries in prop::collection::vec(entry(), 1..8), more in prop::collection::vec(entry(), 0..8)) {
        let mut it = scratch();
        for entries in [&more, &entries] {
            let text = serde_json::to_string(entries).expect("JSON");
            it.store.import(&Incoming::of(&border::import(&text, &Defaults::default())), MergeOptions::default()).expect("imported");
        }
        let before = it.store.configs().expect("read");
        for text in [
            it.store.export(None, Form::Own).expect("exported").text,
            it.store.export(None, Form::Reference).expect("exported").text,
        ] {
            let read = border::import(&text, &Defaults::default());
            prop_assert_eq!(read.faults().count(), 0);
            let report = it.store.import(&Incoming::of(&read), MergeOptions::default()).expect("imported");
            prop_assert!(report.is_quiet(), "{:?}", report);
        }
        prop_assert_eq!(&before, &it.store.configs().expect("read"));
        for config in &before {
            prop_assert!(config.spec.as_ref().is_ok_and(|spec| spec.cluster.context == ContextRef::Current));
        }
        let text = serde_json::to_string(&entries).expect("JSON");
        let again = it.store.import(&Incoming::of(&border::import(&text, &Defaults::default())), MergeOptions::default()).expect("imported");
        prop_assert!(again.added.is_empty(), "{:?}", again);
    }
}
