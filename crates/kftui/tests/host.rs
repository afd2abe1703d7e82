//! The host as a process: started on demand, killed under traffic, replaced by a newer one, looked at and ended by
//! commands.
#![cfg(unix)]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::kftui;
use kftray_client::{Client, Link, StartOptions};
use kftray_commons::api::{Action, ActionRequest, ConfigPut, EndedBy, Selection};
use kftray_commons::{Code, ForwardId, Status};
use kftray_testkit::{FakeCluster, handlers};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A busy machine may be slow; a test that hangs must end.
const LIMIT: Duration = Duration::from_secs(120);

/// A cluster with `db` (echo), a directory, and a program that starts a host for both.
struct Ground {
    _cluster: FakeCluster,
    directory: TempDir,
    program: PathBuf,
}

impl Ground {
    async fn new() -> Self {
        let cluster = FakeCluster::start().await.expect("a cluster");
        cluster.stateful_set("db").port("pg", 5432, handlers::echo()).create().expect("created");
        cluster.service("db").port(5432, "pg").create().expect("created");
        cluster.wait_ready("default", "db", 1).await.expect("ready");
        let directory = tempfile::tempdir().expect("a directory");
        let program = directory.path().join("kftui.sh");
        let text = format!(
            "#!/bin/sh\nKUBECONFIG='{}' exec '{}' \"$@\"\n",
            cluster.kubeconfig_path().display(),
            env!("CARGO_BIN_EXE_kftui")
        );
        fs::write(&program, text).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("runnable");
        Self { _cluster: cluster, directory, program }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("kftray")
    }

    async fn client(&self) -> Client {
        self.try_client().await.expect("a host")
    }

    async fn try_client(&self) -> Result<Client, kftray_commons::api::Error> {
        let options = StartOptions { program: self.program.clone(), deadline: LIMIT, upgrade: true };
        Client::connect_or_start(&self.path(), options).await
    }

    fn command(&self, words: &[&str]) -> common::Run {
        let mut kftui = kftui(words);
        kftui.command.env("KFTRAY_CONFIG", self.path());
        kftui.run()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Whatever a test left running.
        if let Ok(pid) = fs::read_to_string(self.path().join("host.lock")) {
            kill(pid.trim());
        }
    }
}

/// Ends a process that this test started, as a crash would.
fn kill(pid: &str) {
    Command::new("kill").args(["-9", pid]).status().expect("kill runs");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

/// A forward to `db` on a port, written down and started.
async fn forward(client: &Client, port: u16) -> ForwardId {
    let spec = json!({
        "alias": "db", "service": "db", "remote_port": 5432, "local_port": port, "local_address": "127.0.0.1"
    });
    let spec = spec.as_object().expect("an object").clone();
    let config = client.add_config(&ConfigPut { spec, ..ConfigPut::default() }).await.expect("added");
    let request = ActionRequest { selection: Selection::ids([config.id]), ..ActionRequest::default() };
    client.act(Action::Start, &request).await.expect("started");
    let mut follow = client.follow();
    let ready = follow.wait_for(|state| {
        state.snapshot.forward(config.id).is_some_and(|forward| forward.status == Status::Ready)
    });
    timeout(LIMIT, ready).await.expect("ready");
    config.id
}

async fn echo(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_traffic_it_comes_back_with_its_forwards() {
    let ground = Ground::new().await;
    let client = ground.client().await;
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let id = forward(&client, port).await;
    // A face that stays: it starts the host again.
    let mut follow = client.follow();
    timeout(LIMIT, follow.wait_for(|state| state.link == Link::Connected)).await.expect("connected");
    let mut open = TcpStream::connect(address).await.expect("connect");
    let mut traffic = JoinSet::new();
    traffic.spawn(async move {
        let mut failed = 0_u32;
        loop {
            failed += u32::from(echo(address).await.is_err());
            sleep(Duration::from_millis(5)).await;
            if failed > 0 && echo(address).await.is_ok() {
                return (Instant::now(), failed);
            }
        }
    });
    let pid = client.host().pid;
    let killed = Instant::now();
    kill(&pid.to_string());
    let (back, failed) =
        timeout(LIMIT, traffic.join_next()).await.expect("it is back").expect("one").expect("joined");
    let ready = follow.wait_for(|state| {
        state.link == Link::Connected
            && state.host.as_ref().is_some_and(|host| host.pid != pid)
            && state.snapshot.forward(id).is_some_and(|forward| forward.status == Status::Ready)
    });
    timeout(LIMIT, ready).await.expect("the state is back");
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or_default(), 0, "open connections end with it");
    println!(
        "kill -9 of the host: its forward serves again after {:?}, {failed} connections failed",
        back - killed
    );
    client.shutdown().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_start_one_host() {
    let ground = Ground::new().await;
    let clients = futures::future::join_all((0..8).map(|_| ground.client())).await;
    let pids: Vec<u32> = clients.iter().map(|client| client.host().pid).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    clients[0].shutdown().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_start_says_why() {
    let ground = Ground::new().await;
    fs::create_dir(ground.path()).expect("made");
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o700)).expect("closed");
    fs::write(ground.path().join("kftray.db"), "this is no database, however long it may be")
        .expect("written");
    let error = ground.try_client().await.expect_err("no store");
    assert_eq!(error.code, Code::StoreDamaged, "{error:?}");
    assert!(error.message.contains("kftray.db"), "{}", error.message);
    let run = ground.command(&["list"]);
    assert_eq!(run.code, 6, "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_program_takes_over() {
    let ground = Ground::new().await;
    let client = ground.client().await;
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let id = forward(&client, port).await;
    let mut open = TcpStream::connect(address).await.expect("connect");
    open.write_all(b"before").await.expect("sent");
    open.read_exact(&mut [0; 6]).await.expect("an echo");
    let (stop_tx, mut stop) = tokio::sync::watch::channel(false);
    let mut traffic = JoinSet::new();
    traffic.spawn(async move {
        let (mut done, mut longest) = (0_u32, Duration::ZERO);
        while !*stop.borrow_and_update() {
            let begun = Instant::now();
            echo(address).await.expect("no connection fails");
            longest = longest.max(begun.elapsed());
            done += 1;
        }
        (done, longest)
    });
    let begun = Instant::now();
    let mut next = tokio::process::Command::new(&ground.program);
    next.args(["host", "run", "--background", "--take-over"]).env("KFTRAY_CONFIG", ground.path());
    let mut next = next.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    let mut said = [0; 8];
    let pipe = next.stdout.as_mut().expect("piped");
    timeout(LIMIT, pipe.read_exact(&mut said)).await.expect("in time").expect("a word");
    assert_eq!(&said, b"serving\n");
    let took = begun.elapsed();
    let again = Client::connect(&ground.path()).await.expect("the new host");
    assert_ne!(again.host().pid, client.host().pid);
    let mut follow = again.follow();
    let ready = follow
        .wait_for(|state| state.snapshot.forward(id).is_some_and(|forward| forward.status == Status::Ready));
    timeout(LIMIT, ready).await.expect("ready");
    open.write_all(b"after").await.expect("sent");
    open.read_exact(&mut [0; 5]).await.expect("an open connection goes on");
    stop_tx.send_replace(true);
    let (done, longest) = traffic.join_next().await.expect("one").expect("joined");
    println!(
        "upgrade: {took:?} until the new host serves, {done} connections meanwhile, none failed, slowest {longest:?}"
    );
    again.shutdown().await.expect("ends");
    timeout(LIMIT, next.wait()).await.expect("in time").expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_looked_at_and_ended_by_commands() {
    let ground = Ground::new().await;
    let none = ground.command(&["host", "status"]);
    assert_eq!((none.code, none.stdout.as_str()), (6, ""), "{}", none.stderr);
    let client = ground.client().await;
    let status = ground.command(&["host", "status"]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(status.stdout.contains(&format!("pid {}", client.host().pid)), "{}", status.stdout);
    assert!(status.stdout.contains("0 running, 0 stored"), "{}", status.stdout);
    let status = ground.command(&["host", "status", "--output", "json"]);
    let hello: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(hello["pid"], client.host().pid);
    let path = ground.command(&["host", "logs", "--path"]);
    assert!(Path::new(path.stdout.trim()).is_file(), "{}", path.stdout);
    let stop = ground.command(&["host", "stop"]);
    assert_eq!(stop.code, 0, "{}", stop.stderr);
    assert!(!ground.path().join("host.sock").exists());
    let logs = ground.command(&["host", "logs", "-n", "3"]);
    assert!(logs.stdout.contains("the host ends"), "{}", logs.stdout);
    let units = ground.command(&["host", "install", "--systemd"]);
    assert!(
        units.stdout.contains("ListenStream=") && units.stdout.contains("ExecStart="),
        "{}",
        units.stdout
    );
    assert_eq!(ground.command(&["host", "stop"]).code, 0, "none runs");
}

/// A host in a network of its own, in which an address appears.
const NETWORK_SCRIPT: &str = r#"
ip link set lo up || exit 77
"$0" host run --embedded 2>"$1" &
host=$!
n=0
until [ -S "$2/host.sock" ] || [ $n -ge 600 ]; do sleep 0.1; n=$((n+1)); done
ip link add kftest0 type veth peer name kftest1 || { kill $host; exit 77; }
ip addr add 10.99.1.1/24 dev kftest0
ip link set kftest1 up
ip link set kftest0 up
n=0
until grep -q "the network has changed" "$1" || [ $n -ge 600 ]; do sleep 0.1; n=$((n+1)); done
kill $host
wait $host
"#;

#[test]
fn a_change_of_the_network_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, config) = (directory.path().join("log"), directory.path().join("kftray"));
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", NETWORK_SCRIPT, env!("CARGO_BIN_EXE_kftui")]).arg(&log).arg(&config);
    command.env("KFTRAY_CONFIG", &config).env("KFTRAY_LOG", "kftray_host=info");
    let status = command.status();
    let Ok(status) = status else {
        println!("SKIPPED: unshare is not installed");
        return;
    };
    if !status.success() && !log.exists() || status.code() == Some(77) {
        println!("SKIPPED: this user may not make a network of its own ({status})");
        return;
    }
    let said = fs::read_to_string(&log).expect("a log");
    assert!(said.contains("the network has changed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_starts_it_with_the_first_client() {
    let ground = Ground::new().await;
    fs::create_dir(ground.path()).expect("made");
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o700)).expect("closed");
    let socket = kftray_client::place(&ground.path()).socket;
    let mut systemd = tokio::process::Command::new("systemd-socket-activate");
    systemd.arg("-l").arg(&socket).arg("-E").arg(format!("KFTRAY_CONFIG={}", ground.path().display()));
    systemd.arg(&ground.program).args(["host", "run", "--background", "--systemd"]).kill_on_drop(true);
    let Ok(mut systemd) = systemd.stderr(std::process::Stdio::null()).spawn() else {
        println!("SKIPPED: systemd-socket-activate is not installed");
        return;
    };
    let client = async {
        loop {
            // Its socket appears a moment after it has started.
            match Client::connect(&ground.path()).await {
                Ok(client) => return client,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let client = timeout(LIMIT, client).await.expect("a host behind systemd's socket");
    client.shutdown().await.expect("ends");
    timeout(LIMIT, systemd.wait()).await.expect("in time").expect("ended");
    assert!(socket.exists(), "the socket is systemd's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_an_older_version_is_replaced() {
    let ground = Ground::new().await;
    fs::create_dir(ground.path()).expect("made");
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o700)).expect("closed");
    let socket = kftray_client::place(&ground.path()).socket;
    let old = tokio::net::UnixListener::bind(&socket).expect("bound");
    let hello = r#"{"protocol":{"min":1,"max":1},"version":"0.0.1","instance":"old","pid":1,"started_at":0,
        "mode":"background","config_dir":""}"#;
    // It understands `hello` and `shutdown`, and nothing of a hand-over.
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = old.accept().await {
            let mut head = [0; 1024];
            drop(stream.read(&mut head).await);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{hello}", hello.len());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    let patient = StartOptions { program: ground.program.clone(), deadline: LIMIT, upgrade: false };
    let kept = Client::connect_or_start(&ground.path(), patient).await.expect("it is understood");
    assert_eq!(kept.host().instance, "old");
    let client = ground.client().await;
    assert_ne!(client.host().instance, "old");
    assert_eq!(client.host().version, env!("CARGO_PKG_VERSION"));
    client.shutdown().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_face_takes_only_what_it_held() {
    let ground = Ground::new().await;
    let client = ground.client().await;
    let stays = forward(&client, free_port()).await;
    let spec = json!({"alias": "held", "service": "db", "remote_port": 5432});
    let spec = spec.as_object().expect("an object").clone();
    let held = client.add_config(&ConfigPut { spec, ..ConfigPut::default() }).await.expect("added").id;
    // `cat` ends when this test drops the other end of its input.
    let mut face = tokio::process::Command::new(&ground.program);
    face.args(["run", "held", "--", "cat"]).env("KFTRAY_CONFIG", ground.path());
    let mut face = face.stdin(std::process::Stdio::piped()).spawn().expect("starts");
    let mut follow = client.follow();
    let ready = follow.wait_for(|state| {
        state.snapshot.forward(held).is_some_and(|forward| forward.status == Status::Ready)
    });
    timeout(LIMIT, ready).await.expect("ready");
    let killed = Instant::now();
    face.start_kill().expect("killed");
    let ended =
        follow.wait_for(|state| state.snapshot.forward(held).is_some_and(|forward| !forward.is_active()));
    let state = timeout(LIMIT, ended).await.expect("its lease ends");
    println!("kill -9 of a face: what it held ended after {:?}", killed.elapsed());
    assert_eq!(
        state.snapshot.forward(held).and_then(|f| f.ended.as_ref()).map(|e| e.by),
        Some(EndedBy::Lease)
    );
    assert!(state.snapshot.forward(stays).is_some_and(|forward| forward.status == Status::Ready));
    face.wait().await.expect("ended");
    client.shutdown().await.expect("ends");
}
