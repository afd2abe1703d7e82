//! Services that ask to be forwarded: found once, found later by a watch, and with few rights.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::sync::Arc;

use futures::StreamExt as _;
use kftray_commons::Code;
use kftray_kube::discover::{Discovered, Found, discover, follow};
use kftray_testkit::{FakeCluster, Kind, Rule, User, handlers};
use serde_json::json;
use support::{PATIENCE, clusters, up};

fn service(
    namespace: &str,
    name: &str,
    annotations: serde_json::Value,
    ports: serde_json::Value,
) -> serde_json::Value {
    json!({ "kind": "Service", "metadata": { "name": name, "namespace": namespace, "annotations": annotations },
        "spec": { "selector": { "app": name }, "ports": ports } })
}

fn shown(found: &Found) -> Vec<String> {
    let told = |one: &Discovered| {
        format!("{}/{} {} {} {}", one.namespace, one.service, one.alias, one.local_port, one.remote_port)
    };
    found.forwards.iter().map(told).collect()
}

async fn cluster() -> FakeCluster {
    let limited =
        User::new("limited").may(Rule::new(&["list", "watch", "get"], &["services"]).in_namespace("default"));
    let fake = FakeCluster::builder().namespace("shop").user(limited).start().await.unwrap();
    let http = json!([{ "port": 80, "targetPort": "http" }]);
    fake.create(service("default", "plain", json!({}), http.clone())).unwrap();
    fake.create(service("default", "web", json!({ "kftray.app/enabled": "true" }), http)).unwrap();
    let configs = json!({ "kftray.app/enabled": "true", "kftray.app/configs": "my-db-15432-pg, bad" });
    fake.create(service("shop", "db", configs, json!([{ "name": "pg", "port": 5432 }]))).unwrap();
    fake.deployment("web").port("http", 8080, handlers::echo()).create().unwrap();
    fake.wait_ready("default", "web", 1).await.unwrap();
    fake
}

#[tokio::test]
async fn found_in_all_namespaces_or_in_one() {
    let fake = cluster().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), "admin").await;
    let found = discover(&cluster, None).await.unwrap();
    // The named target port is what the pod says it is.
    assert_eq!(shown(&found), ["default/web web 8080 8080", "shop/db my-db 15432 5432"]);
    assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
    assert!(found.warnings[0].starts_with("service/db in namespace shop: `bad`"), "{:?}", found.warnings);
    let found = discover(&cluster, Some("shop")).await.unwrap();
    assert_eq!(shown(&found), ["shop/db my-db 15432 5432"]);
}

#[tokio::test]
async fn few_rights_find_less_and_say_so() {
    let fake = cluster().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), "limited").await;
    let found = discover(&cluster, None).await.unwrap();
    // Its pods may not be listed: the Service's own port goes as well.
    assert_eq!(shown(&found), ["default/web web 80 80"]);
    assert!(
        found.warnings[0].starts_with("only namespace default was searched: user limited may not list"),
        "{found:?}"
    );
    let refused = discover(&cluster, Some("shop")).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden, "{refused}");
}

#[tokio::test]
async fn a_watch_tells_what_is_annotated_later_once() {
    let fake = cluster().await;
    let cluster = up(&clusters(), &fake.kubeconfig_path(), "admin").await;
    let mut changes = follow(Arc::clone(&cluster), None).await.unwrap();
    let mut next =
        async || tokio::time::timeout(PATIENCE, changes.next()).await.expect("in time").unwrap().unwrap();
    let mut first = [next().await, next().await].map(|found| shown(&found).join(" "));
    first.sort();
    assert_eq!(first, ["default/web web 8080 8080", "shop/db my-db 15432 5432"]);
    let annotate = |annotations: serde_json::Value| {
        fake.patch(Kind::Service, "default", "plain", &json!({ "metadata": { "annotations": annotations } }))
    };
    // A change that is no news: the next value is the one after it.
    assert!(fake.patch(Kind::Service, "default", "web", &json!({ "metadata": { "labels": { "x": "y" } } })));
    assert!(annotate(json!({ "kftray.app/enabled": "true", "kftray.app/configs": "p-1-80" })));
    assert_eq!(shown(&next().await), ["default/plain p 1 80"]);
    assert!(annotate(json!({ "kftray.app/configs": "p-1-80,q-2-80" })));
    assert_eq!(shown(&next().await), ["default/plain q 2 80"]);
    assert!(fake.delete(Kind::Service, "default", "plain"));
    let again = json!({ "kftray.app/enabled": "true", "kftray.app/configs": "p-1-80" });
    fake.create(service("default", "plain", again, json!([{ "port": 80 }]))).unwrap();
    assert_eq!(shown(&next().await), ["default/plain p 1 80"]);
}
