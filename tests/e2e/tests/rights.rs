//! Users who may do little, and what they are told.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::ground::NAMESPACE;
use kftray_e2e::{Forward, Ground, client};

const HOLD: Duration = Duration::from_secs(30);

/// A kubeconfig of a user who has just these rights (`resource=verb`) in [`NAMESPACE`].
async fn user(ground: &Ground, name: &str, rights: &[&str]) -> Result<PathBuf> {
    let mut arguments = vec!["user", name, "-n", NAMESPACE];
    arguments.extend(rights.iter().flat_map(|right| ["--allow", right]));
    let path = ground.xtask_cluster(&arguments).await?;
    Ok(PathBuf::from(path.lines().last().context("a path")?.trim()))
}

#[tokio::test(flavor = "multi_thread")]
async fn get_pods_and_create_portforward_are_enough_by_pod_name() -> Result<()> {
    let ground = Ground::from_env()?;
    let kubeconfig = user(&ground, "by-name-only", &["pods=get", "pods/portforward=create"]).await?;
    let pod = ground.pods("app=web").await?.swap_remove(0);
    let target = format!("pod/{pod}");
    let mut forward = Forward::start(&ground, &kubeconfig, &[target.as_str(), ":8080"])?;
    forward.until("all_ready", Duration::from_secs(60)).await?;
    assert_eq!(client::get(forward.port()?, "/", HOLD).await?.trim(), pod);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_verb_and_resource() -> Result<()> {
    let ground = Ground::from_env()?;
    let nothing = user(&ground, "may-little", &["configmaps=get"]).await?;
    let only_get = user(&ground, "may-get-pods", &["pods=get"]).await?;
    let pod = ground.pods("app=web").await?.swap_remove(0);
    let by_name = format!("pod/{pod}");
    let cases = [
        (&nothing, "svc/web", "services"),
        (&nothing, "deploy/web", "deployments"),
        (&nothing, "app=web", "pods"),
        (&only_get, "svc/web", "services"),
        (&only_get, by_name.as_str(), "pods/portforward"),
    ];
    for (kubeconfig, target, resource) in cases {
        let mut forward = Forward::start(&ground, kubeconfig, &[target, ":8080"])?;
        let event = forward
            .until_that("a refusal", Duration::from_secs(30), |event| {
                event["status"]["cause"]["code"] == "forbidden"
            })
            .await
            .with_context(|| target.to_owned())?;
        let message = event["status"]["cause"]["message"].as_str().context("a message")?;
        ensure!(message.contains(resource) && message.contains(NAMESPACE), "{target}: {message}");
        ensure!(
            ["get", "list", "watch", "create"].iter().any(|verb| message.contains(verb)),
            "{target}: {message}"
        );
    }
    Ok(())
}
