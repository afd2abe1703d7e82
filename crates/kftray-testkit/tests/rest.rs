//! The API server's semantics, seen by kube-rs: lists, watches, logins, RBAC, and every way to fail.

#![allow(clippy::allow_attributes, reason = "an expectation cannot hold for every file")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test's way to say what it needs")]

mod common;

use std::time::Duration;

use common::soon;
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kftray_testkit::{
    Context, ExecPlugin, FakeCluster, Kind, Kubeconfig, Login, PluginAnswer, Rule, ServerCertificate,
    Timings, Trust, User, handlers,
};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig as KubeKubeconfig};
use kube::{Client, Config};
use serde_json::json;

async fn client(cluster: &FakeCluster, context: &str) -> Client {
    client_of(&cluster.kubeconfig_path(), context).await
}

async fn client_of(path: &std::path::Path, context: &str) -> Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let config =
        Config::from_custom_kubeconfig(KubeKubeconfig::read_from(path).unwrap(), &options).await.unwrap();
    Client::try_from(config).unwrap()
}

fn code(error: &kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("not an API error: {other:?}"),
    }
}

async fn three_pods() -> FakeCluster {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.deployment("web").replicas(3).port("http", 8080, handlers::http_hello()).create().unwrap();
    cluster.service("web").port(80, "http").create().unwrap();
    cluster.wait_ready("default", "web", 3).await.unwrap();
    cluster
}

#[tokio::test]
async fn objects_can_be_read_listed_and_paged() {
    let cluster = three_pods().await;
    let client = client(&cluster, "admin").await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let all = soon(pods.list(&ListParams::default().labels("app=web"))).await.unwrap();
    assert_eq!(all.items.len(), 3);
    assert!(all.metadata.resource_version.is_some());
    assert!(pods.list(&ListParams::default().labels("app=other")).await.unwrap().items.is_empty());
    let name = all.items[0].metadata.name.clone().unwrap();
    let one = pods.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await.unwrap();
    assert_eq!(one.items.len(), 1);
    assert_eq!(pods.get(&name).await.unwrap().status.unwrap().phase.as_deref(), Some("Running"));
    let first = pods.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    let token = first.metadata.continue_.unwrap();
    let rest = pods.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!((rest.items.len(), rest.metadata.continue_), (1, None));
    assert!(Api::<Namespace>::all(client.clone()).get("default").await.is_ok());
    let (status, message) = code(&pods.get("nope").await.unwrap_err());
    assert_eq!((status, message.as_str()), (404, "pods \"nope\" not found"));
    // A kind that this cluster does not have.
    assert_eq!(
        code(&Api::<ConfigMap>::default_namespaced(client.clone()).get("a").await.unwrap_err()).0,
        404
    );
    assert!(client.apiserver_version().await.unwrap().git_version.starts_with("v1.36"));
    // apps, batch, discovery, networking and RBAC; the core group is not one of them.
    assert_eq!(client.list_api_groups().await.unwrap().groups.len(), 5);
}

#[tokio::test]
async fn objects_can_be_created_patched_and_deleted() {
    let cluster = three_pods().await;
    let client = client(&cluster, "admin").await;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "extra" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 1 }] },
    }))
    .unwrap();
    soon(services.create(&Default::default(), &service)).await.unwrap();
    assert_eq!(code(&services.create(&Default::default(), &service).await.unwrap_err()).0, 409);
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments.restart("web").await.unwrap();
    let patch = json!({ "spec": { "replicas": 1 } });
    deployments.patch_scale("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    cluster.wait_ready("default", "web", 1).await.unwrap();
    deployments.delete("web", &DeleteParams::default()).await.unwrap();
    // Replica sets and pods go with their owner.
    cluster
        .wait_for("the pods to go", |cluster| {
            cluster.list(Kind::Pod, "default").is_empty()
                && cluster.list(Kind::ReplicaSet, "default").is_empty()
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_watch_resumes_from_a_version_and_ends_in_410_when_it_is_too_old() {
    let cluster = three_pods().await;
    let client = client(&cluster, "admin").await;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let version = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let victim = cluster.pods("default", "web").remove(0);
    assert!(cluster.kill_pod("default", &victim));
    let params = WatchParams::default().labels("app=web");
    let mut watch = pods.watch(&params, &version).await.unwrap().boxed();
    let event = soon(watch.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Deleted(pod) if pod.metadata.name.as_deref() == Some(&victim)));
    let event = soon(watch.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Added(_)));
    assert_eq!(cluster.counters().watches.now(), 1);
    cluster.faults().gone();
    loop {
        match soon(watch.try_next()).await.unwrap() {
            Some(WatchEvent::Error(status)) => {
                assert_eq!(status.code, 410);
                break;
            }
            Some(_) => {}
            None => panic!("ended without an error"),
        }
    }
    let mut late = pods.watch(&params, &version).await.unwrap().boxed();
    let event = soon(late.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Error(status) if status.code == 410), "an old version was taken");
}

#[tokio::test]
async fn bookmarks_and_timeouts_are_kept() {
    let timings = Timings { bookmark: Duration::from_millis(50), ..Timings::default() };
    let cluster = FakeCluster::builder().timings(timings).start().await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin").await);
    let mut watch = pods.watch(&WatchParams::default().timeout(1), "0").await.unwrap().boxed();
    let event = soon(watch.try_next()).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Bookmark(_)));
    soon(async { while watch.try_next().await.unwrap().is_some() {} }).await;
}

#[tokio::test]
async fn a_reflector_survives_drops_stalls_410_and_restarts() {
    let cluster = three_pods().await;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client(&cluster, "admin").await);
    let mut stream = kube::runtime::watcher(slices, kube::runtime::watcher::Config::default()).boxed();
    let mut step = 0;
    let mut ready = 0;
    let faults = cluster.faults();
    while step < 4 {
        match soon(stream.next()).await.expect("a watcher never ends") {
            Ok(
                kube::runtime::watcher::Event::Apply(slice) | kube::runtime::watcher::Event::InitApply(slice),
            ) => {
                ready = slice
                    .endpoints
                    .unwrap_or_default()
                    .iter()
                    .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
                    .count();
            }
            Ok(_) => {}
            // Backoff is the caller's; here the next poll tries again.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        if ready == 3 + step {
            step += 1;
            cluster.scale(Kind::Deployment, "default", "web", u64::try_from(3 + step).unwrap());
            match step {
                1 => faults.drop_watches(),
                2 => faults.gone(),
                3 => faults.restart_api_server(Duration::from_millis(50)).await,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn streaming_lists_end_with_a_marked_bookmark() {
    use kube::runtime::watcher::{Config, Event};
    let cluster = three_pods().await;
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin").await);
    let mut stream = kube::runtime::watcher(pods, Config::default().streaming_lists()).boxed();
    let mut initial = 0;
    loop {
        match soon(stream.try_next()).await.unwrap().unwrap() {
            Event::InitApply(_) => initial += 1,
            Event::InitDone => break,
            _ => {}
        }
    }
    assert_eq!(initial, 3);
    assert_eq!(cluster.counters().requests("list", "pods"), 0);
    cluster.kill_pod("default", &cluster.pods("default", "web").remove(0));
    assert!(matches!(soon(stream.try_next()).await.unwrap().unwrap(), Event::Delete(_)));
}

#[tokio::test]
async fn a_stalled_watch_delivers_when_it_goes_on() {
    let cluster = three_pods().await;
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin").await);
    let version = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut watch = pods.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    cluster.faults().stall_watches(true);
    cluster.kill_pod("default", &cluster.pods("default", "web").remove(0));
    assert!(tokio::time::timeout(Duration::from_millis(300), watch.try_next()).await.is_err());
    cluster.faults().stall_watches(false);
    assert!(matches!(soon(watch.try_next()).await.unwrap().unwrap(), WatchEvent::Deleted(_)));
}

#[tokio::test]
async fn every_way_to_log_in_works() {
    let cluster = three_pods().await;
    for suffix in ["", "-token", "-token-file", "-exec", "-basic", "-insecure", "-server-name"] {
        let client = client(&cluster, &format!("admin{suffix}")).await;
        let pods = soon(Api::<Pod>::default_namespaced(client).list(&ListParams::default())).await;
        assert_eq!(pods.expect(suffix).items.len(), 3);
    }
    let path = cluster.directory().join("other");
    let config = Kubeconfig::default()
        .context(Context::new("expired", "admin").login(Login::ExpiredCertificate))
        .context(Context::new("nobody", "admin").login(Login::Nothing))
        .context(Context::new("distrust", "admin").trust(Trust::WrongAuthority));
    config.write(&cluster, &path).unwrap();
    for context in ["expired", "nobody"] {
        let pods = Api::<Pod>::default_namespaced(client_of(&path, context).await);
        assert_eq!(code(&soon(pods.list(&ListParams::default())).await.unwrap_err()).0, 401, "{context}");
    }
    let pods = Api::<Pod>::default_namespaced(client_of(&path, "distrust").await);
    assert!(matches!(
        soon(pods.list(&ListParams::default())).await,
        Err(kube::Error::HyperError(_) | kube::Error::Service(_))
    ));
    assert_eq!(cluster.counters().unauthorized.get(), 2);
}

fn run(plugin: &ExecPlugin) -> (Option<i32>, String) {
    let output = std::process::Command::new(plugin.command()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn exec_plugins_answer_as_told_and_count_their_runs() {
    let cluster = three_pods().await;
    let plugin = cluster.exec_plugin("admin").unwrap();
    assert_eq!(plugin.runs(), 0);
    let before = client(&cluster, "admin-exec").await;
    let pods: Api<Pod> = Api::default_namespaced(before);
    soon(pods.list(&ListParams::default())).await.unwrap();
    assert!(plugin.runs() >= 1);
    cluster.revoke_tokens("admin");
    assert_eq!(code(&soon(pods.list(&ListParams::default())).await.unwrap_err()).0, 401);
    plugin.answer(PluginAnswer::Certificate).unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin-exec").await);
    assert!(soon(pods.list(&ListParams::default())).await.is_ok());
    plugin.answer(PluginAnswer::Junk).unwrap();
    assert_eq!(run(plugin), (Some(0), "Welcome to the fake cloud!\n".to_owned()));
    plugin.answer(PluginAnswer::Fail).unwrap();
    assert_eq!(run(plugin), (Some(1), String::new()));
    plugin.answer(PluginAnswer::TokenFor(Duration::from_secs(60))).unwrap();
    assert!(run(plugin).1.contains("expirationTimestamp"));
    plugin.remove().unwrap();
    assert!(std::process::Command::new(plugin.command()).output().is_err());
    plugin.restore().unwrap();
    assert_eq!(run(plugin).0, Some(0));
}

#[tokio::test]
async fn refusals_name_user_verb_resource_and_namespace() {
    let user = User::new("dev")
        .may(Rule::new(&["get"], &["pods"]).in_namespace("shop"))
        .may(Rule::new(&["get"], &["services"]).named("web"));
    let cluster = FakeCluster::builder().namespace("shop").user(user).start().await.unwrap();
    cluster.pod("a").namespace("shop").create().unwrap();
    cluster.service("web").port(80, 80).create().unwrap();
    let client = client(&cluster, "dev").await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    assert!(soon(pods.get("a")).await.is_ok());
    let (status, message) = code(&pods.list(&ListParams::default()).await.unwrap_err());
    let expected = "pods is forbidden: User \"dev\" cannot list resource \"pods\" in API group \"\" in the namespace \"shop\"";
    assert_eq!((status, message.as_str()), (403, expected));
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    let (_, message) = code(&slices.list(&ListParams::default()).await.unwrap_err());
    let expected = "endpointslices.discovery.k8s.io is forbidden: User \"dev\" cannot list resource \"endpointslices\" \
                    in API group \"discovery.k8s.io\" at the cluster scope";
    assert_eq!(message, expected);
    let services: Api<Service> = Api::default_namespaced(client);
    assert!(services.get("web").await.is_ok());
    assert_eq!(code(&services.get("other").await.unwrap_err()).0, 403);
    assert_eq!(cluster.counters().forbidden.get(), 3);
}

#[tokio::test]
async fn requests_fail_as_told() {
    let cluster = three_pods().await;
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin").await);
    let faults = cluster.faults();
    faults.fail_requests(
        "list",
        "pods",
        StatusCode::INTERNAL_SERVER_ERROR,
        "etcdserver: leader changed",
        Some(1),
    );
    let (status, message) = code(&pods.list(&ListParams::default()).await.unwrap_err());
    assert_eq!((status, message.as_str()), (500, "etcdserver: leader changed"));
    assert!(pods.list(&ListParams::default()).await.is_ok());
    faults.forbid("list", "pods");
    let (status, message) = code(&pods.list(&ListParams::default()).await.unwrap_err());
    assert_eq!(status, 403);
    assert!(
        message.starts_with("pods is forbidden: User \"admin\" cannot list resource \"pods\""),
        "{message}"
    );
    faults.unauthorized(true);
    assert_eq!(code(&pods.list(&ListParams::default()).await.unwrap_err()).0, 401);
    faults.clear().await;
    assert!(pods.list(&ListParams::default()).await.is_ok());
    assert_eq!(cluster.counters().requests("list", "pods"), 5);
}

#[tokio::test]
async fn certificates_can_be_wrong() {
    let cluster = three_pods().await;
    for (certificate, plain, by_name) in [
        (ServerCertificate::Expired, false, false),
        (ServerCertificate::UnknownAuthority, false, false),
        (ServerCertificate::OtherName, false, true),
        (ServerCertificate::Good, true, true),
    ] {
        cluster.faults().certificate(certificate);
        for (context, expected) in
            [("admin", plain), ("admin-server-name", by_name), ("admin-insecure", true)]
        {
            let pods: Api<Pod> = Api::default_namespaced(client(&cluster, context).await);
            let result = soon(pods.list(&ListParams::default())).await;
            assert_eq!(result.is_ok(), expected, "{certificate:?} {context}: {result:?}");
        }
    }
}

#[tokio::test]
async fn plain_http_and_ipv6_work() {
    for builder in [FakeCluster::builder().plain(), FakeCluster::builder().ipv6()] {
        let cluster = builder.start().await.unwrap();
        let pods: Api<Pod> = Api::default_namespaced(client(&cluster, "admin").await);
        assert!(soon(pods.list(&ListParams::default())).await.unwrap().items.is_empty());
    }
}

#[tokio::test]
async fn starting_is_quick_and_dropping_ends_everything() {
    let cluster = three_pods().await;
    let (address, directory) = (cluster.address(), cluster.directory().to_owned());
    assert!(tokio::net::TcpStream::connect(address).await.is_ok());
    drop(cluster);
    assert!(!directory.exists());
    soon(async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
