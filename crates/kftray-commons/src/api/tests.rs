//! What older and newer peers send must be read, and changes must not depend on how often they come.

use super::*;
use crate::problem::Code;
use crate::spec::ForwardId;
use crate::status::{Counters, Status};

fn forward(id: u64) -> ForwardState {
    ForwardState {
        id: ForwardId(id),
        label: format!("f{id}"),
        target: "svc/web:80".to_owned(),
        origin: Origin::Config { lease: None },
        status: Status::Ready,
        since: 1,
        addresses: vec!["127.0.0.1:8080".to_owned()],
        ready_via: None,
        endpoints: Vec::new(),
        exposed: Some(Exposed { public: true, ..Exposed::default() }),
        counters: Counters::default(),
        notes: Vec::new(),
        started_at: 1,
        expires_at: None,
        idle_limit_at: None,
        last_problem: None,
        ended: None,
    }
}

#[test]
fn a_change_applied_twice_is_applied_once() {
    let mut snapshot = Snapshot::default();
    let put =
        |seq, id| Delta { seq, change: Change::ForwardPut { forward: std::sync::Arc::new(forward(id)) } };
    for delta in [put(1, 7), put(2, 3), put(2, 3), put(3, AD_HOC_IDS)] {
        snapshot.apply(&delta);
    }
    let ids: Vec<u64> = snapshot.forwards.iter().map(|forward| forward.id.0).collect();
    assert_eq!(ids, [3, 7, AD_HOC_IDS]);
    let counters = Counters { bytes_up: 5, ..Counters::default() };
    let tallies = vec![Tally { id: ForwardId(7), counters, idle_limit_at: Some(9) }];
    snapshot.apply(&Delta { seq: 4, change: Change::CountersPut { tallies } });
    assert_eq!(snapshot.forward(ForwardId(7)).map(|forward| forward.counters.bytes_up), Some(5));
    let calls = Calls { total: 3, last: Vec::new() };
    let called = Delta { seq: 5, change: Change::CallsPut { id: ForwardId(7), calls: calls.clone() } };
    for _ in 0..2 {
        snapshot.apply(&called);
        let exposed = snapshot.forward(ForwardId(7)).and_then(|forward| forward.exposed.as_ref());
        assert_eq!(exposed.map(|exposed| (&exposed.calls, exposed.public)), Some((&calls, true)));
    }
    snapshot.apply(&Delta { seq: 6, change: Change::ForwardGone { id: ForwardId(7) } });
    assert_eq!(snapshot.forward(ForwardId(7)), None);
    assert_eq!(snapshot.seq, 6);
}

#[test]
fn what_a_newer_host_says_is_read() {
    let unknown: Delta = serde_json::from_str(r#"{"seq":4,"change":{"what":"moon_phase","full":true}}"#)
        .expect("an unknown change");
    assert_eq!(unknown.change, Change::Other);
    let error: Error =
        serde_json::from_str(r#"{"code":"brand_new","message":"m","remedy":"r"}"#).expect("an unknown code");
    assert_eq!(error.code, Code::Unknown);
    let ended: Ended = serde_json::from_str(r#"{"at":1,"by":"magic"}"#).expect("an unknown cause");
    assert_eq!(ended.by, EndedBy::Other);
    let settings: Settings = serde_json::from_str(r#"{"colour":"blue"}"#).expect("an unknown setting");
    assert_eq!(settings, Settings::default());
}

#[test]
fn versions_meet_or_do_not() {
    let old = Versions { min: 1, max: 2 };
    let new = Versions { min: 2, max: 5 };
    assert_eq!(old.common(new), Some(2));
    assert_eq!(new.common(old), Some(2));
    assert_eq!(old.common(Versions { min: 3, max: 5 }), None);
    assert_eq!(Versions { min: 3, max: 5 }.common(old), None);
}

#[test]
fn an_action_is_flat_on_the_wire() {
    let request: ActionRequest = serde_json::from_str(r#"{"tags":["env=dev"],"lease":3}"#).expect("JSON");
    assert_eq!(request.selection.tags, ["env=dev"]);
    assert_eq!(request.lease, Some(LeaseId(3)));
    let text = serde_json::to_string(&ActionRequest { selection: Selection::all(), ..Default::default() });
    assert_eq!(text.expect("JSON"), r#"{"all":true}"#);
}

#[test]
fn every_code_has_a_status() {
    for code in Code::ALL {
        assert!((400..600).contains(&status_of(*code)), "{code}");
    }
}
