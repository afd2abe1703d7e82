//! What a forward says while its relay starts in a real cluster: each stage, and what keeps it from going on.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::Place;
use kftray_e2e::exposer::waits_for;
use kftray_e2e::field::SOON;
use kftray_e2e::place::{comes_up, eventually, tells, told};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

/// The Job's controller and the kubelet try again by themselves, with pauses of their own.
const TRIED_AGAIN: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_node_takes_is_told() -> Result<()> {
    const LABEL: &str = "kftray-e2e/relays";
    let place = Place::new("nodes", "", "").await?;
    let (label, unlabel) = (format!("{LABEL}=here"), format!("{LABEL}-"));
    let unlabel = ["label", "nodes", "--all", &unlabel];
    place.ground.kubectl(&unlabel).await?;
    place.set(&[&format!("relay_node_selector={label}")]).await?;
    let mut forward = place.forward()?;
    let first = told(&mut forward, "relay_unschedulable").await?;
    ensure!(
        first.starts_with("no node takes the relay's pod relay-nodes/kftray-relay-jane-")
            && first.contains("(condition PodScheduled): 0/1 nodes are available")
            && first.contains("didn't match Pod's node affinity/selector"),
        "{first}"
    );
    // Dropped is killed, as by `kill -9`: what waits for a node stays, and is adopted.
    drop(forward);
    let jobs = place.jobs().await?;
    let mut forward = place.forward()?;
    ensure!(told(&mut forward, "relay_unschedulable").await? == first);
    ensure!(place.jobs().await? == jobs && jobs.len() == 1, "{jobs:?}");
    let labelled = async {
        place.ground.kubectl(&["label", "nodes", "--all", &label]).await?;
        comes_up(&mut forward, TRIED_AGAIN).await
    };
    let labelled = labelled.await;
    place.ground.kubectl(&unlabel).await?;
    labelled?;
    ensure!(place.jobs().await? == jobs, "it is the one that waited");
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pod_security_refuses_is_told_in_the_clusters_words() -> Result<()> {
    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    let place = Place::new("security", &format!("{ENFORCE}: restricted"), "").await?;
    place.patch_pods(&json!({ "hostPID": true })).await?;
    let mut forward = place.forward()?;
    let (message, remedy) = waits_for(&mut forward, "relay_admission").await?;
    let jobs = place.jobs().await?;
    ensure!(jobs.len() == 1, "{jobs:?}");
    let begin =
        format!("the cluster refuses the pod of relay relay-security/{} (event FailedCreate", jobs[0]);
    ensure!(
        message.starts_with(&begin)
            && message.contains("violates PodSecurity \"restricted:latest\": host namespaces (hostPID=true)"),
        "{message}"
    );
    ensure!(remedy.contains("patch"), "{remedy}");
    place.ground.kubectl(&["label", "namespace", &place.namespace, &format!("{ENFORCE}-")]).await?;
    comes_up(&mut forward, TRIED_AGAIN).await?;
    place.gone().await
}

/// One relay that is held up at each stage until the test lets it go on.
#[tokio::test(flavor = "multi_thread")]
async fn each_stage_of_a_start_is_told() -> Result<()> {
    let place = Place::new("stages", "", "").await?;
    let probed = TcpSocket::new_v4()?;
    let host = host()?;
    probed.bind((host, 0).into())?;
    let port = probed.local_addr()?.port();
    // A scheduler that is not there, a file that is not there, and a probe of a port at which nobody listens.
    place
        .patch_pods(&json!({
            "schedulerName": "nobody",
            "volumes": [{ "name": "late", "configMap": { "name": "late" } }],
            "containers": [{
                "name": "kftray-server",
                "volumeMounts": [{ "name": "late", "mountPath": "/late" }],
                "startupProbe": {
                    "httpGet": null, "tcpSocket": { "host": host, "port": port }, "failureThreshold": 600,
                },
            }],
        }))
        .await?;
    let mut forward = place.forward()?;
    let scheduling = tells(&mut forward, "relay_starting", "scheduling: ").await?;
    let pods = place.names("pods").await?;
    ensure!(pods.len() == 1, "{pods:?}");
    let pod = format!("pod relay-stages/{}", pods[0]);
    ensure!(
        scheduling == format!("waiting for the relay: scheduling: {pod} waits for a node"),
        "{scheduling}"
    );

    let node = place.ground.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await?;
    bind(&place, &pods[0], &node).await?;
    let held_up = tells(&mut forward, "relay_starting", "held up").await?;
    let words =
        format!("waiting for the relay: starting: {pod} on node {node} is held up (event FailedMount): ");
    ensure!(held_up.starts_with(&words) && held_up.contains("configmap \"late\" not found"), "{held_up}");

    place.ground.kubectl(&["-n", &place.namespace, "create", "configmap", "late"]).await?;
    let starting = tells(&mut forward, "relay_starting", "not ready yet").await?;
    ensure!(
        starting
            == format!("waiting for the relay: starting: {pod} runs on node {node} and is not ready yet"),
        "{starting}"
    );

    let _probed = probed.listen(16)?;
    comes_up(&mut forward, TRIED_AGAIN).await?;
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_come_is_told_as_being_pulled() -> Result<()> {
    let mut place = Place::new("pulling", "", "").await?;
    // The system takes the connections, and nobody ever answers.
    let registry = TcpListener::bind((host()?, 0)).await?;
    place.image = format!("{}/kftray-server:slow", registry.local_addr()?);
    let mut forward = place.forward()?;
    let pulling = tells(&mut forward, "relay_starting", "pulling: ").await?;
    let pods = place.names("pods").await?;
    ensure!(pods.len() == 1, "{pods:?}");
    let node = place.ground.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await?;
    let words = format!(
        "waiting for the relay: pulling: node {node} fetches image {} for pod relay-pulling/{}",
        place.image, pods[0]
    );
    ensure!(pulling == words, "{pulling}");
    // The registry is gone: what was a stage becomes a failure with its cause.
    drop(registry);
    let failed = told(&mut forward, "relay_image_pull").await?;
    ensure!(failed.contains(&place.image) && failed.contains(&pods[0]), "{failed}");
    forward.interrupt().await?;
    eventually("no Job", SOON, async || Ok(place.jobs().await?.is_empty())).await?;
    place.gone().await
}

/// Puts a pod on a node, as a scheduler does.
async fn bind(place: &Place, pod: &str, node: &str) -> Result<()> {
    let file = place.home.path().join("binding.json");
    let target = json!({ "apiVersion": "v1", "kind": "Node", "name": node });
    let binding =
        json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod }, "target": target });
    std::fs::write(&file, binding.to_string())?;
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/binding", place.namespace);
    place.ground.kubectl(&["create", "--raw", &path, "-f", &file.display().to_string()]).await.map(drop)
}

/// This machine, as the node sees it.
fn host() -> Result<Ipv4Addr> {
    let host = std::env::var("KFTRAY_CLUSTER_HOST_IP").context("KFTRAY_CLUSTER_HOST_IP")?;
    Ok(host.parse()?)
}
