//! Targets followed over real sockets: a cluster in the process, its controllers, its faults. The finer points are in the
//! crate's own tests, on a paused clock.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::time::Duration;

use kftray_commons::{ClusterRef, Code, ContextRef, RemotePort, Target, TargetObject, WorkloadKind};
use kftray_kube::{Environment, KubeOptions, KubePorts};
use kftray_portforward::ports::{Condition, Dial as _, Resolution, Resolve as _, Wanted};
use kftray_testkit::{FakeCluster, Kind, Rule, User, handlers};
use tokio::sync::watch;
use tokio::time::timeout;

/// For anything that should be quick, on a machine that may not be.
const PATIENCE: Duration = Duration::from_secs(60);

fn ports(cluster: &FakeCluster) -> KubePorts {
    let home = cluster.directory().to_string_lossy().into_owned();
    let kubeconfig = cluster.kubeconfig_path().to_string_lossy().into_owned();
    let environment = Environment::new([("HOME", home), ("KUBECONFIG", kubeconfig)], cluster.directory());
    KubePorts::new(KubeOptions { environment, ..KubeOptions::from_process() })
}

fn target(context: &str, object: TargetObject) -> Target {
    let context =
        if context.is_empty() { ContextRef::Current } else { ContextRef::Named(context.to_owned()) };
    Target { cluster: ClusterRef { kubeconfig: None, context }, namespace: None, object }
}

fn service(name: &str) -> Target {
    target("", TargetObject::Service(name.to_owned()))
}

fn number(port: u16) -> RemotePort {
    RemotePort::Number(port.try_into().unwrap())
}

async fn until(
    receiver: &mut watch::Receiver<Resolution>,
    what: &str,
    fits: impl Fn(&Resolution) -> bool,
) -> Resolution {
    let reached = timeout(PATIENCE, receiver.wait_for(|now| fits(now))).await;
    if let Ok(Ok(now)) = &reached {
        return Resolution::clone(now);
    }
    drop(reached);
    panic!("never {what}; last was {:?}", *receiver.borrow());
}

fn ready(resolution: &Resolution) -> BTreeSet<String> {
    match resolution {
        Resolution::Endpoints { endpoints, .. } => endpoints
            .iter()
            .filter(|endpoint| endpoint.condition == Condition::Ready)
            .map(|endpoint| format!("{}:{}", endpoint.pod, endpoint.port))
            .collect(),
        Resolution::Pending | Resolution::Failed(_) => BTreeSet::new(),
    }
}

async fn watches_become(cluster: &FakeCluster, count: u64) {
    let reached = async {
        while cluster.counters().watches.now() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let now = || cluster.counters().watches.now();
    assert!(timeout(PATIENCE, reached).await.is_ok(), "{} watches instead of {count}", now());
}

/// The ready pods of an app as the cluster has them, with this port.
fn pods(cluster: &FakeCluster, app: &str, port: u16) -> BTreeSet<String> {
    cluster.pods("default", app).into_iter().map(|pod| format!("{pod}:{port}")).collect()
}

async fn web(replicas: u64) -> FakeCluster {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.deployment("web").replicas(replicas).port("http", 8080, handlers::http_hello()).create().unwrap();
    cluster.service("web").port(80, "http").create().unwrap();
    cluster.wait_ready("default", "web", usize::try_from(replicas).unwrap()).await.unwrap();
    cluster
}

#[tokio::test]
async fn five_hundred_followers_cost_two_lists_and_two_watches() {
    let cluster = web(3).await;
    let ports = ports(&cluster);
    let mut followers: Vec<_> = (0..500)
        .map(|n| ports.follow(&Wanted::direct(service("web"), number(if n == 0 { 80 } else { 1000 + n }))))
        .collect();
    for follower in &mut followers {
        until(follower, "three ready", |now| ready(now).len() == 3).await;
    }
    assert_eq!(ready(&followers[0].borrow()), pods(&cluster, "web", 8080));
    watches_become(&cluster, 2).await;
    for resource in ["services", "endpointslices"] {
        for verb in ["list", "watch"] {
            assert_eq!(cluster.counters().requests(verb, resource), 1, "{verb} {resource}");
        }
    }
    assert_eq!(cluster.counters().requests("*", "*"), 4, "{:?}", cluster.counters().all_requests());
    drop(followers);
    watches_become(&cluster, 0).await;
}

#[tokio::test]
async fn a_rollout_is_followed_and_never_without_a_ready_pod() {
    let cluster = web(3).await;
    let ports = ports(&cluster);
    let mut follower = ports.follow(&Wanted::direct(service("web"), number(80)));
    until(&mut follower, "three ready", |now| ready(now).len() == 3).await;
    let old = ready(&follower.borrow());
    assert!(cluster.rollout_restart(Kind::Deployment, "default", "web"));
    until(&mut follower, "all new", |now| {
        let now = ready(now);
        assert!(!now.is_empty(), "a rollout never leaves a Service without a ready pod");
        now.len() == 3 && now.is_disjoint(&old)
    })
    .await;
}

#[tokio::test]
async fn watches_survive_what_happens_to_them() {
    let cluster = web(1).await;
    let ports = ports(&cluster);
    let mut follower = ports.follow(&Wanted::direct(service("web"), number(80)));
    until(&mut follower, "ready", |now| ready(now).len() == 1).await;
    for fault in ["dropped", "gone", "reset", "restarted"] {
        let old = ready(&follower.borrow());
        match fault {
            "dropped" => cluster.faults().drop_watches(),
            "gone" => cluster.faults().gone(),
            "reset" => {
                cluster.faults().drop_connections(kftray_testkit::Which::All, kftray_testkit::Ending::Reset);
            }
            _ => cluster.faults().restart_api_server(Duration::from_millis(500)).await,
        }
        let pod = cluster.pods("default", "web").remove(0);
        cluster.kill_pod("default", &pod);
        until(&mut follower, fault, |now| ready(now).len() == 1 && ready(now) != old).await;
        assert_eq!(ready(&follower.borrow()), pods(&cluster, "web", 8080), "after {fault}");
    }
}

#[tokio::test]
async fn a_black_hole_keeps_the_endpoints_and_is_left_at_once_with_the_network() {
    let cluster = web(1).await;
    let ports = ports(&cluster);
    let mut follower = ports.follow(&Wanted::direct(service("web"), number(80)));
    until(&mut follower, "ready", |now| ready(now).len() == 1).await;
    let old = ready(&follower.borrow());
    cluster.faults().freeze_existing();
    let pod = cluster.pods("default", "web").remove(0);
    cluster.kill_pod("default", &pod);
    cluster.wait_for("a successor", |c| !c.pods("default", "web").is_empty()).await.unwrap();
    assert_eq!(ready(&follower.borrow()), old);
    ports.network_changed();
    until(&mut follower, "the successor", |now| ready(now).len() == 1 && ready(now) != old).await;
}

#[tokio::test]
async fn a_black_hole_is_noticed_by_itself() {
    let cluster = web(1).await;
    let ports = ports(&cluster);
    let mut follower = ports.follow(&Wanted::direct(service("web"), number(80)));
    until(&mut follower, "ready", |now| ready(now).len() == 1).await;
    let old = ready(&follower.borrow());
    cluster.faults().freeze_existing();
    let pod = cluster.pods("default", "web").remove(0);
    cluster.kill_pod("default", &pod);
    // New connections work: the ping of the old one must have given it up.
    until(&mut follower, "the successor", |now| ready(now).len() == 1 && ready(now) != old).await;
}

#[tokio::test]
async fn every_kind_of_target() {
    let cluster = FakeCluster::start().await.unwrap();
    let handler = handlers::http_hello;
    cluster.deployment("web").replicas(2).port("http", 8080, handler()).create().unwrap();
    cluster.stateful_set("db").replicas(2).port("sql", 5432, handlers::echo()).create().unwrap();
    cluster.daemon_set("agent").port("http", 8080, handler()).create().unwrap();
    cluster.replica_set("rs").replicas(1).port("http", 8080, handler()).create().unwrap();
    cluster.job("batch").port("http", 8080, handler()).create().unwrap();
    cluster.service("web").port(80, "http").named_port("plain", 81, 8080_u16).create().unwrap();
    cluster.service("db").headless().named_port("sql", 5432, "sql").create().unwrap();
    for (app, count) in [("web", 2), ("db", 2), ("agent", 1), ("rs", 1), ("batch", 1)] {
        cluster.wait_ready("default", app, count).await.unwrap();
    }
    let ports = ports(&cluster);
    let named = |name: &str| RemotePort::Name(name.to_owned());
    let workload = |kind, name: &str| TargetObject::Workload { kind, name: name.to_owned() };
    let table = [
        (TargetObject::Service("web".into()), number(80), "web", 8080),
        (TargetObject::Service("web".into()), named("plain"), "web", 8080),
        (TargetObject::Service("web".into()), named("http"), "web", 8080),
        (TargetObject::Service("web".into()), number(8080), "web", 8080),
        (TargetObject::Service("db".into()), named("sql"), "db", 5432),
        (TargetObject::Labels("app=web".into()), named("http"), "web", 8080),
        (TargetObject::Labels("app in (web)".into()), number(9), "web", 9),
        (workload(WorkloadKind::Deployment, "web"), named("http"), "web", 8080),
        (workload(WorkloadKind::StatefulSet, "db"), number(5432), "db", 5432),
        (workload(WorkloadKind::DaemonSet, "agent"), named("http"), "agent", 8080),
        (workload(WorkloadKind::ReplicaSet, "rs"), named("http"), "rs", 8080),
        (workload(WorkloadKind::Job, "batch"), named("http"), "batch", 8080),
    ];
    for (object, port, app, expected) in table {
        let text = format!("{object} {port}");
        let mut follower = ports.follow(&Wanted::direct(target("", object), port));
        let expected = pods(&cluster, app, expected);
        until(&mut follower, &text, |now| ready(now) == expected).await;
    }
    let one = cluster.pods("default", "db").remove(0);
    let mut follower =
        ports.follow(&Wanted::direct(target("", TargetObject::Pod(one.clone())), named("sql")));
    until(&mut follower, "the one pod", |now| ready(now) == BTreeSet::from([format!("{one}:5432")])).await;
}

#[tokio::test]
async fn who_may_only_get_pods_and_forward_uses_a_pods_name() {
    let rules = [Rule::new(&["get"], &["pods"]), Rule::new(&["create"], &["pods/portforward"])];
    let mut user = User::new("dev");
    for rule in rules {
        user = user.may(rule.in_namespace("default"));
    }
    let cluster = FakeCluster::builder().user(user).start().await.unwrap();
    cluster.stateful_set("db").replicas(1).port("sql", 5432, handlers::echo()).create().unwrap();
    cluster.service("db").port(5432, "sql").create().unwrap();
    cluster.wait_ready("default", "db", 1).await.unwrap();
    let ports = ports(&cluster);
    let pod = target("dev", TargetObject::Pod("db-0".into()));
    let mut follower = ports.follow(&Wanted::direct(pod.clone(), number(5432)));
    let now = until(&mut follower, "ready", |now| ready(now).len() == 1).await;
    let Resolution::Endpoints { endpoints, .. } = now else { panic!("no endpoints") };
    assert!(!endpoints[0].uid.is_empty());
    let notes = ports.notes(&pod, &number(5432));
    assert!(
        notes.len() == 1 && notes[0].contains("may not list pods in namespace default (as user "),
        "{notes:?}"
    );
    let warm = ports.warm(&endpoints[0]).await.unwrap();
    drop(warm);

    for (object, refusal) in [
        (TargetObject::Service("db".into()), "may not get services in namespace default"),
        (TargetObject::Labels("app=db".into()), "may not list pods in namespace default"),
        (
            TargetObject::Workload { kind: WorkloadKind::StatefulSet, name: "db".into() },
            "may not get statefulsets.apps in namespace default",
        ),
    ] {
        let mut follower = ports.follow(&Wanted::direct(target("dev", object), number(5432)));
        let now = until(&mut follower, refusal, |now| matches!(now, Resolution::Failed(_))).await;
        let Resolution::Failed(problem) = now else { panic!("not failed") };
        assert_eq!(problem.code, Code::Forbidden);
        assert!(problem.message.starts_with(refusal), "{}", problem.message);
    }
}

#[tokio::test]
async fn a_successor_of_the_same_name_is_found_by_the_loss_of_the_session_where_no_watch_is_permitted() {
    let rules = [Rule::new(&["get"], &["pods"]), Rule::new(&["create"], &["pods/portforward"])];
    let user = rules.into_iter().fold(User::new("dev"), User::may);
    let cluster = FakeCluster::builder().user(user).start().await.unwrap();
    cluster.stateful_set("db").replicas(1).port("sql", 5432, handlers::echo()).create().unwrap();
    cluster.wait_ready("default", "db", 1).await.unwrap();
    let ports = ports(&cluster);
    let mut follower =
        ports.follow(&Wanted::direct(target("dev", TargetObject::Pod("db-0".into())), number(5432)));
    let first = |now: &Resolution| match now {
        Resolution::Endpoints { endpoints, .. } => endpoints.first().cloned(),
        Resolution::Pending | Resolution::Failed(_) => None,
    };
    let old = first(&until(&mut follower, "ready", |now| ready(now).len() == 1).await).unwrap();
    let warm = ports.warm(&old).await.unwrap();
    assert!(cluster.kill_pod("default", "db-0"));
    cluster.wait_ready("default", "db", 1).await.unwrap();
    // Nobody dials: only the loss of what was held tells.
    cluster.faults().drop_connections(kftray_testkit::Which::Carriers, kftray_testkit::Ending::Reset);
    timeout(PATIENCE, warm.lost).await.expect("the loss is told");
    until(&mut follower, "the successor", |now| first(now).is_some_and(|new| new.uid != old.uid)).await;
}

#[tokio::test]
async fn without_slices_the_pods_do_and_rights_may_change() {
    let rules = || vec![Rule::new(&["get", "list", "watch"], &["pods", "services"])];
    let user = User::new("dev").may(rules().remove(0));
    let cluster = FakeCluster::builder().user(user).start().await.unwrap();
    cluster.deployment("web").replicas(2).port("http", 8080, handlers::http_hello()).create().unwrap();
    cluster.service("web").port(80, "http").create().unwrap();
    cluster.wait_ready("default", "web", 2).await.unwrap();
    let ports = ports(&cluster);
    let web = target("dev", TargetObject::Service("web".into()));
    let mut follower = ports.follow(&Wanted::direct(web.clone(), number(80)));
    let expected = pods(&cluster, "web", 8080);
    until(&mut follower, "ready", |now| ready(now) == expected).await;
    let notes = ports.notes(&web, &number(80));
    assert!(
        notes.len() == 1 && notes[0].contains("may not list endpointslices.discovery.k8s.io"),
        "{notes:?}"
    );

    cluster.set_rules("dev", vec![Rule::anything()]);
    ports.network_changed();
    let cleared = async {
        while !ports.notes(&web, &number(80)).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, cleared).await.expect("the best way is taken again");
    assert_eq!(ready(&follower.borrow()), expected);
}
