//! The doctor over a cluster in this process: what a sick forward is told, and that a healthy one is left in peace.

use std::net::TcpListener;

use kftray_commons::api::{DoctorReport, DoctorRequest, Holder, PodCondition};
use kftray_commons::border::{Defaults, import};
use kftray_commons::{Code, ForwardSpec};
use kftray_host::doctor::{Patient, collect};
use kftray_kube::{Environment, KubeOptions, KubePorts, TransportChoice, TransportMemory};
use kftray_testkit::{FakeCluster, Rule, User, handlers};

async fn cluster() -> FakeCluster {
    let bob = User::new("bob").may(Rule::new(&["get", "list", "watch"], &["services"]));
    let fake = FakeCluster::builder().user(bob).start().await.expect("a cluster");
    fake.deployment("web").replicas(2).port("http", 8080, handlers::echo()).create().expect("created");
    fake.service("web").port(80, "http").create().expect("created");
    fake.service("empty").port(80, 80).create().expect("created");
    fake.wait_ready("default", "web", 2).await.expect("ready");
    fake
}

async fn look(fake: &FakeCluster, entries: &str, request: DoctorRequest) -> DoctorReport {
    let kubeconfig = fake.kubeconfig_path().display().to_string();
    let variables =
        [("PATH", "/usr/bin:/bin"), ("KUBECONFIG", kubeconfig.as_str()), ("HOME", "/nonexistent")];
    let options = KubeOptions {
        environment: Environment::new(variables, "/"),
        transport: TransportChoice::Auto,
        memory: TransportMemory::default(),
        relay: kftray_kube::deploy::RelayOptions::ephemeral(),
    };
    let read = import(entries, &Defaults::default());
    assert_eq!(read.faults().count(), 0, "{read:?}");
    let patient = |spec: &ForwardSpec| Patient { spec: spec.clone(), addresses: Vec::new() };
    collect(&KubePorts::new(options), &request, read.specs().map(patient).collect()).await
}

#[tokio::test]
async fn healthy_and_sick_ones() {
    let fake = cluster().await;
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let entries = format!(
        r#"[
        {{"alias": "good", "service": "web", "remote_port": 80}},
        {{"alias": "busy", "service": "web", "remote_port": 80, "local_port": {port}, "local_address": "127.0.0.1"}},
        {{"alias": "typo", "service": "wbe", "remote_port": 80}},
        {{"alias": "empty", "service": "empty", "remote_port": 80}},
        {{"alias": "denied", "service": "web", "remote_port": 80, "context": "bob"}},
        {{"alias": "lost", "service": "web", "remote_port": 80, "context": "nowhere"}}
    ]"#
    );
    let report = look(&fake, &entries, DoctorRequest::default()).await;
    let contexts: Vec<_> =
        report.contexts.iter().map(|one| (one.asked.as_deref(), one.name.as_deref())).collect();
    assert_eq!(contexts, [(None, Some("admin")), (Some("bob"), Some("bob")), (Some("nowhere"), None)]);
    assert_eq!(report.contexts[2].problems[0].code, Code::ContextMissing);
    let codes = |label: &str| {
        let found = report.forwards.iter().find(|forward| forward.label == label).expect("looked at");
        found.problems.iter().map(|problem| problem.code).collect::<Vec<_>>()
    };
    assert_eq!(codes("good"), []);
    assert_eq!(codes("busy"), [Code::PortInUse]);
    assert_eq!(codes("typo"), [Code::TargetMissing]);
    assert_eq!(codes("empty"), [Code::NoReadyPods]);
    assert_eq!(codes("denied"), [Code::Forbidden, Code::Forbidden]);
    assert_eq!(codes("lost"), []);
    assert!(!report.is_well());
    let good = &report.forwards[0];
    assert_eq!(good.endpoints.len(), 2);
    assert!(good.endpoints.iter().all(|one| one.port == 8080 && one.condition == PodCondition::Ready));
    let busy = &report.forwards[1].local[0];
    assert_eq!((busy.holder, busy.address.as_str()), (Holder::Taken, format!("127.0.0.1:{port}").as_str()));
    assert!(
        busy.owner.as_ref().is_some_and(|owner| owner.contains(&std::process::id().to_string())),
        "{busy:?}"
    );
    // What is said about the missing context lists all names, and one context is called like its token.
    let mut told = report.clone();
    told.contexts.pop();
    let text = serde_json::to_string(&told).expect("JSON");
    assert!(!text.contains("PRIVATE KEY") && !text.contains("admin-token"), "{text}");
}

#[tokio::test]
async fn only_what_is_asked_for() {
    let fake = cluster().await;
    let entries = r#"[{"alias": "a", "service": "web", "remote_port": 80}, {"alias": "b", "service": "web", "remote_port": 80, "context": "bob"}]"#;
    let labels = DoctorRequest { labels: vec!["a".to_owned()], ..DoctorRequest::default() };
    let report = look(&fake, entries, labels).await;
    assert_eq!((report.contexts.len(), report.forwards.len()), (1, 1));
    assert!(report.is_well(), "{report:?}");
    let contexts = DoctorRequest { contexts: vec!["bob".to_owned()], ..DoctorRequest::default() };
    let report = look(&fake, entries, contexts).await;
    assert_eq!(report.contexts[0].name.as_deref(), Some("bob"));
    assert_eq!(report.forwards.iter().map(|one| one.label.as_str()).collect::<Vec<_>>(), ["b"]);
    // Without anything, the current context is looked at.
    let report = look(&fake, "[]", DoctorRequest::default()).await;
    assert_eq!(report.contexts[0].name.as_deref(), Some("admin"));
    assert!(report.is_well(), "{report:?}");
}

#[tokio::test]
async fn the_rights_of_a_relay_are_looked_at_where_one_is_needed() {
    let jane = User::new("jane")
        .may(Rule::new(&["get", "list", "watch"], &["services", "endpointslices", "pods"]))
        .may(Rule::new(&["get", "create"], &["pods/portforward"]));
    let fake = FakeCluster::builder().namespace("kftray-system").user(jane).start().await.expect("a cluster");
    fake.service("dns").port(53, 53).create().expect("created");
    let entries = r#"[
        {"alias": "dns", "service": "dns", "remote_port": 53, "protocol": "udp", "context": "jane"},
        {"alias": "db", "workload_type": "proxy", "remote_address": "db.corp", "remote_port": 5432, "context": "jane"},
        {"alias": "hook", "workload_type": "expose", "local_port": 3000, "exposure_type": "internal", "context": "jane"}
    ]"#;
    let told = |report: &DoctorReport, label: &str| {
        let found = report.forwards.iter().find(|forward| forward.label == label).expect("looked at");
        found.problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>()
    };
    let report = look(&fake, entries, DoctorRequest::default()).await;
    let relay =
        "may not create jobs.batch, list jobs.batch in namespace default, which a relay of its own needs";
    assert_eq!(told(&report, "dns"), [relay]);
    assert_eq!(told(&report, "db"), [relay]);
    let expose = "may not create jobs.batch, list jobs.batch, create services, patch services in namespace default, \
        which an expose needs";
    assert_eq!(told(&report, "hook"), [expose]);

    // One that is installed for all will do, but not for an expose.
    let pod = serde_json::json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "kftray-server-0", "namespace": "kftray-system", "labels": {
            "app.kubernetes.io/name": "kftray-server", "kftray.app/installed": "true"}},
        "spec": {"containers": [{"name": "relay", "image": "relay:1"}]},
    });
    fake.create(pod).expect("created");
    let report = look(&fake, entries, DoctorRequest::default()).await;
    assert_eq!((told(&report, "dns").len(), told(&report, "db").len()), (0, 0), "{report:?}");
    assert_eq!(told(&report, "hook"), [expose]);
}
