//! `kftui demo`: the whole promise in one window, with nothing installed.
//!
//! A Kubernetes in this process runs a shop; its Services are forwarded exactly as those of a real cluster would be,
//! by way of a kubeconfig and the port-forward protocol; clients ask all the time; and pods are deleted.

mod load;
mod shop;
mod view;

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kftray_commons::{ClusterRef, ContextRef, RemotePort, Status, Target, TargetObject};
use kftray_kube::{Environment, KubeOptions};
use kftray_portforward::{Engine, Forward, ForwardConfig};
use kftray_testkit::{FakeCluster, Kind};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::DemoArgs;
use crate::exit::Exit;
use crate::render::{Paint, colours_on};
use crate::session::ending;
use crate::signals::Signals;
use crate::stack;
use load::Score;
use shop::{NAMESPACE, PARTS, Part};
use view::{Row, Scene, View};

/// A pod is deleted this often: long enough to see it come back.
const DELETE_EVERY: Duration = Duration::from_secs(3);

/// The table is drawn this often; a person reads no faster.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// Draws per second, for what is counted by the second.
const DRAWS: u64 = 4;

/// The cluster is in this process: what is not ready by then never will be.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A forwarded Service and what its clients have seen.
struct Stand {
    part: Part,
    forward: Forward,
    address: SocketAddr,
    score: Arc<Score>,
    /// Answers at the last full second, and in the one before it.
    counted: u64,
    per_second: u64,
}

/// Runs the demo.
pub(crate) async fn run(args: DemoArgs) -> Result<Exit> {
    let mut signals = Signals::install()?;
    let live = io::stdout().is_terminal() && !args.plain;
    let paint = Paint::new(colours_on(io::stdout().is_terminal()));
    view::print(&format!(
        "{}\n",
        paint.dim("A Kubernetes in this process, a web shop in it, its Services forwarded. Nothing leaves this machine.")
    ))?;
    let prepared = tokio::select! {
        prepared = prepare() => prepared?,
        _ = ending(&mut signals) => return Ok(Exit::Clean),
    };
    let (cluster, stands) = prepared;
    if !live {
        for stand in &stands {
            view::print(&format!("{} is at {}\n", stand.part.name, stand.url()))?;
        }
    }
    let mut stage = Stage {
        view: View::new(live, paint),
        cluster,
        stands,
        deleted: 0,
        turn: 0,
        begun: Instant::now(),
        limit: args.seconds,
    };
    let played = stage.play(args.rate, &mut signals).await;
    let scene = stage.scene();
    for stand in &stage.stands {
        stand.forward.stop(Duration::ZERO).await;
    }
    let shown = stage.view.finish(&scene, paint);
    match played.and(shown) {
        Ok(()) if scene.failed() == 0 => Ok(Exit::Clean),
        Ok(()) => Ok(Exit::Failed),
        // The reader of a pipe has gone.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Clean),
        Err(error) => Err(error.into()),
    }
}

/// Starts the cluster, opens the shop, forwards it, and waits until all is ready.
async fn prepare() -> Result<(FakeCluster, Vec<Stand>)> {
    let cluster =
        FakeCluster::builder().namespace(NAMESPACE).start().await.context("the cluster did not start")?;
    shop::open(&cluster).await.context("the shop did not open")?;
    let kubeconfig = cluster.kubeconfig_path();
    // Nothing of the user's own: no kubeconfig, no proxy.
    let environment =
        Environment::new([("HOME", cluster.directory()), ("KUBECONFIG", &kubeconfig)], cluster.directory());
    let engine = stack::engine_with(KubeOptions { environment, ..KubeOptions::from_process() });
    let mut stands = Vec::new();
    for part in PARTS {
        let forward = forward(&engine, part)?;
        stands.push(Stand {
            address: ready(&forward).await?,
            part,
            forward,
            score: Arc::default(),
            counted: 0,
            per_second: 0,
        });
    }
    Ok((cluster, stands))
}

fn forward(engine: &Engine, part: Part) -> Result<Forward> {
    let target = Target {
        cluster: ClusterRef { kubeconfig: None, context: ContextRef::Current },
        namespace: Some(NAMESPACE.to_owned()),
        object: TargetObject::Service(part.name.to_owned()),
    };
    let port = RemotePort::Number(80.try_into().context("80 is not 0")?);
    Ok(engine.start(ForwardConfig::new(part.name, target, port)))
}

async fn ready(forward: &Forward) -> Result<SocketAddr> {
    let mut status = forward.status();
    let waited = status.wait_for(|status| matches!(status, Status::Ready | Status::NeedsUser { .. }));
    let found = tokio::time::timeout(READY_WITHIN, waited).await;
    let name = forward.name();
    match found {
        Ok(Ok(status)) => {
            if let Some(problem) = status.problem() {
                bail!("{name}: {problem}");
            }
        }
        Ok(Err(_)) => bail!("{name}: the forward ended"),
        Err(_) => bail!("{name} was not ready in time: {:?}", forward.snapshot().status),
    }
    forward.addresses().first().copied().with_context(|| format!("{name} listens nowhere"))
}

impl Stand {
    fn url(&self) -> String {
        format!("http://localhost:{}", self.address.port())
    }
}

struct Stage {
    view: View,
    cluster: FakeCluster,
    stands: Vec<Stand>,
    deleted: u64,
    /// How often something was done to the cluster.
    turn: usize,
    begun: Instant,
    limit: Option<Duration>,
}

impl Stage {
    /// Until the time is over, or somebody ends it.
    async fn play(&mut self, rate: u32, signals: &mut Signals) -> io::Result<()> {
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        for stand in &self.stands {
            let score = Arc::clone(&stand.score);
            clients.spawn(load::run(stand.address, stand.part.proof, rate, score, stop.clone()));
        }
        let mut draws = tokio::time::interval(DRAW_EVERY);
        let mut deletions = tokio::time::interval_at(self.begun + DELETE_EVERY, DELETE_EVERY);
        let limit = self.limit.map(|limit| self.begun + limit);
        let mut drawn = 0_u64;
        loop {
            tokio::select! {
                _ = ending(signals) => return Ok(()),
                () = until(limit) => break,
                _ = draws.tick() => {
                    let second = drawn.is_multiple_of(DRAWS) && drawn > 0;
                    if second {
                        self.count();
                    }
                    drawn += 1;
                    let scene = self.scene();
                    self.view.show(&scene, second)?;
                }
                _ = deletions.tick() => self.delete()?,
            }
        }
        // Those still waiting for a pod count as well: let them be answered.
        stop.cancel();
        tokio::select! {
            () = async { while clients.join_next().await.is_some() {} } => {}
            _ = ending(signals) => {}
        }
        Ok(())
    }

    fn count(&mut self) {
        for stand in &mut self.stands {
            let ok = stand.score.read().ok;
            stand.per_second = ok.saturating_sub(stand.counted);
            stand.counted = ok;
        }
    }

    /// Deletes a pod of the next Service; now and then replaces all of one.
    fn delete(&mut self) -> io::Result<()> {
        /// Every so many turns a rollout instead of one pod.
        const ROLLOUT: usize = 4;
        let Some(part) = self.stands.get(self.turn % self.stands.len().max(1)).map(|stand| stand.part) else {
            return Ok(());
        };
        self.turn += 1;
        let clock = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        if self.turn.is_multiple_of(ROLLOUT) {
            let pods = self.cluster.pods(NAMESPACE, part.name).len();
            if self.cluster.rollout_restart(Kind::Deployment, NAMESPACE, part.name) {
                self.deleted += pods as u64;
                return self
                    .view
                    .event(&clock, &format!("rollout restart of {}: all its pods are replaced", part.name));
            }
        }
        let pods = self.cluster.pods(NAMESPACE, part.name);
        let Some(pod) = pods.get(self.turn % pods.len().max(1)) else { return Ok(()) };
        if !self.cluster.terminate_pod(NAMESPACE, pod) {
            return Ok(());
        }
        self.deleted += 1;
        let rest = match pods.len() {
            1 => "the only one: new connections wait for its successor".to_owned(),
            count => format!("one of {count}"),
        };
        self.view.event(&clock, &format!("deleted pod {pod}, {rest}"))
    }

    fn scene(&self) -> Scene {
        let pods = self.cluster.list(Kind::Pod, NAMESPACE);
        let rows = self.stands.iter().map(|stand| Row {
            name: stand.part.name,
            url: stand.url(),
            pods: pods
                .iter()
                .filter(|pod| pod["metadata"]["labels"]["app"] == stand.part.name)
                .map(serves)
                .collect(),
            scored: stand.score.read(),
            per_second: stand.per_second,
        });
        let running = self.begun.elapsed();
        Scene {
            rows: rows.collect(),
            deleted: self.deleted,
            running,
            left: self.limit.map(|limit| limit.saturating_sub(running)),
        }
    }
}

/// Ready, and not on its way out.
fn serves(pod: &serde_json::Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

async fn until(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}
