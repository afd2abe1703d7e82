//! What goes through a relay in a real cluster: any host that the cluster reaches, TCP and UDP, each refusal with its
//! message, and what strangers get. The configurations are JSON as the documents have it.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kftray_e2e::{Forward, Ground, client, ground};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// As `cargo xtask cluster` names it.
const IMAGE: &str = concat!("kftray-server:", env!("CARGO_PKG_VERSION"));
/// For a pod to be scheduled, started and tunnelled to.
const START: Duration = Duration::from_secs(90);
/// For anything that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// A namespace with a relay, and a `kftui` that forwards through it.
struct Field {
    ground: Ground,
    namespace: String,
    forward: Forward,
    ports: Vec<u16>,
    _home: TempDir,
}

impl Field {
    /// Runs these entries; each gets a local port, and the namespace unless it has one.
    async fn run(name: &str, entries: &[Value]) -> Result<Self> {
        let ground = Ground::from_env()?;
        let namespace = format!("relay-{name}");
        ground.kubectl(&["delete", "namespace", &namespace, "--ignore-not-found"]).await?;
        ground.kubectl(&["create", "namespace", &namespace]).await?;
        let home = TempDir::new()?;
        let mut ports = Vec::new();
        let mut list = Vec::new();
        for entry in entries {
            let mut entry = entry.clone();
            let port = free_port(entry["protocol"] == "udp").await?;
            entry["local_port"] = json!(port);
            if entry["namespace"].is_null() {
                entry["namespace"] = json!(namespace);
            }
            ports.push(port);
            list.push(entry);
        }
        let file = home.path().join("forwards.json");
        std::fs::write(&file, Value::from(list).to_string())?;
        let mut command = Command::new(&ground.kftui);
        command
            .args(["run", "--output", "json"])
            .arg(&file)
            .env("KFTRAY_CONFIG", home.path())
            .env("KFTRAY_RELAY_IMAGE", IMAGE)
            .env("KUBECONFIG", &ground.kubeconfig);
        let mut forward = Forward::spawn(command)?;
        forward.until("all_ready", START).await?;
        Ok(Self { ground, namespace, forward, ports, _home: home })
    }

    /// The failure of a connection that the program tells next with this code.
    async fn told(&mut self, code: &str) -> Result<String> {
        let wanted =
            |event: &Value| event["event"] == "connection_failed" && event["problem"]["code"] == code;
        let event = self.forward.until_that(code, SOON, wanted).await?;
        Ok(event["problem"]["message"].as_str().context("a message")?.to_owned())
    }

    async fn relay_pod(&self) -> Result<Value> {
        let pods = self.ground.kubectl(&["-n", &self.namespace, "get", "pods", "-o", "json"]).await?;
        let pods: Value = serde_json::from_str(&pods)?;
        Ok(pods["items"][0].clone())
    }

    /// Ends the program and returns what its first forward counted.
    async fn counters(mut self) -> Result<Value> {
        self.forward.signal("INT").await?;
        let stopped = self.forward.until("stopped", SOON).await?;
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await?;
        Ok(stopped["counters"].clone())
    }

    async fn gone(self) -> Result<()> {
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

/// A port that is free now.
async fn free_port(udp: bool) -> Result<u16> {
    Ok(if udp {
        UdpSocket::bind("127.0.0.1:0").await?.local_addr()?.port()
    } else {
        TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port()
    })
}

fn proxy(alias: &str, remote_address: &str, remote_port: u16) -> Value {
    json!({
        "alias": alias, "workload_type": "proxy", "protocol": "tcp",
        "remote_address": remote_address, "remote_port": remote_port,
    })
}

/// The first value of a JSON path.
async fn value(ground: &Ground, kind: &[&str], path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    let mut arguments = vec!["-n", ground::NAMESPACE, "get"];
    arguments.extend_from_slice(kind);
    arguments.extend_from_slice(&["-o", &path]);
    Ok(ground.kubectl(&arguments).await?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_reached_however_they_are_written() -> Result<()> {
    let ground = Ground::from_env()?;
    let pod = value(&ground, &["pods", "-l", "app=single"], "{.items[0].status.podIP}").await?;
    let service = value(&ground, &["service", "web"], "{.spec.clusterIP}").await?;
    // Outside of the cluster's network: this machine, as the node sees it.
    let host: Ipv4Addr =
        std::env::var("KFTRAY_CLUSTER_HOST_IP").context("KFTRAY_CLUSTER_HOST_IP")?.parse()?;
    let outside = TcpListener::bind((host, 0)).await?;
    let outside_port = outside.local_addr()?.port();
    let entries = [
        proxy("full", "web.kftest.svc.cluster.local", 80),
        proxy("short", "web.kftest", 80),
        proxy("service-address", &service, 80),
        proxy("pod-address", &format!("{pod}:8080"), 1),
        proxy("url", "http://web.kftest/path", 80),
        proxy("outside", &host.to_string(), outside_port),
    ];
    let field = Field::run("hosts", &entries).await?;
    for &port in &field.ports[..5] {
        let body = client::get(port, "/", SOON).await?;
        ensure!(body.starts_with("web-") || body.starts_with("single-"), "{body}");
    }
    let serve = async {
        let (mut socket, _) = outside.accept().await?;
        socket.write_all(b"from outside").await?;
        anyhow::Ok(())
    };
    let call = async {
        let mut text = String::new();
        client::connect(field.ports[5]).await?.read_to_string(&mut text).await?;
        anyhow::Ok(text)
    };
    let ((), text) = timeout(SOON, async { tokio::try_join!(serve, call) }).await??;
    assert_eq!(text, "from outside");
    let pods = field.ground.kubectl(&["-n", &field.namespace, "get", "pods", "-o", "name"]).await?;
    assert_eq!(pods.lines().count(), 1, "one relay serves all: {pods}");
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_as_their_servers_and_clients_end_them() -> Result<()> {
    let single = "single.kftest.svc.cluster.local";
    let entries = [9000, 9004, 9005, 9006, 9008, 80].map(|port| proxy(&format!("port-{port}"), single, port));
    let field = Field::run("ends", &entries).await?;
    let [echo, banner, after_end, reset, one_byte, http] = field.ports[..] else { bail!("six ports") };

    // The server speaks first.
    let mut socket = client::connect(banner).await?;
    let mut buffer = [0; 3];
    timeout(SOON, socket.read_exact(&mut buffer)).await??;

    // The client ends first, and the whole answer still comes.
    let mut socket = client::connect(after_end).await?;
    let sent = vec![7; 5_000_000];
    socket.write_all(&sent).await?;
    socket.shutdown().await?;
    let mut answer = String::new();
    timeout(SOON, socket.read_to_string(&mut answer)).await??;
    let sum: String = Sha256::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(answer.trim(), format!("5000000 {sum}"));

    // The server ends: seen at once, where the runtime's own port-forward lingers for a second.
    let mut spans = Vec::new();
    for _ in 0..20 {
        let mut socket = client::connect(one_byte).await?;
        let mut byte = [0];
        timeout(SOON, socket.read_exact(&mut byte)).await??;
        let begin = Instant::now();
        ensure!(timeout(SOON, socket.read(&mut byte)).await?? == 0, "the end");
        spans.push(begin.elapsed());
    }
    spans.sort();
    println!("the server's close was seen {:?} after its last byte (median of 20)", spans[10]);
    ensure!(spans[10] < Duration::from_millis(500), "{spans:?}");

    // A reset is a reset, not an end.
    let mut socket = client::connect(reset).await?;
    socket.write_all(b"RST 1000\n").await?;
    let mut received = Vec::new();
    let end = timeout(SOON, socket.read_to_end(&mut received)).await?;
    ensure!(end.is_err(), "{} bytes and a clean end", received.len());

    // Many at once, and bulk.
    let mut rounds = JoinSet::new();
    for number in 0..200u32 {
        rounds.spawn(async move {
            let mut socket = client::connect(echo).await?;
            let text = format!("connection {number}");
            socket.write_all(text.as_bytes()).await?;
            let mut answer = vec![0; text.len()];
            timeout(SOON, socket.read_exact(&mut answer)).await??;
            ensure!(answer == text.as_bytes(), "{}", String::from_utf8_lossy(&answer));
            anyhow::Ok(())
        });
    }
    while let Some(round) = rounds.join_next().await {
        round??;
    }
    client::download(http, 200_000_000).await?;
    let answer = client::upload(http, 50_000_000).await?;
    assert_eq!(answer["count"], 50_000_000);
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_by_service_name() -> Result<()> {
    let entries = [
        proxy("postgres", "postgres.kftest.svc.cluster.local:5432", 1),
        proxy("redis", "redis.kftest", 6379),
    ];
    let field = Field::run("databases", &entries).await?;
    let mut psql = Command::new("psql");
    let sql = "select count(*), sum(i) from generate_series(1, 100000) i; copy (select i, md5(i::text) from generate_series(1, 200000) i) to stdout;";
    psql.env("PGPASSWORD", "kftest").args(["-h", "127.0.0.1", "-U", "postgres", "-AtX", "-c", sql]);
    psql.args(["-p", &field.ports[0].to_string()]);
    let answer = ground::run(psql).await?;
    assert_eq!(answer.lines().next(), Some("100000|5000050000"));
    assert_eq!(answer.lines().count(), 200_001);
    let mut redis = Command::new("redis-cli");
    redis.args(["-p", &field.ports[1].to_string(), "set", "relay", "yes"]);
    assert_eq!(ground::run(redis).await?.trim(), "OK");
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_message() -> Result<()> {
    let ground = Ground::from_env()?;
    let api = ground.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]).await?;
    let pod = value(&ground, &["pods", "-l", "app=single"], "{.items[0].status.podIP}").await?;
    let cases = [
        (proxy("metadata", "169.254.169.254", 80), "relay_denied", "metadata"),
        (proxy("loopback", "127.0.0.1", 9999), "relay_denied", "loopback"),
        (proxy("api", &api, 443), "relay_denied", "KFTRAY_DENY"),
        (proxy("api-name", "kubernetes.default.svc", 443), "relay_denied", "kubernetes.default.svc"),
        (proxy("no-name", "nobody.kftest.svc.cluster.local", 80), "host_not_found", "nobody.kftest"),
        (proxy("no-port", &pod, 4), "remote_refused", "nothing listens"),
    ];
    let entries: Vec<Value> = cases.iter().map(|(entry, ..)| entry.clone()).collect();
    let mut field = Field::run("refusals", &entries).await?;
    for (index, (entry, code, words)) in cases.iter().enumerate() {
        // The connection is accepted here, and ends when the relay has said no.
        let mut socket = client::connect(field.ports[index]).await?;
        socket.write_all(b"hello").await?;
        let message = field.told(code).await.with_context(|| entry.to_string())?;
        ensure!(message.contains(words), "{entry}: {message}");
    }
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_relay_get_nowhere() -> Result<()> {
    let field = Field::run("strangers", &[proxy("web", "web.kftest", 80)]).await?;
    client::get(field.ports[0], "/", SOON).await?;
    let pod = field.relay_pod().await?;
    let address = pod["status"]["podIP"].as_str().context("an address")?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;

    // Another pod: the tunnel's port is not on the pod's address, and the health port tells health only.
    let ports = [proxy("tunnel", address, 9999), proxy("health", address, 9998)];
    let other = Field::run("strangers-other", &ports).await?;
    let mut socket = client::connect(other.ports[0]).await?;
    socket.write_all(b"KFTRELAY").await?;
    ensure!(
        timeout(SOON, socket.read(&mut [0; 64])).await?.unwrap_or(0) == 0,
        "an answer at the tunnel port"
    );
    ensure!(client::get(other.ports[1], "/healthz", SOON).await?.starts_with("ok"));
    let mut socket = client::connect(other.ports[1]).await?;
    socket.write_all(b"\x16\x03\x01garbage\r\n\r\n").await?;
    timeout(SOON, socket.read(&mut [0; 512])).await?.ok();

    // Somebody who may port-forward to it: garbage, a token that is not its owner's, a version that is none.
    let direct = direct(&field.ground, &field.namespace, &[(name, 9999)]).await?;
    let port = direct.port()?;
    for (hello, answer) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), &b""[..]),
        (vec![0xFF; 100_000], b""),
        // Refused for its token (reason 8), then for its version (reason 9).
        (hello(1, 1), b"KFTRELAY\x02"),
        (hello(7, 9), b"KFTRELAY\x02"),
    ] {
        let mut socket = client::connect(port).await?;
        socket.write_all(&hello).await.ok();
        let mut received = Vec::new();
        timeout(SOON, socket.read_to_end(&mut received)).await?.ok();
        ensure!(received.starts_with(answer) && received.is_empty() == answer.is_empty(), "{received:?}");
    }
    // Whoever is the owner has noticed nothing; whoever looks at the metrics has.
    client::get(field.ports[0], "/", SOON).await?;
    let metrics = client::get(other.ports[1], "/metrics", SOON).await?;
    for line in ["{reason=\"unauthorized\"} 1", "{reason=\"version\"} 1", "{reason=\"garbage\"} 2"] {
        ensure!(metrics.contains(&format!("kftray_server_hellos_refused_total{line}")), "{line}:\n{metrics}");
    }
    other.gone().await?;
    field.gone().await
}

/// Forwards to pods of a namespace without a relay.
async fn direct(ground: &Ground, namespace: &str, pods: &[(&str, u16)]) -> Result<Forward> {
    let mut command = Command::new(&ground.kftui);
    command.args(["forward", "-n", namespace, "--output", "json", "--kubeconfig"]).arg(&ground.kubeconfig);
    for (pod, port) in pods {
        command.args([format!("pod/{pod}"), format!(":{port}")]);
    }
    let mut forward = Forward::spawn(command)?;
    forward.until("all_ready", START).await?;
    Ok(forward)
}

/// A hello with a token of zeros, by hand: what an old or foreign client sends.
fn hello(lowest: u16, highest: u16) -> Vec<u8> {
    let mut fields = vec![1, 0, 4];
    fields.extend_from_slice(&lowest.to_be_bytes());
    fields.extend_from_slice(&highest.to_be_bytes());
    fields.extend_from_slice(&[2, 0, 32]);
    fields.extend_from_slice(&[0; 32]);
    let mut hello = b"KFTRELAY\0".to_vec();
    hello.push(u8::try_from(fields.len()).unwrap_or(u8::MAX));
    hello.extend_from_slice(&fields);
    hello
}

/// A question for the A record of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_dns_answers_over_udp() -> Result<()> {
    let service = json!({
        "alias": "dns", "workload_type": "service", "service": "kube-dns", "namespace": "kube-system",
        "protocol": "udp", "remote_port": 53,
    });
    let mut host = proxy("dns-proxy", "kube-dns.kube-system", 53);
    host["protocol"] = json!("udp");
    let field = Field::run("dns", &[service, host]).await?;
    let web = value(&field.ground, &["service", "web"], "{.spec.clusterIP}").await?;
    let web: Ipv4Addr = web.parse()?;
    for &port in &field.ports {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(("127.0.0.1", port)).await?;
        for id in 1..=20 {
            socket.send(&question(id, "web.kftest.svc.cluster.local")).await?;
            let mut answer = [0; 512];
            let length = timeout(SOON, socket.recv(&mut answer)).await??;
            ensure!(
                answer[..2] == id.to_be_bytes() && answer[..length].ends_with(&web.octets()),
                "{answer:?}"
            );
        }
    }
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_peers_have_fifty_flows() -> Result<()> {
    let mut echo = proxy("echo", "single.kftest.svc.cluster.local", 9001);
    echo["protocol"] = json!("udp");
    let field = Field::run("flows", &[echo]).await?;
    let target = SocketAddr::from(([127, 0, 0, 1], field.ports[0]));
    let mut peers = JoinSet::new();
    for peer in 0..50u32 {
        peers.spawn(async move { exchange(peer, target).await });
    }
    let mut lost = 0;
    while let Some(peer) = peers.join_next().await {
        lost += peer??;
    }
    let pod = field.relay_pod().await?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    let health = direct(&field.ground, &field.namespace, &[(name, 9998)]).await?;
    let metrics = client::get(health.port()?, "/metrics", SOON).await?;
    let told: Vec<&str> =
        metrics.lines().filter(|line| line.starts_with("kftray_server_datagrams")).collect();
    let counters = field.counters().await?;
    println!("50 peers x 2,000 datagrams: {lost} without an echo\n{}\n{counters}", told.join("\n"));
    // Every datagram is accounted for. What got no echo was lost in the fixture, whose one socket all peers share: it went
    // into the cluster and nothing came back.
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    ensure!(count("datagrams_up") + count("datagrams_dropped") >= 100_000, "sent: {counters}");
    ensure!(count("datagrams_down") >= 100_000 - lost as u64, "received: {counters}");
    ensure!(
        count("datagrams_dropped") <= 1000 && lost <= 5000,
        "{lost} lost at four in flight per peer: {counters}"
    );
    Ok(())
}

/// Sends datagrams of 0 to 1,472 bytes (each 500th of 65,507), four in flight, and checks that each echo is the peer's own.
/// Returns how many had none.
async fn exchange(peer: u32, target: SocketAddr) -> Result<usize> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(target).await?;
    let mut buffer = vec![0; 65_536];
    let mut lost = 0;
    for round in 0..500u32 {
        let mut awaited = Vec::new();
        for number in round * 4..round * 4 + 4 {
            let size = if number % 500 == 499 { 65_507 } else { number as usize * 7 % 1473 };
            let mut datagram = vec![peer as u8; size];
            // What is shorter than its name is told apart by its length alone.
            let name = [peer.to_be_bytes(), number.to_be_bytes()].concat();
            let head = size.min(name.len());
            datagram[..head].copy_from_slice(&name[..head]);
            socket.send(&datagram).await?;
            awaited.push(datagram);
        }
        while !awaited.is_empty() {
            let Ok(received) = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await else {
                lost += awaited.len();
                break;
            };
            let received = &buffer[..received?];
            let found = awaited.iter().position(|datagram| datagram == received);
            let Some(found) = found else {
                // A late echo of an earlier round is still this peer's.
                ensure!(received.len() < 4 || received[..4] == peer.to_be_bytes(), "another peer's datagram");
                continue;
            };
            awaited.swap_remove(found);
        }
    }
    Ok(lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_serves_other_clients_manifests() -> Result<()> {
    let ground = Ground::from_env()?;
    let namespace = "relay-legacy";
    ground.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
    ground.kubectl(&["create", "namespace", namespace]).await?;
    let pod = |kind: &str, target: &str, port: u16| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("relay-{kind}"), "namespace": namespace },
            "spec": { "containers": [{
                "name": "relay", "image": IMAGE,
                "env": [
                    { "name": "LOCAL_PORT", "value": port.to_string() },
                    { "name": "REMOTE_PORT", "value": port.to_string() },
                    { "name": "REMOTE_ADDRESS", "value": target },
                    { "name": "PROXY_TYPE", "value": kind },
                    { "name": "RUST_LOG", "value": "DEBUG" },
                ],
                "startupProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1, "failureThreshold": 30 },
            }] },
        })
    };
    for (kind, target, port) in [("tcp", "http://web.kftest", 80), ("udp", "single.kftest", 9001)] {
        ground.apply(&pod(kind, target, port).to_string()).await?;
    }
    ground
        .kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])
        .await?;
    let forward = direct(&ground, namespace, &[("relay-tcp", 80), ("relay-udp", 9001)]).await?;
    let [tcp, udp] = forward.ports()?[..] else { bail!("two ports") };
    ensure!(client::get(tcp, "/", SOON).await?.starts_with("web-"));
    let mut socket: TcpStream = client::connect(udp).await?;
    for text in ["one", "two", "three"] {
        socket.write_u32(text.len() as u32).await?;
        socket.write_all(text.as_bytes()).await?;
    }
    for text in ["one", "two", "three"] {
        let length = timeout(SOON, socket.read_u32()).await?? as usize;
        let mut answer = vec![0; length];
        socket.read_exact(&mut answer).await?;
        assert_eq!(String::from_utf8_lossy(&answer), text);
    }
    // They go at once when they are told to.
    let begin = Instant::now();
    ground.kubectl(&["-n", namespace, "delete", "pod", "--all", "--grace-period=10"]).await?;
    ensure!(begin.elapsed() < Duration::from_secs(9), "stopped only after {:?}", begin.elapsed());
    ground.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await.map(drop)
}
