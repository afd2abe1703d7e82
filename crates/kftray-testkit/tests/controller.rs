//! Controllers and kubelet: pods come, go and are replaced, and EndpointSlices say so.

#![allow(clippy::allow_attributes, reason = "an expectation cannot hold for every file")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test's way to say what it needs")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use kftray_testkit::{FakeCluster, Kind, handlers};
use serde_json::{Value, json};

/// (pod, ready, serving, terminating) of all endpoints of a Service.
fn endpoints(cluster: &FakeCluster, service: &str) -> Vec<(String, bool, bool, bool)> {
    let slices = cluster.list(Kind::EndpointSlice, "default");
    slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service)
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .map(|endpoint| {
            let condition = |name: &str| endpoint["conditions"][name].as_bool().unwrap();
            let name = endpoint["targetRef"]["name"].as_str().unwrap().to_owned();
            (name, condition("ready"), condition("serving"), condition("terminating"))
        })
        .collect()
}

fn ports(cluster: &FakeCluster, service: &str) -> BTreeSet<(String, u64)> {
    let slices = cluster.list(Kind::EndpointSlice, "default");
    slices
        .iter()
        .filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service)
        .flat_map(|slice| slice["ports"].as_array().cloned().unwrap_or_default())
        .map(|port| (port["name"].as_str().unwrap().to_owned(), port["port"].as_u64().unwrap()))
        .collect()
}

#[tokio::test]
async fn endpoints_follow_readiness_and_termination() {
    let cluster = FakeCluster::start().await.unwrap();
    let (short, long) = (Duration::from_millis(20), Duration::from_secs(2));
    cluster
        .deployment("web")
        .replicas(2)
        .port("http", 8080, handlers::http_hello())
        .pod_times(short, short, long)
        .create()
        .unwrap();
    cluster.service("web").port(80, "http").create().unwrap();
    cluster.wait_ready("default", "web", 2).await.unwrap();
    let ready =
        |cluster: &FakeCluster| endpoints(cluster, "web").iter().filter(|endpoint| endpoint.1).count();
    cluster.wait_for("two endpoints", |cluster| ready(cluster) == 2).await.unwrap();
    assert_eq!(ports(&cluster, "web"), BTreeSet::from([(String::new(), 8080)]));
    let pod = cluster.pods("default", "web").remove(0);
    assert!(cluster.hold_unready("default", &pod, true));
    let is = |expected: (bool, bool, bool)| {
        let pod = pod.clone();
        move |cluster: &FakeCluster| {
            endpoints(cluster, "web").contains(&(pod.clone(), expected.0, expected.1, expected.2))
        }
    };
    cluster.wait_for("an unready endpoint", is((false, false, false))).await.unwrap();
    assert!(cluster.hold_unready("default", &pod, false));
    cluster.wait_for("a ready endpoint", is((true, true, false))).await.unwrap();
    assert!(cluster.terminate_pod("default", &pod));
    cluster.wait_for("a terminating endpoint", is((false, true, true))).await.unwrap();
    // The replacement does not wait for the old one to end.
    cluster.wait_for("a replacement", |cluster| ready(cluster) == 2).await.unwrap();
    assert!(endpoints(&cluster, "web").iter().any(|endpoint| endpoint.0 == pod));
    cluster.wait_ready("default", "web", 2).await.unwrap();
    assert!(cluster.scale(Kind::Deployment, "default", "web", 0));
    cluster
        .wait_for("an empty slice", |cluster| {
            let slices = cluster.list(Kind::EndpointSlice, "default");
            endpoints(cluster, "web").is_empty() && slices.len() == 1
        })
        .await
        .unwrap();
    assert!(cluster.delete(Kind::Service, "default", "web"));
    cluster
        .wait_for("no slice", |cluster| cluster.list(Kind::EndpointSlice, "default").is_empty())
        .await
        .unwrap();
}

#[tokio::test]
async fn named_ports_resolve_for_each_pod() {
    let cluster = FakeCluster::start().await.unwrap();
    for (name, number) in [("old", 8080), ("new", 9090)] {
        let pod = cluster.pod(name).label("app", "web").port("http", number, handlers::echo());
        pod.create().unwrap();
    }
    cluster.service("web").named_port("web", 80, "http").named_port("raw", 81, 7000).create().unwrap();
    let expected = BTreeSet::from([("web".into(), 8080), ("web".into(), 9090), ("raw".into(), 7000)]);
    cluster.wait_for("both ports", |cluster| ports(cluster, "web") == expected).await.unwrap();
    assert_eq!(cluster.list(Kind::EndpointSlice, "default").len(), 2);
}

#[tokio::test]
async fn a_rolling_restart_never_has_fewer_ready_pods_than_allowed() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.deployment("web").replicas(3).rolling(1, 0).port("http", 1, handlers::echo()).create().unwrap();
    cluster.service("web").port(80, "http").create().unwrap();
    cluster.wait_ready("default", "web", 3).await.unwrap();
    let old: BTreeSet<String> = cluster.pods("default", "web").into_iter().collect();
    assert!(cluster.rollout_restart(Kind::Deployment, "default", "web"));
    let seen = Mutex::new(Vec::new());
    cluster
        .wait_for("new pods only", |cluster| {
            let now = cluster.pods("default", "web");
            let ready = endpoints(cluster, "web").iter().filter(|endpoint| endpoint.1).count();
            seen.lock().unwrap().push((ready, now.len()));
            ready == 3 && now.len() == 3 && now.iter().all(|pod| !old.contains(pod))
        })
        .await
        .unwrap();
    for (ready, total) in seen.into_inner().unwrap() {
        assert!(ready >= 3 && total <= 4, "{ready} ready of {total}");
    }
    let status = || cluster.get(Kind::Deployment, "default", "web").unwrap()["status"].clone();
    cluster
        .wait_for("the status", |_| status()["updatedReplicas"] == 3 && status()["replicas"] == 3)
        .await
        .unwrap();
}

#[tokio::test]
async fn recreate_has_no_overlap() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.deployment("db").recreate().port("sql", 1, handlers::echo()).create().unwrap();
    cluster.wait_ready("default", "db", 1).await.unwrap();
    let old = cluster.pods("default", "db").remove(0);
    cluster.rollout_restart(Kind::Deployment, "default", "db");
    let most = Mutex::new(0);
    cluster
        .wait_for("the new pod", |cluster| {
            let pods = cluster.list(Kind::Pod, "default");
            let mut most = most.lock().unwrap();
            *most = pods.len().max(*most);
            pods.len() == 1 && pods[0]["metadata"]["name"] != old.as_str()
        })
        .await
        .unwrap();
    assert_eq!(*most.lock().unwrap(), 1);
}

#[tokio::test]
async fn stateful_sets_keep_names_and_order() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.stateful_set("db").replicas(3).port("sql", 5432, handlers::echo()).create().unwrap();
    let order = Mutex::new(Vec::new());
    cluster
        .wait_for("three pods", |cluster| {
            let pods = cluster.pods("default", "db");
            let mut order = order.lock().unwrap();
            if order.last() != Some(&pods) {
                order.push(pods.clone());
            }
            pods.len() == 3
        })
        .await
        .unwrap();
    let expected: Vec<Vec<&str>> =
        vec![vec![], vec!["db-0"], vec!["db-0", "db-1"], vec!["db-0", "db-1", "db-2"]];
    let order = order.into_inner().unwrap();
    assert!(
        expected.ends_with(
            &order.iter().map(|pods| pods.iter().map(String::as_str).collect()).collect::<Vec<_>>()
        )
    );
    cluster.wait_ready("default", "db", 3).await.unwrap();
    let uid = |cluster: &FakeCluster, pod: &str| {
        cluster
            .get(Kind::Pod, "default", pod)
            .map(|pod| pod["metadata"]["uid"].clone())
            .unwrap_or(Value::Null)
    };
    let before = uid(&cluster, "db-1");
    assert!(cluster.kill_pod("default", "db-1"));
    cluster.wait_ready("default", "db", 3).await.unwrap();
    assert_ne!(uid(&cluster, "db-1"), before);
    let before = uid(&cluster, "db-0");
    cluster.rollout_restart(Kind::StatefulSet, "default", "db");
    // The first ordinal is the last to be replaced.
    cluster
        .wait_for("the restart", |cluster| {
            let first = uid(cluster, "db-0");
            !first.is_null() && first != before
        })
        .await
        .unwrap();
    cluster.wait_ready("default", "db", 3).await.unwrap();
}

#[tokio::test]
async fn daemon_sets_jobs_and_replica_sets_have_pods() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.daemon_set("agent").port("p", 1, handlers::echo()).create().unwrap();
    cluster.job("batch").replicas(2).port("p", 1, handlers::echo()).create().unwrap();
    cluster.replica_set("plain").replicas(2).port("p", 1, handlers::echo()).create().unwrap();
    for (app, count) in [("agent", 1), ("batch", 2), ("plain", 2)] {
        cluster.wait_ready("default", app, count).await.unwrap();
    }
    let owner = |app: &str| {
        let pod = cluster.pods("default", app).remove(0);
        cluster.get(Kind::Pod, "default", &pod).unwrap()["metadata"]["ownerReferences"][0]["kind"].clone()
    };
    assert_eq!(
        [owner("agent"), owner("batch"), owner("plain")],
        [json!("DaemonSet"), json!("Job"), json!("ReplicaSet")]
    );
    let old = cluster.pods("default", "agent");
    cluster.rollout_restart(Kind::DaemonSet, "default", "agent");
    cluster
        .wait_for("the new agent", |cluster| {
            let new = cluster.pods("default", "agent");
            new.len() == 1 && new != old
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_crashed_container_restarts_in_its_pod() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.deployment("web").port("p", 1, handlers::echo()).create().unwrap();
    cluster.wait_ready("default", "web", 1).await.unwrap();
    let pod = cluster.pods("default", "web").remove(0);
    assert!(cluster.crash_pod("default", &pod));
    let status = |cluster: &FakeCluster| cluster.get(Kind::Pod, "default", &pod).unwrap()["status"].clone();
    assert_eq!(status(&cluster)["containerStatuses"][0]["ready"], false);
    cluster.wait_ready("default", "web", 1).await.unwrap();
    assert_eq!(cluster.pods("default", "web"), std::slice::from_ref(&pod));
    assert_eq!(status(&cluster)["containerStatuses"][0]["restartCount"], 1);
}
