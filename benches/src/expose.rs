//! What a caller of an exposed program waits for, beside a forward by way of a relay, which is the same path the other way:
//! the same carriers, the same processes, in turn, in one run.
//!
//! ```text
//! probe in the node's network -> Service -> relay -> tunnel -> kftui -> program here
//! probe here -> kftui -> tunnel -> relay -> program in a pod
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::NAMESPACE;
use crate::relay::Forward;

/// How much of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 7)]
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

/// The exposed program's name in the cluster.
const ALIAS: &str = "bench-expose";
/// Service of the fixture with one pod, and the port of its echo.
const SERVICE: &str = "single";
const ECHO: &str = ":9000";
/// Requests and answers, one after the other on one connection.
const ROUND_TRIPS: usize = 3_000;
/// Bytes of each: a small request, a small answer.
const SIZE: usize = 200;
/// Connections, one after the other, each for one byte there and back.
const CONNECTIONS: usize = 300;
/// Left out at the beginning.
const WARM_UP: usize = 100;
/// For the relay and the tunnel to come up, and for the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one probe has seen, in milliseconds.
#[derive(Serialize, Deserialize, Clone, Copy)]
struct Seen {
    kept: (f64, f64),
    new: (f64, f64),
}

/// Measures and prints.
pub(crate) async fn run(arguments: &Arguments, kftui: &Path, kubeconfig: &Path) -> Result<()> {
    let (port, _program) = program().await?;
    let exposed = Exposed::start(arguments, kftui, kubeconfig, port).await?;
    let mut kubectl = Command::new(&arguments.kubectl);
    kubectl.arg("--kubeconfig").arg(kubeconfig).args(["-n", NAMESPACE, "get", "service", ALIAS]);
    let service = output(kubectl.args(["-o", "jsonpath={.spec.clusterIP}"])).await?;
    let forward = Forward::start(kftui, kubeconfig, &arguments.image, SERVICE, ECHO).await?;

    let own = std::env::current_exe()?;
    let mut results = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        let mut inwards = Command::new("nsenter");
        inwards.arg(format!("--net={}", arguments.node_namespace.display())).arg(&own);
        inwards.args(["tcp-probe", &format!("{}:{port}", service.trim())]);
        let mut outwards = Command::new(&own);
        outwards.args(["tcp-probe", &format!("127.0.0.1:{}", forward.port)]);
        for (mut probe, results) in [inwards, outwards].into_iter().zip(&mut results) {
            probe.env("KFTRAY_E2E_KUBECONFIG", kubeconfig);
            results.push(serde_json::from_str::<Seen>(&output(&mut probe).await?)?);
        }
    }
    exposed.end().await?;
    println!("| TCP by way of a relay | expose | forward | ratio |\n|---|---|---|---|");
    let [expose, forward] = results;
    let row = |title: &str, of: fn(&Seen) -> f64| {
        let (expose, forward) = (median(&expose, of), median(&forward, of));
        println!("| {title} | {expose:.3} | {forward:.3} | {:.2} |", expose / forward);
    };
    row("request and answer on a kept connection, p50 ms", |seen| seen.kept.0);
    row("the same, p99 ms", |seen| seen.kept.1);
    row("new connection, one byte echoed, p50 ms", |seen| seen.new.0);
    row("the same, p99 ms", |seen| seen.new.1);
    Ok(())
}

fn median(all: &[Seen], of: fn(&Seen) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{shown}: {}", output.status);
    String::from_utf8(output.stdout).context(shown)
}

/// A program of this machine that echoes, until the set is dropped.
async fn program() -> Result<(u16, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                socket.set_nodelay(true).ok();
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    Ok((port, tasks))
}

/// Our program that exposes another. Killed when dropped.
struct Exposed {
    child: Child,
    _home: tempfile::TempDir,
}

impl Exposed {
    async fn start(arguments: &Arguments, kftui: &Path, kubeconfig: &Path, port: u16) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let file = home.path().join("expose.json");
        let entry = serde_json::json!([{
            "alias": ALIAS, "namespace": NAMESPACE, "workload_type": "expose", "exposure_type": "internal",
            "exposure_protocol": "tcp", "local_port": port,
        }]);
        std::fs::write(&file, entry.to_string())?;
        let mut command = Command::new(kftui);
        command
            .env("KFTRAY_CONFIG", home.path())
            .env("KFTRAY_RELAY_IMAGE", &arguments.image)
            .env("KUBECONFIG", kubeconfig)
            .args(["run", "--output", "json"])
            .arg(file);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut events = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
        let ready = async {
            while let Some(line) = events.next_line().await? {
                if serde_json::from_str::<serde_json::Value>(&line)?["event"] == "all_ready" {
                    return Ok(());
                }
            }
            bail!("it ended before the expose was ready")
        };
        timeout(PATIENCE, ready).await.context("the expose is not ready")??;
        Ok(Self { child, _home: home })
    }

    /// Withdraws the expose, so that nothing of it stays in the cluster.
    async fn end(mut self) -> Result<()> {
        let pid = self.child.id().context("it has ended")?.to_string();
        output(Command::new("kill").args(["-INT", &pid])).await?;
        timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        Ok(())
    }
}

/// The probe: measures a target that echoes, and prints what it has seen as JSON.
pub(crate) async fn probe(target: SocketAddr) -> Result<()> {
    let mut stream = connect(target).await?;
    let mut buffer = [7; SIZE];
    let mut kept = Vec::new();
    for _ in 0..WARM_UP + ROUND_TRIPS {
        let begin = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        kept.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let mut new = Vec::new();
    for _ in 0..WARM_UP + CONNECTIONS {
        let begin = Instant::now();
        let mut stream = connect(target).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0]).await?;
        new.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!("{}", serde_json::to_string(&Seen { kept: percentiles(kept), new: percentiles(new) })?);
    Ok(())
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// p50 and p99 after the warm-up.
fn percentiles(times: Vec<f64>) -> (f64, f64) {
    let mut times: Vec<f64> = times.into_iter().skip(WARM_UP).collect();
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(f64::NAN);
    (at(50), at(99))
}
