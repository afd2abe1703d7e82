//! What goes through a relay in a real cluster: any host that the cluster reaches, and each refusal with its message. The
//! configurations are JSON as the documents have it.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kftray_e2e::field::{Field, SOON, direct, image, proxy, value};
use kftray_e2e::{Forward, Ground, client, ground};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

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

/// psql and redis-cli by every kind of address.
#[tokio::test(flavor = "multi_thread")]
async fn databases_by_name_by_pod_address_and_outside_of_the_cluster() -> Result<()> {
    let ground = Ground::from_env()?;
    let address = async |app: &str| {
        value(&ground, &["pods", "-l", &format!("app={app}")], "{.items[0].status.podIP}").await
    };
    let (postgres, redis) = (address("postgres").await?, address("redis").await?);
    // Servers outside of the cluster's network: on this machine's address on the link to the node.
    let host = std::env::var("KFTRAY_CLUSTER_HOST_IP").context("KFTRAY_CLUSTER_HOST_IP")?;
    let outside = ["--address", &host, "svc/postgres", ":5432", "svc/redis", ":6379"];
    let outside = Forward::ready(&ground, &outside).await?;
    let [postgres_outside, redis_outside] = outside.ports()?[..] else { bail!("two ports") };
    let entries = [
        proxy("postgres", "postgres.kftest.svc.cluster.local:5432", 1),
        proxy("postgres-pod", &postgres, 5432),
        proxy("postgres-outside", &host, postgres_outside),
        proxy("redis", "redis.kftest", 6379),
        proxy("redis-pod", &format!("{redis}:6379"), 1),
        proxy("redis-outside", &host, redis_outside),
    ];
    let field = Field::run("databases", &entries).await?;
    for port in &field.ports[..3] {
        let mut psql = Command::new("psql");
        let sql = "select count(*), sum(i) from generate_series(1, 100000) i; copy (select i, md5(i::text) from generate_series(1, 100000) i) to stdout;";
        psql.env("PGPASSWORD", "kftest").args(["-h", "127.0.0.1", "-U", "postgres", "-AtX", "-c", sql]);
        psql.args(["-p", &port.to_string()]);
        let answer = ground::run(psql).await?;
        assert_eq!(answer.lines().next(), Some("100000|5000050000"));
        assert_eq!(answer.lines().count(), 100_001);
    }
    for port in &field.ports[3..] {
        for (arguments, expected) in [(&["set", "relay", "yes"][..], "OK"), (&["get", "relay"], "yes")] {
            let mut redis = Command::new("redis-cli");
            redis.args(["-p", &port.to_string()]).args(arguments);
            assert_eq!(ground::run(redis).await?.trim(), expected);
        }
    }
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_message() -> Result<()> {
    let ground = Ground::from_env()?;
    let api = ground.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]).await?;
    let pod = value(&ground, &["pods", "-l", "app=single"], "{.items[0].status.podIP}").await?;
    let host = std::env::var("KFTRAY_CLUSTER_HOST_IP").context("KFTRAY_CLUSTER_HOST_IP")?;
    // How the cluster's kubeconfig names its API server.
    let node = std::env::var("KFTRAY_CLUSTER_NODE_IP").context("KFTRAY_CLUSTER_NODE_IP")?;
    let (silent, _waiting) = silent(host.parse()?).await?;
    // The last address of the node's pods, which the relay asks for on its own link; they are given out from below.
    let nobody = format!("{}.254", pod.rsplit_once('.').context("an IPv4 address")?.0);
    let cases = [
        (proxy("metadata", "169.254.169.254", 80), "relay_denied", "metadata"),
        (proxy("loopback", "127.0.0.1", 9999), "relay_denied", "loopback"),
        (proxy("api", &api, 443), "relay_denied", "KFTRAY_DENY"),
        (proxy("api-node", &node, 6443), "relay_denied", "KFTRAY_DENY"),
        (proxy("api-name", "kubernetes.default.svc", 443), "relay_denied", "kubernetes.default.svc"),
        (proxy("no-name", "nobody.kftest.svc.cluster.local", 80), "host_not_found", "nobody.kftest"),
        (proxy("no-port", &pod, 4), "remote_refused", "nothing listens"),
        (proxy("silent", &host, silent.local_addr()?.port()), "host_timed_out", "did not answer"),
        (proxy("no-way", &nobody, 80), "destination_unreachable", &nobody),
    ];
    let mut entries: Vec<Value> = cases.iter().map(|(entry, ..)| entry.clone()).collect();
    entries.push(proxy("too-large", &"name.".repeat(60), 80));
    let mut field = Field::run("refusals", &entries).await?;
    // What is too large for the relay is told with its place in the file, before anything is sent.
    let invalid = field.forward.seen.iter().find(|event| event["event"] == "invalid_entry");
    let invalid = invalid.context("the last entry")?;
    ensure!(invalid["alias"] == "too-large", "{invalid}");
    ensure!(
        invalid["problem"]["message"].as_str().unwrap_or_default().contains("longer than 253"),
        "{invalid}"
    );
    for (index, (entry, code, words)) in cases.iter().enumerate() {
        // The connection is accepted here, and ends when the relay has said no.
        let mut socket = client::connect(field.ports[index]).await?;
        socket.write_all(b"hello").await?;
        let message = field.told(code).await.with_context(|| entry.to_string())?;
        ensure!(message.contains(words), "{entry}: {message}");
        println!("{code}: {message}");
    }
    let metrics = field.metrics().await?;
    for (reason, least) in
        [("denied", 5), ("name_not_found", 1), ("refused", 1), ("timed_out", 1), ("unreachable", 1)]
    {
        let count = metrics.get(&format!("refusals_total{{reason=\"{reason}\"}}"));
        ensure!(count >= least, "{count} refusals of kind {reason}:\n{}", metrics.0);
    }
    field.gone().await
}

/// A port that takes no connection and says nothing: its queue is full.
async fn silent(host: Ipv4Addr) -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((host, 0).into())?;
    let listener = socket.listen(1)?;
    let mut waiting = Vec::new();
    let address = listener.local_addr()?;
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connected?);
    }
    Ok((listener, waiting))
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
                "name": "relay", "image": image(),
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
