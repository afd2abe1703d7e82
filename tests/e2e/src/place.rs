//! A namespace of a test's own, and an installation of `kftui` whose relays come up in it: for what becomes of a relay.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::client;
use crate::field::{SOON, START, image};
use crate::forward::Forward;
use crate::ground::{self, Ground};

/// Service of the fixture, by the cluster's DNS.
const WEB: &str = "web.kftest.svc.cluster.local";

/// A namespace, and an installation.
pub struct Place {
    /// The cluster.
    pub ground: Ground,
    /// Where the relay is.
    pub namespace: String,
    /// The installation's configuration.
    pub home: TempDir,
    /// The relay's image.
    pub image: String,
}

impl Place {
    /// `relay-NAME` in the cluster, with these labels, and these lines in addition to an empty namespace's manifest.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn new(name: &str, labels: &str, more: &str) -> Result<Self> {
        let ground = Ground::from_env()?;
        let namespace = format!("relay-{name}");
        ground.kubectl(&["delete", "namespace", &namespace, "--ignore-not-found"]).await?;
        ground
            .apply(&format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {namespace}, labels: {{ {labels} }} }}\n{more}"
            ))
            .await?;
        Ok(Self { ground, namespace, home: TempDir::new()?, image: image() })
    }

    /// `kftui` of this installation.
    #[must_use]
    pub fn kftui(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.ground.kftui);
        command
            .env("KFTRAY_CONFIG", self.home.path())
            .env("KFTRAY_RELAY_IMAGE", &self.image)
            .env("KUBECONFIG", kubeconfig)
            .env("USER", "jane");
        command
    }

    /// `kftui ARGUMENTS` to its end.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.kftui(&self.ground.kubeconfig);
        command.args(arguments);
        ground::run(command).await
    }

    /// Stores settings, as `NAME=VALUE`, for all forwards that begin from now on.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn set(&self, settings: &[&str]) -> Result<()> {
        let set = self.run(&[&["settings", "set"][..], settings].concat()).await;
        // Also where they are refused: the host that stores them must not outlive the test.
        self.run(&["host", "stop"]).await?;
        set.map(drop)
    }

    /// Stores changes to the specification of the relays' pods.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn patch_pods(&self, changes: &Value) -> Result<()> {
        let patch = json!({ "spec": { "template": { "spec": changes } } });
        self.set(&[&format!("relay_patch={patch}")]).await
    }

    /// Begins to forward to the fixture by way of a relay of this namespace.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn forward_as(&self, kubeconfig: &Path) -> Result<Forward> {
        let mut command = self.kftui(kubeconfig);
        let target = format!("proxy/{WEB}");
        command.args(["forward", "-n", &self.namespace, "--output", "json", "--keep-trying", &target, ":80"]);
        Forward::spawn(command)
    }

    /// The same as administrator.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn forward(&self) -> Result<Forward> {
        self.forward_as(&self.ground.kubeconfig)
    }

    /// Forwards, and sees that a request is answered.
    ///
    /// # Errors
    /// When it is not within [`START`].
    pub async fn serves(&self) -> Result<Forward> {
        self.serves_as(&self.ground.kubeconfig).await
    }

    /// The same with this kubeconfig.
    ///
    /// # Errors
    /// When it is not within [`START`].
    pub async fn serves_as(&self, kubeconfig: &Path) -> Result<Forward> {
        let mut forward = self.forward_as(kubeconfig)?;
        comes_up(&mut forward, START).await?;
        Ok(forward)
    }

    /// The objects of a kind that the namespace has.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        let text = self.ground.kubectl(&["-n", &self.namespace, "get", kind, "-o", "json"]).await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().context("a list")?.clone())
    }

    /// Names of the objects of a kind that the namespace has.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn names(&self, kind: &str) -> Result<Vec<String>> {
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok(self.objects(kind).await?.iter().map(name).collect())
    }

    /// Names of the Jobs that are there.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn jobs(&self) -> Result<Vec<String>> {
        self.names("jobs").await
    }

    /// A user with exactly what `kftui rbac print SHEET` says, in `namespace`.
    ///
    /// # Errors
    /// When there cannot be such a user.
    pub async fn user(&self, name: &str, sheet: &str, namespace: &str) -> Result<PathBuf> {
        let harmless = ["user", name, "-n", namespace, "--allow", "configmaps=get"];
        let path = self.ground.xtask_cluster(&harmless).await?;
        let role = self.run(&["rbac", "print", sheet, "-n", namespace, "--user", name]).await?;
        self.ground.apply(&role).await?;
        Ok(PathBuf::from(path.lines().last().context("a path")?.trim()))
    }

    /// Deletes the namespace, without waiting.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn gone(self) -> Result<()> {
        self.ground.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }
}

/// Waits until a forward is ready, and sees that the fixture answers a request.
///
/// # Errors
/// When it is not within `limit`.
pub async fn comes_up(forward: &mut Forward, limit: Duration) -> Result<()> {
    forward.until("all_ready", limit).await?;
    let body = client::get(forward.port()?, "/", SOON).await?;
    ensure!(body.starts_with("web-"), "an answer of the fixture, not {body:?}");
    Ok(())
}

/// What a forward says about itself once it says this code.
///
/// # Errors
/// When it does not say so within [`START`].
pub async fn told(forward: &mut Forward, code: &str) -> Result<String> {
    tells(forward, code, "").await
}

/// The same with these words.
///
/// # Errors
/// When it does not say so within [`START`].
pub async fn tells(forward: &mut Forward, code: &str, words: &str) -> Result<String> {
    // While it resolves the reason is what it waits for, later the cause of its recovery.
    let why = |event: &Value| {
        let status = &event["status"];
        let message = [&status["cause"], &status["waiting_for"]]
            .into_iter()
            .filter(|why| why["code"] == code)
            .find_map(|why| why["message"].as_str().filter(|message| message.contains(words)))?;
        Some(message.to_owned())
    };
    let event = forward.until_that(&format!("{code}: {words}"), START, |event| why(event).is_some()).await?;
    why(&event).context("a reason")
}

/// Until `holds`; a test's own clock, not the program's.
///
/// # Errors
/// When it does not within `limit`.
pub async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> F,
) -> Result<Duration> {
    let start = Instant::now();
    while !holds().await? {
        ensure!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(500)).await;
    }
    Ok(start.elapsed())
}
