//! A namespace of a test's own with a relay in it, and a `kftui run` that forwards through that relay.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::Command;

use crate::forward::Forward;
use crate::ground::{self, Ground};

/// The relay's image, as `cargo xtask cluster` names it.
const IMAGE: &str = concat!("kftray-server:", env!("CARGO_PKG_VERSION"));
/// For a pod to be scheduled, started and tunnelled to.
pub const START: Duration = Duration::from_secs(90);
/// For anything that takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// The relay's image: the one that `KFTRAY_E2E_RELAY_IMAGE` names, else the one that `cargo xtask cluster` has built. Not
/// `KFTRAY_RELAY_IMAGE`, which a person may have set for their own forwards.
#[must_use]
pub fn image() -> String {
    let named = std::env::var("KFTRAY_E2E_RELAY_IMAGE").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| IMAGE.to_owned())
}

/// A namespace with a relay, and a `kftui` that forwards through it.
pub struct Field {
    /// The cluster.
    pub ground: Ground,
    /// The relay's, unless an entry has one of its own.
    pub namespace: String,
    /// The program.
    pub forward: Forward,
    /// Local ports, in the order of the entries.
    pub ports: Vec<u16>,
    home: TempDir,
    list: Value,
}

impl Field {
    /// Runs these entries; each gets a local port, and the namespace `relay-NAME` unless it has one.
    ///
    /// # Errors
    /// When they are not ready within [`START`].
    pub async fn run(name: &str, entries: &[Value]) -> Result<Self> {
        let ground = Ground::from_env()?;
        let namespace = format!("relay-{name}");
        ground.kubectl(&["delete", "namespace", &namespace, "--ignore-not-found"]).await?;
        ground.kubectl(&["create", "namespace", &namespace]).await?;
        let home = TempDir::new()?;
        let mut ports = Vec::new();
        let mut list = Vec::new();
        for entry in entries {
            let mut entry = entry.clone();
            let port = free_port(entry["protocol"] == "udp").await?;
            entry["local_port"] = json!(port);
            if entry["namespace"].is_null() {
                entry["namespace"] = json!(namespace);
            }
            ports.push(port);
            list.push(entry);
        }
        let list = Value::from(list);
        let forward = start(&ground, &home, &list).await?;
        Ok(Self { ground, namespace, forward, ports, home, list })
    }

    /// Runs the same again, as the same installation, in place of the program that ran so far (which is killed if it has
    /// not ended).
    ///
    /// # Errors
    /// When it is not ready within [`START`].
    pub async fn run_again(&mut self) -> Result<()> {
        self.forward.signal("KILL").await.ok();
        self.forward = start(&self.ground, &self.home, &self.list).await?;
        Ok(())
    }

    /// The failure of a connection that the program tells next with this code.
    ///
    /// # Errors
    /// When it tells none within [`SOON`].
    pub async fn told(&mut self, code: &str) -> Result<String> {
        let wanted =
            |event: &Value| event["event"] == "connection_failed" && event["problem"]["code"] == code;
        let event = self.forward.until_that(code, SOON, wanted).await?;
        Ok(event["problem"]["message"].as_str().context("a message")?.to_owned())
    }

    /// The first pod of the namespace.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn relay_pod(&self) -> Result<Value> {
        let pods = self.ground.kubectl(&["-n", &self.namespace, "get", "pods", "-o", "json"]).await?;
        let pods: Value = serde_json::from_str(&pods)?;
        Ok(pods["items"][0].clone())
    }

    /// What the relay counts.
    ///
    /// # Errors
    /// When its health port does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let pod = self.relay_pod().await?;
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        metrics(&self.ground, &self.namespace, name).await
    }

    /// Ends the program and returns what its first forward counted.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn counters(mut self) -> Result<Value> {
        self.forward.signal("INT").await?;
        let stopped = self.forward.until("stopped", SOON).await?;
        let counters = stopped["counters"].clone();
        self.gone().await?;
        Ok(counters)
    }

    /// Deletes the namespace, without waiting.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn gone(self) -> Result<()> {
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

async fn start(ground: &Ground, home: &TempDir, list: &Value) -> Result<Forward> {
    let file = home.path().join("forwards.json");
    std::fs::write(&file, list.to_string())?;
    let mut command = Command::new(&ground.kftui);
    command
        .args(["run", "--output", "json"])
        .arg(&file)
        .env("KFTRAY_CONFIG", home.path())
        .env("KFTRAY_RELAY_IMAGE", image())
        .env("KUBECONFIG", &ground.kubeconfig);
    let mut forward = Forward::spawn(command)?;
    forward.until("all_ready", START).await?;
    Ok(forward)
}

/// The text of a relay's `/metrics`.
#[derive(Debug, Clone)]
pub struct Metrics(pub String);

impl Metrics {
    /// The value of a series, named with its labels, without the prefix `kftray_server_`; 0 if it is not there.
    #[must_use]
    pub fn get(&self, series: &str) -> u64 {
        let name = format!("kftray_server_{series} ");
        let value = self.0.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

/// What a relay counts, as the API server's proxy fetches it.
///
/// # Errors
/// When its health port does not answer.
pub async fn metrics(ground: &Ground, namespace: &str, pod: &str) -> Result<Metrics> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:9998/proxy/metrics");
    Ok(Metrics(ground.kubectl(&["get", "--raw", &path]).await?))
}

/// Waits until the namespace of a relay for everybody, which the test before has removed, is gone.
///
/// # Errors
/// When it is still there after two minutes.
pub async fn nothing_installed(ground: &Ground) -> Result<()> {
    let gone = ["wait", "--for=delete", "namespace/kftray-system", "--timeout=120s"];
    ground.kubectl(&gone).await.map(drop)
}

/// A port that is free now.
async fn free_port(udp: bool) -> Result<u16> {
    Ok(if udp {
        UdpSocket::bind("127.0.0.1:0").await?.local_addr()?.port()
    } else {
        TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port()
    })
}

/// An entry of type `proxy`, TCP.
#[must_use]
pub fn proxy(alias: &str, remote_address: &str, remote_port: u16) -> Value {
    json!({
        "alias": alias, "workload_type": "proxy", "protocol": "tcp",
        "remote_address": remote_address, "remote_port": remote_port,
    })
}

/// An entry of type `proxy`, UDP.
#[must_use]
pub fn proxy_udp(alias: &str, remote_address: &str, remote_port: u16) -> Value {
    let mut entry = proxy(alias, remote_address, remote_port);
    entry["protocol"] = json!("udp");
    entry
}

/// An entry of type `service`, of namespace `kftest`.
#[must_use]
pub fn service(name: &str, protocol: &str, remote_port: u16) -> Value {
    json!({
        "alias": format!("{name}-{protocol}-{remote_port}"), "workload_type": "service", "service": name,
        "namespace": ground::NAMESPACE, "protocol": protocol, "remote_port": remote_port,
    })
}

/// What a JSON path of an object in `kftest` holds.
///
/// # Errors
/// When there is no such object.
pub async fn value(ground: &Ground, kind: &[&str], path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    let mut arguments = vec!["-n", ground::NAMESPACE, "get"];
    arguments.extend_from_slice(kind);
    arguments.extend_from_slice(&["-o", &path]);
    Ok(ground.kubectl(&arguments).await?.trim().to_owned())
}

/// Forwards to pods of a namespace without a relay, as its administrator.
///
/// # Errors
/// When they are not ready within [`START`].
pub async fn direct(ground: &Ground, namespace: &str, pods: &[(&str, u16)]) -> Result<Forward> {
    let mut command = Command::new(&ground.kftui);
    command.args(["forward", "-n", namespace, "--output", "json", "--kubeconfig"]).arg(&ground.kubeconfig);
    for (pod, port) in pods {
        command.args([format!("pod/{pod}"), format!(":{port}")]);
    }
    let mut forward = Forward::spawn(command)?;
    forward.until("all_ready", START).await?;
    Ok(forward)
}
