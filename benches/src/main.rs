//! `cargo xtask bench`: measures port-forwards side by side on the test cluster and prints tables.
//!
//! Interleaved: every load runs once for each contender before it runs again for the first, so that a machine that drifts drifts for all.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program whose results and progress are its output"
)]

mod expose;
mod idle;
mod relay;
mod udp;
mod window;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use kftray_benches::contender::{Contender, FloorEnd, Kind, Setting};
use kftray_benches::measure::{self, Load, Sizes};
use kftray_benches::report::{Cell, Row, Series, table};
use kftray_benches::{cost, delay};
use tokio::process::{Child, Command};

/// Measure port-forwards side by side on the test cluster
#[derive(Parser)]
struct Arguments {
    /// Administrator's kubeconfig of the test cluster
    #[arg(long, env = "KFTRAY_E2E_KUBECONFIG")]
    kubeconfig: PathBuf,
    /// Our program, built for release
    #[arg(long, env = "KFTRAY_E2E_KFTUI", default_value = "target/release/kftui")]
    kftui: PathBuf,
    #[command(subcommand)]
    command: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Speed and cost beside kubectl, kube-rs, the reference and a floor
    Speed {
        /// Rounds; medians are printed
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Added round trip in milliseconds; 0 for none
        #[arg(long, default_value_t = 0)]
        added_rtt: u64,
        /// kubectl to compare with
        #[arg(long, default_value = "kubectl")]
        kubectl: PathBuf,
        /// The reference's kftui, if it is installed
        #[arg(long)]
        reference: Option<PathBuf>,
        /// Network namespace of the node, for the floor's far end
        #[arg(long, default_value = "/run/netns/kft-bench")]
        node_namespace: PathBuf,
        /// Only contenders whose title contains this; may be repeated
        #[arg(long)]
        only: Vec<String>,
        /// Only loads whose title contains this
        #[arg(long)]
        load: Option<String>,
        /// Write the medians here as JSON too
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// What the relay costs in its pod: processor time of connections, memory of streams
    Relay(relay::Arguments),
    /// An exposed program's answers beside those of a forward by way of a relay
    Expose(expose::Arguments),
    /// The measuring end of `expose`
    #[command(hide = true)]
    TcpProbe {
        /// Whom to ask
        target: SocketAddr,
    },
    /// UDP by way of the relay beside the same datagrams without us
    Udp(udp::Arguments),
    /// The measuring end of `udp`
    #[command(hide = true)]
    UdpProbe {
        /// Whom to ask
        target: SocketAddr,
    },
    /// What many idle forwards cost
    Idle(idle::Arguments),
    /// The window with thousands of configs: key press to drawn, and the cost of host and window
    Window(window::Arguments),
}

/// Namespace and Service of the fixture.
const NAMESPACE: &str = "kftest";
const SERVICE: &str = "web";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Measurement::Idle(idle) => idle::run(&idle, &arguments.kftui, &arguments.kubeconfig).await,
        Measurement::Window(window) => window::run(&window, &arguments.kftui, &arguments.kubeconfig).await,
        Measurement::Expose(expose) => expose::run(&expose, &arguments.kftui, &arguments.kubeconfig).await,
        Measurement::TcpProbe { target } => expose::probe(target).await,
        Measurement::Udp(udp) => udp::run(&udp, &arguments.kftui, &arguments.kubeconfig).await,
        Measurement::UdpProbe { target } => udp::probe(target).await,
        Measurement::Relay(relay) => relay::run(&relay, &arguments.kftui, &arguments.kubeconfig).await,
        Measurement::Speed { rounds, added_rtt, kubectl, reference, node_namespace, only, load, json } => {
            let directory = tempfile::tempdir()?;
            let programs = std::env::current_exe()?.parent().context("a directory")?.to_path_buf();
            let kubectl_at = kubectl.clone();
            let (mut floor, mut plain) = (None, None);
            if added_rtt == 0 && node_namespace.exists() {
                let pod = pod_of(&kubectl, &arguments.kubeconfig).await?;
                let node = server_of(&kubectl, &arguments.kubeconfig).await?.address.ip();
                let certificate = directory.path().join("floor.der");
                for (end, certificate, first_port) in
                    [(&mut floor, certificate, FLOOR_PORT), (&mut plain, PathBuf::from("-"), FLOOR_PORT + 2)]
                {
                    let far = FarEnd { node, pod: &pod, certificate, first_port };
                    *end = Some(far.start(&node_namespace, &programs).await?);
                }
            }
            let server = server_of(&kubectl, &arguments.kubeconfig).await?;
            let (kubeconfig, _delay) = if added_rtt == 0 {
                (arguments.kubeconfig.clone(), None)
            } else {
                let delay = delay::start(server.address, Duration::from_millis(added_rtt)).await?;
                let text = std::fs::read_to_string(&arguments.kubeconfig)?
                    .replace(&server.url, &format!("https://{}", delay.address));
                let path = directory.path().join("kubeconfig");
                std::fs::write(&path, text)?;
                (path, Some(delay))
            };
            let context =
                kubectl_output(&kubectl, &arguments.kubeconfig, &["config", "current-context"]).await?;
            let setting = Setting {
                kubeconfig,
                context,
                namespace: NAMESPACE.to_owned(),
                service: SERVICE.to_owned(),
                kubectl: kubectl_at,
                kftui: arguments.kftui,
                reference,
                programs,
                floor: floor.as_ref().map(|(end, _)| end.clone()),
                plain: plain.as_ref().map(|(end, _)| end.clone()),
            };
            let text = speed(&setting, rounds, added_rtt, &Choice { only, load }, json.as_deref()).await?;
            println!("{text}");
            Ok(())
        }
    }
}

/// The rows of the table: title, load, and the amount that processor time is told for.
const LOADS: [(&str, Load); 9] = [
    ("new connection, one byte echoed, p50 / p99 ms", Load::Open),
    ("new connections/s, 16 parallel", Load::Rate(16)),
    ("new connections/s, 64 parallel", Load::Rate(64)),
    ("download MB/s", Load::Download),
    ("upload MB/s", Load::Upload),
    ("ping-pong p50 / p99 ms", Load::PingPong),
    ("HTTP, a new connection each, 50 parallel, req/s", Load::Http(50)),
    ("HTTP, a new connection each, 4 parallel, req/s", Load::Http(4)),
    ("the server's close seen after p50 / p99 ms", Load::Close),
];

/// Between two loads: the container runtime keeps each connection for one second after its end, and the next contender must not pay for that.
const SETTLE: Duration = Duration::from_millis(1_500);

/// What to measure.
struct Choice {
    only: Vec<String>,
    load: Option<String>,
}

async fn speed(
    setting: &Setting,
    rounds: usize,
    added_rtt: u64,
    choice: &Choice,
    json: Option<&Path>,
) -> Result<String> {
    let wanted = |title: &str| choice.load.as_ref().is_none_or(|part| title.contains(part));
    let loads: Vec<(&str, Load)> = LOADS.into_iter().filter(|(title, _)| wanted(title)).collect();
    let sizes = if added_rtt == 0 {
        Sizes { opens: 200, connections: 3_000, bytes: 400_000_000, round_trips: 2_000 }
    } else {
        Sizes { opens: 40, connections: 500, bytes: 200_000_000, round_trips: 40 }
    };
    let mut contenders = Vec::new();
    for kind in Kind::ALL {
        let there = match kind {
            Kind::Reference => setting.reference.is_some(),
            Kind::Floor => setting.floor.is_some(),
            Kind::Plain => setting.plain.is_some(),
            Kind::KubectlWebSocket
            | Kind::KubectlSpdy
            | Kind::PlainKube
            | Kind::OursWebSocket
            | Kind::OursSpdy
            | Kind::OursRelay => true,
        };
        let wanted = |part: &String| kind.title().contains(part);
        if there && (choice.only.is_empty() || choice.only.iter().any(wanted)) {
            contenders.push(Contender::start(kind, setting).await?);
        }
    }
    let mut all: Vec<Vec<Series>> =
        loads.iter().map(|_| contenders.iter().map(|_| Series::default()).collect()).collect();
    let columns: Vec<&str> = contenders.iter().map(|contender| contender.kind.title()).collect();
    let mut text = String::new();
    for round in 1..=rounds {
        for ((title, load), series) in loads.iter().zip(&mut all) {
            for (contender, series) in contenders.iter_mut().zip(series) {
                tokio::time::sleep(SETTLE).await;
                eprintln!("round {round}: {title}: {}", contender.kind.title());
                one(contender, *load, sizes, series).await;
            }
        }
        // After each round: a run that is cut short has not been for nothing.
        let rows = rows(&mut contenders, &loads, &all);
        if let Some(path) = json {
            let medians = serde_json::json!({"rounds": round, "columns": columns, "rows": rows});
            std::fs::write(path, serde_json::to_string_pretty(&medians)?)?;
        }
        text = table(&columns, &rows);
        eprintln!("after {round} rounds:\n{text}");
    }
    for contender in contenders {
        contender.stop().await?;
    }
    Ok(text)
}

/// The table's rows: the loads, the processor time they cost, memory, restarts.
fn rows(contenders: &mut [Contender], loads: &[(&str, Load)], all: &[Vec<Series>]) -> Vec<Row> {
    let mut rows: Vec<Row> =
        loads.iter().zip(all).map(|((title, load), series)| row(title, *load, series)).collect();
    rows.extend(loads.iter().zip(all).filter_map(|((title, load), series)| cpu_row(title, *load, series)));
    let peaks = contenders
        .iter_mut()
        .map(|contender| Cell { value: Some(contender.cost().peak_mib), ..Cell::default() });
    rows.push(Row { title: "peak RSS MiB".to_owned(), cells: peaks.collect() });
    let restarts = contenders.iter().map(|contender| Cell {
        value: u32::try_from(contender.restarts).ok().map(f64::from),
        ..Cell::default()
    });
    rows.push(Row { title: "times it had to be started again".to_owned(), cells: restarts.collect() });
    rows
}

async fn one(contender: &mut Contender, load: Load, sizes: Sizes, series: &mut Series) {
    if let Err(error) = contender.revive().await {
        series.broken.push(format!("{error:#}"));
        return;
    }
    let before = contender.cost();
    match measure::run(load, contender.ports, sizes).await {
        Ok(figure) => {
            series.figures.push(figure);
            series.cpu.push(contender.cost().cpu - before.cpu);
        }
        Err(error) => {
            eprintln!("  {error:#}");
            series.broken.push(format!("{error:#}"));
        }
    }
}

fn unit(load: Load) -> f64 {
    match load {
        Load::Download | Load::Upload => 1e9,
        Load::Open | Load::Rate(_) | Load::PingPong | Load::Close | Load::Http(_) => 1e3,
    }
}

fn row(title: &str, load: Load, series: &[Series]) -> Row {
    Row { title: title.to_owned(), cells: series.iter().map(|series| series.cell(unit(load))).collect() }
}

fn cpu_row(title: &str, load: Load, series: &[Series]) -> Option<Row> {
    let title = match load {
        Load::Download | Load::Upload => format!("client CPU s/GB: {title}"),
        Load::Rate(64) => format!("client CPU s per 1,000 connections: {title}"),
        Load::Rate(_) | Load::Open | Load::PingPong | Load::Close | Load::Http(_) => return None,
    };
    let cells =
        series.iter().map(|series| Cell { value: series.cell(unit(load)).cpu_per_unit, ..Cell::default() });
    Some(Row { title, cells: cells.collect() })
}

struct Server {
    url: String,
    address: SocketAddr,
}

async fn server_of(kubectl: &Path, kubeconfig: &Path) -> Result<Server> {
    let url = kubectl_output(
        kubectl,
        kubeconfig,
        &["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"],
    )
    .await?;
    let authority = url.trim_start_matches("https://").trim_end_matches('/');
    let address = authority.to_socket_addrs()?.next().with_context(|| format!("no address for {url}"))?;
    Ok(Server { address, url })
}

async fn kubectl_output(kubectl: &Path, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .output()
        .await
        .context("kubectl")?;
    anyhow::ensure!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// An address of the fixture.
async fn pod_of(kubectl: &Path, kubeconfig: &Path) -> Result<String> {
    let wanted = ["-n", NAMESPACE, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"];
    kubectl_output(kubectl, kubeconfig, &wanted).await
}

/// The first of four ports of the far ends: above the range of NodePorts and below that of ephemeral ports.
const FLOOR_PORT: u16 = 32_768 - 4;

/// A far end of the floor, on the node.
struct FarEnd<'a> {
    node: IpAddr,
    pod: &'a str,
    /// Is written; `-` for none.
    certificate: PathBuf,
    first_port: u16,
}

impl FarEnd<'_> {
    /// Starts it in the node's network namespace.
    async fn start(self, namespace: &Path, programs: &Path) -> Result<(FloorEnd, Child)> {
        let (echo, http) = (self.first_port, self.first_port + 1);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace.display()))
            .arg(programs.join("floor"))
            .arg("far")
            .arg(&self.certificate)
            .args([format!("{echo}={}:9000", self.pod), format!("{http}={}:8080", self.pod)])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().context("nsenter")?;
        // The certificate is written before it listens.
        tokio::time::timeout(Duration::from_secs(10), async {
            while tokio::net::TcpStream::connect((self.node, http)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .context("the floor's far end does not listen")?;
        let at = |port: u16| format!("{}:{port}", self.node);
        Ok((FloorEnd { echo: at(echo), http: at(http), certificate: self.certificate }, child))
    }
}

/// Used by [`idle`] too.
fn cost_of(pid: u32) -> Result<cost::Cost> {
    cost::of(pid)
}
