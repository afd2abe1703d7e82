//! Requests and watches: one connection for all, pinged, dropped on demand, and the old way where there is no HTTP/2.

mod support;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kftray_commons::Code;
use kftray_testkit::{ADMIN, FakeCluster};
use kube::Api;
use kube::api::{ListParams, WatchParams};
use support::{PATIENCE, clusters, up, version};

#[tokio::test]
async fn everything_shares_one_connection() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let results = futures::future::join_all((0..30).map(|_| version(&cluster))).await;
    results.into_iter().for_each(|result| result.unwrap());
    let pods: Api<Pod> = Api::all(cluster.client());
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(pods.watch(&WatchParams::default(), "0").await.unwrap().boxed());
    }
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 0);
    assert_eq!(fake.counters().connections.total(), 1);
}

#[tokio::test]
async fn more_watches_than_one_connection_takes_starve_nothing() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let pods: Api<Pod> = Api::all(cluster.client());
    let parameters = WatchParams::default();
    let opened = futures::future::join_all((0..150).map(|_| pods.watch(&parameters, "0")));
    let opened = tokio::time::timeout(PATIENCE, opened).await.expect("every watch is answered");
    let mut watches: Vec<_> = opened.into_iter().map(|watch| watch.unwrap().boxed()).collect();
    let connections = &fake.counters().connections;
    let answer = tokio::time::timeout(Duration::from_secs(5), version(&cluster));
    answer.await.expect("an answer in time").unwrap();
    assert_eq!(connections.total(), 2, "those without room share one more connection");

    // A reset ends them on all connections.
    cluster.reset_connections();
    let ended = watches.iter_mut().map(async |watch| while let Ok(Some(_)) = watch.try_next().await {});
    tokio::time::timeout(Duration::from_secs(4), futures::future::join_all(ended))
        .await
        .expect("every watch ends");
    drop(watches);
    version(&cluster).await.unwrap();
    assert_eq!(connections.total(), 3);
}

#[tokio::test]
async fn a_connection_that_ran_empty_is_given_up() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let pods: Api<Pod> = Api::all(cluster.client());
    let open = async || tokio::time::timeout(PATIENCE, pods.watch(&WatchParams::default(), "0")).await;
    let mut watches = Vec::new();
    for _ in 0..120 {
        watches.push(open().await.expect("an answer").unwrap().boxed());
    }
    let connections = &fake.counters().connections;
    assert_eq!(connections.now(), 2);
    // The second has watches still: it stays. Then none: the first does for all.
    watches.drain(..60);
    version(&cluster).await.unwrap();
    assert_eq!(connections.now(), 2);
    watches.drain(30..);
    let gone = async {
        while connections.now() > 1 {
            version(&cluster).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("one connection is left");
    let mut last = watches.pop().unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(300), last.try_next()).await;
    assert!(silent.is_err(), "the watches on the first go on");
    assert_eq!(connections.total(), 2);
}

#[tokio::test]
async fn plain_http_works_and_pools() {
    let fake = FakeCluster::builder().plain().start().await.unwrap();
    // Over plain HTTP there is nobody to agree on HTTP/2 with, and a certificate proves nothing: a token does.
    let cluster = up(&clusters(), &fake.kubeconfig_path(), &format!("{ADMIN}-token")).await;
    for _ in 0..5 {
        version(&cluster).await.unwrap();
    }
    assert_eq!(fake.counters().connections.total(), 1, "sequential requests reuse a connection");
    let results = futures::future::join_all((0..10).map(|_| version(&cluster))).await;
    results.into_iter().for_each(|result| result.unwrap());
    fake.faults().refuse_tcp().await;
    cluster.reset_connections();
    assert_eq!(version(&cluster).await.unwrap_err().code, Code::ClusterUnreachable);
}

#[tokio::test]
async fn a_black_hole_is_noticed() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let pods: Api<Pod> = Api::all(cluster.client());
    let mut watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    fake.faults().freeze_existing();
    let begin = tokio::time::Instant::now();
    let ended = async { while let Ok(Some(_)) = watch.try_next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the watch ends");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    // New connections work, and the next request makes one.
    version(&cluster).await.unwrap();
}

#[tokio::test]
async fn a_reset_ends_watches_at_once() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    let pods: Api<Pod> = Api::all(cluster.client());
    let mut watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    fake.faults().freeze_existing();
    let begin = tokio::time::Instant::now();
    cluster.reset_connections();
    let ended = async { while let Ok(Some(_)) = watch.try_next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the watch ends");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "before any PING could have failed: {:?}",
        begin.elapsed()
    );
    version(&cluster).await.unwrap();
    assert_eq!(fake.counters().connections.total(), 2);
}

#[tokio::test]
async fn a_dial_into_a_dead_network_is_given_up_by_a_reset() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    fake.faults().freeze_all();
    let begin = tokio::time::Instant::now();
    let request = version(&cluster);
    let back = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // New connections work again, the one that is being dialled stays dead.
        fake.faults().clear().await;
        fake.faults().freeze_existing();
        cluster.reset_connections();
    };
    let (result, ()) = futures::join!(request, back);
    result.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "sooner than the dial's own limit: {:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let fake = FakeCluster::start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), ADMIN).await;
    for _ in 0..3 {
        version(&cluster).await.unwrap();
        fake.faults().restart_api_server(Duration::from_millis(50)).await;
    }
    version(&cluster).await.unwrap();
}

#[tokio::test]
async fn refusals_of_requests_are_told() {
    let user = kftray_testkit::User::new("bob");
    let fake = FakeCluster::builder().user(user).start().await.unwrap();
    let cluster = up(&clusters(), &fake.kubeconfig_path(), "bob").await;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let error = pods.list(&ListParams::default()).await.unwrap_err();
    let asked = kftray_kube::Asked { verb: "list", resource: "pods", group: "", namespace: Some("default") };
    let problem = kftray_kube::request_problem(&error, asked, cluster.context());
    assert_eq!(problem.code, Code::Forbidden);
    assert_eq!(problem.message, "user bob may not list pods in namespace default");
}
