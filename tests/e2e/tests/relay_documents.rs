//! The user documents' own JSON, each snippet word for word (`tests/data` of kftray-commons) as a file of `kftui run`, in a
//! cluster that has what it names: bytes go through each forward, and back.
//!
//! Local ports are the documents' as well, 53 among them, which tests may take because they run as root. A Service maps the
//! documents' remote port to one of the fixture's. Not here: what leads out of the cluster, which has no way out
//! (`proxy-workloads-2`, `proxy-workloads-3`, `workload-types-3`), and exposes (`workload-types-4`, `workload-types-5`: see
//! `relay_public.rs`). The documents have no proxy that carries UDP.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::field::{SOON, START, image};
use kftray_e2e::{Forward, Ground, client, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// What is at the other end of a forward.
#[derive(Debug, Clone, Copy)]
enum Speaks {
    /// The fixture's HTTP, which tells the pod's name.
    Http,
    /// The fixture's echo.
    Echo,
    /// The fixture's echo of datagrams.
    Udp,
    /// Redis.
    Redis,
}

/// A snippet of the documents.
struct Document {
    name: &'static str,
    text: &'static str,
    speaks: Speaks,
}

macro_rules! document {
    ($name:literal, $speaks:ident) => {
        Document {
            name: $name,
            text: include_str!(concat!("../../../crates/kftray-commons/tests/data/", $name, ".json")),
            speaks: Speaks::$speaks,
        }
    };
}

/// One after the other, since several have the same local port.
const DOCUMENTS: [Document; 11] = [
    document!("port-forwarding-1", Http),
    document!("port-forwarding-2", Udp),
    document!("port-forwarding-3", Http),
    document!("port-forwarding-4", Echo),
    document!("port-forwarding-5", Http),
    document!("networking-1", Http),
    document!("networking-2", Http),
    document!("workload-types-1", Echo),
    document!("workload-types-2", Redis),
    document!("proxy-workloads-1", Http),
    document!("proxy-workloads-4", Http),
];
/// Contexts that they name; a kubeconfig of people has them under names of their own.
const CONTEXTS: [&str; 2] = ["my-cluster", "dev"];
/// The namespace of all documents that name another or none.
const DEFAULT: &str = "default";
/// On all that the test makes in a namespace that is not its own.
const LABEL: &str = "kftray-e2e=documents";
/// Name of the pods with the fixture.
const POD: &str = "documents";

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_examples_carry_bytes_as_they_are_printed() -> Result<()> {
    let ground = Ground::from_env()?;
    cleared(&ground).await?;
    let outcome = all(&ground).await;
    cleared(&ground).await?;
    outcome
}

async fn all(ground: &Ground) -> Result<()> {
    cluster_of_the_documents(ground).await?;
    let home = TempDir::new()?;
    let kubeconfig = home.path().join("kubeconfig");
    let own = ground.kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"]).await?;
    std::fs::write(&kubeconfig, with_contexts(&own)?)?;
    for document in &DOCUMENTS {
        carries(ground, &home, &kubeconfig, document).await.with_context(|| document.name)?;
    }
    Ok(())
}

/// The kubeconfig with its context under the documents' names as well.
fn with_contexts(kubeconfig: &str) -> Result<String> {
    let mut kubeconfig: Value = serde_json::from_str(kubeconfig).context("kubectl config view")?;
    let own = kubeconfig["contexts"][0]["context"].clone();
    let contexts = kubeconfig["contexts"].as_array_mut().context("contexts")?;
    contexts.extend(CONTEXTS.map(|name| json!({ "name": name, "context": own })));
    Ok(kubeconfig.to_string())
}

/// Runs it as it is, and exchanges bytes by its local port.
async fn carries(ground: &Ground, home: &TempDir, kubeconfig: &Path, document: &Document) -> Result<()> {
    let file = home.path().join(format!("{}.json", document.name));
    std::fs::write(&file, document.text)?;
    let mut command = Command::new(&ground.kftui);
    command
        .args(["run", "--output", "json", "--relay-image"])
        .arg(image())
        .arg(&file)
        .env("KFTRAY_CONFIG", home.path())
        .env("KUBECONFIG", kubeconfig);
    let mut forward = Forward::spawn(command)?;
    forward.until("all_ready", START).await?;
    let port = forward.port()?;
    let written: Value = serde_json::from_str(document.text)?;
    ensure!(written["local_port"] == port, "it listens on {port}: {written}");
    // The node's rules for a new Service, and the DNS' knowledge of it, may come after the first connections.
    let begin = Instant::now();
    loop {
        let tried = timeout(Duration::from_secs(10), exchange(port, document.speaks)).await;
        match tried.context("no answer").flatten() {
            Ok(()) => break,
            Err(error) => ensure!(begin.elapsed() < SOON, "{error:#}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
    forward.interrupt().await.map(drop)
}

async fn exchange(port: u16, speaks: Speaks) -> Result<()> {
    let sent = &stream::period()[..10_000];
    match speaks {
        Speaks::Http => {
            let body = client::get(port, "/", SOON).await?;
            ensure!(body.trim() == POD, "{body}");
        }
        Speaks::Echo => returns(port, sent, sent).await?,
        Speaks::Redis => returns(port, b"PING\r\n", b"+PONG\r\n").await?,
        Speaks::Udp => {
            let datagram = &sent[..1_000];
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(("127.0.0.1", port)).await?;
            socket.send(datagram).await?;
            let mut buffer = [0; 2_048];
            let length = socket.recv(&mut buffer).await?;
            ensure!(&buffer[..length] == datagram, "{length} other bytes");
        }
    }
    Ok(())
}

/// Writes, and reads what has to come back.
async fn returns(port: u16, question: &[u8], answer: &[u8]) -> Result<()> {
    let mut socket = client::connect(port).await?;
    socket.write_all(question).await?;
    let mut received = vec![0; answer.len()];
    socket.read_exact(&mut received).await?;
    ensure!(received.as_slice() == answer, "{} other bytes", received.len());
    Ok(())
}

/// Nothing of it is there, of the relays neither.
async fn cleared(ground: &Ground) -> Result<()> {
    ground.kubectl(&["delete", "namespace", "payments", "local", "--ignore-not-found"]).await?;
    ground.kubectl(&["-n", DEFAULT, "delete", "pods,services", "-l", LABEL]).await?;
    let relays = "app.kubernetes.io/managed-by=kftray";
    ground.kubectl(&["-n", DEFAULT, "delete", "jobs", "-l", relays]).await.map(drop)
}

/// Makes the namespaces, Services and pods that the documents name.
async fn cluster_of_the_documents(ground: &Ground) -> Result<()> {
    let mut items = ["payments", "local"].map(namespace).to_vec();
    items.extend([pod(DEFAULT), pod("payments"), debugged()]);
    for (name, port, target) in [
        ("web-service", 80, 8080),
        ("frontend", 80, 8080),
        ("postgres", 5432, 9000),
        ("api-gateway", 8080, 8080),
        ("web-app", 80, 8080),
    ] {
        items.push(service(DEFAULT, name, "TCP", port, target));
    }
    items.push(service(DEFAULT, "dns-service", "UDP", 53, 9001));
    items.push(service("payments", "payment-service", "TCP", 8080, 8080));
    apply(ground, &items).await?;

    let address = ["-n", DEFAULT, "get", "service", "web-app", "-o", "jsonpath={.spec.clusterIP}"];
    let address = ground.kubectl(&address).await?;
    apply(ground, &internal_service(address.trim())).await?;
    for namespace in [DEFAULT, "payments"] {
        let ready = ["wait", "--for=condition=Ready", "pods", "-l", LABEL, "--timeout=90s"];
        ground.kubectl(&[&["-n", namespace][..], &ready].concat()).await?;
    }
    Ok(())
}

async fn apply(ground: &Ground, items: &[Value]) -> Result<()> {
    ground.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).await
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

fn metadata(namespace: &str, name: &str, app: &str) -> Value {
    json!({ "name": name, "namespace": namespace, "labels": { "app": app, "kftray-e2e": "documents" } })
}

fn pod(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata(namespace, POD, POD),
        "spec": { "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "fixture", "image": "kftray.test/fixture:1", "imagePullPolicy": "Never",
            "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
        }] },
    })
}

/// The pod `app=myapp`. Redis, because no Service is between a forward and its pod: the program itself has to listen on the
/// document's port, and the fixture's ports are fixed.
fn debugged() -> Value {
    let command =
        ["/usr/bin/redis-server", "--port", "9229", "--save", "", "--protected-mode", "no", "--dir", "/tmp"];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata(DEFAULT, "debug-pod-abc123", "myapp"),
        "spec": { "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "redis", "image": "kftray.test/redis:1", "imagePullPolicy": "Never", "command": command,
            "readinessProbe": { "tcpSocket": { "port": 9229 }, "periodSeconds": 1 },
        }] },
    })
}

fn service(namespace: &str, name: &str, protocol: &str, port: u16, target: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(namespace, name, name),
        "spec": {
            "selector": { "app": POD },
            "ports": [{ "port": port, "targetPort": target, "protocol": protocol }],
        },
    })
}

/// Makes `internal-service.cluster.local` a name of the cluster, at the address of a Service. Completed with a pod's search
/// domain `svc.cluster.local` it is the endpoint `internal-service` of the headless Service `cluster` in namespace `local`.
fn internal_service(address: &str) -> [Value; 2] {
    let mut slice = metadata("local", "cluster-by-hand", "cluster");
    slice["labels"]["kubernetes.io/service-name"] = json!("cluster");
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("local", "cluster", "cluster"),
            "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
            "endpoints": [{
                "addresses": [address], "hostname": "internal-service", "conditions": { "ready": true },
            }],
        }),
    ]
}
