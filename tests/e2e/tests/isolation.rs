//! What one connection suffers is its own business.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::client::connect;
use kftray_e2e::{Forward, Ground, load, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Connections that must not notice anything.
const NEIGHBOURS: usize = 20;

/// Round trips of a neighbour may take twice as long as on the quiet forward; below this, scheduling on a shared machine of two
/// cores decides and not the data path.
const NOISE: Duration = Duration::from_millis(25);

/// No single round trip of a neighbour may take longer: a stalled session takes seconds.
const STALL: Duration = Duration::from_secs(2);

/// Neighbours that send blocks of the deterministic stream to the echo port and check what comes back.
struct Neighbours {
    connections: Vec<TcpStream>,
    offset: usize,
}

impl Neighbours {
    async fn open(port: u16) -> Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..NEIGHBOURS {
            connections.push(connect(port).await?);
        }
        Ok(Self { connections, offset: 0 })
    }

    /// Exchanges blocks on every connection in turn, for `time`; returns the latencies, sorted.
    async fn exchange(&mut self, time: Duration) -> Result<Vec<Duration>> {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        while begun.elapsed() < time {
            for connection in &mut self.connections {
                let block = &stream::period()[self.offset..self.offset + 1_000];
                self.offset = (self.offset + 997) % (stream::period().len() - 1_000);
                let sent = Instant::now();
                connection.write_all(block).await?;
                let mut answer = [0; 1_000];
                timeout(Duration::from_secs(20), connection.read_exact(&mut answer))
                    .await
                    .context("a neighbour hangs")??;
                ensure!(answer == block, "a neighbour got other bytes than it sent");
                latencies.push(sent.elapsed());
            }
            sleep(Duration::from_millis(5)).await;
        }
        latencies.sort_unstable();
        Ok(latencies)
    }
}

/// Compares the neighbours' round trips with and without the disturbance.
async fn undisturbed_by<F: Future<Output = Result<()>>>(
    what: &str,
    transport: &str,
    echo: u16,
    disturbance: F,
) -> Result<()> {
    let mut neighbours = Neighbours::open(echo).await?;
    neighbours.exchange(Duration::from_millis(500)).await?;
    let quiet = neighbours.exchange(Duration::from_secs(2)).await?;
    let (disturbed, made) = tokio::join!(neighbours.exchange(Duration::from_secs(4)), disturbance);
    made.with_context(|| format!("{what} ({transport})"))?;
    let disturbed = disturbed.with_context(|| format!("{what} ({transport})"))?;
    let (before, during) = (quiet[quiet.len() / 2], disturbed[disturbed.len() / 2]);
    let worst = disturbed[disturbed.len() - 1];
    let report = format!("{what} ({transport}): median {during:?}, quiet {before:?}, worst {worst:?}");
    ensure!(during < (2 * before).max(NOISE) && worst < STALL, "{report}");
    Ok(())
}

async fn with_each_transport<F: Future<Output = Result<()>>>(
    ports: &[&str],
    test: impl Fn(&'static str, Vec<u16>) -> F,
) -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in ["websocket", "spdy"] {
        let mut arguments = vec!["--transport", transport, "svc/web"];
        arguments.extend(ports);
        let forward = Forward::ready(&ground, &arguments).await?;
        test(transport, forward.ports()?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_download_of_32_mib() -> Result<()> {
    with_each_transport(&[":9000", ":80"], |transport, ports| async move {
        undisturbed_by("cancelled downloads", transport, ports[0], async {
            for _ in 0..5 {
                let mut download = connect(ports[1]).await?;
                download.write_all(b"GET /bytes?n=33554432 HTTP/1.1\r\nHost: e2e\r\n\r\n").await?;
                let mut first = vec![0; 64 << 10];
                download.read_exact(&mut first).await?;
                drop(download);
                sleep(Duration::from_millis(300)).await;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_container_port() -> Result<()> {
    // 9999 is no port of the Service, so it is taken as the container's, where nothing listens.
    with_each_transport(&[":9000", ":9999"], |transport, ports| async move {
        undisturbed_by("a refused port", transport, ports[0], async {
            for _ in 0..5 {
                let mut refused = connect(ports[1]).await?;
                let mut nothing = [0; 1];
                let end = timeout(Duration::from_secs(20), refused.read(&mut nothing))
                    .await
                    .context("a refused connection hangs")?;
                ensure!(!matches!(end, Ok(1..)), "a refused connection delivered a byte");
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_its_download() -> Result<()> {
    with_each_transport(&[":9000", ":9003"], |transport, ports| async move {
        undisturbed_by("a reader that stalls", transport, ports[0], async {
            let stalled = connect(ports[1]).await?;
            sleep(Duration::from_secs(4)).await;
            drop(stalled);
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_resets() -> Result<()> {
    with_each_transport(&[":9000", ":9006"], |transport, ports| async move {
        let (echo, resetting) = (ports[0], ports[1]);
        undisturbed_by("an RST storm", transport, echo, async {
            // Each takes a second: the runtime passes an end on that late.
            for _ in 0..8 {
                let mut storm = JoinSet::new();
                for _ in 0..25 {
                    storm.spawn(async move {
                        let mut stream = connect(resetting).await?;
                        stream.write_all(b"RST 1000\n").await?;
                        let mut received = Vec::new();
                        // The end is a reset or, since the runtime passes none on, an early close: either is right.
                        let _ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut received))
                            .await
                            .context("a reset connection hangs")?;
                        ensure!(
                            stream::first_difference(0, &received).is_none(),
                            "bytes before the reset differ"
                        );
                        stream.set_zero_linger()?;
                        anyhow::Ok(())
                    });
                }
                while let Some(joined) = storm.join_next().await {
                    joined??;
                }
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_parallel_connections() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in ["websocket", "spdy"] {
        let forward =
            Forward::ready(&ground, &["--transport", transport, "svc/web", ":9000", "svc/web", ":80"])
                .await?;
        let ports = forward.ports()?;
        let mut neighbours = Neighbours::open(ports[0]).await?;
        let mut crowd = JoinSet::new();
        for number in 0..1_000_usize {
            let port = ports[0];
            crowd.spawn(async move {
                let mut stream = connect(port).await?;
                let block = &stream::period()[number * 1_000..][..1_000];
                stream.write_all(block).await?;
                let mut answer = [0; 1_000];
                timeout(Duration::from_secs(60), stream.read_exact(&mut answer))
                    .await
                    .context("one of a thousand hangs")??;
                ensure!(answer == block, "connection {number} got other bytes than it sent");
                anyhow::Ok(stream)
            });
        }
        let mut open = Vec::new();
        let gathered = async {
            while let Some(joined) = crowd.join_next().await {
                open.push(joined??);
            }
            anyhow::Ok(())
        };
        let (exact, gathered) = tokio::join!(neighbours.exchange(Duration::from_secs(3)), gathered);
        exact.with_context(|| transport.to_owned())?;
        gathered.with_context(|| transport.to_owned())?;
        assert_eq!(open.len(), 1_000, "{transport}: all open at once");
        let latencies = neighbours.exchange(Duration::from_secs(1)).await?;
        ensure!(latencies[latencies.len() - 1] < STALL, "{transport}: {:?}", latencies[latencies.len() - 1]);
        drop(open);
        let after = load::requests(ports[1], "/", 10, 100, Duration::from_secs(30)).await;
        ensure!(after.failures.is_empty(), "{transport}: {:#?}", after.failures);
    }
    Ok(())
}
