//! What faces ask of a host, over its socket and a cluster that speaks the true protocols.

mod support;

use std::time::Duration;

use kftray_client::{Client, ClusterQuery};
use kftray_commons::api::{
    AD_HOC_IDS, Action, ActionOutcome, ActionRequest, EndedBy, ExportForm, ExportRequest, GroupPut,
    HistoryKind, ImportRequest, Selection, SettingsPatch,
};
use kftray_commons::{Code, ForwardId, Status};
use kftray_testkit::{FakeCluster, Rule, User};
use support::{Ground, LIMIT, act, add, echoes, entry, put, ready, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn configs_are_written_edited_and_removed() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let db = add(&client, "db", "db", 5432).await;
    assert_eq!((db.summary.label.as_str(), db.summary.kind.as_str()), ("db", "service"));
    assert!(!db.desired);

    let mut spec = db.spec.clone();
    spec.insert("namespace".to_owned(), "elsewhere".into());
    let mut edit = put(spec);
    edit.revision = Some(db.revision);
    let edited = client.put_config(db.id, &edit).await.expect("edited");
    assert_eq!(edited.summary.namespace.as_deref(), Some("elsewhere"));
    assert!(edited.revision > db.revision);

    // Another editor began from the first revision.
    let late = client.put_config(db.id, &edit).await.expect_err("somebody was quicker");
    assert_eq!(late.code, Code::Conflict);
    let present = late.details.expect("the present config");
    assert_eq!(present["revision"], edited.revision);

    let mut broken = entry("x", "web", 80);
    broken.insert("remote_port".to_owned(), "8 0".into());
    let refused = client.add_config(&put(broken)).await.expect_err("no port");
    assert_eq!(refused.code, Code::SpecInvalid);
    assert!(refused.details.expect("faults")["faults"][0]["field"] == "remote_port");

    assert_eq!(client.remove_config(db.id).await.expect("removed").id, db.id);
    assert_eq!(client.remove_config(db.id).await.expect_err("gone").code, Code::NotFound);
    let again = add(&client, "db", "db", 5432).await;
    assert_ne!(again.id, db.id, "numbers are never given again");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_export_groups_and_settings() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let text = r#"[{"alias": "a", "service": "web", "remote_port": 80, "tags": {"env": "dev"}},
        {"alias": "b", "service": "db", "remote_port": 5432}, {"service": "x", "remote_port": "8 0"}]"#;
    let mut request = ImportRequest { text: text.to_owned(), dry_run: true, ..ImportRequest::default() };
    let dry = client.import(&request).await.expect("read");
    assert_eq!((dry.added.len(), dry.faults.len(), dry.dry_run), (2, 1, true));
    assert!(client.configs().await.expect("listed").configs.is_empty());
    request.dry_run = false;
    let wet = client.import(&request).await.expect("imported");
    assert_eq!(wet.added.len(), 2);
    assert_eq!(client.import(&request).await.expect("again").unchanged.len(), 2);

    let all = client.export(&ExportRequest::default()).await.expect("exported");
    assert_eq!(all.count, 2);
    let selection = Selection { tags: vec!["env=dev".to_owned()], ..Selection::default() };
    let some = ExportRequest { selection, form: ExportForm::Reference };
    let some = client.export(&some).await.expect("exported");
    assert!(some.text.contains("\"a\"") && !some.text.contains("\"b\""), "{}", some.text);

    let ids: Vec<ForwardId> = client.configs().await.expect("listed").configs.iter().map(|c| c.id).collect();
    let change = GroupPut { add: ids.clone(), remove: Vec::new() };
    let groups = client.put_group("my shop", &change).await.expect("grouped");
    assert_eq!(groups.groups[0].configs, ids);
    let change = GroupPut { add: Vec::new(), remove: vec![ids[0]] };
    let groups = client.put_group("my shop", &change).await.expect("grouped");
    assert_eq!(groups.groups[0].configs, [ids[1]]);
    assert!(client.remove_group("my shop").await.expect("removed").groups.is_empty());
    assert_eq!(client.remove_group("my shop").await.expect_err("gone").code, Code::NotFound);

    let patch = SettingsPatch { idle_minutes: Some(9), ..SettingsPatch::default() };
    assert_eq!(client.set_settings(&patch).await.expect("set").idle_minutes, 9);
    let mut patch = SettingsPatch::default();
    patch.other.insert("theme".to_owned(), Some("dark".to_owned()));
    client.set_settings(&patch).await.expect("set");
    patch.other.insert("theme".to_owned(), None);
    let settings = client.set_settings(&patch).await.expect("removed");
    assert!(settings.other.is_empty());
    assert_eq!(settings.idle_minutes, 9, "what is absent stays");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwards_run_stop_and_tell() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let db = add(&client, "db", "db", 5432).await;
    let web = add(&client, "web", "web", 80).await;
    let report = start(&client, &[db.id, ForwardId(99)]).await;
    assert_eq!(report.results[0].outcome, ActionOutcome::Started);
    assert_eq!(report.unmatched, ["99"]);
    let state = ready(&mut follow, db.id).await;
    assert_eq!(state.endpoints.len(), 1);
    assert!(client.config(db.id).await.expect("there").desired);
    echoes(&state.addresses[0]).await;
    assert_eq!(start(&client, &[db.id]).await.results[0].outcome, ActionOutcome::AlreadyRunning);

    // Counters come by themselves while somebody follows.
    until(&mut follow, "traffic", |snapshot| {
        snapshot.forward(db.id).is_some_and(|forward| forward.counters.bytes_down >= 5)
    })
    .await;

    let all = act(&client, Action::Start, Selection::all()).await;
    assert_eq!(all.results.len(), 2);
    ready(&mut follow, web.id).await;
    let restarted = act(&client, Action::Restart, Selection::ids([web.id])).await;
    assert_eq!(restarted.results[0].outcome, ActionOutcome::Restarted);
    ready(&mut follow, web.id).await;
    let stopped = act(&client, Action::Stop, Selection::all()).await;
    assert!(stopped.results.iter().all(|result| result.outcome == ActionOutcome::Stopped), "{stopped:?}");
    let state = client.forward(db.id).await.expect("it has run");
    assert_eq!((state.status, state.ended.expect("ended").by), (Status::Stopped, EndedBy::Request));
    assert!(!client.config(db.id).await.expect("there").desired);
    assert!(tokio::net::TcpStream::connect(&client_address(&follow, db.id)).await.is_err());

    let history = client.history(db.id, 10).await.expect("read");
    let kinds: Vec<HistoryKind> = history.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [HistoryKind::Ended, HistoryKind::Ready, HistoryKind::Started]);
    host.stop().await;
}

/// Where it listened; nowhere any more, which nothing accepts on.
fn client_address(follow: &kftray_client::Follow, id: ForwardId) -> String {
    let state = follow.state();
    let address = state.snapshot.forward(id).and_then(|forward| forward.addresses.first().cloned());
    address.unwrap_or_else(|| "127.0.0.1:1".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_moves_what_runs_and_a_name_does_not() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let db = add(&client, "db", "db", 5432).await;
    start(&client, &[db.id]).await;
    let before = ready(&mut follow, db.id).await;

    let mut named = db.spec.clone();
    named.insert("alias".to_owned(), "database".into());
    client.put_config(db.id, &put(named.clone())).await.expect("edited");
    let after = client.forward(db.id).await.expect("runs");
    assert_eq!((after.label.as_str(), &after.addresses), ("database", &before.addresses));

    named.insert("service".to_owned(), "web".into());
    named.insert("remote_port".to_owned(), 80.into());
    client.put_config(db.id, &put(named)).await.expect("edited");
    until(&mut follow, "the other target", |snapshot| {
        snapshot.forward(db.id).is_some_and(|f| f.status == Status::Ready && f.target == "svc/web:80")
    })
    .await;
    client.remove_config(db.id).await.expect("removed");
    until(&mut follow, "its end", |snapshot| snapshot.forward(db.id).is_none()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_its_client() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let db = add(&client, "db", "db", 5432).await;
    let lease = client.hold_lease().await.expect("a lease");
    let request = ActionRequest {
        selection: Selection::ids([db.id]),
        ad_hoc: vec![entry("adhoc", "web", 80)],
        lease: Some(lease.id()),
    };
    let report = client.act(Action::Start, &request).await.expect("started");
    let ad_hoc = report.results.iter().find(|result| result.id.0 >= AD_HOC_IDS).expect("without a config").id;
    ready(&mut follow, db.id).await;
    ready(&mut follow, ad_hoc).await;
    assert!(!client.config(db.id).await.expect("there").desired, "a lease is no wish for tomorrow");
    drop(lease);
    let state = until(&mut follow, "both ends", |snapshot| {
        snapshot.forward(ad_hoc).is_none() && snapshot.forward(db.id).is_some_and(|f| f.ended.is_some())
    })
    .await;
    let ended = state.snapshot.forward(db.id).and_then(|forward| forward.ended.clone());
    assert_eq!(ended.expect("ended").by, EndedBy::Lease);
    let late = client.act(Action::Start, &request).await.expect_err("the lease has ended");
    assert_eq!(late.code, Code::NotFound);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_ends_with_the_last_who_wants_it() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let (db, web) = (add(&client, "db", "db", 5432).await.id, add(&client, "web", "web", 80).await.id);
    let (first, second) = (client.hold_lease().await.expect("one"), client.hold_lease().await.expect("two"));
    for lease in [first.id(), second.id()] {
        let selection = Selection::ids([db, web]);
        let request = ActionRequest { selection, lease: Some(lease), ..ActionRequest::default() };
        client.act(Action::Start, &request).await.expect("started");
    }
    // Somebody wants this one to stay.
    start(&client, &[web]).await;
    let second_id = second.id();
    drop(first);
    let state = until(&mut follow, "the other lease", |snapshot| {
        snapshot.forward(db).is_some_and(|forward| forward.origin.lease() == Some(second_id))
    })
    .await;
    assert!(state.snapshot.forward(db).is_some_and(|forward| forward.is_active()));
    drop(second);
    let state =
        until(&mut follow, "its end", |s| s.forward(db).is_some_and(|forward| !forward.is_active())).await;
    let web = state.snapshot.forward(web).expect("it runs");
    assert!(web.is_active() && web.origin.lease().is_none(), "{web:?}");
    host.stop().await;
}

#[tokio::test]
async fn time_to_live_and_idle_limit() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let mut limited = entry("ttl", "db", 5432);
    limited.insert("ttl_minutes".to_owned(), 5.into());
    let ttl = client.add_config(&put(limited)).await.expect("added");
    let mut limited = entry("idle", "db", 5432);
    limited.insert("idle_minutes".to_owned(), "3".into());
    let idle = client.add_config(&put(limited)).await.expect("added");
    assert_eq!((ttl.summary.ttl_minutes, idle.summary.idle_minutes), (Some(5), Some(3)));
    start(&client, &[ttl.id, idle.id]).await;
    let of_ttl = ready(&mut follow, ttl.id).await;
    let of_idle = ready(&mut follow, idle.id).await;
    assert_eq!(of_ttl.expires_at, Some(of_ttl.started_at + 300_000));
    assert_eq!(of_idle.idle_limit_at, Some(of_idle.started_at + 180_000));

    jump(Duration::from_secs(170)).await;
    echoes(&of_idle.addresses[0]).await;
    jump(Duration::from_secs(100)).await;
    let states = client.forwards().await.expect("listed");
    assert!(states.forwards.iter().all(|forward| forward.is_active()), "{states:?}");
    jump(Duration::from_secs(40)).await;
    let ended = |id: ForwardId, by: EndedBy| {
        move |snapshot: &kftray_commons::api::Snapshot| {
            snapshot.forward(id).and_then(|f| f.ended.clone()).is_some_and(|ended| ended.by == by)
        }
    };
    until(&mut follow, "the end of its time", ended(ttl.id, EndedBy::Ttl)).await;
    jump(Duration::from_secs(60)).await;
    until(&mut follow, "the idle limit", ended(idle.id, EndedBy::Idle)).await;
    until(&mut follow, "the note for tomorrow", |snapshot| snapshot.configs.iter().all(|c| !c.desired)).await;
    host.stop().await;
}

/// Moves the runtime's clock.
async fn jump(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn pickers_work_with_what_one_may_see() {
    let bob = User::new("bob").may(Rule::new(&["get", "list", "watch"], &["services", "pods"]));
    let ground = Ground::on(FakeCluster::builder().user(bob).start().await.expect("a cluster")).await;
    let host = ground.host().await;
    let client = ground.client().await;
    let contexts = client.contexts(None).await.expect("read");
    assert_eq!(contexts.current.as_deref(), Some("admin"));
    assert!(contexts.contexts.iter().any(|context| context.name == "bob"));

    let admin = ClusterQuery::default();
    let namespaces = client.namespaces(&admin).await.expect("listed");
    assert!(namespaces.namespaces.contains(&"default".to_owned()) && namespaces.problem.is_none());
    let services = client.services(&admin).await.expect("listed");
    let web = services.services.iter().find(|service| service.name == "web").expect("there");
    assert_eq!((web.ports[0].port, web.ports[0].target.as_deref()), (80, Some("http")));
    let workloads = client.workloads(&admin).await.expect("listed");
    let deployment = workloads.workloads.iter().find(|w| w.kind == "deployment").expect("there");
    assert_eq!((deployment.name.as_str(), deployment.wanted, deployment.ports[0].port), ("web", 2, 8080));
    let ports = client.ports(&admin, "deployment", "web").await.expect("there");
    assert_eq!(ports.ports[0].name.as_deref(), Some("http"));
    assert_eq!(client.ports(&admin, "moon", "web").await.expect_err("no kind").code, Code::RequestInvalid);

    let bob = ClusterQuery { context: Some("bob".to_owned()), ..ClusterQuery::default() };
    let namespaces = client.namespaces(&bob).await.expect("known without asking");
    assert_eq!(namespaces.namespaces, ["default"]);
    assert_eq!(namespaces.problem.expect("said").code, Code::Forbidden);
    let workloads = client.workloads(&bob).await.expect("pods at least");
    assert!(workloads.workloads.iter().all(|workload| workload.kind == "pod"));
    assert!(workloads.problems.iter().all(|problem| problem.code == Code::Forbidden));
    let nowhere = ClusterQuery { context: Some("nowhere".to_owned()), ..ClusterQuery::default() };
    assert_eq!(client.services(&nowhere).await.expect_err("no context").code, Code::ContextMissing);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_names_the_forward_that_has_it() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let first = add(&client, "first", "db", 5432).await;
    start(&client, &[first.id]).await;
    let port = ready(&mut follow, first.id).await.addresses[0].rsplit_once(':').expect("a port").1.to_owned();
    let mut spec = entry("second", "web", 80);
    spec.insert("local_port".to_owned(), port.into());
    let second = client.add_config(&put(spec)).await.expect("added");
    start(&client, &[second.id]).await;
    let state = until(&mut follow, "the refusal", |snapshot| {
        snapshot.forward(second.id).is_some_and(|f| matches!(f.status, Status::NeedsUser { .. }))
    })
    .await;
    let problem = state.snapshot.forward(second.id).and_then(|f| f.last_problem.clone()).expect("a problem");
    assert_eq!(problem.code, Code::PortInUse);
    assert!(problem.message.contains("the forward first"), "{}", problem.message);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_writes_to_the_store() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut follow = client.follow();
    let directory = kftray_commons::store::Directory::at(ground.path());
    let written = tokio::task::spawn_blocking(move || {
        let mut store = kftray_commons::store::Store::open(&directory).expect("opens");
        let (draft, _) = kftray_commons::store::Draft::read(&entry("foreign", "web", 80)).expect("valid");
        store.add(&[draft]).expect("added")
    });
    let ids = written.await.expect("written");
    until(&mut follow, "the foreign config", |snapshot| snapshot.config(ids[0]).is_some()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = Client::connect(directory.path()).await.expect_err("no host");
    assert_eq!(error.code, Code::HostUnreachable);
    assert!(tokio::time::timeout(LIMIT, Client::connect(directory.path())).await.expect("at once").is_err());
}
