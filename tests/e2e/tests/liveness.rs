//! The network goes and comes; the forward notices, says so, and returns by itself.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kftray_e2e::{Forward, Ground, client, load};
use tokio::time::{Instant, sleep};

const TRANSPORTS: [&str; 2] = ["websocket", "spdy"];
const HOLD: Duration = Duration::from_secs(30);

/// Runs a test with a fault and heals it whatever becomes of the test.
async fn with_fault<T>(
    ground: &Ground,
    make: &str,
    heal: &str,
    test: impl Future<Output = Result<T>>,
) -> Result<T> {
    ground.fault(make).await?;
    let result = test.await;
    ground.fault(heal).await?;
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_is_noticed_and_left_behind() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let mut forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        client::get(port, "/", HOLD).await?;
        let noticed = with_fault(&ground, "drop", "undrop", async {
            let begun = Instant::now();
            forward.until_phase("recovering", Duration::from_secs(40)).await?;
            Ok(begun.elapsed())
        })
        .await?;
        let back = Instant::now();
        client::get(port, "/", HOLD).await?;
        let recovered = back.elapsed();
        ensure!(noticed < Duration::from_secs(15), "{transport}: noticed after {noticed:?}");
        ensure!(
            recovered < Duration::from_secs(2),
            "{transport}: the first connection took {recovered:?} once the link was back"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_made_during_a_black_hole_wait_and_are_served() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        client::get(port, "/", HOLD).await?;
        // Quiet for longer than a session is trusted without a sign of life.
        sleep(Duration::from_secs(3)).await;
        let outcome = {
            let clients = load::requests_at(port, "/", 2, 20, HOLD);
            let outage = with_fault(&ground, "drop", "undrop", async {
                sleep(Duration::from_secs(10)).await;
                Ok(())
            });
            let (outcome, outage) = tokio::join!(
                async {
                    sleep(Duration::from_millis(300)).await;
                    clients.await
                },
                outage
            );
            outage?;
            outcome
        };
        ensure!(outcome.failures.is_empty(), "{transport}: {:#?}", outcome.failures);
    }
    Ok(())
}

/// A NAT box or VPN forgets the existing connections; new ones work at once.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_existing_connections_are_dead() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        client::get(port, "/", HOLD).await?;
        sleep(Duration::from_secs(3)).await;
        let (first, outcome) = with_fault(&ground, "blackhole-existing", "clear", async {
            let begun = Instant::now();
            client::get(port, "/", HOLD).await?;
            let first = begun.elapsed();
            Ok((first, load::requests_at(port, "/", 20, 200, HOLD).await))
        })
        .await?;
        ensure!(first < Duration::from_secs(3), "{transport}: the first connection took {first:?}");
        ensure!(outcome.failures.is_empty(), "{transport}: {:#?}", outcome.failures);
    }
    Ok(())
}

/// A laptop sleeps; its connections are gone when it wakes.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_process_serves_again_when_it_wakes() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        client::get(port, "/", HOLD).await?;
        forward.signal("STOP").await?;
        let woken = with_fault(&ground, "blackhole-existing", "clear", async {
            sleep(Duration::from_secs(20)).await;
            forward.signal("CONT").await?;
            let begun = Instant::now();
            client::get(port, "/", HOLD).await?;
            Ok(begun.elapsed())
        })
        .await?;
        ensure!(woken < Duration::from_secs(3), "{transport}: served {woken:?} after waking");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_and_a_runtime_restart_are_survived() -> Result<()> {
    let ground = Ground::from_env()?;
    let mut forward = Forward::ready(&ground, &["svc/web", ":80"]).await?;
    let port = forward.port()?;
    for verb in ["kubelet-stop", "kubelet-start", "containerd-restart"] {
        ground.fault(verb).await?;
        if verb == "kubelet-stop" {
            continue;
        }
        // A request that is under way in the very moment is cut, as by any router that dies; one that comes later is not.
        sleep(Duration::from_secs(1)).await;
        if let Err(error) = client::get(port, "/", HOLD).await {
            bail!("{verb}: {error:#}; {:#?}", forward.complaints().await);
        }
    }
    ground.rolled_out("web").await
}
