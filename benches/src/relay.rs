//! What the relay costs in its pod: processor time per connection, memory of many streams.
//!
//! The relay's process is found on this machine, where the node of the test cluster runs, too.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::{NAMESPACE, SERVICE, cost_of};

/// How much of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Connections, 64 at a time, whose processor time is measured
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// Streams that are held open for their memory
    #[arg(long, default_value_t = 1_000)]
    streams: usize,
    /// The relay's image
    #[arg(long, default_value = concat!("kftray-server:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// Connections at a time.
const PARALLEL: usize = 64;

/// For one connection.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Measures and prints.
pub(crate) async fn run(arguments: &Arguments, kftui: &Path, kubeconfig: &Path) -> Result<()> {
    let before = relays();
    let mut forward = Forward::start(kftui, kubeconfig, &arguments.image, SERVICE, ":9000").await?;
    let port = forward.port;
    echo(port).await?;
    let relay = relays()
        .into_iter()
        .find(|pid| !before.contains(pid))
        .context("no process of a relay on this machine")?;

    let (begin, at_first) = (Instant::now(), cost_of(relay)?);
    let mut running = JoinSet::new();
    let (mut done, mut failed) = (0_u32, 0_u32);
    for started in 0..arguments.connections + PARALLEL {
        if running.len() >= PARALLEL || started >= arguments.connections {
            match running.join_next().await {
                Some(Ok(true)) => done += 1,
                Some(Ok(false) | Err(_)) => failed += 1,
                None => break,
            }
        }
        if started < arguments.connections {
            running.spawn(async move { matches!(timeout(ATTEMPT, echo(port)).await, Ok(Ok(_))) });
        }
    }
    let (seconds, spent) = (begin.elapsed().as_secs_f64(), cost_of(relay)?.cpu - at_first.cpu);
    println!(
        "{done} connections ({failed} failed), {PARALLEL} at a time: {:.0}/s; relay {:.3} core per 1,000 connections/s",
        f64::from(done) / seconds,
        spent / f64::from(done) * 1e3
    );

    let mut held = Vec::new();
    for _ in 0..arguments.streams {
        held.push(timeout(ATTEMPT, echo(port)).await??);
    }
    println!("{} streams open: resident {:.1} MiB", held.len(), resident_mib(relay)?);
    forward.child.kill().await.context("kill")
}

/// Our program with one forward by way of a relay. Killed when dropped.
pub(crate) struct Forward {
    child: Child,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    /// The installation's key lives as long as the program.
    _home: tempfile::TempDir,
    /// Whoever closes the program's output ends it with its next event.
    _events: Lines<BufReader<ChildStdout>>,
}

impl Forward {
    /// Starts it and waits until it is ready. `port` as on the command line.
    pub(crate) async fn start(
        kftui: &Path,
        kubeconfig: &Path,
        image: &str,
        service: &str,
        port: &str,
    ) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let mut command = Command::new(kftui);
        command
            .env("KFTRAY_CONFIG", home.path())
            .env("KFTRAY_RELAY_IMAGE", image)
            .args([
                "forward",
                "-n",
                NAMESPACE,
                "--address",
                "127.0.0.1",
                "--output",
                "json",
                "--via",
                "relay",
            ])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args([format!("svc/{service}").as_str(), port]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut events = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        let mut port = None;
        while let Some(line) = events.next_line().await? {
            let event: serde_json::Value = serde_json::from_str(&line)?;
            if let Some(address) = event["addresses"][0].as_str() {
                port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            }
            if event["event"] == "all_ready" {
                break;
            }
        }
        Ok(Self { child, port: port.context("no port")?, _home: home, _events: events })
    }
}

/// Connects, has one byte echoed, and keeps the connection.
async fn echo(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(b"x").await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    ensure!(byte == *b"x", "another byte came back");
    Ok(stream)
}

/// Processes of relays on this machine.
fn relays() -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_relay = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "kftray-server")
    };
    pids.filter(is_relay).collect()
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().next().context("a number")?.parse::<f64>()? / 1024.0)
}
