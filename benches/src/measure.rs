//! The loads, each against one local port, each bounded in time.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Serially: connect, one byte echoed.
    Open,
    /// So many at a time: connect, one byte echoed.
    Rate(usize),
    /// One download.
    Download,
    /// One upload.
    Upload,
    /// Round trips of one byte on one connection.
    PingPong,
    /// Serially: from an answer's last byte to the end of its connection.
    Close,
    /// So many at a time: one HTTP request on a connection of its own.
    Http(usize),
}

/// Sizes of the loads: smaller ones where a round trip is added.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Connections of [`Load::Open`].
    pub opens: usize,
    /// Connections of [`Load::Rate`] and [`Load::Http`].
    pub connections: usize,
    /// Bytes of [`Load::Download`] and [`Load::Upload`].
    pub bytes: u64,
    /// Round trips of [`Load::PingPong`].
    pub round_trips: usize,
}

/// Local ports of a contender.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Forwarded to the fixture's echo port.
    pub echo: u16,
    /// Forwarded to the fixture's HTTP port.
    pub http: u16,
}

/// What a load showed.
#[derive(Debug, Clone, Default)]
pub struct Figure {
    /// The main value: milliseconds (median), connections or requests a second, or MB/s.
    pub value: f64,
    /// 99th percentile in milliseconds, where latencies are measured.
    pub p99: Option<f64>,
    /// Attempts that failed.
    pub failed: usize,
    /// How many connections or bytes were moved, to divide the processor time by.
    pub amount: f64,
}

/// Connections of [`Load::Close`]: each may take a second.
const CLOSES: usize = 10;
/// A single attempt may take this long before it counts as failed.
const ATTEMPT: Duration = Duration::from_secs(10);
/// A whole load may take this long; what hangs is cut there.
const WHOLE: Duration = Duration::from_secs(60);

/// Runs a load.
///
/// # Errors
/// When it does not come to its end.
pub async fn run(load: Load, ports: Ports, sizes: Sizes) -> Result<Figure> {
    let whole = async {
        match load {
            Load::Open => serial_opens(ports.echo, sizes.opens).await,
            Load::Rate(parallel) => {
                Ok(parallel_attempts(parallel, sizes.connections, move || echo_once(ports.echo)).await)
            }
            Load::Download => download(ports.http, sizes.bytes).await,
            Load::Upload => upload(ports.http, sizes.bytes).await,
            Load::Close => closes(ports.http, CLOSES).await,
            Load::PingPong => ping_pong(ports.echo, sizes.round_trips).await,
            Load::Http(parallel) => {
                Ok(parallel_attempts(parallel, sizes.connections, move || http_once(ports.http)).await)
            }
        }
    };
    timeout(WHOLE, whole).await.context("cut after 60 s")?
}

async fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn echo_once(port: u16) -> Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(b"x").await?;
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).await?;
    ensure!(&answer == b"x", "another byte came back");
    Ok(())
}

async fn http_once(port: u16) -> Result<()> {
    let mut stream = connect(port).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(512);
    // The answer is whole when its body is: the end of a connection is a second late through a port-forward.
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "cut");
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n")
            && answer[head + 4..].ends_with(b"\n")
        {
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "not 200");
            return Ok(());
        }
    }
}

async fn serial_opens(port: u16, count: usize) -> Result<Figure> {
    let mut latencies = Vec::with_capacity(count);
    let mut failed = 0;
    for _ in 0..count {
        let begun = Instant::now();
        match timeout(ATTEMPT, echo_once(port)).await {
            Ok(Ok(())) => latencies.push(begun.elapsed()),
            Ok(Err(_)) | Err(_) => failed += 1,
        }
    }
    let mut figure = latency_figure(latencies)?;
    figure.failed = failed;
    Ok(figure)
}

async fn parallel_attempts<F>(parallel: usize, count: usize, attempt: impl Fn() -> F) -> Figure
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let begun = Instant::now();
    let (mut done, mut failed) = (0_usize, 0_usize);
    let mut running = JoinSet::new();
    for started in 0..count + parallel {
        if running.len() >= parallel || started >= count {
            match running.join_next().await {
                Some(Ok(true)) => done += 1,
                Some(Ok(false) | Err(_)) => failed += 1,
                None => break,
            }
        }
        if started < count {
            let attempt = attempt();
            running.spawn(async move { matches!(timeout(ATTEMPT, attempt).await, Ok(Ok(()))) });
        }
    }
    Figure {
        value: count_f64(done) / begun.elapsed().as_secs_f64(),
        p99: None,
        failed,
        amount: count_f64(done + failed),
    }
}

async fn closes(port: u16, count: usize) -> Result<Figure> {
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(port).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::with_capacity(512);
        let whole = |answer: &[u8]| {
            answer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
                .is_some_and(|head| answer[head + 4..].ends_with(b"\n"))
        };
        while !whole(&answer) {
            ensure!(timeout(ATTEMPT, stream.read_buf(&mut answer)).await?? > 0, "cut");
        }
        let begun = Instant::now();
        while timeout(ATTEMPT, stream.read_buf(&mut answer)).await?? > 0 {}
        latencies.push(begun.elapsed());
    }
    latency_figure(latencies)
}

async fn download(port: u16, bytes: u64) -> Result<Figure> {
    let mut stream = connect(port).await?;
    let request = format!("GET /bytes?n={bytes} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    let begun = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    while received < bytes {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            bail!("cut after {received} bytes");
        }
        received += length as u64;
    }
    Ok(throughput(bytes, begun))
}

async fn upload(port: u16, bytes: u64) -> Result<Figure> {
    let mut stream = connect(port).await?;
    let begun = Instant::now();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let block = vec![7; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.write_all(&block[..length]).await?;
        left -= length as u64;
    }
    let mut answer = Vec::new();
    while !answer.windows(6).any(|window| window == b"sha256") {
        ensure!(stream.read_buf(&mut answer).await? > 0, "cut before the answer");
    }
    Ok(throughput(bytes, begun))
}

async fn ping_pong(port: u16, count: usize) -> Result<Figure> {
    let mut stream = connect(port).await?;
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0; 1]).await?;
        latencies.push(begun.elapsed());
    }
    latency_figure(latencies)
}

fn latency_figure(mut latencies: Vec<Duration>) -> Result<Figure> {
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies
            .get((latencies.len().saturating_sub(1)) * percent / 100)
            .copied()
            .context("nothing succeeded")
    };
    let (p50, p99) = (at(50)?, at(99)?);
    Ok(Figure {
        value: p50.as_secs_f64() * 1e3,
        p99: Some(p99.as_secs_f64() * 1e3),
        failed: 0,
        amount: count_f64(latencies.len()),
    })
}

fn throughput(bytes: u64, begun: Instant) -> Figure {
    // Far below 2^52: exact.
    #[expect(clippy::cast_precision_loss, reason = "sizes are some hundred megabytes")]
    let bytes = bytes as f64;
    Figure { value: bytes / 1e6 / begun.elapsed().as_secs_f64(), p99: None, failed: 0, amount: bytes }
}

fn count_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}
