//! Measures the data path alone, without listeners: new connections, their rate, bulk both ways, ping-pong.
//!
//! ```text
//! cargo run --release -p kftray-kube --example datapath -- web kftest [auto|websocket|spdy|legacy] [mebibytes]
//! ```
//!
//! Needs the fixture's ports: 9000 echo, 9002 discard, 9003 chargen (see `testcluster`).

#![expect(clippy::print_stdout, reason = "the figures are its output")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use kftray_commons::{ClusterRef, RemotePort, Target, TargetObject};
use kftray_kube::{KubeOptions, KubePorts};
use kftray_portforward::ports::{Channel, Condition, Dial, Endpoint, Resolution, Resolve, Wanted};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

const ECHO: u16 = 9000;
const DISCARD: u16 = 9002;
const CHARGEN: u16 = 9003;

fn main() -> anyhow::Result<()> {
    // As a face would: 0 is one thread for everything.
    let threads =
        std::env::var("DATAPATH_THREADS").ok().and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let mut builder = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 0 {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build()?;
    runtime.block_on(async { tokio_util::task::AbortOnDropHandle::new(runtime.spawn(measure())).await? })
}

async fn measure() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &str| args.get(at).cloned().unwrap_or_else(|| default.to_owned());
    let service = arg(0, "web");
    let (namespace, transport) = (arg(1, "kftest"), arg(2, "auto"));
    let bytes = arg(3, "400").parse::<usize>()? << 20;
    let transport = transport.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let ports = Arc::new(KubePorts::new(KubeOptions { transport, ..KubeOptions::from_process() }));

    // Followed to the end: a cluster lives as long as somebody follows a target in it.
    let (endpoint, _following) = endpoint(&ports, &service, &namespace).await?;
    let start = Instant::now();
    let warm = ports.warm(&endpoint).await?;
    println!("{endpoint} by {}: warm after {:?}, rtt {:?}", warm.transport, start.elapsed(), warm.rtt);

    let at = |port| Endpoint { port, ..endpoint.clone() };
    let before = usage();
    connections(&ports, &at(ECHO), 1, 500).await?;
    for parallel in [16, 64] {
        connections(&ports, &at(ECHO), parallel, 3_000).await?;
    }
    ping_pong(&ports, &at(ECHO), 5_000).await?;
    println!("{before}\n{}", usage());
    for _ in 0..2 {
        download(&ports, &at(CHARGEN), bytes).await?;
        upload(&ports, &at(DISCARD), bytes).await?;
    }
    println!("{}", usage());
    Ok(())
}

async fn endpoint(
    ports: &KubePorts,
    service: &str,
    namespace: &str,
) -> anyhow::Result<(Endpoint, watch::Receiver<Resolution>)> {
    let target = Target {
        cluster: ClusterRef::default(),
        namespace: Some(namespace.to_owned()),
        object: TargetObject::Service(service.to_owned()),
    };
    let port = RemotePort::Number(ECHO.try_into()?);
    let mut resolution = ports.follow(&Wanted::direct(target, port));
    loop {
        let now = resolution.borrow_and_update().clone();
        match now {
            Resolution::Pending => {}
            Resolution::Failed(problem) => bail!("{problem}"),
            Resolution::Endpoints { endpoints, .. } => {
                if let Some(ready) = endpoints.iter().find(|endpoint| endpoint.condition == Condition::Ready)
                {
                    return Ok((ready.clone(), resolution));
                }
            }
        }
        resolution.changed().await?;
    }
}

async fn recv(channel: &mut dyn Channel) -> anyhow::Result<Bytes> {
    std::future::poll_fn(|cx| channel.poll_recv(cx)).await?.context("ended early")
}

async fn send(channel: &mut dyn Channel, data: Bytes) -> anyhow::Result<()> {
    std::future::poll_fn(|cx| channel.poll_send_ready(cx)).await?;
    channel.send(data);
    Ok(())
}

/// Connect, one byte there and back, close.
async fn one(ports: &KubePorts, endpoint: &Endpoint) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut channel = ports.dial(endpoint, Bytes::from_static(b"x")).await?;
    recv(&mut *channel).await?;
    Ok(start.elapsed())
}

async fn connections(
    ports: &Arc<KubePorts>,
    endpoint: &Endpoint,
    parallel: usize,
    total: usize,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..parallel {
        let (ports, endpoint) = (Arc::clone(ports), endpoint.clone());
        workers.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..total / parallel {
                times.push(one(&ports, &endpoint).await?);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(result) = workers.join_next().await {
        times.extend(result??);
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    println!("new connections, {parallel} parallel: {rate:.0}/s, {}", percentiles(&mut times));
    Ok(())
}

async fn ping_pong(ports: &KubePorts, endpoint: &Endpoint, rounds: usize) -> anyhow::Result<()> {
    let mut channel = ports.dial(endpoint, Bytes::new()).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        send(&mut *channel, Bytes::from_static(b"x")).await?;
        recv(&mut *channel).await?;
        times.push(start.elapsed());
    }
    println!("ping-pong: {}", percentiles(&mut times));
    Ok(())
}

async fn download(ports: &KubePorts, endpoint: &Endpoint, bytes: usize) -> anyhow::Result<()> {
    let mut channel = ports.dial(endpoint, Bytes::new()).await?;
    let start = Instant::now();
    let mut received = 0;
    while received < bytes {
        received += recv(&mut *channel).await?.len();
    }
    println!("download: {}", speed(received, start.elapsed()));
    Ok(())
}

/// Up to the moment at which the transport has taken all; its queues are below one per cent of it.
async fn upload(ports: &KubePorts, endpoint: &Endpoint, bytes: usize) -> anyhow::Result<()> {
    let mut channel = ports.dial(endpoint, Bytes::new()).await?;
    let start = Instant::now();
    let piece = Bytes::from(vec![7; 64 * 1024]);
    for _ in 0..bytes / piece.len() {
        send(&mut *channel, piece.clone()).await?;
    }
    println!("upload: {}", speed(bytes, start.elapsed()));
    Ok(())
}

fn speed(bytes: usize, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64())
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    format!("p50 {:?}, p99 {:?}", at(0.5), at(0.99))
}

/// Memory and processor time of this process, where the system tells.
fn usage() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks =
        |at: usize| ticks.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default() / 100.0;
    format!("peak {peak}, user {:.2} s, system {:.2} s", ticks(11), ticks(12))
}
