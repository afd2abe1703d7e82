//! UDP through a relay in a real cluster, asked for by the programs that people use: dig, logger, netcat, a browser's
//! HTTP/3; to a pod by its labels; beside a download; and half a million datagrams of which each is accounted for.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::field::{Field, SOON, proxy, proxy_udp, service, value};
use kftray_e2e::{Ground, client, ground, stream};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// What dig prints.
async fn dig(port: u16, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+tries=1", "+time=20"]).args(arguments);
    ground::run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_asks_the_clusters_dns() -> Result<()> {
    let dns = |protocol| {
        let mut entry = service("kube-dns", protocol, 53);
        entry["namespace"] = json!("kube-system");
        entry
    };
    let host = "kube-dns.kube-system";
    let entries =
        [dns("udp"), dns("tcp"), proxy_udp("dns-proxy", host, 53), proxy("dns-proxy-tcp", host, 53)];
    let field = Field::run("dns", &entries).await?;
    let web: Ipv4Addr = value(&field.ground, &["service", "web"], "{.spec.clusterIP}").await?.parse()?;
    let name = "web.kftest.svc.cluster.local";
    for (index, &port) in field.ports.iter().enumerate() {
        let tcp = if index % 2 == 1 { "+tcp" } else { "+notcp" };
        // Each has a port, and so a flow, of its own.
        for _ in 0..5 {
            assert_eq!(
                dig(port, &[tcp, "+short", name, "A"]).await?.trim(),
                web.to_string(),
                "entry {index}"
            );
        }
        let all = dig(port, &[tcp, name, "AAAA"]).await?;
        ensure!(all.contains("status: NOERROR") && all.contains("ANSWER: 0"), "{all}");
        let none = dig(port, &[tcp, "nobody.kftest.svc.cluster.local", "A"]).await?;
        ensure!(none.contains("status: NXDOMAIN"), "{none}");
        let back = dig(port, &[tcp, "+short", "-x", &web.to_string()]).await?;
        assert_eq!(back.trim(), format!("{name}."));
    }
    // An answer that UDP cannot hold: dig hears so and asks again by itself, over TCP at the same port number, which is
    // nobody's here; +ignore shows the truncated one.
    let srv =
        dig(field.ports[0], &["+ignore", "+short", "_echo._tcp.web.kftest.svc.cluster.local", "SRV"]).await?;
    ensure!(srv.contains(" 9000 "), "{srv}");
    field.gone().await
}

/// What the fixture's sink has received.
async fn received(ground: &Ground) -> Result<(u64, String)> {
    let path = format!("/api/v1/namespaces/{}/services/single:http/proxy/datagrams", ground::NAMESPACE);
    let text = ground.kubectl(&["get", "--raw", &path]).await?;
    let told: Value = serde_json::from_str(&text)?;
    Ok((told["count"].as_u64().context("a count")?, told["last"].to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_logs_go_one_way() -> Result<()> {
    const EACH: u64 = 20;
    let field = Field::run("one-way", &[service("single", "udp", 9010)]).await?;
    let port = field.ports[0].to_string();
    let (before, _) = received(&field.ground).await?;
    for number in 0..EACH {
        // As statsd's documents have it, but for -w0: with it this nc may leave before it has read.
        let mut nc = Command::new("nc");
        nc.args(["-u", "-q0", "127.0.0.1", &port]).stdin(Stdio::piped());
        let mut nc = nc.spawn().context("nc")?;
        let mut input = nc.stdin.take().context("an input")?;
        input.write_all(format!("e2e.requests:{number}|c").as_bytes()).await?;
        drop(input);
        timeout(SOON, nc.wait()).await??;
        let mut logger = Command::new("logger");
        logger.args(["--udp", "--server", "127.0.0.1", "--port", &port, "--rfc5424", "--tag", "kftray-e2e"]);
        logger.arg(format!("line {number} of the log"));
        ground::run(logger).await?;
    }
    let begin = Instant::now();
    let last = loop {
        let (count, last) = received(&field.ground).await?;
        ensure!(count <= before + 2 * EACH, "{} datagrams of {}", count - before, 2 * EACH);
        if count == before + 2 * EACH {
            break last;
        }
        ensure!(begin.elapsed() < SOON, "{} datagrams of {}", count - before, 2 * EACH);
        sleep(Duration::from_millis(200)).await;
    };
    for number in 0..EACH {
        ensure!(last.contains(&format!("e2e.requests:{number}|c")), "{last}");
        ensure!(last.contains(&format!("line {number} of the log")), "{last}");
    }
    let counters = field.counters().await?;
    // What is 0 is not told.
    ensure!(counters["datagrams_up"] == 2 * EACH && counters["datagrams_dropped"].is_null(), "{counters}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_http3() -> Result<()> {
    const LENGTH: usize = 4_000_000;
    let entries = [service("single", "udp", 8443), proxy_udp("quic", "single.kftest", 8443)];
    let field = Field::run("quic", &entries).await?;
    let fixture = std::env::var("KFTRAY_CLUSTER_FIXTURE").context("KFTRAY_CLUSTER_FIXTURE")?;
    for &port in &field.ports {
        let get = async |path: &str| {
            let mut client = Command::new(&fixture);
            client.args(["http3", &format!("https://127.0.0.1:{port}{path}")]).kill_on_drop(true);
            let output = timeout(Duration::from_secs(90), client.output()).await??;
            ensure!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(output.stdout)
        };
        let pod = get("/").await?;
        ensure!(pod.starts_with(b"single-"), "{}", String::from_utf8_lossy(&pod));
        let begin = Instant::now();
        let body = get(&format!("/bytes?n={LENGTH}")).await?;
        assert_eq!((body.len(), stream::first_difference(0, &body)), (LENGTH, None));
        println!("{LENGTH} bytes over HTTP/3 in {:?}", begin.elapsed());
    }
    field.gone().await
}

/// The documents' entry for a pod, but for its protocol: no Service has to have the port.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_to_a_pod_come_back_whole() -> Result<()> {
    let entry = json!({
        "service": "debug-pod-abc123", "workload_type": "pod", "target": "app=single",
        "namespace": ground::NAMESPACE, "protocol": "udp", "remote_port": 9001,
    });
    let field = Field::run("udp-pod", &[entry]).await?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", field.ports[0])).await?;
    let mut buffer = vec![0; 65_536];
    // None, few, as many as fit into a packet, one more than that, and as many as UDP can hold.
    for size in [0, 1, 512, 1_472, 1_473, 9_000, 65_507] {
        let sent = &stream::period()[..size];
        socket.send(sent).await?;
        let received = timeout(SOON, socket.recv(&mut buffer)).await;
        let length = received.with_context(|| format!("no echo of {size} bytes"))??;
        ensure!(&buffer[..length] == sent, "{length} other bytes came back for {size}");
    }
    field.gone().await
}

/// A game or a call while somebody downloads, through one relay: bulk must not stand in the way of what is small and urgent.
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_beside_a_download_are_neither_lost_nor_late() -> Result<()> {
    const BULK: u64 = 200_000_000;
    const ROUNDS: u32 = 200;
    let host = "single.kftest.svc";
    let field = Field::run("beside", &[proxy("bulk", host, 80), proxy_udp("echo", host, 9001)]).await?;
    let pods = field.ground.kubectl(&["-n", &field.namespace, "get", "pods", "-o", "name"]).await?;
    assert_eq!(pods.lines().count(), 1, "one relay carries both: {pods}");
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", field.ports[1])).await?;

    let over = Arc::new(AtomicBool::new(false));
    let mut downloads = JoinSet::new();
    let (bulk, seen) = (field.ports[0], Arc::clone(&over));
    downloads.spawn(async move {
        let mut whole = 0_u32;
        // A fast machine has done one before the rounds are: there has to be a download as long as they last.
        while whole == 0 || !seen.load(Ordering::Relaxed) {
            client::download(bulk, BULK).await?;
            whole += 1;
        }
        anyhow::Ok(whole)
    });
    // It is under way when its connection has had the time to be opened.
    sleep(Duration::from_millis(300)).await;
    let mut spans = Vec::new();
    let mut buffer = [0; 2048];
    for number in 0..ROUNDS {
        let datagram = format!("round {number}").repeat(20);
        let begin = Instant::now();
        socket.send(datagram.as_bytes()).await?;
        let received = timeout(SOON, socket.recv(&mut buffer)).await;
        let length = received.with_context(|| format!("round {number} of {ROUNDS} was lost"))??;
        spans.push(begin.elapsed());
        ensure!(&buffer[..length] == datagram.as_bytes(), "round {number}: {length} other bytes");
    }
    over.store(true, Ordering::Relaxed);
    let whole = timeout(Duration::from_secs(120), downloads.join_next()).await?.context("downloads")???;
    spans.sort_unstable();
    let (median, slowest) = (spans[spans.len() / 2], spans[spans.len() - 1]);
    println!("{ROUNDS} rounds beside {whole} downloads: median {median:?}, slowest {slowest:?}");
    ensure!(median < Duration::from_millis(50), "median {median:?}, slowest {slowest:?}");
    field.gone().await
}

/// ICMP's word from the pod reaches the person, and what nobody took is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_nobody_has_is_told() -> Result<()> {
    let ground = Ground::from_env()?;
    let pod = value(&ground, &["pods", "-l", "app=single"], "{.items[0].status.podIP}").await?;
    let mut field = Field::run("icmp", &[proxy_udp("nobody", &pod, 4)]).await?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", field.ports[0])).await?;
    socket.send(b"is anybody there?").await?;
    let message = field.told("remote_refused").await?;
    ensure!(message.contains("nothing listens") && message.contains(&pod), "{message}");
    field.gone().await
}

/// 50 local peers with 10,000 datagrams each, four in flight. What does not come back must be what one of the places where
/// datagrams can be lost says it has dropped.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_million_datagrams_are_accounted_for() -> Result<()> {
    const PEERS: u8 = 50;
    const EACH: u32 = 10_000;
    let mut field = Field::run("flows", &[proxy_udp("echo", "single.kftest.svc", 9001)]).await?;
    let target = SocketAddr::from(([127, 0, 0, 1], field.ports[0]));
    let in_the_pod = drops_of_fixtures()?;
    let begin = Instant::now();
    let mut peers = JoinSet::new();
    for peer in 0..PEERS {
        peers.spawn(exchange(peer, EACH, target));
    }
    let (mut lost, mut at_the_peers) = (0, 0);
    while let Some(peer) = peers.join_next().await {
        let peer = peer??;
        (lost, at_the_peers) = (lost + peer.lost, at_the_peers + peer.dropped);
    }
    let sent = u64::from(PEERS) * u64::from(EACH);
    let rate = u128::from(sent) * 1000 / begin.elapsed().as_millis();
    let metrics = field.metrics().await?;
    let at_the_relay = metrics.get("datagrams_lost_by_kernel_total");
    field.forward.signal("INT").await?;
    let stopped = field.forward.until("stopped", SOON).await?;
    let counters = &stopped["counters"];
    // Left out where there is nothing to tell.
    let dropped = counters["datagrams_dropped"].as_u64().unwrap_or_default();
    let in_the_pod = drops_of_fixtures()? - in_the_pod;
    println!(
        "{sent} datagrams there and back, {rate}/s: {lost} lost = {dropped} counted by us + {at_the_relay} at the relay's \
         sockets + {in_the_pod} at the fixture's + {at_the_peers} at the peers'; {counters}"
    );
    assert_eq!(lost, dropped + at_the_relay + in_the_pod + at_the_peers, "lost, and accounted for");
    assert!(lost < sent / 100, "{lost} lost with four in flight per peer");
    field.gone().await
}

/// What became of one peer's datagrams.
struct Exchanged {
    /// Without an echo.
    lost: u64,
    /// Of these, by the kernel at the peer's own socket, which holds only one or two of the largest.
    dropped: u64,
}

/// Sends datagrams of 0 to 1,472 bytes (each 500th of 65,507), four in flight, and checks that each echo is the peer's own.
async fn exchange(peer: u8, each: u32, target: SocketAddr) -> Result<Exchanged> {
    const WINDOW: usize = 4;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(target).await?;
    let mut buffer = vec![0; 65_536];
    // What waits for its echo, and what has been given up but may still come.
    let (mut awaited, mut late): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
    let mut sent = 0;
    while sent < each || !awaited.is_empty() {
        while sent < each && awaited.len() < WINDOW {
            let size = if sent % 500 == 499 { 65_507 } else { sent as usize * 7 % 1473 };
            let mut datagram = vec![peer; size];
            // What is shorter than its number is told apart by its length.
            for (at, byte) in sent.to_be_bytes().into_iter().enumerate() {
                if let Some(place) = datagram.get_mut(1 + at) {
                    *place = byte;
                }
            }
            socket.send(&datagram).await?;
            awaited.push(datagram);
            sent += 1;
        }
        // Longer than anything of ours holds a datagram.
        let Ok(length) = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await else {
            late.append(&mut awaited);
            continue;
        };
        let echo = &buffer[..length?];
        let found = [&mut awaited, &mut late].into_iter().any(|list| {
            let at = list.iter().position(|datagram| datagram == echo);
            at.map(|at| list.swap_remove(at)).is_some()
        });
        ensure!(found, "peer {peer} got what it has not sent, or twice: {} bytes", echo.len());
    }
    let local = socket.local_addr()?;
    Ok(Exchanged { lost: late.len() as u64, dropped: drops("/proc/net/udp", local.port())? })
}

/// Datagrams that the kernel has dropped because a pod's program was too slow to take them. The node is this machine.
fn drops_of_fixtures() -> Result<u64> {
    let mut found = BTreeMap::new();
    for process in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let path = process.path();
        let is_fixture =
            std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "fixture");
        let Ok(network) = std::fs::read_link(path.join("ns/net")) else { continue };
        if is_fixture && let Ok(count) = drops(&path.join("net/udp6").display().to_string(), 9001) {
            found.insert(network, count);
        }
    }
    ensure!(!found.is_empty(), "no pod of the cluster is seen: this needs the node's own machine, and root");
    Ok(found.values().sum())
}

/// What the sockets at this port have dropped because nobody has taken it in time: the last column of a table of the kernel's.
fn drops(table: &str, port: u16) -> Result<u64> {
    let place = format!(":{port:04X} ");
    let sockets = std::fs::read_to_string(table).with_context(|| table.to_owned())?;
    let ours = sockets.lines().filter(|line| line.contains(&place));
    Ok(ours.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum())
}
