//! The programs that are compared, each forwarding the same two ports of the same Service.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::cost::{self, Cost};
use crate::measure::{self, Load, Ports, Sizes};

/// A program to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `kubectl port-forward` as it is: SPDY in a WebSocket.
    KubectlWebSocket,
    /// The same, told to use SPDY directly.
    KubectlSpdy,
    /// kube-rs' own forwarder and nothing else (`plain-kube`).
    PlainKube,
    /// The reference implementation's terminal program, as published.
    Reference,
    /// Ours, SPDY in a WebSocket.
    OursWebSocket,
    /// Ours, SPDY directly.
    OursSpdy,
    /// Ours, by way of the relay in the cluster.
    OursRelay,
    /// No Kubernetes: TLS to the node, then the pod (`floor`).
    Floor,
    /// The same without TLS.
    Plain,
}

impl Kind {
    /// Every contender, in the order of the table.
    pub const ALL: [Self; 9] = [
        Self::KubectlWebSocket,
        Self::KubectlSpdy,
        Self::PlainKube,
        Self::Reference,
        Self::OursWebSocket,
        Self::OursSpdy,
        Self::OursRelay,
        Self::Floor,
        Self::Plain,
    ];

    /// Column title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::KubectlWebSocket => "kubectl WebSocket",
            Self::KubectlSpdy => "kubectl SPDY",
            Self::PlainKube => "plain kube-rs",
            Self::Reference => "reference",
            Self::OursWebSocket => "ours WebSocket",
            Self::OursSpdy => "ours SPDY",
            Self::OursRelay => "ours relay",
            Self::Floor => "floor",
            Self::Plain => "plain TCP",
        }
    }
}

/// Where the programs and the cluster are.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Kubeconfig with the (possibly delayed) server.
    pub kubeconfig: PathBuf,
    /// Context name in it.
    pub context: String,
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service, which is the fixture's.
    pub service: String,
    /// `kubectl`.
    pub kubectl: PathBuf,
    /// Our `kftui`, built for release.
    pub kftui: PathBuf,
    /// The reference's `kftui`, if it is installed.
    pub reference: Option<PathBuf>,
    /// Directory of this package's other programs.
    pub programs: PathBuf,
    /// Where the floor's far end listens: echo and HTTP, and the certificate it shows.
    pub floor: Option<FloorEnd>,
    /// The same without TLS.
    pub plain: Option<FloorEnd>,
}

/// The far end of the floor.
#[derive(Debug, Clone)]
pub struct FloorEnd {
    /// Its address for the echo port.
    pub echo: String,
    /// Its address for the HTTP port.
    pub http: String,
    /// Its certificate; `-` for none.
    pub certificate: PathBuf,
}

/// A contender that runs.
pub struct Contender {
    /// Which.
    pub kind: Kind,
    /// Its local ports.
    pub ports: Ports,
    setting: Setting,
    child: Child,
    home: tempfile::TempDir,
    /// Processor time of its processes that have ended.
    spent: f64,
    /// How often it had to be started again because it ended by itself.
    pub restarts: usize,
}

/// The relay's image, as `cargo xtask cluster up --relay` names it.
const RELAY_IMAGE: &str = concat!("kftray-server:", env!("CARGO_PKG_VERSION"));

/// A contender must accept connections within this time.
const START: Duration = Duration::from_secs(30);

impl Contender {
    /// Starts a contender and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub async fn start(kind: Kind, setting: &Setting) -> Result<Self> {
        let ports = Ports { echo: free_port()?, http: free_port()? };
        let home = tempfile::tempdir()?;
        let child = spawn(kind, setting, ports, home.path()).with_context(|| kind.title())?;
        let mut contender =
            Self { kind, ports, setting: setting.clone(), child, home, spent: 0.0, restarts: 0 };
        contender.serving().await?;
        Ok(contender)
    }

    /// Starts it again if it has ended.
    ///
    /// # Errors
    /// When it does not serve again.
    pub async fn revive(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            return Ok(());
        }
        self.restarts += 1;
        self.child = spawn(self.kind, &self.setting, self.ports, self.home.path())?;
        self.serving().await
    }

    /// What it has cost since it was started; the last known value if it has just ended.
    pub fn cost(&mut self) -> Cost {
        let now = self.child.id().and_then(|pid| cost::of(pid).ok());
        now.map(|cost| Cost { cpu: cost.cpu + self.spent, ..cost }).unwrap_or_default()
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    async fn serving(&mut self) -> Result<()> {
        let begun = Instant::now();
        // This waits for programs of others, whose signs of readiness differ: connecting is what all of them answer.
        while TcpStream::connect(("127.0.0.1", self.ports.http)).await.is_err()
            || TcpStream::connect(("127.0.0.1", self.ports.echo)).await.is_err()
        {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}", self.kind.title());
            }
            if begun.elapsed() > START {
                bail!("{} does not listen after {START:?}", self.kind.title());
            }
            sleep(Duration::from_millis(50)).await;
        }
        if self.kind == Kind::OursRelay {
            // A connection is held until the relay is up; that is not what is measured.
            let one = Sizes { opens: 1, connections: 1, bytes: 1, round_trips: 1 };
            measure::run(Load::Open, self.ports, one).await.context("the relay did not come up")?;
        }
        Ok(())
    }
}

fn spawn(kind: Kind, setting: &Setting, ports: Ports, home: &Path) -> Result<Child> {
    let service = format!("svc/{}", setting.service);
    let (echo, http) = (format!("{}:9000", ports.echo), format!("{}:80", ports.http));
    let mut command = match kind {
        Kind::KubectlWebSocket | Kind::KubectlSpdy => {
            let mut command = Command::new(&setting.kubectl);
            let tunnel = if kind == Kind::KubectlWebSocket { "true" } else { "false" };
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", tunnel).arg("port-forward");
            command.args(["-n", &setting.namespace, "--address", "127.0.0.1", &service, &echo, &http]);
            command
        }
        Kind::PlainKube => {
            let mut command = Command::new(setting.programs.join("plain-kube"));
            command.args([
                &setting.namespace,
                &setting.service,
                &format!("{}:9000", ports.echo),
                &format!("{}:8080", ports.http),
            ]);
            command
        }
        Kind::Reference => {
            let file = home.join("configs.json");
            std::fs::write(&file, reference_configs(setting, ports))?;
            let mut command =
                Command::new(setting.reference.as_ref().context("the reference is not installed")?);
            command
                .env("HOME", home)
                .env("KFTRAY_CONFIG", home)
                .args(["--non-interactive", "--auto-start", "--configs-path"])
                .arg(file);
            command
        }
        Kind::OursWebSocket | Kind::OursSpdy => {
            let transport = if kind == Kind::OursWebSocket { "websocket" } else { "spdy" };
            let mut command = Command::new(&setting.kftui);
            command.args([
                "forward",
                "-n",
                &setting.namespace,
                "--address",
                "127.0.0.1",
                "--transport",
                transport,
                &service,
                &echo,
                &http,
            ]);
            command
        }
        Kind::OursRelay => {
            let mut command = Command::new(&setting.kftui);
            command
                .env("KFTRAY_CONFIG", home)
                .env("KFTRAY_RELAY_IMAGE", RELAY_IMAGE)
                .args(["forward", "-n", &setting.namespace, "--address", "127.0.0.1", "--via", "relay"])
                .args([&service, &echo, &http]);
            command
        }
        Kind::Floor | Kind::Plain => {
            let end = if kind == Kind::Floor { &setting.floor } else { &setting.plain };
            let end = end.as_ref().context("the floor's far end does not run")?;
            let mut command = Command::new(setting.programs.join("floor"));
            command
                .arg("near")
                .arg(&end.certificate)
                .args([format!("{}={}", ports.echo, end.echo), format!("{}={}", ports.http, end.http)]);
            command
        }
    };
    let log = std::fs::File::create(home.join("log"))?;
    command
        .env("KUBECONFIG", &setting.kubeconfig)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    command.spawn().with_context(|| format!("{:?}", command.as_std()))
}

/// In the reference's format its `remote_port` is the container's.
fn reference_configs(setting: &Setting, ports: Ports) -> String {
    let entry = |local: u16, remote: u16| {
        serde_json::json!({
            "service": setting.service, "namespace": setting.namespace, "context": setting.context, "workload_type": "service", "protocol": "tcp",
            "local_port": local, "remote_port": remote, "kubeconfig": setting.kubeconfig, "alias": format!("bench-{remote}"),
        })
    };
    serde_json::Value::Array(vec![entry(ports.echo, 9000), entry(ports.http, 8080)]).to_string()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
