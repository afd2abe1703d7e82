//! One running `kftui`, its events, and what it costs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::Lines;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::ground::{Ground, NAMESPACE};

/// A started `kftui forward` or `kftui run` with `--output json`. Killed when dropped.
pub struct Forward {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    /// Every event read so far, in order.
    pub seen: Vec<Value>,
}

impl Forward {
    /// Starts `kftui forward -n kftest --output json ARGUMENTS` and waits until all forwards are ready.
    ///
    /// # Errors
    /// When it ends or takes longer than a minute.
    pub async fn ready<S: AsRef<OsStr>>(ground: &Ground, arguments: &[S]) -> Result<Self> {
        let mut forward = Self::start(ground, &ground.kubeconfig, arguments)?;
        forward.until("all_ready", Duration::from_secs(60)).await?;
        Ok(forward)
    }

    /// The same with another kubeconfig, without waiting.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start<S: AsRef<OsStr>>(ground: &Ground, kubeconfig: &Path, arguments: &[S]) -> Result<Self> {
        let mut command = Command::new(&ground.kftui);
        command
            .args(["forward", "-n", NAMESPACE, "--output", "json", "--kubeconfig"])
            .arg(kubeconfig)
            .args(arguments);
        Self::spawn(command)
    }

    /// Starts any `kftui` command that prints JSON events.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{:?}", command.as_std()))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        Ok(Self { child, events: BufReader::new(stdout).lines(), seen: Vec::new() })
    }

    /// Reads events until one of this name.
    ///
    /// # Errors
    /// When the program ends first or the time passes.
    pub async fn until(&mut self, event: &str, limit: Duration) -> Result<Value> {
        self.until_that(event, limit, |value| value["event"] == event).await
    }

    /// Reads events until a `status` event with this phase.
    ///
    /// # Errors
    /// When the program ends first or the time passes.
    pub async fn until_phase(&mut self, phase: &str, limit: Duration) -> Result<Value> {
        self.until_that(phase, limit, |value| value["event"] == "status" && value["status"]["phase"] == phase)
            .await
    }

    /// Reads events until one that `wanted` accepts; `what` names it in the error.
    ///
    /// # Errors
    /// When the program ends first or the time passes.
    pub async fn until_that(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let found = tokio::time::timeout(limit, async {
            loop {
                let value = self.next().await?;
                if wanted(&value) {
                    return anyhow::Ok(value);
                }
            }
        });
        match found.await {
            Ok(result) => result.with_context(|| format!("waiting for {what}")),
            Err(_) => bail!("no {what} within {limit:?}; seen: {:#?}", self.seen),
        }
    }

    /// What the program has said about connections that failed, to be shown when a test fails.
    pub async fn complaints(&mut self) -> Vec<Value> {
        // Reading until nothing comes for a moment: the program writes as things happen.
        while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(500), self.next()).await {}
        self.seen.iter().filter(|event| event["event"] == "connection_failed").cloned().collect()
    }

    async fn next(&mut self) -> Result<Value> {
        let Some(line) = self.events.next_line().await? else {
            let status = self.child.wait().await?;
            bail!("kftui ended with {status}; seen: {:#?}", self.seen)
        };
        let value: Value =
            serde_json::from_str(&line).with_context(|| format!("not a JSON event: {line}"))?;
        self.seen.push(value.clone());
        Ok(value)
    }

    /// Local ports, in the order in which the forwards were given.
    ///
    /// # Errors
    /// When a `listening` event has no usable address.
    pub fn ports(&self) -> Result<Vec<u16>> {
        let listening = self.seen.iter().filter(|event| event["event"] == "listening");
        listening
            .map(|event| {
                let address = event["addresses"][0].as_str().context("an address")?;
                let (_, port) = address.rsplit_once(':').context("a port")?;
                Ok(port.parse()?)
            })
            .collect()
    }

    /// The first local port.
    ///
    /// # Errors
    /// When nothing listens.
    pub fn port(&self) -> Result<u16> {
        self.ports()?.first().copied().context("one forward that listens")
    }

    /// Process id.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("kftui has ended")
    }

    /// Resident memory in KiB (`VmRSS`), and its peak (`VmHWM`).
    ///
    /// # Errors
    /// When the program has ended.
    pub fn memory_kib(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
            Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Open file descriptors.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// Sends a signal by its name (`STOP`, `CONT`, `INT`).
    ///
    /// # Errors
    /// When the program has ended.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let mut command = Command::new("kill");
        command.arg(format!("-{name}")).arg(self.pid()?.to_string());
        crate::ground::run(command).await.map(drop)
    }

    /// Interrupts it and waits for its end; returns how it ended and how long that took.
    ///
    /// # Errors
    /// When it has not ended after ten seconds.
    pub async fn interrupt(mut self) -> Result<(ExitStatus, Duration)> {
        self.signal("INT").await?;
        let begun = tokio::time::Instant::now();
        let drain = async {
            while let Ok(Some(_)) = self.events.next_line().await {}
            self.child.wait().await
        };
        let status =
            tokio::time::timeout(Duration::from_secs(10), drain).await.context("kftui did not end")??;
        Ok((status, begun.elapsed()))
    }
}
