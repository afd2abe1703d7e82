//! UDP by way of the relay beside the same datagrams without us: round trip and datagrams a second, in turn, in one run.
//!
//! Without us the probe runs in the node's network namespace and asks the fixture's pod itself. Both ways it is a process of
//! its own, so that both share the processor in the same way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::NAMESPACE;
use crate::relay::Forward;

/// How much of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// kubectl of the cluster
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,
    /// Network namespace of the node
    #[arg(long, default_value = "/run/netns/kft-bench")]
    node_namespace: PathBuf,
    /// The relay's image
    #[arg(long, default_value = concat!("kftray-server:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// Service of the fixture with one pod, and the port of its echo.
const SERVICE: &str = "single";
const ECHO: u16 = 9001;

/// Round trips, one after the other.
const ROUND_TRIPS: usize = 2_000;
/// Bytes of one datagram: about what DNS, metrics and voice send.
const SIZE: usize = 200;
/// Local peers of the rate, and what each has under way: 128 together are what a busy program has.
const PEERS: usize = 16;
const WINDOW: usize = 8;
/// How long the rate is measured.
const RATE_FOR: Duration = Duration::from_secs(3);
/// Without an echo for so long a datagram is lost.
const LOST: Duration = Duration::from_secs(1);

/// What one probe has seen.
#[derive(Serialize, Deserialize, Clone, Copy)]
struct Seen {
    /// Milliseconds.
    median: f64,
    /// Milliseconds.
    p99: f64,
    /// Datagrams there and back, a second.
    rate: f64,
    lost: usize,
}

/// Measures and prints.
pub(crate) async fn run(arguments: &Arguments, kftui: &Path, kubeconfig: &Path) -> Result<()> {
    let mut kubectl = Command::new(&arguments.kubectl);
    kubectl.arg("--kubeconfig").arg(kubeconfig).args(["-n", NAMESPACE, "get", "pods", "-l"]);
    kubectl.args([format!("app={SERVICE}").as_str(), "-o", "jsonpath={.items[0].status.podIP}"]);
    let pod = output(kubectl).await?;
    let port = format!(":{ECHO}/udp");
    let forward = Forward::start(kftui, kubeconfig, &arguments.image, SERVICE, &port).await?;
    let own = std::env::current_exe()?;
    let mut results = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        let mut ours = Command::new(&own);
        ours.arg("udp-probe").arg(format!("127.0.0.1:{}", forward.port));
        let mut without = Command::new("nsenter");
        without.arg(format!("--net={}", arguments.node_namespace.display())).arg(&own);
        without.args(["udp-probe", &format!("{}:{ECHO}", pod.trim())]);
        for (mut probe, results) in [ours, without].into_iter().zip(&mut results) {
            probe.env("KFTRAY_E2E_KUBECONFIG", kubeconfig);
            results.push(serde_json::from_str(&output(probe).await?)?);
        }
    }
    println!("| UDP, {SIZE} bytes | by way of the relay | without us |\n|---|---|---|");
    let [ours, without] = results;
    let row = |title: &str, of: fn(&Seen) -> f64, digits: usize| {
        println!("| {title} | {:.digits$} | {:.digits$} |", median(&ours, of), median(&without, of));
    };
    row("round trip p50 ms", |seen| seen.median, 3);
    row("round trip p99 ms", |seen| seen.p99, 3);
    row("datagrams/s there and back, 16 peers with 8 each under way", |seen| seen.rate, 0);
    let lost = |all: &[Seen]| all.iter().map(|seen| seen.lost).sum::<usize>();
    println!("| lost in all rounds | {} | {} |", lost(&ours), lost(&without));
    Ok(())
}

fn median(all: &[Seen], of: fn(&Seen) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn output(mut command: Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{shown}: {}", output.status);
    String::from_utf8(output.stdout).context(shown)
}

/// The probe: measures a target and prints what it has seen as JSON.
pub(crate) async fn probe(target: SocketAddr) -> Result<()> {
    let socket = connected(target).await?;
    let mut times = Vec::new();
    let mut lost = 0;
    let mut buffer = [0; SIZE];
    for number in 0..ROUND_TRIPS {
        let begin = Instant::now();
        socket.send(&datagram(number)).await?;
        match timeout(LOST, socket.recv(&mut buffer)).await {
            Ok(length) => {
                ensure!(length? == SIZE, "cut");
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            Err(_) => lost += 1,
        }
    }
    times.sort_by(f64::total_cmp);
    let percentile = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(f64::NAN);
    let mut peers = JoinSet::new();
    for _ in 0..PEERS {
        peers.spawn(exchange(target));
    }
    let mut echoes = 0_u32;
    while let Some(peer) = peers.join_next().await {
        let (back, gone) = peer??;
        (echoes, lost) = (echoes + back, lost + gone);
    }
    let rate = f64::from(echoes) / RATE_FOR.as_secs_f64();
    let seen = Seen { median: percentile(50), p99: percentile(99), rate, lost };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn exchange(target: SocketAddr) -> Result<(u32, usize)> {
    let socket = connected(target).await?;
    let end = Instant::now() + RATE_FOR;
    let (mut back, mut lost, mut under_way, mut number) = (0, 0, 0, 0);
    let mut buffer = [0; SIZE];
    while Instant::now() < end {
        while under_way < WINDOW {
            socket.send(&datagram(number)).await?;
            (under_way, number) = (under_way + 1, number + 1);
        }
        match timeout_at(end.min(Instant::now() + LOST), socket.recv(&mut buffer)).await {
            Ok(length) => {
                length?;
                (back, under_way) = (back + 1, under_way - 1);
            }
            // What is under way at the end is not lost.
            Err(_) if Instant::now() < end => (lost, under_way) = (lost + under_way, 0),
            Err(_) => {}
        }
    }
    Ok((back, lost))
}

async fn connected(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(target).await?;
    Ok(socket)
}

fn datagram(number: usize) -> [u8; SIZE] {
    let mut datagram = [0; SIZE];
    for (byte, of) in datagram.iter_mut().zip(number.to_be_bytes()) {
        *byte = of;
    }
    datagram
}
