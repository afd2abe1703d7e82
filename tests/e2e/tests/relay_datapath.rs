//! The relay as a way to Services and pods, and as the way back: what a person sees on a real cluster.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::client::{connect, download, get, upload};
use kftray_e2e::field::{SOON, START, image};
use kftray_e2e::{Forward, Ground};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const MIB: u64 = 1 << 20;

/// A namespace of the test's own, and an installation.
struct Place {
    ground: Ground,
    namespace: String,
    home: TempDir,
}

impl Place {
    async fn new(name: &str) -> Result<Self> {
        let ground = Ground::from_env()?;
        let namespace = format!("relay-path-{name}");
        ground.kubectl(&["delete", "namespace", &namespace, "--ignore-not-found"]).await?;
        ground.kubectl(&["create", "namespace", &namespace]).await?;
        Ok(Self { ground, namespace, home: TempDir::new()? })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.ground.kftui);
        command
            .env("KFTRAY_CONFIG", self.home.path())
            .env("KFTRAY_RELAY_IMAGE", image())
            .env("KUBECONFIG", &self.ground.kubeconfig);
        command
    }

    /// `kftui forward` in `kftest`, ready.
    async fn forward(&self, arguments: &[&str]) -> Result<Forward> {
        let mut command = self.command();
        command.args(["forward", "-n", "kftest", "--output", "json"]).args(arguments);
        let mut forward = Forward::spawn(command)?;
        forward.until("all_ready", START).await?;
        Ok(forward)
    }

    /// `kftui run` of these entries, ready.
    async fn run(&self, entries: &Value) -> Result<Forward> {
        let file = self.home.path().join("forwards.json");
        std::fs::write(&file, entries.to_string())?;
        let mut command = self.command();
        command.args(["run", "--output", "json"]).arg(&file);
        let mut forward = Forward::spawn(command)?;
        forward.until("all_ready", START).await?;
        Ok(forward)
    }

    async fn gone(self) -> Result<()> {
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

fn last_endpoint(forward: &Forward) -> String {
    let ready = forward.seen.iter().rev().find(|event| event["event"] == "ready");
    ready.and_then(|event| event["endpoint"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_by_way_of_the_relay() -> Result<()> {
    let place = Place::new("service").await?;
    let forward = place.forward(&["--via", "relay", "svc/web", ":80", ":9005", ":9006", ":9008"]).await?;
    let ports = forward.ports()?;
    assert!(last_endpoint(&forward).ends_with("by relay"), "{}", last_endpoint(&forward));

    // New connections spread over the pods, as without the relay.
    let mut pods = std::collections::BTreeSet::new();
    for _ in 0..12 {
        pods.insert(get(ports[0], "/", SOON).await?);
    }
    assert_eq!(pods.len(), 3, "{pods:?}");

    timeout(START, download(ports[0], 128 * MIB)).await.context("download")??;
    let answer = timeout(START, upload(ports[0], 128 * MIB)).await.context("upload")??;
    assert_eq!(answer["count"], 128 * MIB);

    // A server that answers only at the client's end: by port-forward it never could.
    let mut stream = connect(ports[1]).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("5 2cf24dba"), "{answer}");

    // A reset stays one.
    let mut stream = connect(ports[2]).await?;
    stream.write_all(b"RST 100\n").await?;
    let mut bytes = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut bytes)).await?;
    assert!(end.is_err(), "{} bytes and an orderly end", bytes.len());

    // The server's close is seen without the runtime's second of linger.
    let mut times = Vec::new();
    for _ in 0..9 {
        let mut stream = connect(ports[3]).await?;
        let mut byte = Vec::new();
        let begin = Instant::now();
        timeout(SOON, stream.read_to_end(&mut byte)).await??;
        times.push(begin.elapsed());
        assert_eq!(byte.len(), 1);
    }
    times.sort();
    println!("connect, one byte, server's close: median {:?}", times[times.len() / 2]);
    assert!(times[times.len() / 2] < Duration::from_millis(500), "{times:?}");
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_takes_a_relay_that_is_there_and_starts_none() -> Result<()> {
    let place = Place::new("auto").await?;
    let jobs = || async {
        let jobs = place.ground.kubectl(&["-n", &place.namespace, "get", "jobs", "-o", "name"]).await?;
        anyhow::Ok(jobs.lines().count())
    };
    // A pod of the namespace's own, so that its relay is nobody else's.
    place
        .ground
        .kubectl(&[
            "-n",
            &place.namespace,
            "run",
            "web",
            "--image=kftray.test/fixture:1",
            "--image-pull-policy=Never",
        ])
        .await?;
    place.ground.kubectl(&["-n", &place.namespace, "wait", "--for=condition=Ready", "pod/web"]).await?;
    let entry = json!([{
        "alias": "web", "workload_type": "pod", "target": "run=web", "namespace": place.namespace,
        "remote_port": 8080, "local_port": 0, "via": "auto",
    }]);
    let forward = place.run(&entry).await?;
    assert!(!last_endpoint(&forward).ends_with("by relay"), "{}", last_endpoint(&forward));
    assert_eq!(get(forward.port()?, "/", SOON).await?.trim(), "web");
    assert_eq!(jobs().await?, 0, "auto has started a relay");
    forward.interrupt().await?;

    let mut by_relay = place.command();
    by_relay.args([
        "forward",
        "-n",
        &place.namespace,
        "--output",
        "json",
        "--via",
        "relay",
        "pod/web",
        ":8080",
    ]);
    let mut by_relay = Forward::spawn(by_relay)?;
    by_relay.until("all_ready", START).await?;
    assert_eq!(get(by_relay.port()?, "/", SOON).await?.trim(), "web");

    let mut auto = place.run(&entry).await?;
    if !last_endpoint(&auto).ends_with("by relay") {
        // It does not wait for the relay to be found, so it may have been ready before.
        auto.until_that("ready by relay", SOON, |event| {
            event["endpoint"].as_str().is_some_and(|endpoint| endpoint.ends_with("by relay"))
        })
        .await?;
    }
    assert_eq!(get(auto.port()?, "/", SOON).await?.trim(), "web");
    assert_eq!(jobs().await?, 1);
    drop((auto, by_relay));
    place.gone().await
}

/// A program of this machine with what web programs do: answers, streams, upgrades.
async fn program() -> Result<(u16, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move { drop(answer(stream).await) });
        }
    });
    Ok((port, tasks))
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    loop {
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        if text.starts_with("GET /events ") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            for number in 0..5 {
                let event = format!("data: {number}\n\n");
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
                sleep(Duration::from_millis(400)).await;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        } else if text.starts_with("GET /socket ") {
            stream
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n",
                )
                .await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            return Ok(());
        } else {
            let body = text.to_ascii_lowercase();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

/// The exposed program and, beside it, a way to call it as a pod would: the relay of another namespace.
fn exposed(place: &Place, program: u16) -> Value {
    json!([
        {"alias": "myapp", "workload_type": "expose", "exposure_type": "internal", "local_port": program,
         "namespace": place.namespace},
        {"alias": "caller", "workload_type": "proxy", "protocol": "tcp", "namespace": "kftest",
         "remote_address": format!("myapp.{}.svc.cluster.local", place.namespace), "remote_port": 80,
         "local_port": 0},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_this_machine_is_called_from_the_cluster() -> Result<()> {
    let place = Place::new("expose").await?;
    let (program, _tasks) = program().await?;
    let forward = place.run(&exposed(&place, program)).await?;
    let port = forward.port()?;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: myapp\r\n\r\n");

    // A webhook; the program learns who called.
    let body = get(port, "/hook?x=1", SOON).await?;
    assert!(body.starts_with("get /hook?x=1 http/1.1"), "{body}");
    assert!(body.contains("x-forwarded-for:") && body.contains("forwarded:"), "{body}");

    // Events come when they are sent, not when all are.
    let mut stream = connect(port).await?;
    let begin = Instant::now();
    stream.write_all(request("/events").as_bytes()).await?;
    let mut bytes = Vec::new();
    let mut first = None;
    while !bytes.ends_with(b"0\r\n\r\n") {
        ensure!(timeout(SOON, stream.read_buf(&mut bytes)).await?? > 0, "cut");
        if bytes.windows(7).any(|event| event == b"data: 0") {
            first.get_or_insert(begin.elapsed());
        }
    }
    let (first, all) = (first.context("an event")?, begin.elapsed());
    assert!(first + Duration::from_secs(1) < all, "first after {first:?}, last after {all:?}");

    // An upgraded connection carries anything, both ways.
    let mut stream = connect(port).await?;
    let upgrade = "GET /socket HTTP/1.1\r\nHost: myapp\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(timeout(SOON, stream.read_buf(&mut head)).await?? > 0, "cut");
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    for round in 0..100_u8 {
        stream.write_all(&[round; 1000]).await?;
        let mut echo = [0; 1000];
        timeout(SOON, stream.read_exact(&mut echo)).await??;
        assert_eq!(echo, [round; 1000]);
    }

    // One delete removes all, and the end of the program is one.
    forward.interrupt().await?;
    let left = ["-n", &place.namespace, "get", "service,job,pod", "-o", "name"];
    let begin = Instant::now();
    while !place.ground.kubectl(&left).await?.trim().is_empty() {
        ensure!(begin.elapsed() < START, "{}", place.ground.kubectl(&left).await?);
        sleep(Duration::from_millis(500)).await;
    }
    place.gone().await
}

/// Callers that come while the client is dead wait at the relay, and are served when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn callers_wait_while_the_client_is_killed_and_comes_back() -> Result<()> {
    let place = Place::new("back").await?;
    let (program, _tasks) = program().await?;
    let all = exposed(&place, program);
    let mut forward = place.run(&json!([all[0]])).await?;
    // The caller is another process, which lives on.
    let elsewhere =
        Place { home: TempDir::new()?, ground: place.ground.clone(), namespace: place.namespace.clone() };
    let caller = elsewhere.run(&json!([all[1]])).await?;
    let port = caller.port()?;
    get(port, "/before", SOON).await?;

    forward.signal("KILL").await?;
    // The container runtime keeps a dead tunnel for up to a second more. Whoever calls before the relay knows may have been
    // heard by the one who died, and is reset.
    sleep(Duration::from_millis(1_500)).await;
    let mut callers = JoinSet::new();
    for number in 0..24 {
        callers.spawn(async move { get(port, &format!("/{number}"), START).await });
    }
    let begin = Instant::now();
    forward = place.run(&json!([all[0]])).await?;
    println!("back after {:?}", begin.elapsed());
    let mut served = 0;
    while let Some(answer) = callers.join_next().await {
        match answer? {
            Ok(_) => served += 1,
            Err(error) => println!("{error:#}"),
        }
    }
    assert_eq!(served, 24, "of 24 callers");
    get(port, "/after", SOON).await?;
    drop(forward);
    place.gone().await
}
