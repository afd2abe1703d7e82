//! Every kind of target, with the objects coming and going.

use kftray_commons::WorkloadKind;

use super::*;

fn workload(kind: WorkloadKind, name: &str) -> TargetObject {
    TargetObject::Workload { kind, name: name.to_owned() }
}

fn owned(mut pod: Value, kind: &str, name: &str, uid: &str) -> Value {
    pod["metadata"]["ownerReferences"] =
        json!([{"kind": kind, "name": name, "uid": uid, "controller": true}]);
    pod
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_deleted_and_created_again() {
    let ground = Ground::new();
    let mut web = ground.service("web");
    becomes(&mut web, "target_missing: service/web in namespace shop does not exist").await;
    let created =
        service("web", json!({"app": "web"}), json!([{"name": "http", "port": 80, "targetPort": 8080}]));
    ground.api.put("services", created.clone());
    becomes(&mut web, "[] no pod matches the selector of service/web in namespace shop (app=web)").await;
    ground.api.put("pods", pod("web-1", "web", false));
    becomes(
        &mut web,
        "[] no pod of service/web in namespace shop is ready: web-1: container c runs but does not pass its readiness \
         probe",
    )
    .await;
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true)]));
    becomes(&mut web, "web-1:8080").await;
    settle().await;
    assert_eq!(ground.api.open_watches(), 2, "the pods are of no interest any more");
    ground.api.delete("services", "web");
    becomes(&mut web, "target_missing: service/web in namespace shop does not exist").await;
    ground.api.put("services", created);
    becomes(&mut web, "web-1:8080").await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_missing_is_told_with_those_that_are_there() {
    let ground = Ground::with_web();
    let mut wep = ground.service("wep");
    becomes(&mut wep, "target_missing: service/wep in namespace shop does not exist; there are web").await;
    for name in ["api", "db", "webhook", "cache", "worker"] {
        ground.api.put("services", service(name, json!({}), json!([])));
    }
    settle().await;
    let mut webs = ground.service("webs");
    becomes(
        &mut webs,
        "target_missing: service/webs in namespace shop does not exist; there are web, webhook, worker and 3 more",
    )
    .await;
    ground.api.put("services", service("webs", json!({"app": "webs"}), json!([{"port": 80}])));
    becomes(&mut webs, "[] no pod matches the selector of service/webs in namespace shop (app=webs)").await;
}

#[tokio::test(start_paused = true)]
async fn a_container_port_by_name_through_a_service_that_does_not_know_it() {
    let ground = Ground::with_web();
    let mut other = pod("web-2", "web", true);
    other["spec"]["containers"][0]["ports"] = json!([{"name": "admin", "containerPort": 9901}]);
    let mut first = pod("web-1", "web", true);
    first["spec"]["containers"][0]["ports"] = json!([{"name": "admin", "containerPort": 9900}]);
    ground.api.put("pods", first);
    ground.api.put("pods", other);
    ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true), ("web-2", true)]));
    let mut admin = ground.follow(TargetObject::Service("web".into()), &name("admin"));
    becomes(&mut admin, "web-1:9900, web-2:9901").await;
    let mut nix = ground.follow(TargetObject::Service("web".into()), &name("nix"));
    becomes(
        &mut nix,
        "target_port_missing: service/web in namespace shop has no port named nix, nor have its pods' containers; its \
         ports: http 80 -> 8080",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_by_name_and_its_successor() {
    let ground = Ground::with_web();
    let mut one = ground.follow(TargetObject::Pod("web-1".into()), &number(8080));
    becomes(&mut one, "web-1:8080").await;
    settle().await;
    assert_eq!(ground.api.requests(), ["list pods?metadata.name=web-1", "watch pods?metadata.name=web-1"]);
    ground.api.delete("pods", "web-1");
    becomes(&mut one, "target_missing: pod/web-1 in namespace shop does not exist").await;
    let mut successor = pod("web-1", "web", true);
    successor["metadata"]["uid"] = json!("uid-new");
    ground.api.put("pods", successor);
    becomes(&mut one, "web-1:8080").await;
    let Resolution::Endpoints { endpoints, .. } = one.borrow().clone() else { panic!("no endpoints") };
    assert_eq!(&*endpoints[0].uid, "uid-new");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_named_need_not_be_ready_but_must_run() {
    let ground = Ground::with_web();
    let mut one = ground.follow(TargetObject::Pod("web-1".into()), &name("http"));
    becomes(&mut one, "web-1:8080").await;
    let mut by_label = ground.follow(TargetObject::Labels("app=web".into()), &name("http"));
    ground.api.put("pods", pod("web-1", "web", false));
    becomes(
        &mut by_label,
        "[web-1:8080 unready] no pod of app=web in namespace shop is ready: web-1: container c runs but does not pass \
         its readiness probe",
    )
    .await;
    assert_eq!(text(&one.borrow()), "web-1:8080");
    let mut crashed = pod("web-1", "web", false);
    crashed["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    ground.api.put("pods", crashed);
    becomes(
        &mut one,
        "[web-1:8080 unready] pod/web-1 in namespace shop does not run: container c is in CrashLoopBackOff (0 restarts)",
    )
    .await;
    let mut terminating = pod("web-1", "web", false);
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    ground.api.put("pods", terminating);
    becomes(&mut one, "[web-1:8080 unready] pod/web-1 in namespace shop does not run: it is terminating")
        .await;
}

#[tokio::test(start_paused = true)]
async fn pods_by_label_share_a_watch_however_the_selector_is_spelt() {
    let ground = Ground::with_web();
    ground.api.put("pods", pod("db-1", "db", true));
    let mut over = pod("web-0", "web", true);
    over["status"]["phase"] = json!("Failed");
    ground.api.put("pods", over);
    let mut a = ground.follow(TargetObject::Labels("app=web".into()), &name("http"));
    let mut b = ground.follow(TargetObject::Labels(" app == web ".into()), &number(80));
    becomes(&mut a, "web-1:8080").await;
    becomes(&mut b, "web-1:80").await;
    settle().await;
    assert_eq!(ground.api.requests(), ["list pods?app=web", "watch pods?app=web"]);
    let mut bad = ground.follow(TargetObject::Labels("app in web".into()), &number(80));
    becomes(&mut bad, "spec_invalid: `app in web` is no valid label selector: `app in web` is no label key")
        .await;
    let mut none = ground.follow(TargetObject::Labels("app=nix".into()), &number(80));
    becomes(&mut none, "[] no pod in namespace shop matches app=nix").await;
    let mut port = ground.follow(TargetObject::Labels("app=web".into()), &name("grpc"));
    becomes(
        &mut port,
        "target_port_missing: the pods of app=web in namespace shop have no TCP container port named grpc; they \
         declare http (8080)",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_workload_has_only_the_pods_it_controls() {
    let ground = Ground::new();
    let object = |name: &str, replicas: u32| {
        json!({"metadata": {"name": name, "uid": format!("uid-{name}")},
               "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "db"}}}})
    };
    ground.api.put("statefulsets", object("db", 2));
    ground.api.put("pods", owned(pod("db-0", "db", true), "StatefulSet", "db", "uid-db"));
    ground.api.put("pods", owned(pod("db-1", "db", false), "StatefulSet", "db", "uid-db"));
    ground.api.put("pods", owned(pod("twin-0", "db", true), "StatefulSet", "twin", "uid-twin"));
    ground.api.put("pods", owned(pod("old-0", "db", true), "StatefulSet", "db", "uid-of-a-former-db"));
    ground.api.put("pods", pod("debug", "db", true));
    let mut db = ground.follow(workload(WorkloadKind::StatefulSet, "db"), &name("http"));
    becomes(&mut db, "db-0:8080, db-1:8080 unready").await;
    ground.api.delete("pods", "db-0");
    ground.api.delete("pods", "db-1");
    becomes(&mut db, "[] statefulset/db in namespace shop has no pods yet").await;
    ground.api.put("statefulsets", object("db", 0));
    becomes(&mut db, "[] statefulset/db in namespace shop is scaled to 0 replicas").await;
    ground.api.delete("statefulsets", "db");
    becomes(&mut db, "target_missing: statefulset/db in namespace shop does not exist").await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_finds_its_pods_by_name_and_adopted_ones_by_their_replica_set() {
    let ground = Ground::new();
    ground.api.put(
        "deployments",
        json!({"metadata": {"name": "web", "uid": "uid-dep"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}),
    );
    let mut made = owned(pod("web-abc-1", "web", true), "ReplicaSet", "web-abc", "uid-web-abc");
    made["metadata"]["labels"]["pod-template-hash"] = json!("abc");
    ground.api.put("pods", made);
    let mut web = ground.follow(workload(WorkloadKind::Deployment, "web"), &number(80));
    becomes(&mut web, "web-abc-1:80").await;
    assert!(!ground.api.requests().iter().any(|request| request.contains("replicasets")), "not needed");

    let set = |name: &str, owner: &str| {
        json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": "web"}, "ownerReferences":
            [{"kind": "Deployment", "name": owner, "uid": format!("uid-{owner}"), "controller": true}]}})
    };
    ground.api.put("replicasets", set("adopted", "dep"));
    ground.api.put("replicasets", set("alien", "other"));
    ground.api.put("pods", owned(pod("adopted-1", "web", true), "ReplicaSet", "adopted", "uid-adopted"));
    ground.api.put("pods", owned(pod("alien-1", "web", true), "ReplicaSet", "alien", "uid-alien"));
    becomes(&mut web, "adopted-1:80, web-abc-1:80").await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_without_rights_on_replica_sets_goes_by_names() {
    let ground = Ground::new();
    ground.api.deny(&["get", "list", "watch"], "replicasets");
    ground.api.put(
        "deployments",
        json!({"metadata": {"name": "web", "uid": "uid-dep"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}),
    );
    let mut made = owned(pod("web-abc-1", "web", true), "ReplicaSet", "web-abc", "uid-web-abc");
    made["metadata"]["labels"]["pod-template-hash"] = json!("abc");
    ground.api.put("pods", made);
    ground.api.put("pods", owned(pod("adopted-1", "web", true), "ReplicaSet", "adopted", "uid-adopted"));
    let object = workload(WorkloadKind::Deployment, "web");
    let mut web = ground.follow(object.clone(), &number(80));
    becomes(&mut web, "web-abc-1:80").await;
    settle().await;
    assert_eq!(ground.notes(object), ["may not list replicasets.apps in namespace shop (as user jane)"]);
}
