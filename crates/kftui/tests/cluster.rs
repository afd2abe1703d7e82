//! `forward` and `run` from end to end: the built program, a written kubeconfig, and a cluster in this process that
//! speaks the true protocols.

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use common::kftui;
use kftray_testkit::{Context, FakeCluster, Kubeconfig, Login, handlers};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A busy machine may be slow; a test that hangs must end.
const LIMIT: Duration = Duration::from_secs(60);

async fn cluster() -> FakeCluster {
    let cluster = FakeCluster::start().await.expect("a cluster");
    cluster
        .deployment("web")
        .replicas(2)
        .port("http", 8080, handlers::http_hello())
        .create()
        .expect("created");
    cluster.service("web").port(80, "http").create().expect("created");
    cluster.stateful_set("db").port("pg", 5432, handlers::echo()).create().expect("created");
    cluster.service("db").port(5432, "pg").create().expect("created");
    cluster.wait_ready("default", "web", 2).await.expect("ready");
    cluster.wait_ready("default", "db", 1).await.expect("ready");
    cluster
}

/// A running program whose JSON lines are read as they come.
struct Events {
    child: Child,
    lines: BufReader<ChildStdout>,
    seen: Vec<Value>,
}

impl Events {
    fn start(words: &[&str], kubeconfig: &Path) -> Self {
        let mut command = kftui(words).command;
        command.args(["--output", "json", "--kubeconfig"]).arg(kubeconfig);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines, seen: Vec::new() }
    }

    /// Blocks the test's own thread; the cluster lives on the runtime's others.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("readable");
            assert!(read > 0, "it ended; seen: {:#?}", self.seen);
            let event: Value = serde_json::from_str(&line).expect("one JSON object a line");
            self.seen.push(event.clone());
            if wanted(&event) {
                return event;
            }
            assert!(begun.elapsed() < LIMIT, "seen: {:#?}", self.seen);
        }
    }

    fn until_event(&mut self, name: &str) -> Value {
        self.until(|event| event["event"] == name)
    }

    fn address(&self, forward: &str) -> String {
        let mut listening = self.seen.iter().filter(|event| event["event"] == "listening");
        let found = listening.find(|event| event["forward"] == forward).expect("it listens");
        found["addresses"][0].as_str().expect("a text").to_owned()
    }

    fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Its exit code and what else it printed.
    fn end(mut self) -> (i32, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("readable");
        (self.child.wait().expect("ends").code().unwrap_or(-1), rest)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_are_ready_in_order_and_serve() {
    let cluster = cluster().await;
    let words = ["forward", "svc/web", ":http", ":80", "sts/db", ":pg", "app=web", ":8080"];
    let kubeconfig = cluster.kubeconfig_path();
    // A named port of a Service with one unnamed port is the container's.
    let mut events = Events::start(&words, &kubeconfig);
    events.until_event("all_ready");
    let listening = events.seen.iter().filter(|event| event["event"] == "listening");
    let told: Vec<_> = listening
        .map(|event| format!("{} {} {}", event["forward"], event["target"], event["remote_port"]))
        .collect();
    assert_eq!(
        told,
        [
            r#""svc/web:http" "service/web" "http""#,
            r#""svc/web:80" "service/web" 80"#,
            r#""sts/db:pg" "statefulset/db" "pg""#,
            r#""app=web:8080" "app=web" 8080"#
        ]
    );
    let ready =
        events.seen.iter().find(|event| event["event"] == "ready" && event["forward"] == "svc/web:80");
    let ready = ready.expect("it is ready");
    assert_eq!(ready["transport"], "websocket");
    assert!(
        ready["endpoint"]
            .as_str()
            .is_some_and(|text| text.starts_with("default/web-") && text.ends_with(":8080"))
    );
    for forward in ["svc/web:http", "svc/web:80", "app=web:8080"] {
        assert!(get(&events.address(forward)).await.contains("hello from web-"), "{forward}");
    }
    // The same port on both families.
    assert_eq!(ready["addresses"].as_array().map(Vec::len), Some(2));
    let begun = Instant::now();
    events.signal("TERM");
    let (code, rest) = events.end();
    assert_eq!(code, 0);
    assert_eq!(rest.matches(r#""event":"stopped""#).count(), 4, "{rest}");
    assert!(!rest.contains("needs_user"), "{rest}");
    // The promise is a second; a machine that builds beside it gets more.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_when_its_pods_are_killed() {
    let cluster = cluster().await;
    let mut events = Events::start(&["forward", "svc/web", ":80"], &cluster.kubeconfig_path());
    events.until_event("all_ready");
    let address = events.address("svc/web:80");
    for pod in cluster.pods("default", "web") {
        assert!(cluster.kill_pod("default", &pod));
    }
    // Held, not refused.
    assert!(get(&address).await.contains("hello from web-"));
    events.until(|event| event["event"] == "ready" && event["endpoint"].is_string());
    events.signal("INT");
    assert_eq!(events.end().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_finds_its_forwards_and_its_code_is_ours() {
    let cluster = cluster().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("team.json");
    let text = r#"[{"alias": "my-web", "service": "web", "remote_port": 80},
                   {"alias": "dns", "service": "dns", "remote_port": "5 3"},
                   {"service": "db", "remote_port": 5432, "local_address": "127.0.0.1"}]"#;
    std::fs::write(&file, text).expect("written");
    let kubeconfig = cluster.kubeconfig_path();
    let script =
        r#"echo "web $KFTRAY_MY_WEB_HOST:$KFTRAY_MY_WEB_PORT db $KFTRAY_DB_HOST:$KFTRAY_DB_PORT"; exit 7"#;
    let (file, config) = (file.to_str().expect("UTF-8"), kubeconfig.to_str().expect("UTF-8"));
    let words = ["run", file, "--kubeconfig", config, "--", "sh", "-c", script];
    let run = kftui(&words).run();
    assert_eq!(run.code, 7, "{run:?}");
    // Standard output is the command's alone.
    let words: Vec<_> = run.stdout.split_whitespace().collect();
    assert_eq!((words.len(), words[0], words[2]), (4, "web", "db"), "{run:?}");
    for address in [words[1], words[3]] {
        let port = address.strip_prefix("127.0.0.1:").and_then(|port| port.parse::<u16>().ok());
        assert!(port.is_some_and(|port| port > 0), "{run:?}");
    }
    assert!(run.stderr.contains("remote_port") && run.stderr.contains("dns"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_commands() {
    let cluster = cluster().await;
    let config = cluster.kubeconfig_path();
    let config = config.to_str().expect("UTF-8").to_owned();
    let code = |command: &[&str]| {
        let words = ["forward", "svc/web", ":80", "--kubeconfig", &config, "--"];
        kftui(&[&words, command].concat()).run().code
    };
    let codes = [code(&["true"]), code(&["/nonexistent/x"]), code(&["/"]), code(&["sh", "-c", "kill -9 $$"])];
    assert_eq!(codes, [0, 127, 126, 137]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_goes_to_the_command() {
    let cluster = cluster().await;
    let config = cluster.kubeconfig_path();
    let directory = tempfile::tempdir().expect("a directory");
    let started = directory.path().join("started");
    let script = format!("trap 'exit 33' TERM; touch {}; while :; do sleep 0.05; done", started.display());
    let mut command = kftui(&["forward", "svc/web", ":80", "--kubeconfig"]).command;
    let mut child = command.arg(&config).args(["--", "sh", "-c", &script]).spawn().expect("starts");
    let begun = Instant::now();
    while !started.exists() {
        assert!(begun.elapsed() < LIMIT && child.try_wait().expect("alive").is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(33));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_the_user_ends_it_with_4() {
    let cluster = cluster().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config");
    let nobody = Context::new("nobody", "admin").login(Login::Nothing);
    Kubeconfig::default().context(nobody).current("nobody").write(&cluster, &path).expect("written");
    for (more, code) in [(&[][..], "unauthorized"), (&["--context", "elsewhere"][..], "context_missing")] {
        let mut events = Events::start(&[&["forward", "svc/web", ":80"], more].concat(), &path);
        let told = events.until(|event| event["status"]["phase"] == "needs_user");
        assert_eq!(told["status"]["cause"]["code"], code, "{told}");
        assert_eq!(events.end().0, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_late_is_5_and_says_what_was_missing() {
    let cluster = cluster().await;
    let config = cluster.kubeconfig_path();
    let config = config.to_str().expect("UTF-8").to_owned();
    let run = kftui(&[
        "forward",
        "svc/nothing",
        ":80",
        "svc/web",
        ":80",
        "--ready-timeout",
        "2",
        "--kubeconfig",
        &config,
    ])
    .run();
    assert_eq!(run.code, 5, "{run:?}");
    assert!(run.stderr.contains("not ready in time: svc/nothing:80"), "{run:?}");
    assert!(!run.stderr.contains("svc/web:80"), "{run:?}");
    assert!(run.stdout.contains("waiting") && run.stdout.contains("nothing"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_goes_on_with_the_others() {
    let cluster = cluster().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("team.json");
    let text = format!(
        r#"{{"alias": "busy", "service": "web", "local_port": {port}, "remote_port": 80}}
           {{"alias": "good", "service": "web", "remote_port": "80"}}"#
    );
    std::fs::write(&file, text).expect("written");
    let words = ["run", file.to_str().expect("UTF-8")];
    let mut events = Events::start(&words, &cluster.kubeconfig_path());
    events.until(|event| event["event"] == "ready" && event["forward"] == "good");
    let busy = |event: &Value| event["forward"] == "busy" && event["status"]["phase"] == "needs_user";
    if !events.seen.iter().any(busy) {
        events.until(busy);
    }
    assert!(get(&events.address("good")).await.contains("hello"));
    events.signal("INT");
    assert_eq!(events.end().0, 0);
}

/// A command is not started with less than it was promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_run_without_all() {
    let cluster = cluster().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("team.json");
    let text = format!(
        r#"[{{"service": "web", "remote_port": 80}}, {{"service": "db", "local_port": {port}, "remote_port": 5432}}]"#
    );
    std::fs::write(&file, text).expect("written");
    let kubeconfig = cluster.kubeconfig_path();
    let (file, config) = (file.to_str().expect("UTF-8"), kubeconfig.to_str().expect("UTF-8"));
    let run = kftui(&["run", file, "--kubeconfig", config, "--", "echo", "it ran"]).run();
    assert_eq!(run.code, 4, "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    assert!(run.stderr.contains("needs you"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transport_can_be_forced() {
    let cluster = cluster().await;
    for (flag, told) in [("websocket", "websocket"), ("spdy", "spdy"), ("legacy", "legacy")] {
        let words = ["forward", "svc/web", ":80", "--transport", flag];
        let mut events = Events::start(&words, &cluster.kubeconfig_path());
        let ready = events.until_event("ready");
        assert_eq!(ready["transport"], told);
        assert!(get(&events.address("svc/web:80")).await.contains("hello"));
    }
}
