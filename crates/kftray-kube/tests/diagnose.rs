//! The doctor's questions to kubeconfig and cluster, the answers that need a person, and that no secret is told.
#![cfg(unix)]

mod support;

use std::num::NonZeroU16;

use kftray_commons::api::{ContextReport, Granted};
use kftray_commons::{Code, ForwardId, ForwardSpec, RemotePort, Workload};
use kftray_kube::diagnose::{context, judge, permissions};
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login, PluginAnswer, Rule, User};
use support::{clusters, clusters_in, entry, environment, up};

async fn report(fake: &FakeCluster, name: &str) -> ContextReport {
    context(&clusters(), &entry(&fake.kubeconfig_path(), name)).await.0
}

fn service() -> ForwardSpec {
    let port = RemotePort::Number(NonZeroU16::MIN);
    ForwardSpec::new(ForwardId(1), Workload::Service { name: "web".to_owned(), port })
}

#[tokio::test]
async fn a_healthy_context() {
    let fake = FakeCluster::start().await.unwrap();
    let report = report(&fake, "admin").await;
    assert_eq!(report.problems, []);
    assert_eq!(report.name.as_deref(), Some("admin"));
    assert_eq!(report.server, Some(fake.url()));
    assert_eq!(report.server_version.as_deref(), Some("v1.36.0+fake"));
    assert_eq!(report.route.as_deref(), Some("direct"));
    assert_eq!(report.transport.as_deref(), Some("websocket"));
    assert_eq!(report.paths, [fake.kubeconfig_path().display().to_string()]);
    assert!(report.clock_skew_seconds.is_some_and(|skew| skew.abs() <= 2), "{report:?}");
    assert!(report.answered_ms.is_some());
    let login = report.login.unwrap();
    assert!(login.kind.starts_with("client certificate of admin"), "{login:?}");
    assert!(login.expires_at.is_some());
}

#[tokio::test]
async fn a_plugin_with_its_time_and_end_and_without_values() {
    let fake = FakeCluster::start().await.unwrap();
    fake.exec_plugin("admin")
        .unwrap()
        .answer(PluginAnswer::TokenFor(std::time::Duration::from_secs(600)))
        .unwrap();
    let path = fake.directory().join("with-env");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fake.kubeconfig_path()).unwrap()).unwrap();
    for user in config["users"].as_array_mut().unwrap() {
        if user["user"]["exec"].is_object() {
            user["user"]["exec"]["env"] =
                serde_json::json!([{ "name": "CLOUD_SECRET", "value": "canary-env-1" }]);
            user["user"]["exec"]["args"] = serde_json::json!(["--password", "canary-arg-2"]);
        }
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let (report, _) = context(&clusters(), &entry(&path, "admin-exec")).await;
    assert_eq!(report.problems, []);
    let login = report.login.clone().unwrap();
    assert!(login.expires_at.is_some());
    let plugin = login.plugin.unwrap();
    assert_eq!(plugin.path, Some(plugin.command.clone()));
    assert_eq!(plugin.variables, ["CLOUD_SECRET"]);
    assert!(plugin.took_ms.is_some());
    let text = serde_json::to_string(&report).unwrap();
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_code() {
    let fake = FakeCluster::start().await.unwrap();
    let code = async |name: &str| report(&fake, name).await.problems.first().map(|problem| problem.code);
    assert_eq!(code("nowhere").await, Some(Code::ContextMissing));
    fake.exec_plugin("admin").unwrap().answer(PluginAnswer::Fail).unwrap();
    assert_eq!(code("admin-exec").await, Some(Code::PluginFailed));
    fake.exec_plugin("admin").unwrap().remove().unwrap();
    let gone = report(&fake, "admin-exec").await;
    assert_eq!(gone.problems[0].code, Code::PluginMissing);
    assert_eq!(gone.login.unwrap().plugin.unwrap().path, None);
    fake.faults().clock_ahead(-3600);
    let skewed = report(&fake, "admin").await;
    assert_eq!(skewed.problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), [Code::ClockWrong]);
    assert!(skewed.clock_skew_seconds.is_some_and(|skew| (-3605..=-3595).contains(&skew)), "{skewed:?}");
    fake.faults().unauthorized(true);
    assert_eq!(code("admin").await, Some(Code::Unauthorized));
    fake.faults().clear().await;
    fake.faults().refuse_tcp().await;
    assert_eq!(code("admin").await, Some(Code::ClusterUnreachable));
}

/// Every place where a kubeconfig or the environment can hold a secret.
#[tokio::test]
async fn nothing_secret_is_told() {
    let fake = FakeCluster::start().await.unwrap();
    let path = fake.directory().join("secrets");
    let contexts = [Login::Token, Login::Basic, Login::Certificate, Login::Nothing];
    let mut config = Kubeconfig::default();
    for (number, login) in contexts.into_iter().enumerate() {
        config = config.context(Context::new(&format!("c{number}"), "admin").login(login));
    }
    let proxied =
        Context::new("proxied", "admin").proxy_url("http://canary-user:canary-password@127.0.0.1:9");
    config.context(proxied).write(&fake, &path).unwrap();
    let mut value: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for user in value["users"].as_array_mut().unwrap() {
        for secret in ["token", "password"] {
            if user["user"][secret].is_string() {
                user["user"][secret] = format!("canary-{secret}").into();
            }
        }
    }
    std::fs::write(&path, value.to_string()).unwrap();
    let home = fake.directory().display().to_string();
    let variables =
        [("HOME", home.as_str()), ("NO_PROXY", "*"), ("HTTPS_PROXY", "http://u:canary-env@127.0.0.1:9")];
    let clusters = clusters_in(environment(&variables));
    for name in ["c0", "c1", "c2", "c3", "proxied"] {
        let (report, _) = context(&clusters, &entry(&path, name)).await;
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("canary"), "{name}: {text}");
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERT"), "{name}: {text}");
    }
}

#[tokio::test]
async fn permissions_by_review_and_by_rules() {
    let bob = User::new("bob")
        .may(Rule::new(&["get"], &["services"]).in_namespace("default"))
        .may(Rule::new(&["create"], &["pods/portforward"]).in_namespace("default"));
    let fake = FakeCluster::builder().user(bob).start().await.unwrap();
    let clusters = clusters();
    let bob = up(&clusters, &fake.kubeconfig_path(), "bob").await;
    let by_review = permissions(&bob, &service(), "default").await;
    let granted: Vec<String> = by_review
        .iter()
        .filter(|one| one.granted == Granted::Yes)
        .map(|one| format!("{} {}", one.verb, one.resource))
        .collect();
    assert_eq!(granted, ["get services", "create pods/portforward"]);
    assert!(by_review.iter().all(|one| one.granted != Granted::Unknown));
    let problems = judge(&service(), "default", &by_review);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].message, "may not list endpointslices.discovery.k8s.io in namespace default");
    // Where single questions are refused, the rules tell the same.
    fake.faults().forbid("create", "selfsubjectaccessreviews");
    assert_eq!(permissions(&bob, &service(), "default").await, by_review);
    // Where both are, nothing is claimed.
    fake.faults().forbid("create", "selfsubjectrulesreviews");
    let unknown = permissions(&bob, &service(), "default").await;
    assert!(unknown.iter().all(|one| one.granted == Granted::Unknown));
    assert_eq!(judge(&service(), "default", &unknown), []);
    fake.faults().clear().await;
    let admin = up(&clusters, &fake.kubeconfig_path(), "admin").await;
    assert!(permissions(&admin, &service(), "default").await.iter().all(|one| one.granted == Granted::Yes));
}
