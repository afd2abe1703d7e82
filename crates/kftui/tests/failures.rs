//! The failure catalogue as a person meets it: each fault is made, the program says which it is, names the thing, and says
//! what to do (`docs/failures.md`).
#![cfg(unix)]

mod common;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use common::kftui;
use http::StatusCode;
use kftray_testkit::proxy::{Kind as ProxyKind, Proxy};
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login, PluginAnswer, Rule, Trust, User, handlers};
use serde_json::{Value, json};

/// Long enough for a first answer on a busy machine.
const PATIENCE: &str = "6";

struct Ground {
    cluster: FakeCluster,
}

impl Ground {
    async fn new() -> Self {
        let bob = User::new("bob")
            .may(Rule::new(&["get", "list", "watch"], &["services", "endpointslices", "pods"]));
        let carol = User::new("carol").may(Rule::new(&["create", "get"], &["pods/portforward"]));
        let cluster = FakeCluster::builder().user(bob).user(carol).start().await.expect("a cluster");
        cluster.deployment("web").port("http", 8080, handlers::echo()).create().expect("created");
        cluster.service("web").port(80, "http").create().expect("created");
        cluster.wait_ready("default", "web", 1).await.expect("ready");
        Self { cluster }
    }

    /// A kubeconfig with one context.
    fn config(&self, name: &str, context: Context) -> PathBuf {
        let path = self.cluster.directory().join(name);
        Kubeconfig::default().context(context).write(&self.cluster, &path).expect("written");
        path
    }

    /// Tries a forward; the problem of that code, as it was told.
    #[track_caller]
    fn told(&self, kubeconfig: &std::path::Path, words: &[&str], code: &str, parts: &[&str]) -> Value {
        let config = kubeconfig.display().to_string();
        let more = ["--kubeconfig", &config, "--output", "json", "--ready-timeout", PATIENCE];
        let run = kftui(&[&["forward"], words, &more].concat()).run();
        let lines: Vec<Value> =
            run.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let problems = lines.iter().flat_map(|line| {
            let status = &line["status"];
            [&status["cause"], &status["waiting_for"], &line["problem"]]
                .into_iter()
                .filter(|it| it.is_object())
                .cloned()
        });
        let all: Vec<Value> = problems.collect();
        let found = all.iter().find(|problem| {
            let text = problem["message"].as_str().unwrap_or_default();
            problem["code"] == code && parts.iter().all(|part| text.contains(part))
        });
        let found = found.unwrap_or_else(|| panic!("no {code} with {parts:?} in {all:#?}; {}", run.stderr));
        assert!(
            found["remedy"].as_str().is_some_and(|remedy| remedy.ends_with('.') && remedy.len() > 10),
            "{found}"
        );
        // What needs a person ends it at once with 4; what may pass is waited for, until the time is over.
        assert!(matches!(run.code, 4 | 5), "{run:?}");
        found.clone()
    }

    fn current(&self) -> PathBuf {
        self.cluster.kubeconfig_path()
    }
}

const WEB: &[&str] = &["svc/web", ":80"];

#[tokio::test(flavor = "multi_thread")]
async fn kubeconfig() {
    let ground = Ground::new().await;
    let write = |name: &str, text: &str| {
        let path = ground.cluster.directory().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    ground.told(&ground.cluster.directory().join("absent"), WEB, "kubeconfig_missing", &["absent"]);
    ground.told(&write("bad", "contexts:\n- name: [x\n"), WEB, "kubeconfig_invalid", &["bad:"]);
    let good = std::fs::read_to_string(ground.current()).expect("read");
    ground.told(
        &write("gone", &good.replace("\"current-context\": \"admin\"", "\"current-context\": \"gone\"")),
        WEB,
        "context_missing",
        &["gone"],
    );
    ground.told(
        &ground.current(),
        &["svc/web", ":80", "--context", "nowhere"],
        "context_missing",
        &["nowhere", "admin"],
    );
    let mut renamed: Value = serde_json::from_str(&good).expect("JSON");
    for cluster in renamed["clusters"].as_array_mut().expect("a list") {
        cluster["name"] = json!("renamed");
    }
    ground.told(&write("renamed", &renamed.to_string()), WEB, "context_missing", &["cluster \"admin\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn login() {
    let ground = Ground::new().await;
    let plugin = ground.cluster.exec_plugin("admin").expect("there");
    let exec = ground.config("exec", Context::new("x", "admin").login(Login::Exec));
    plugin.answer(PluginAnswer::Junk).expect("written");
    ground.told(&exec, WEB, "plugin_failed", &["no JSON"]);
    plugin.answer(PluginAnswer::Fail).expect("written");
    let failed = ground.told(&exec, WEB, "plugin_failed", &["login expired"]);
    assert!(failed["remedy"].as_str().is_some_and(|remedy| remedy.contains("in a terminal")), "{failed}");
    plugin.remove().expect("removed");
    ground.told(&exec, WEB, "plugin_missing", &["fake-cloud-login"]);
    let expired = ground.config("expired", Context::new("x", "admin").login(Login::ExpiredCertificate));
    ground.told(&expired, WEB, "unauthorized", &["client certificate", "expired on"]);
    let rotated = ground.config("rotated", Context::new("x", "admin").trust(Trust::WrongAuthority));
    ground.told(&rotated, WEB, "certificate_untrusted", &["not issued by an authority"]);
    let nothing = ground.config("nothing", Context::new("x", "admin").login(Login::Nothing));
    ground.told(&nothing, WEB, "unauthorized", &["no credentials"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn network() {
    let ground = Ground::new().await;
    let refused = ground.config("refused", Context::new("x", "admin").server("https://127.0.0.1:1"));
    ground.told(&refused, WEB, "cluster_unreachable", &["127.0.0.1:1"]);
    let nameless =
        ground.config("nameless", Context::new("x", "admin").server("https://no-such-host.invalid:6443"));
    ground.told(&nameless, WEB, "cluster_unreachable", &["no-such-host.invalid"]);
    let proxy = Proxy::with_login(ProxyKind::Http, "me", "geheim").await.expect("a proxy");
    let proxied = ground.config("proxied", Context::new("x", "admin").proxy_url(&proxy.url_without_login()));
    let asked = ground.told(&proxied, WEB, "proxy_refused", &["asks for", "proxy-url of the kubeconfig"]);
    assert!(!asked.to_string().contains("geheim"));
    ground.cluster.faults().throttle_requests("*", "*", 1, None);
    ground.told(&ground.current(), WEB, "cluster_error", &["429"]);
    ground.cluster.faults().stop_failing_requests();
    let page = "<html>Sign in to the hotel's network</html>";
    ground.cluster.faults().fail_requests("*", "*", StatusCode::SERVICE_UNAVAILABLE, page, None);
    ground.told(&ground.current(), WEB, "cluster_error", &["503"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions() {
    let ground = Ground::new().await;
    let forward = ground.told(
        &ground.current(),
        &["svc/web", ":80", "--context", "bob"],
        "forbidden",
        &["pods/portforward"],
    );
    assert!(
        forward["remedy"]
            .as_str()
            .is_some_and(|remedy| remedy.contains("get and create on pods/portforward")),
        "{forward}"
    );
    let services = ground.told(
        &ground.current(),
        &["svc/web", ":80", "--context", "carol"],
        "forbidden",
        &["services", "namespace default"],
    );
    assert!(services["remedy"].as_str().is_some_and(|remedy| remedy.contains("on services")), "{services}");
    ground.told(&ground.current(), &["app=web", ":8080", "--context", "carol"], "forbidden", &["list pods"]);
    ground.told(
        &ground.current(),
        &["svc/web", ":80", "-n", "no-such-namespace"],
        "target_missing",
        &["no-such-namespace"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn target() {
    let ground = Ground::new().await;
    let cluster = &ground.cluster;
    cluster.service("bare").without_selector().port(80, 80).create().expect("created");
    cluster.service("empty").port(80, 80).create().expect("created");
    let outside = json!({ "kind": "Service", "metadata": { "name": "outside" },
        "spec": { "type": "ExternalName", "externalName": "db.example.com" } });
    cluster.create(outside).expect("created");
    let slow = Duration::from_secs(3600);
    let starting = cluster.deployment("starting").port("http", 80, handlers::echo());
    starting.pod_times(slow, slow, slow).create().expect("created");
    cluster.deployment("unready").port("http", 80, handlers::echo()).create().expect("created");
    cluster.wait_ready("default", "unready", 1).await.expect("ready");
    let pod = cluster.pods("default", "unready").remove(0);
    assert!(cluster.hold_unready("default", &pod, true));

    let told =
        |words: &[&str], code: &str, parts: &[&str]| drop(ground.told(&ground.current(), words, code, parts));
    told(&["svc/wob", ":80"], "target_missing", &["wob", "there are web"]);
    told(&["svc/bare", ":80"], "no_ready_pods", &["has no selector"]);
    told(&["svc/empty", ":80"], "no_ready_pods", &["no pod matches the selector", "app=empty"]);
    told(&["svc/outside", ":80"], "target_not_forwardable", &["db.example.com"]);
    told(&["svc/web", ":metrics"], "target_port_missing", &["metrics", "80"]);
    told(&["deploy/web", ":metrics"], "target_port_missing", &["metrics", "http"]);
    told(&["deploy/starting", ":80"], "no_ready_pods", &["starting"]);
    told(&["deploy/unready", ":80"], "no_ready_pods", &["does not pass its readiness probe"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine() {
    let ground = Ground::new().await;
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let own = std::process::id().to_string();
    let taken = ground.told(
        &ground.current(),
        &["svc/web", &format!("{port}:80")],
        "port_in_use",
        &[&port.to_string(), &own],
    );
    assert!(taken["remedy"].as_str().is_some_and(|remedy| remedy.contains("another local port")), "{taken}");
    // TEST-NET-3 (RFC 5737) is no address of any machine.
    ground.told(
        &ground.current(),
        &["svc/web", ":80", "--address", "203.0.113.1"],
        "address_unavailable",
        &["203.0.113.1"],
    );
    ground.told(
        &ground.current(),
        &["svc/web", ":80", "--address", "no-such-host.invalid"],
        "address_unavailable",
        &["no-such-host.invalid"],
    );
}
