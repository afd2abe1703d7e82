//! An installation of `kftui` that exposes programs of this machine, in a namespace that it has for itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::field::{SOON, START, image};
use crate::forward::Forward;
use crate::ground::Ground;

/// An installation, and a namespace.
pub struct Exposer {
    /// The cluster.
    pub ground: Ground,
    /// Where the relay and the exposes' objects are.
    pub namespace: String,
    home: TempDir,
}

impl Exposer {
    /// In a fresh namespace of this name.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn new(namespace: &str) -> Result<Self> {
        let ground = Ground::from_env()?;
        ground.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
        ground.kubectl(&["create", "namespace", namespace]).await?;
        Ok(Self { ground, namespace: namespace.to_owned(), home: TempDir::new()? })
    }

    /// Another installation, of somebody who lives on while the first is killed.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn other(&self) -> Result<Self> {
        Ok(Self { ground: self.ground.clone(), namespace: self.namespace.clone(), home: TempDir::new()? })
    }

    /// Begins `kftui run` of these entries, which get the namespace unless they have one.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, entries: &[Value]) -> Result<Forward> {
        let mut list = entries.to_vec();
        for entry in list.iter_mut().filter(|entry| entry["namespace"].is_null()) {
            entry["namespace"] = self.namespace.as_str().into();
        }
        let file = self.home.path().join("entries.json");
        std::fs::write(&file, Value::from(list).to_string())?;
        let mut command = Command::new(&self.ground.kftui);
        command
            .args(["run", "--output", "json"])
            .arg(&file)
            .env("KFTRAY_CONFIG", self.home.path())
            .env("KFTRAY_RELAY_IMAGE", image())
            .env("KUBECONFIG", &self.ground.kubeconfig);
        Forward::spawn(command)
    }

    /// The same, ready.
    ///
    /// # Errors
    /// When they are not ready within [`START`].
    pub async fn run(&self, entries: &[Value]) -> Result<Forward> {
        let mut forward = self.start(entries)?;
        forward.until("all_ready", START).await?;
        Ok(forward)
    }

    /// An object of the namespace.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.ground.kubectl(&["-n", &self.namespace, "get", kind, name, "-o", "json"]).await?;
        serde_json::from_str(&text).context("an object")
    }

    /// Waits until there is no such object any more.
    ///
    /// # Errors
    /// When it is still there after [`SOON`].
    pub async fn until_gone(&self, kind: &str, name: &str) -> Result<()> {
        let look = ["-n", &self.namespace, "get", kind, name, "--ignore-not-found", "-o", "name"];
        let begin = Instant::now();
        while !self.ground.kubectl(&look).await?.trim().is_empty() {
            ensure!(begin.elapsed() < SOON, "{kind} {name} is still there");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Deletes the namespace, without waiting.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn gone(self) -> Result<()> {
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

/// What a forward says it waits for, once it is this code: its message and its remedy.
///
/// # Errors
/// When it does not say so within [`START`].
pub async fn waits_for(forward: &mut Forward, code: &str) -> Result<(String, String)> {
    // While it resolves the reason is what it waits for, later the cause of its recovery or of its end.
    let why = |event: &Value| {
        let status = &event["status"];
        [&status["waiting_for"], &status["cause"]].into_iter().find(|why| why["code"] == code).cloned()
    };
    let event = forward.until_that(code, START, |event| why(event).is_some()).await?;
    let why = why(&event).context("a reason")?;
    let text = |name: &str| why[name].as_str().map(str::to_owned).with_context(|| format!("{name}: {why}"));
    Ok((text("message")?, text("remedy")?))
}
