//! Pods go and come; connections do not fail.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::ground::NAMESPACE;
use kftray_e2e::{Forward, Ground, client, load};
use tokio::task::JoinSet;
use tokio::time::sleep;

const TRANSPORTS: [&str; 2] = ["websocket", "spdy"];

/// Every request may take as long as the default hold time.
const HOLD: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_rollout_restart_under_a_hundred_connections_a_second_fails_none() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        let before = ground.pods("app=web").await?;
        let clients = load::requests_at(port, "/", 100, 2_000, HOLD);
        let restart = async {
            sleep(Duration::from_secs(2)).await;
            ground.kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment/web"]).await?;
            ground.rolled_out("web").await
        };
        let (outcome, restarted) = tokio::join!(clients, restart);
        restarted?;
        let after = ground.pods("app=web").await?;
        ensure!(
            before.iter().all(|pod| !after.contains(pod)),
            "{transport}: the rollout replaced {before:?} by {after:?}"
        );
        ensure!(
            outcome.failures.is_empty(),
            "{transport}: {} of 2000 failed: {:#?}",
            outcome.failures.len(),
            outcome.failures
        );
    }
    Ok(())
}

#[tokio::test]
async fn connections_wait_while_the_only_replica_is_replaced() -> Result<()> {
    let ground = Ground::from_env()?;
    ground.rolled_out("single").await?;
    for transport in TRANSPORTS {
        let mut forward = Forward::ready(&ground, &["--transport", transport, "svc/single", ":80"]).await?;
        let port = forward.port()?;
        let old = ground.pods("app=single").await?;
        ground.kubectl(&["-n", NAMESPACE, "delete", "pod", &old[0], "--grace-period=0", "--force"]).await?;
        let outcome = load::requests_at(port, "/", 20, 100, HOLD).await;
        ensure!(outcome.failures.is_empty(), "{transport}: {:#?}", outcome.failures);
        ground.rolled_out("single").await?;
        let served_by = client::get(port, "/", HOLD).await?;
        ensure!(served_by.trim() != old[0], "{transport}: still served by {served_by}");
        forward.until_phase("recovering", Duration::from_secs(10)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_restart_of_the_api_server_fails_no_connection() -> Result<()> {
    let ground = Ground::from_env()?;
    for transport in TRANSPORTS {
        let forward = Forward::ready(&ground, &["--transport", transport, "svc/web", ":80"]).await?;
        let port = forward.port()?;
        let clients = load::requests_at(port, "/", 20, 300, HOLD);
        let restart = async {
            sleep(Duration::from_secs(2)).await;
            ground.fault("apiserver-restart").await
        };
        let (outcome, restarted) = tokio::join!(clients, restart);
        restarted?;
        // A request that is in flight when its API server dies is cut, as it would be by any dying router on its way; those
        // that come afterwards wait.
        let cut = outcome
            .failures
            .iter()
            .filter(|failure| failure.contains("closed after") || failure.contains("reset"))
            .count();
        ensure!(outcome.failures.len() == cut && cut <= 2, "{transport}: {:#?}", outcome.failures);
    }
    Ok(())
}

#[tokio::test]
async fn stop_is_quick_with_the_cluster_gone() -> Result<()> {
    let ground = Ground::from_env()?;
    let forward = Forward::ready(&ground, &["svc/web", ":80", "svc/redis", ":6379"]).await?;
    let port = forward.port()?;
    ground.fault("drop").await?;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { client::get(port, "/", Duration::from_secs(20)).await });
    sleep(Duration::from_millis(300)).await;
    let ended = forward.interrupt().await;
    ground.fault("undrop").await?;
    let (status, took) = ended?;
    let held = waiting.join_next().await.context("one held connection")??;
    ensure!(held.is_err(), "a held connection ends with the forward");
    ensure!(status.success(), "{status}");
    ensure!(took < Duration::from_secs(1), "{took:?}");
    Ok(())
}
