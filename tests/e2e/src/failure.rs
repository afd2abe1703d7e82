//! One entry of the failure catalogue (`docs/failures.md`) on the real cluster: what a person is told, that the program ends
//! as its help says, and that it goes on by itself once the cause is gone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{Forward, Ground};

/// Ample for a pod to fail in its way, and for a login to be refused, on a busy machine.
const TOLD: Duration = Duration::from_secs(60);

/// Ample for a pod to start, or for the pause after a refusal to pass (ten seconds, then twenty), on a busy machine.
const MENDED: Duration = Duration::from_secs(90);

/// Exit codes of `kftui`: it needs the user; the time was over.
const NEEDS_USER: i32 = 4;
const NOT_READY: i32 = 5;

/// What is wrong, and what has to be said about it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The catalogue's entry.
    pub name: &'static str,
    /// Namespace of the target.
    pub namespace: String,
    /// Kubeconfig of the user.
    pub kubeconfig: PathBuf,
    /// Target and port, as for `kftui forward`.
    pub words: &'static [&'static str],
    /// The code.
    pub code: &'static str,
    /// Parts of the sentence.
    pub says: &'static [&'static str],
    /// A part of the remedy.
    pub remedy: &'static str,
}

impl Failure {
    /// The same on another target or with other words, for tables.
    #[must_use]
    pub fn new(
        name: &'static str,
        words: &'static [&'static str],
        code: &'static str,
        says: &'static [&'static str],
        remedy: &'static str,
    ) -> Self {
        let (namespace, kubeconfig) = (crate::ground::NAMESPACE.to_owned(), PathBuf::new());
        Self { name, namespace, kubeconfig, words, code, says, remedy }
    }

    /// For a target in this namespace.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// For the user of this kubeconfig.
    #[must_use]
    pub fn by(mut self, kubeconfig: &Path) -> Self {
        kubeconfig.clone_into(&mut self.kubeconfig);
        self
    }

    fn command(&self, ground: &Ground, more: &[&str]) -> Command {
        let mut command = Command::new(&ground.kftui);
        let kubeconfig =
            if self.kubeconfig.as_os_str().is_empty() { &ground.kubeconfig } else { &self.kubeconfig };
        command.arg("forward").args(self.words).args(["-n", &self.namespace, "--output", "json"]);
        command.arg("--kubeconfig").arg(kubeconfig).args(more);
        command
    }

    /// Starts a forward that stays, and waits until what is wrong is told.
    ///
    /// # Errors
    /// When something else is told, or nothing.
    pub async fn is_told(&self, ground: &Ground) -> Result<Forward> {
        let mut forward = Forward::spawn(self.command(ground, &["--keep-trying"]))?;
        self.is_told_by(&mut forward).await?;
        Ok(forward)
    }

    /// Waits until a forward that runs tells what is wrong.
    ///
    /// # Errors
    /// When something else is told, or nothing.
    pub async fn is_told_by(&self, forward: &mut Forward) -> Result<()> {
        let event = forward
            .until_that(self.name, TOLD, |event| problems(event).any(|problem| self.is(problem)))
            .await?;
        let problem = problems(&event).find(|problem| self.is(problem)).context("just found")?;
        let remedy = problem["remedy"].as_str().unwrap_or_default();
        ensure!(remedy.contains(self.remedy), "{}: the remedy is {remedy:?}", self.name);
        Ok(())
    }

    fn is(&self, problem: &Value) -> bool {
        let message = problem["message"].as_str().unwrap_or_default();
        problem["code"] == self.code && self.says.iter().all(|part| message.contains(part))
    }

    /// A forward without patience ends with code 4 where a person is needed at once, else with 5 when its time is over; the last
    /// words name the cause.
    ///
    /// # Errors
    /// When it ends otherwise, or does not end.
    pub async fn ends_a_run(&self, ground: &Ground) -> Result<()> {
        let mut command = self.command(ground, &["--ready-timeout", "3"]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TOLD, command.output()).await.context("the run does not end")??;
        let said = String::from_utf8_lossy(&output.stdout);
        let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events: Vec<Value> = events.collect();
        let told = events.iter().flat_map(problems).any(|problem| self.is(problem));
        ensure!(told, "{}: a short run told something else: {events:#?}", self.name);
        let needs_user = events.iter().any(|event| event["status"]["phase"] == "needs_user");
        let expected = if needs_user { NEEDS_USER } else { NOT_READY };
        let code = output.status.code();
        ensure!(code == Some(expected), "{}: ended with {code:?}, not {expected}: {said}", self.name);
        Ok(())
    }

    /// The whole story: told, ends a run that does not stay, and gone once `mend` has been done.
    ///
    /// # Errors
    /// Names the entry, and what was different.
    pub async fn is_told_and_mended(
        &self,
        ground: &Ground,
        mend: impl Future<Output = Result<()>>,
    ) -> Result<Forward> {
        let story = async {
            let mut forward = self.is_told(ground).await?;
            self.ends_a_run(ground).await?;
            mend.await.context("mending")?;
            forward.until("all_ready", MENDED).await.context("after it was mended")?;
            anyhow::Ok(forward)
        };
        story.await.with_context(|| self.name.to_owned())
    }
}

/// The problems of an event.
fn problems(event: &Value) -> impl Iterator<Item = &Value> {
    let status = &event["status"];
    [&status["cause"], &status["waiting_for"], &event["problem"]].into_iter().filter(|one| one.is_object())
}

/// Waits for all, and tells of every one that failed.
///
/// # Errors
/// When any failed.
pub async fn all_of(mut running: tokio::task::JoinSet<Result<()>>) -> Result<()> {
    let mut failed = Vec::new();
    while let Some(joined) = running.join_next().await {
        if let Err(error) = joined? {
            failed.push(format!("{error:#}"));
        }
    }
    if !failed.is_empty() {
        bail!("{} failed:\n{}", failed.len(), failed.join("\n"));
    }
    Ok(())
}
