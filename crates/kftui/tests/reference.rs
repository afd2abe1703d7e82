//! The flags of kftray's own `kftui`, as its users have them in scripts: the same words, the same meaning, the same codes.

mod common;
mod home;

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use common::kftui;
use home::{Home, Lines};
use kftray_testkit::{FakeCluster, Kind, handlers};
use serde_json::{Value, json};

async fn cluster() -> FakeCluster {
    let cluster = FakeCluster::builder().namespace("shop").start().await.expect("a cluster");
    cluster.deployment("web").port("http", 8080, handlers::http_hello()).create().expect("created");
    cluster.service("web").port(80, "http").create().expect("created");
    cluster.wait_ready("default", "web", 1).await.expect("ready");
    cluster
}

async fn home() -> (FakeCluster, Home) {
    let cluster = cluster().await;
    let kubeconfig = cluster.kubeconfig_path();
    (cluster, Home::new(Some(kubeconfig)))
}

/// As the reference exports it.
const ENTRIES: &str = r#"[
  {"service": "web", "namespace": "default", "local_port": 0, "remote_port": 8080, "context": "admin",
   "workload_type": "service", "protocol": "tcp", "alias": "my-web", "tags": {"team": "blue"}},
  {"service": "web", "namespace": "shop", "local_port": 0, "remote_port": 8080, "context": "admin",
   "workload_type": "service", "protocol": "tcp", "alias": "elsewhere"}
]"#;

/// Prints what the forward's variables say, and asks it.
const ASK: &str = r#"printf '%s:%s' "$KFTRAY_MY_WEB_HOST" "$KFTRAY_MY_WEB_PORT"; exit 7"#;

fn address(stdout: &str) -> bool {
    stdout.strip_prefix("127.0.0.1:").and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_runs_a_command() {
    let (_cluster, home) = home().await;
    std::fs::write(home.path("configs.json"), ENTRIES).expect("written");
    let filtered = ["--filter", "namespace=default"];
    let end = ["-a", "--", "sh", "-c", ASK];
    for source in [
        &["-c", "configs.json"][..],
        &["--configs-path", "configs.json"],
        &["-j", ENTRIES],
        &["--json", ENTRIES],
    ] {
        let run = home.run(7, &[source, &filtered, &end].concat());
        assert!(address(&run.stdout), "{source:?}: {run:?}");
        assert!(run.stderr.contains("ready"), "status lines go to stderr: {run:?}");
    }
    let mut command = home.kftui(&[&["--stdin"][..], &filtered, &end].concat()).command;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(ENTRIES.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(7));
    assert!(address(&String::from_utf8_lossy(&output.stdout)), "{output:?}");
    // Nothing of it was kept.
    assert_eq!(home.run(0, &["list", "--output", "name"]).stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_the_command() {
    let (_cluster, home) = home().await;
    let entries = r#"{"alias": "w", "service": "web", "remote_port": 8080}"#;
    let code = |command: &[&str]| {
        home.kftui(&[&["--json", entries, "--auto-start", "--"], command].concat()).run().code
    };
    let codes = [code(&["true"]), code(&["/nonexistent/x"]), code(&["/"]), code(&["sh", "-c", "kill -9 $$"])];
    assert_eq!(codes, [0, 127, 126, 137]);
}

#[test]
fn what_comes_later_or_does_not_fit_is_told() {
    let cases: &[&[&str]] = &[
        &["--github-url", "https://example.com/x.git", "--configs-path", "a.json"],
        &["--ssl"],
        &["-c", "a.json", "--stdin"],
        &["--save"],
        &["-c", "a.json", "--non-interactive"],
        &["-c", "a.json", "--", "true"],
        &["--context", "x"],
        &["--alias-as-domain"],
        &["--filter", "colour=blue", "-c", "a.json"],
        &["--log-level", "loud"],
        &["--save", "list"],
    ];
    let all: Vec<String> = cases
        .iter()
        .map(|words| {
            let run = kftui(words).run();
            assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{words:?}: {run:?}");
            format!("$ kftui {}\n{}", words.join(" "), run.stderr)
        })
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_start_nothing_is_started() {
    let home = Home::new(None);
    std::fs::write(home.path("configs.json"), ENTRIES).expect("written");
    let run = home.run(0, &["-c", "configs.json", "--group-by", "tag:team"]);
    insta::assert_snapshot!(format!("{}---\n{}", run.stdout, run.stderr));
    home.run(3, &["-c", "configs.json", "--filter", "protocol=udp"]);
    home.run(3, &["-c", "missing.json", "-a"]);
    home.run(3, &["-j", "[]", "-a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_and_started() {
    let (_cluster, home) = home().await;
    std::fs::write(home.path("configs.json"), ENTRIES).expect("written");
    let saved = home.run(0, &["-c", "configs.json", "--save", "--non-interactive"]);
    assert!(saved.stderr.contains("saved: 2 added"), "{saved:?}");
    let again = home.run(0, &["-c", "configs.json", "-s", "--non-interactive"]);
    assert!(again.stderr.contains("0 added, 0 changed, 2 unchanged"), "{again:?}");
    // Saved and started, unchanged as it is, for a command.
    let run = home.run(7, &["-c", "configs.json", "-s", "-a", "--filter", "tag:team", "--", "sh", "-c", ASK]);
    assert!(address(&run.stdout), "{run:?}");
    // Out of the store, without a source.
    let run = home.run(7, &["-a", "--filter", "tag:team=blue", "--", "sh", "-c", ASK]);
    assert!(address(&run.stdout), "{run:?}");
    let flushed = home.run(
        0,
        &[
            "-j",
            r#"{"alias": "only", "service": "x", "remote_port": 1}"#,
            "-s",
            "--flush",
            "--non-interactive",
        ],
    );
    assert!(flushed.stderr.contains("1 added"), "{flushed:?}");
    assert_eq!(home.run(0, &["list", "--output", "name"]).stdout, "only\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn non_interactive_runs_until_a_signal() {
    let (_cluster, home) = home().await;
    std::fs::write(home.path("configs.json"), ENTRIES).expect("written");
    for (more, signal) in [(&[][..], "-INT"), (&["--save"], "-TERM")] {
        let words = ["-c", "configs.json", "--auto-start", "--non-interactive", "--filter", "tag:team"];
        let mut lines = Lines::start(&home, &[&words, more].concat());
        lines.until(&["my-web", "ready"]);
        assert_eq!(lines.end(signal), 0, "{more:?}");
    }
}

fn annotate(cluster: &FakeCluster, configs: &str) {
    let annotations = json!({ "kftray.app/enabled": "true", "kftray.app/configs": configs });
    let patch = json!({ "metadata": { "annotations": annotations } });
    assert!(cluster.patch(Kind::Service, "default", "web", &patch));
}

#[tokio::test(flavor = "multi_thread")]
async fn annotated_services_are_discovered() {
    let (cluster, home) = home().await;
    annotate(&cluster, "my-web-0-80");
    let end = ["-a", "--", "sh", "-c", ASK];
    for more in [
        &[][..],
        &["--context", "admin"],
        &["--namespace", "default"],
        &["--alias-as-domain", "--auto-loopback"],
    ] {
        let run = home.run(7, &[&["--auto-discover"], more, &end].concat());
        assert!(address(&run.stdout), "{more:?}: {run:?}");
    }
    let kubeconfig = cluster.kubeconfig_path().display().to_string();
    home.run(7, &[&["--auto-discover", "--kubeconfig", &kubeconfig][..], &end].concat());
    home.run(3, &["--auto-discover", "--namespace", "shop", "-a"]);
    home.run(4, &["--auto-discover", "--context", "nowhere", "-a"]);
    let saved = home.run(0, &["--auto-discover", "-s", "--alias-as-domain", "--non-interactive"]);
    assert!(saved.stderr.contains("1 added"), "{saved:?}");
    let stored = home.json(&["list"]);
    let entry = &stored[0]["config"]["spec"];
    assert_eq!(
        (&entry["alias"], &entry["domain_enabled"], &entry["service"]),
        (&json!("my-web"), &json!(true), &json!("web"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_annotated_later_is_added_by_a_watch() {
    let (cluster, home) = home().await;
    let words = ["--auto-discover", "--watch", "-a", "--non-interactive"];
    let mut memory = Lines::start(&home, &words);
    let stored = Lines::start(&home, &[&words[..], &["--save"]].concat());
    // It begins with nothing, and goes on.
    annotate(&cluster, "first-0-80");
    memory.until(&["first", "ready"]);
    annotate(&cluster, "first-0-80,second-0-80");
    memory.until(&["second", "ready"]);
    let ready = |stored: &Value| {
        stored.as_array().is_some_and(|all| all.iter().filter(|one| one["state"] == "ready").count() == 2)
    };
    for _ in 0..200 {
        if ready(&home.json(&["list"])) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let listed = home.json(&["list"]);
    assert!(ready(&listed), "{listed:#}");
    assert_eq!(memory.end("-TERM"), 0);
    assert_eq!(stored.end("-TERM"), 0);
}
