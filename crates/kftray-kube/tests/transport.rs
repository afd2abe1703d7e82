//! The three protocols, falling back between them, what is remembered, and what refusals mean.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::sync::Arc;

use http::StatusCode;
use kftray_commons::Code;
use kftray_kube::{Clusters, Protocol, TransportChoice, TransportMemory};
use kftray_testkit::{ADMIN, FakeCluster, Protocol as Spoken, Rule, User, handlers};
use support::{address, clusters, environment, up};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn with_pod(fake: FakeCluster) -> (FakeCluster, String) {
    fake.pod("web").port("http", 8080, handlers::http_hello()).create().unwrap();
    fake.wait_ready("default", "web", 1).await.unwrap();
    let pod = fake.pods("default", "web").remove(0);
    (fake, pod)
}

async fn cluster_with_pod() -> (FakeCluster, String) {
    with_pod(FakeCluster::start().await.unwrap()).await
}

#[tokio::test]
async fn each_protocol_is_spoken() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    for (protocol, spoken) in [
        (Protocol::WebSocketTunnel, Spoken::WebSocketTunnel),
        (Protocol::Spdy, Spoken::Spdy),
        (Protocol::Legacy, Spoken::Legacy),
    ] {
        let carrier = cluster.upgrade("default", &pod, protocol, &[8080]).await.unwrap();
        assert_eq!(carrier.protocol, protocol);
        assert_eq!(fake.counters().upgrades(spoken), 1, "{protocol}");
    }
}

#[tokio::test]
async fn what_comes_with_the_101_belongs_to_the_carrier() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    // The legacy protocol sends its two port frames right behind the 101.
    let mut carrier = cluster.upgrade("default", &pod, Protocol::Legacy, &[8080]).await.unwrap();
    let mut frames = [0; 10];
    carrier.io.read_exact(&mut frames).await.unwrap();
    // Binary, 3 bytes: channel, port 8080 little endian.
    assert_eq!(frames, [0x82, 3, 0, 0x90, 0x1f, 0x82, 3, 1, 0x90, 0x1f]);
    // A SPDY PING, number 1, comes back as it is.
    let mut carrier = cluster.upgrade("default", &pod, Protocol::Spdy, &[]).await.unwrap();
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    carrier.io.write_all(&ping).await.unwrap();
    carrier.io.flush().await.unwrap();
    let mut pong = [0; 12];
    carrier.io.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, ping);
}

#[tokio::test]
async fn falls_back_and_remembers() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    assert_eq!(cluster.transport().reason, "default");
    fake.faults().refuse_upgrade(Spoken::WebSocketTunnel, StatusCode::BAD_REQUEST, "no WebSockets here");
    let carrier = cluster.session("default", &pod).await.unwrap().unwrap();
    assert_eq!(carrier.protocol, Protocol::Spdy);
    let transport = cluster.transport();
    assert_eq!(transport.protocol, Protocol::Spdy);
    assert!(transport.reason.contains("no WebSockets here"), "{transport:?}");
    // Remembered: the refused one is not asked again.
    fake.faults().allow_upgrade(Spoken::WebSocketTunnel);
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::Spdy);
    assert_eq!(fake.counters().upgrades(Spoken::WebSocketTunnel), 0);
    // And unlearned when it stops working.
    fake.faults().refuse_upgrade(Spoken::Spdy, StatusCode::BAD_REQUEST, "no SPDY either");
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::WebSocketTunnel);
    assert_eq!(cluster.transport().protocol, Protocol::WebSocketTunnel);
}

#[tokio::test]
async fn only_the_legacy_protocol_is_left() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    fake.faults().refuse_upgrade(Spoken::WebSocketTunnel, StatusCode::BAD_REQUEST, "no tunnel");
    fake.faults().refuse_upgrade(Spoken::Spdy, StatusCode::FORBIDDEN, "no SPDY");
    let first = cluster.session("default", &pod).await;
    // FakeCluster answers with a Status, so this 403 is a missing permission; a plain refusal is a protocol nobody speaks.
    assert_eq!(first.unwrap_err().problem.code, Code::Forbidden);
    fake.faults().refuse_upgrade(Spoken::Spdy, StatusCode::BAD_REQUEST, "no SPDY");
    assert!(cluster.session("default", &pod).await.unwrap().is_none());
    let asked = fake.counters().requests("create", "pods/portforward");
    assert!(cluster.session("default", &pod).await.unwrap().is_none());
    assert_eq!(fake.counters().requests("create", "pods/portforward"), asked, "remembered, not asked again");
    assert_eq!(cluster.single("default", &pod, 8080).await.unwrap().protocol, Protocol::Legacy);
    assert_eq!(cluster.upgrade_best("default", &pod, &[8080]).await.unwrap().protocol, Protocol::Legacy);
    // When that stops working too, all are tried again.
    fake.faults().refuse_upgrade(Spoken::Legacy, StatusCode::BAD_REQUEST, "nothing at all");
    assert_eq!(cluster.single("default", &pod, 8080).await.unwrap_err().problem.code, Code::TransportRefused);
    fake.faults().allow_upgrade(Spoken::WebSocketTunnel);
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::WebSocketTunnel);
}

#[tokio::test]
async fn bad_weather_is_not_remembered_at_once() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let refuse =
        || fake.faults().refuse_upgrade(Spoken::WebSocketTunnel, StatusCode::BAD_GATEWAY, "bad gateway");
    refuse();
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::Spdy);
    assert_eq!(cluster.transport().protocol, Protocol::WebSocketTunnel, "once may be the weather");
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::Spdy);
    assert_eq!(cluster.transport().protocol, Protocol::Spdy, "twice in a row is not");
}

#[tokio::test]
async fn a_choice_is_kept_to() {
    let (fake, pod) = cluster_with_pod().await;
    let only = |protocol| {
        Clusters::new(environment(&[]), TransportChoice::Only(protocol), TransportMemory::default())
    };
    let cluster = up(&only(Protocol::Spdy), &fake.kubeconfig_path(), ADMIN).await;
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::Spdy);
    fake.faults().refuse_upgrade(Spoken::Spdy, StatusCode::BAD_REQUEST, "no SPDY");
    let problem = cluster.session("default", &pod).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::TransportRefused);
    assert_eq!(cluster.transport().reason, "asked for");
    let cluster = up(&only(Protocol::Legacy), &fake.kubeconfig_path(), ADMIN).await;
    assert!(cluster.session("default", &pod).await.unwrap().is_none());
}

#[tokio::test]
async fn what_was_learned_is_shared_and_can_be_stored() {
    let (fake, pod) = cluster_with_pod().await;
    let first = clusters();
    fake.faults().refuse_upgrade(Spoken::WebSocketTunnel, StatusCode::BAD_REQUEST, "no");
    let cluster = up(&first, &fake.kubeconfig_path(), ADMIN).await;
    drop(cluster.session("default", &pod).await.unwrap());
    // Another context of the same server.
    let other = up(&first, &fake.kubeconfig_path(), &format!("{ADMIN}-token")).await;
    assert!(!Arc::ptr_eq(&cluster, &other));
    assert_eq!(other.transport().protocol, Protocol::Spdy);
    let stored = serde_json::to_string(&first.transport_memory().snapshot()).unwrap();
    let memory = TransportMemory::new(serde_json::from_str(&stored).unwrap());
    let second = Clusters::new(environment(&[]), TransportChoice::Auto, memory);
    assert_eq!(up(&second, &fake.kubeconfig_path(), ADMIN).await.transport().protocol, Protocol::Spdy);
}

#[tokio::test]
async fn permissions_fall_back_and_are_named() {
    let restricted = User::new("bob").may(Rule::new(&["create"], &["pods/portforward"]));
    let fake = FakeCluster::builder().user(restricted).websocket_needs_create(false).start().await.unwrap();
    let (fake, pod) = with_pod(fake).await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), "bob").await;
    // Before 1.35 a WebSocket needs `get`, SPDY needs `create`.
    assert_eq!(cluster.session("default", &pod).await.unwrap().unwrap().protocol, Protocol::Spdy);
    assert!(cluster.transport().reason.contains("may not get pods/portforward"), "{:?}", cluster.transport());
    fake.set_rules("bob", Vec::new());
    let problem = cluster.session("default", &pod).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::Forbidden);
    for part in ["bob", "pods/portforward", "namespace default"] {
        assert!(problem.message.contains(part), "{problem}");
    }
    assert!(problem.remedy.contains("get and create"), "{}", problem.remedy);
}

#[tokio::test]
async fn a_missing_pod_is_gone_and_no_reason_to_fall_back() {
    let (fake, _) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let problem = cluster.session("default", "not-there").await.unwrap_err().problem;
    assert_eq!(problem.code, Code::PodGone);
    assert!(problem.message.contains("default/not-there"), "{problem}");
    assert_eq!(fake.counters().requests("*", "pods/portforward"), 1);
    // A name that would climb out of its path is only a name.
    let problem = cluster.session("default", "../../secrets").await.unwrap_err().problem;
    assert!(matches!(problem.code, Code::PodGone | Code::TransportRefused), "{problem:?}");
}

#[tokio::test]
async fn an_unreachable_server_is_named() {
    let (fake, pod) = cluster_with_pod().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    fake.faults().refuse_tcp().await;
    let problem = cluster.session("default", &pod).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::ClusterUnreachable);
    assert!(problem.message.contains(&address(&fake)), "{problem}");
    assert_eq!(support::version(&cluster).await.unwrap_err().code, Code::ClusterUnreachable);
    fake.faults().accept_tcp().await;
    assert!(cluster.session("default", &pod).await.unwrap().is_some());
    support::version(&cluster).await.unwrap();
}
