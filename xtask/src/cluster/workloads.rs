//! What runs in the cluster: cluster DNS, and the workloads that tests and benchmarks talk to (`testcluster/manifests`).

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Cluster, image, wait};
use crate::command::{feed, output, run};
use crate::paths;

/// The namespace of the workloads.
const NAMESPACE: &str = "kftest";

/// Ample for a start of a dozen pods on a loaded machine.
const READY: &str = "--timeout=180s";

/// Applies cluster DNS.
pub(super) fn apply_system(cluster: &Cluster) -> Result<()> {
    let manifests = paths::root().join("testcluster/manifests/system");
    run(cluster.kubectl(&["apply", "--server-side", "-f"]).arg(manifests))
}

/// Applies the workloads and waits until all are ready. Idempotent.
pub(super) fn load(cluster: &Cluster) -> Result<()> {
    let begin = wait::now();
    cluster.import(&image::servers()?)?;
    let manifests = paths::root().join("testcluster/manifests/kftest");
    run(cluster.kubectl(&["apply", "--server-side", "-f"]).arg(manifests))?;
    let listed = output(&mut cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "get",
        "deployments,statefulsets,daemonsets",
        "-o",
        "name",
    ]))?;
    for workload in listed.lines() {
        run(&mut cluster.kubectl(&["-n", NAMESPACE, "rollout", "status", workload, READY]))?;
    }
    run(&mut cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app=batch",
        READY,
    ]))?;
    back_selectorless_service(cluster)?;
    println!("namespace {NAMESPACE} is ready after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Loads the Ingress controller (namespace `ingress`) and waits until it serves. Idempotent.
pub(super) fn load_ingress(cluster: &Cluster) -> Result<()> {
    let begin = wait::now();
    cluster.import(&[image::ingress()?])?;
    let manifests = paths::root().join("testcluster/manifests/ingress");
    run(cluster.kubectl(&["apply", "--server-side", "-f"]).arg(manifests))?;
    run(&mut cluster.kubectl(&["-n", "ingress", "rollout", "status", "deployment/traefik", READY]))?;
    println!("the Ingress controller is ready after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Service `manual` has no selector: its EndpointSlice is written by hand, here with the pods of StatefulSet `sts` behind it.
fn back_selectorless_service(cluster: &Cluster) -> Result<()> {
    let pods =
        output(&mut cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", "app=sts", "-o", "json"]))?;
    let pods: Value = serde_json::from_str(&pods)?;
    let pods = pods.get("items").and_then(Value::as_array).context("kubectl listed no pods")?;
    let endpoints: Vec<Value> = pods
        .iter()
        .filter_map(|pod| {
            Some(json!({
                "addresses": [pod.pointer("/status/podIP")?],
                "conditions": { "ready": true },
                "nodeName": pod.pointer("/spec/nodeName")?,
                "targetRef": {
                    "kind": "Pod",
                    "namespace": NAMESPACE,
                    "name": pod.pointer("/metadata/name")?,
                    "uid": pod.pointer("/metadata/uid")?,
                },
            }))
        })
        .collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": "manual-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "manual" } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    });
    feed(&mut cluster.kubectl(&["apply", "-f", "-"]), &serde_json::to_vec(&slice)?).map(drop)
}
