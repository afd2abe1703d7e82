//! The cluster under the tests, and the faults that can be made on it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;

/// Namespace of the workloads that `cargo xtask cluster load` applies.
pub const NAMESPACE: &str = "kftest";

/// Where the programs and the cluster are, as `cargo xtask test` says in the environment.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The `kftui` under test.
    pub kftui: PathBuf,
    /// The `xtask` that runs the cluster: its fault verbs are used.
    pub xtask: PathBuf,
    /// Name of the cluster, as in `cargo xtask cluster --name`.
    pub cluster: String,
    /// Its state directory.
    pub state: PathBuf,
}

impl Ground {
    /// Reads `KFTRAY_E2E_KUBECONFIG`, `KFTRAY_E2E_KFTUI`, `KFTRAY_E2E_XTASK`, `KFTRAY_E2E_CLUSTER` and `KFTRAY_CLUSTER_STATE`.
    ///
    /// # Errors
    /// Names the variable that is missing: these tests never pass for want of a cluster.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            kubeconfig: path_from("KFTRAY_E2E_KUBECONFIG")?,
            kftui: path_from("KFTRAY_E2E_KFTUI")?,
            xtask: path_from("KFTRAY_E2E_XTASK")?,
            cluster: text_from("KFTRAY_E2E_CLUSTER")?,
            state: path_from("KFTRAY_CLUSTER_STATE")?,
        })
    }

    /// Runs `kubectl` as administrator and returns what it printed.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        run(command).await
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When `kubectl apply` refuses it.
    pub async fn apply(&self, manifest: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), manifest)?;
        self.kubectl(&[OsStr::new("apply"), OsStr::new("-f"), file.path().as_os_str()]).await?;
        Ok(())
    }

    /// Makes or heals a fault: a verb of `cargo xtask cluster fault`.
    ///
    /// # Errors
    /// When the verb fails.
    pub async fn fault(&self, verb: &str) -> Result<()> {
        self.xtask_cluster(&["fault", verb]).await.map(drop)
    }

    /// Runs `xtask cluster ARGUMENTS --name NAME` and returns what it printed.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub async fn xtask_cluster(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.xtask);
        command.arg("cluster").args(arguments).args(["--name", &self.cluster]);
        run(command).await
    }

    /// Threads of the node's container runtime: every forwarded connection pins one.
    ///
    /// # Errors
    /// When the cluster's record of it cannot be read.
    pub fn runtime_threads(&self) -> Result<usize> {
        let record = std::fs::read_to_string(self.state.join("run/containerd.json"))?;
        let record: serde_json::Value = serde_json::from_str(&record)?;
        let pid = record["pid"].as_u64().context("a process id")?;
        Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
    }

    /// Waits until a Deployment in [`NAMESPACE`] is wholly ready.
    ///
    /// # Errors
    /// When it is not within two minutes.
    pub async fn rolled_out(&self, deployment: &str) -> Result<()> {
        let name = format!("deployment/{deployment}");
        self.kubectl(&["-n", NAMESPACE, "rollout", "status", &name, "--timeout=120s"]).await.map(drop)
    }

    /// Names of the running pods that a label selector chooses in [`NAMESPACE`].
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn pods(&self, selector: &str) -> Result<Vec<String>> {
        let path = "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
        let names = self
            .kubectl(&[
                "-n",
                NAMESPACE,
                "get",
                "pods",
                "-l",
                selector,
                "--field-selector=status.phase=Running",
                "-o",
                path,
            ])
            .await?;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

/// Runs a program to its end, within three minutes.
///
/// # Errors
/// With what it wrote to standard error when it fails.
pub async fn run(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let finished = tokio::time::timeout(Duration::from_secs(180), command.output()).await;
    let Output { status, stdout, stderr } =
        finished.with_context(|| format!("{shown}: not done after 180 s"))?.with_context(|| shown.clone())?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{shown}: {status}\n{stderr}");
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn path_from(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text_from(name)?);
    ensure!(Path::new(&path).exists(), "{name}: {} does not exist", path.display());
    Ok(path)
}

fn text_from(name: &str) -> Result<String> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => bail!("{name} is not set: these tests need the cluster, run them with `cargo xtask test --e2e`"),
    }
}
