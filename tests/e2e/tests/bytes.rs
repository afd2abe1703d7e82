//! Every byte arrives, in both directions, whichever side ends first; and nothing stays behind.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::client::{connect, download, upload};
use kftray_e2e::{Forward, Ground, load, stream};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

const TRANSPORTS: [&str; 2] = ["websocket", "spdy"];
const GIB: u64 = 1 << 30;

/// SHA-256 of the first GiB of the deterministic stream, by the fixture's own definition of it.
async fn sha256_of_the_first_gib() -> Result<String> {
    use sha2::Digest as _;
    let digest = tokio::task::spawn_blocking(|| {
        let mut digest = sha2::Sha256::new();
        let mut left = GIB;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(stream::period().len());
            digest.update(&stream::period()[..length]);
            left -= length as u64;
        }
        digest.finalize()
    });
    Ok(digest.await?.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gib_down_and_a_gib_up_are_exact() -> Result<()> {
    let ground = Ground::from_env()?;
    let expected = sha256_of_the_first_gib().await?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        timeout(Duration::from_secs(120), download(port, GIB))
            .await
            .context("download")?
            .with_context(|| transport.to_owned())?;
        let answer = timeout(Duration::from_secs(120), upload(port, GIB))
            .await
            .context("upload")?
            .with_context(|| transport.to_owned())?;
        assert_eq!(answer, json!({"count": GIB, "sha256": expected}), "{transport}");
    }
    Ok(())
}

/// Who ends first, and what must then still arrive. In direct mode the container runtime passes no half-close on, so a server that answers only
/// *at* the client's end never sees it: that combination needs the relay, and here it must end in a known way.
#[tokio::test(flavor = "multi_thread")]
async fn the_half_close_matrix() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward =
            Forward::ready(&ground, &["--transport", transport, "svc/web", ":9000", ":9008", ":80", ":9005"])
                .await?;
        let ports = forward.ports()?;
        for size in [1_usize, 100_000, 1_000_000] {
            let what = || format!("{transport}, {size} bytes");
            let sent = stream::period()[..size].to_vec();

            // The client ends, the server still has all of the answer to send.
            let (mut reader, mut writer) = connect(ports[0]).await?.into_split();
            let echo = async {
                let mut received = vec![0; size];
                reader.read_exact(&mut received).await?;
                anyhow::Ok(received)
            };
            let send = async {
                writer.write_all(&sent).await?;
                writer.shutdown().await?;
                anyhow::Ok(())
            };
            let (received, ()) = timeout(Duration::from_secs(30), async { tokio::try_join!(echo, send) })
                .await
                .with_context(what)?
                .with_context(what)?;
            ensure!(received == sent, "{}: the echo differs", what());

            // The client ends before a slow answer begins: a request, its end, and two seconds later the answer.
            let mut stream = connect(ports[2]).await?;
            stream.write_all(b"GET /slow?ms=2000 HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n").await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            timeout(Duration::from_secs(30), stream.read_to_string(&mut answer))
                .await
                .with_context(what)??;
            ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("web-"), "{}: {answer:?}", what());
        }

        // The server ends first: its byte and then an orderly end, about a second late.
        let mut stream = connect(ports[1]).await?;
        let mut received = Vec::new();
        timeout(Duration::from_secs(20), stream.read_to_end(&mut received))
            .await
            .context("the server's end")??;
        assert_eq!(received, b".", "{transport}");

        // The server waits for an end that a port-forward cannot carry: the connection stays open and harms nobody.
        let mut stream = connect(ports[3]).await?;
        stream.write_all(b"question").await?;
        stream.shutdown().await?;
        let mut nothing = Vec::new();
        let waited = timeout(Duration::from_secs(3), stream.read_to_end(&mut nothing)).await;
        ensure!(waited.is_err() || nothing.is_empty(), "{transport}: {nothing:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_short_connections_leave_nothing_behind() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        let warm_up = load::requests(port, "/", 32, 1_000, Duration::from_secs(60)).await;
        ensure!(warm_up.failures.is_empty(), "{transport}: {:#?}", warm_up.failures);
        sleep(Duration::from_secs(3)).await;
        let (descriptors, (memory, _), threads) =
            (forward.descriptors()?, forward.memory_kib()?, ground.runtime_threads()?);

        let outcome = load::requests(port, "/", 32, 10_000, Duration::from_secs(60)).await;
        ensure!(
            outcome.failures.is_empty(),
            "{transport}: {} failed: {:#?}",
            outcome.failures.len(),
            outcome.failures.first()
        );

        // The runtime keeps a connection's thread for one second after its end.
        sleep(Duration::from_secs(3)).await;
        let (descriptors_after, (memory_after, peak)) = (forward.descriptors()?, forward.memory_kib()?);
        ensure!(
            descriptors_after <= descriptors + 4,
            "{transport}: {descriptors} descriptors before, {descriptors_after} after"
        );
        ensure!(
            memory_after <= memory + 4_096,
            "{transport}: {memory} KiB before, {memory_after} KiB after, peak {peak}"
        );
        // Go never ends an idle thread, so the number may not fall; but it must stay far from the 10,000 that end the runtime.
        let threads_after = ground.runtime_threads()?;
        ensure!(
            threads_after < 2_500,
            "{transport}: the runtime has {threads_after} threads, {threads} before"
        );
    }
    Ok(())
}
