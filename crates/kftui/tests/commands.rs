//! The commands that work on the host, from end to end: the built program, a host that it starts, and a cluster in this
//! process.

mod common;
mod home;

use std::net::TcpListener;
use std::path::Path;

use home::{Home, Lines};
use kftray_testkit::{FakeCluster, handlers};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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

async fn home() -> (FakeCluster, Home) {
    let cluster = cluster().await;
    let kubeconfig = cluster.kubeconfig_path();
    (cluster, Home::new(Some(kubeconfig)))
}

async fn hello(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

fn names(answer: &Value) -> Vec<&str> {
    answer.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_forward() {
    let (_cluster, home) = home().await;
    let added =
        home.json(&["add", "svc/web", ":80", "--alias", "web", "--tag", "team=blue", "--group", "shop"]);
    assert_eq!(names(&added), ["web"]);
    home.run(0, &["add", "sts/db", ":pg", "--alias", "db"]);
    let listed = home.json(&["list"]);
    assert_eq!(names(&listed), ["web", "db"]);
    assert_eq!((&listed[0]["state"], &listed[0]["group"]), (&json!("stopped"), &json!("shop")));
    assert_eq!(listed[1]["group"], Value::Null);

    let started = home.json(&["start", "web", "db"]);
    assert_eq!((&started[0]["state"], &started[1]["state"]), (&json!("ready"), &json!("ready")), "{started}");
    let address = started[0]["addresses"][0].as_str().expect("an address").to_owned();
    assert!(hello(&address).await.contains("hello from web-"));
    assert_eq!(home.json(&["start", "web"])[0]["outcome"], "already_running");

    // Another command, another process: the same truth.
    let status = home.run(0, &["status"]).stdout;
    assert!(status.contains("web") && status.contains("ready") && status.contains("websocket"), "{status}");
    // Counters are brought up to date now and then, not with every byte.
    let mut details = String::new();
    for _ in 0..100 {
        details = home.run(0, &["status", "web"]).stdout;
        if details.contains("1 connection,") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(details.contains("pod:") && details.contains("1 connection,"), "{details}");
    let port = address.rsplit(':').next().expect("a port");
    let env = home.run(0, &["env", "web"]).stdout;
    assert_eq!(env, format!("KFTRAY_WEB_HOST=127.0.0.1\nKFTRAY_WEB_PORT={port}\n"));
    home.run(0, &["wait", "--ready", "--timeout", "60"]);
    let log = home.run(0, &["logs", "web"]).stdout;
    assert!(log.contains("started") && log.contains("ready"), "{log}");

    assert_eq!(names(&home.json(&["list", "--filter", "tag:team=blue"])), ["web"]);
    assert_eq!(home.run(0, &["list", "--output", "name"]).stdout, "web\ndb\n");
    let grouped = home.run(0, &["list", "--group-by", "group"]).stdout;
    assert!(grouped.contains("group: shop") && grouped.contains("group: Ungrouped"), "{grouped}");

    assert_eq!(home.json(&["restart", "web"])[0]["outcome"], "restarted");
    assert_eq!(home.json(&["stop", "--all"])[0]["outcome"], "stopped");
    assert!(TcpStream::connect(&address).await.is_err());
    let mut log = Lines::start(&home, &["logs", "--follow", "web"]);
    log.until(&["web", "ended"]);
    home.run(0, &["start", "web", "--no-wait"]);
    log.until(&["web", "started"]);
    log.until(&["web", "ready"]);
    assert_eq!(log.end("-INT"), 0);
    home.run(0, &["stop", "web"]);
    // What does not listen is not in the environment, and asking for it by name says so.
    assert_eq!(home.run(5, &["env", "web"]).stdout, "");
    home.run(0, &["rm", "web"]);
    assert_eq!(names(&home.json(&["list"])), ["db"]);
    // A set is asked about, and nobody is there to answer.
    home.run(4, &["rm", "--all"]);
    home.run(0, &["rm", "--all", "--yes"]);
    assert_eq!(home.run(0, &["list"]).stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes() {
    let (_cluster, home) = home().await;
    home.run(0, &["add", "svc/web", ":80", "--alias", "web"]);
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port().to_string();
    home.run(0, &["add", "svc/web", &format!("{port}:80"), "--alias", "busy"]);
    home.run(0, &["add", "svc/nothing", ":80", "--alias", "nothing"]);

    let unknown = home.run(3, &["start", "wbe"]);
    assert!(unknown.stderr.contains("there is no forward `wbe`"), "{unknown:?}");
    home.run(3, &["start"]);
    let busy = home.run(4, &["start", "busy"]);
    assert!(busy.stderr.contains(&port) && busy.stderr.contains("another local port"), "{busy:?}");
    let late = home.run(5, &["start", "nothing", "--timeout", "2"]);
    assert!(late.stderr.contains("nothing") && late.stderr.contains("does not exist"), "{late:?}");
    // It goes on waiting in the host.
    assert_eq!(home.json(&["list", "nothing"])[0]["state"], "resolving");
    home.run(5, &["wait", "nothing", "--timeout", "0.5"]);
    home.run(4, &["wait", "busy"]);
    home.run(3, &["wait", "web"]);
    home.run(2, &["add", "svc/web"]);
    home.run(2, &["add", "svc/web", "80", "svc/db", "5432", "--alias", "x"]);
    home.run(2, &["add", "svc/web", "80", "--tag", "a!=1"]);
}

/// A directory that cannot be one: no host can be started, and the code says so.
#[test]
fn no_host() {
    let home = Home::new(None);
    std::fs::write(home.path("config"), "a file").expect("written");
    let run = home.run(6, &["list"]);
    assert!(run.stderr.contains("config"), "{run:?}");
    // Nothing runs where no host can.
    let doctor = home.run(6, &["doctor"]);
    assert!(doctor.stdout.contains("there is no kubeconfig"), "{doctor:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_forwards_for_a_command() {
    let (_cluster, home) = home().await;
    home.run(0, &["add", "svc/web", ":80", "--alias", "my-web"]);
    home.run(0, &["add", "svc/db", ":5432"]);
    let script = r#"echo "$KFTRAY_MY_WEB_HOST:$KFTRAY_MY_WEB_PORT $KFTRAY_DB_PORT"; exit 7"#;
    let run = home.run(7, &["run", "my-web", "svc/db:5432", "--", "sh", "-c", script]);
    let words: Vec<&str> = run.stdout.split_whitespace().collect();
    assert!(words[0].starts_with("127.0.0.1:") && words[1].parse::<u16>().is_ok(), "{run:?}");
    // They end with the command; one that ran before does not.
    home.run(0, &["wait", "--timeout", "20"]);
    home.run(0, &["start", "my-web"]);
    home.run(0, &["run", "my-web", "svc/db:5432", "--", "true"]);
    let states = |listed: &Value| {
        let one = |one: &Value| format!("{}={}", one["name"], one["state"]);
        listed.as_array().expect("a list").iter().map(one).collect::<Vec<_>>().join(" ")
    };
    // The lease ends with the connection, which the host notices at once but not before the program's end.
    for _ in 0..100 {
        if states(&home.json(&["list"])).contains(r#""svc/db:5432"="stopped""#) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(states(&home.json(&["list"])), r#""my-web"="ready" "svc/db:5432"="stopped""#);
    assert_eq!(home.run(127, &["run", "my-web", "--", "/nonexistent/x"]).stdout, "");
    home.run(2, &["run", "my-web", "team.json"]);
    home.run(3, &["run", "unheard-of", "--", "true"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_and_out() {
    let home = Home::new(None);
    let yaml = "namespace: shop\nforwards:\n  - {alias: web, service: web, local_port: 8080, remote_port: 80}\n  - {alias: bad, service: web, remote_port: x y}\n";
    std::fs::write(home.path("team.yaml"), yaml).expect("written");
    let dry = home.run(0, &["import", "team.yaml", "--dry-run"]);
    assert!(dry.stdout.contains("1 would be added"), "{dry:?}");
    assert!(dry.stderr.contains("team.yaml: entry 2 (bad): line 4, column"), "{dry:?}");
    assert_eq!(home.run(0, &["list"]).stdout, "");
    home.run(0, &["import", "team.yaml"]);
    let again = home.json(&["import", "team.yaml"]);
    assert_eq!(
        (again["added"].as_array().map(Vec::len), again["unchanged"][0]["label"].as_str()),
        (Some(0), Some("web"))
    );
    let exported: Value = serde_json::from_str(&home.run(0, &["export"]).stdout).expect("JSON");
    assert_eq!((&exported[0]["namespace"], &exported[0]["local_port"]), (&json!("shop"), &json!(8080)));
    let as_yaml = home.run(0, &["export", "web", "-o", "yaml"]).stdout;
    assert!(as_yaml.contains("service: web"), "{as_yaml}");
    // Out and in again, in another format, is the same.
    std::fs::write(home.path("copy.yaml"), as_yaml).expect("written");
    let copy = home.json(&["import", "copy.yaml"]);
    assert_eq!(copy["unchanged"].as_array().map(Vec::len), Some(1), "{copy}");
    let toml = "[[forwards]]\nalias = \"db\"\nservice = \"db\"\nremote_port = 5432\n";
    std::fs::write(home.path("other.toml"), toml).expect("written");
    let replaced = home.json(&["import", "other.toml", "--replace"]);
    assert_eq!(
        (replaced["removed"][0]["label"].as_str(), names(&home.json(&["list"]))),
        (Some("web"), vec!["db"])
    );
    home.run(3, &["import", "missing.json"]);
    std::fs::write(home.path("broken.toml"), "x = [\n").expect("written");
    home.run(3, &["import", "broken.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups() {
    let home = Home::new(None);
    for alias in ["a", "b"] {
        home.run(0, &["add", "svc/x", ":80", "--alias", alias]);
    }
    home.run(0, &["group", "add", "morning", "a", "b"]);
    home.run(0, &["group", "remove", "morning", "b"]);
    let groups = home.run(0, &["group", "list"]).stdout;
    assert!(groups.contains("morning") && groups.contains("0/1"), "{groups}");
    assert_eq!(names(&home.json(&["list", "--group", "morning"])), ["a"]);
    home.run(3, &["list", "--group", "mornign"]);
    home.run(0, &["group", "delete", "morning"]);
    assert_eq!(names(&home.json(&["list"])), ["a", "b"]);
    home.run(3, &["group", "add", "x", "unheard-of"]);
}

/// An editor that replaces its file by the next of several texts.
fn editor(home: &Home, texts: &[&str]) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    for number in 0..9 {
        std::fs::remove_file(home.path(&format!("edit-{number}"))).ok();
    }
    for (number, text) in texts.iter().enumerate() {
        std::fs::write(home.path(&format!("edit-{number}")), text).expect("written");
    }
    let here = home.path("");
    let script = format!(
        "#!/bin/sh\ncd {0}\nn=$(cat count 2>/dev/null || echo 0)\ncp \"$1\" seen-$n\n[ -f edit-$n ] && cp edit-$n \"$1\"\necho $((n + 1)) > count\n",
        here.display()
    );
    let path = home.path("editor");
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

fn edited(home: &Home, texts: &[&str], code: i32) -> common::Run {
    let editor = editor(home, texts);
    std::fs::remove_file(home.path("count")).ok();
    let mut kftui = home.kftui(&["edit", "web"]);
    kftui.command.env("EDITOR", editor);
    let run = kftui.run();
    assert_eq!(run.code, code, "{run:#?}");
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_opens_again_until_it_is_valid() {
    let home = Home::new(None);
    home.run(0, &["add", "svc/web", "8080:80", "--alias", "web"]);
    let good = "alias: web\nservice: web\nlocal_port: 9090 # mine\nremote_port: 80\n";
    edited(&home, &["alias: web\nservice: web\nremote_port: 99999\n", good], 0);
    let first = std::fs::read_to_string(home.path("seen-0")).expect("seen");
    assert!(first.contains("local_port: 8080"), "{first}");
    let second = std::fs::read_to_string(home.path("seen-1")).expect("seen");
    assert!(second.contains("#! line 3, column 14: remote_port: 99999 is not a port"), "{second}");
    assert_eq!(home.json(&["list"])[0]["config"]["summary"]["local_port"], 9090);
    // Left as it was: nothing changes. Left as it was although it was refused: given up.
    assert!(edited(&home, &[], 0).stderr.contains("nothing was changed"));
    edited(&home, &["service: ''\n"], 3);
    edited(&home, &[""], 0);
    assert_eq!(home.json(&["list"])[0]["config"]["summary"]["local_port"], 9090);
    home.run(0, &["edit", "web", "--set", "local_port=7070", "--set", "idle_minutes=5"]);
    assert_eq!(home.json(&["list"])[0]["config"]["summary"]["idle_minutes"], 5);
    home.run(3, &["edit", "web", "--set", "local_port=x"]);
    home.run(3, &["edit", "unheard-of"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_goes_up_and_down() {
    let (_cluster, home) = home().await;
    std::fs::create_dir_all(home.path("shop/src/deep")).expect("made");
    let file = home.path("shop/.kftray.yaml");
    let write = |file: &Path, text: &str| std::fs::write(file, text).expect("written");
    write(
        &file,
        "forwards:\n  - {alias: web, service: web, remote_port: 80}\n  - {service: db, remote_port: 5432}\n",
    );
    let within = |code: i32, words: &[&str]| {
        let mut kftui = home.kftui(words);
        kftui.command.current_dir(home.path("shop/src/deep"));
        let run = kftui.run();
        assert_eq!(run.code, code, "{words:?}: {run:#?}");
        run
    };
    let none = home.run(3, &["up"]);
    assert!(none.stderr.contains("there is no project file"), "{none:?}");
    within(0, &["up"]);
    let listed = home.json(&["list"]);
    assert_eq!(names(&listed), ["web", "svc/db:5432"]);
    assert!(
        listed
            .as_array()
            .expect("a list")
            .iter()
            .all(|one| one["state"] == "ready" && one["group"] == "shop")
    );
    // Once more changes nothing.
    let ids = |listed: &Value| {
        listed.as_array().expect("a list").iter().map(|one| one["id"].clone()).collect::<Vec<_>>()
    };
    let before = (ids(&listed), listed[0]["addresses"].clone());
    within(0, &["up"]);
    let again = home.json(&["list"]);
    assert_eq!((ids(&again), again[0]["addresses"].clone()), before);
    // What is gone from the file goes, what is new comes.
    write(
        &file,
        "forwards:\n  - {alias: web, service: web, remote_port: 80}\n  - {alias: web2, service: web, remote_port: 80}\n",
    );
    within(0, &["up", "web2"]);
    assert_eq!(names(&home.json(&["list"])), ["web", "web2"]);
    // What widens is asked about, and remembered for exactly this content.
    let wide = "forwards:\n  - {alias: web, service: web, remote_port: 80, local_address: 0.0.0.0}\n";
    write(&file, wide);
    let asked = within(4, &["up"]);
    assert!(asked.stderr.contains("web listens on 0.0.0.0: other machines can connect to it"), "{asked:?}");
    assert_eq!(names(&home.json(&["list"])), ["web", "web2"]);
    within(0, &["up", "--yes"]);
    within(0, &["up"]);
    write(&file, &format!("# another\n{wide}"));
    within(4, &["up"]);
    within(0, &["down"]);
    assert_eq!(home.run(0, &["list"]).stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor() {
    let (cluster, home) = home().await;
    home.run(0, &["add", "svc/web", ":80", "--alias", "web"]);
    home.run(0, &["start", "web"]);
    let well = home.run(0, &["doctor"]).stdout;
    assert!(well.contains("all well (2 looked at)") && well.contains("v1.36.0+fake"), "{well}");
    home.run(0, &["add", "svc/wbe", ":80", "--alias", "typo"]);
    let sick = home.run(4, &["doctor", "--output", "json"]).stdout;
    let report: Value = serde_json::from_str(&sick).expect("JSON");
    assert_eq!(report["forwards"][0]["local"][0]["holder"], "ours");
    assert_eq!(report["forwards"][1]["problems"][0]["code"], "target_missing");
    for secret in ["PRIVATE KEY", "-token-", "certificate-data"] {
        assert!(!sick.contains(secret), "{secret} in {sick}");
    }
    // Looking from here finds the same.
    let here = home.run(4, &["doctor", "--here", "--output", "json"]).stdout;
    let here: Value = serde_json::from_str(&here).expect("JSON");
    assert_eq!(here["forwards"][1]["problems"], report["forwards"][1]["problems"]);
    assert!(home.run(0, &["doctor", "web"]).stdout.contains("pod:"));
    drop(cluster);
}

/// The shell's candidates: from the host while it runs, from the store when it does not.
#[tokio::test(flavor = "multi_thread")]
async fn names_complete() {
    let home = Home::new(None);
    home.run(0, &["add", "svc/web", ":80", "--alias", "my-web", "--group", "shop"]);
    home.run(0, &["add", "svc/db", ":80", "--alias", "my-db"]);
    let complete = |words: &[&str]| {
        let mut kftui = home.kftui(&[]);
        kftui.command.env("_KFTUI_COMPLETE", "fish").args(["--", "kftui"]).args(words);
        let run = kftui.run();
        let first = |line: &str| line.split('\t').next().unwrap_or_default().to_owned();
        run.stdout.lines().map(first).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(complete(&["start", "my-"]), ["my-db", "my-web"]);
        assert_eq!(complete(&["start", "--group", "s"]), ["shop"]);
        assert!(complete(&["sta"]).contains(&"status".to_owned()));
        home.run(0, &["host", "stop"]);
    }
}
