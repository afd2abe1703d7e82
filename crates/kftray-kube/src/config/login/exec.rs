//! Exec credential plugins, `client.authentication.k8s.io/v1` and `v1beta1`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use kftray_commons::api::PluginReport;
use kftray_commons::{Code, Problem};
use kube::config::{ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use secrecy::SecretString;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::{ClientCertificate, redact};
use crate::config::{Entry, Environment};

/// A plugin that has not answered by then hangs, most likely on a question nobody sees. `gcloud` and `aws` need up to a few
/// seconds; an SSO round trip through a browser is not for a background run.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the output is awaited after the plugin has ended: a child of its own may keep the pipe open.
const DRAIN: Duration = Duration::from_millis(500);
/// A credential with a long certificate chain is below 64 KiB.
const STDOUT_LIMIT: usize = 1024 * 1024;
/// What is kept of the end of stderr.
const STDERR_KEPT: usize = 4096;
/// What is shown of it.
const STDERR_SHOWN: usize = 400;

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// One `exec` entry of a kubeconfig, with the environment it runs in.
pub(crate) struct ExecPlugin {
    config: ExecConfig,
    api_version: &'static str,
    command: String,
    /// `KUBERNETES_EXEC_INFO`.
    info: String,
    environment: Environment,
    context: String,
}

/// What a plugin issued.
pub(super) struct Issued {
    pub(super) token: Option<SecretString>,
    pub(super) certificate: Option<ClientCertificate>,
    pub(super) expiry: Option<Timestamp>,
}

#[derive(Deserialize)]
struct ExecCredential {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    token: Option<SecretString>,
    client_certificate_data: Option<String>,
    client_key_data: Option<SecretString>,
    expiration_timestamp: Option<String>,
}

impl ExecPlugin {
    /// Checks the entry.
    ///
    /// # Errors
    /// [`Code::KubeconfigInvalid`] without a command or with an unknown API version.
    pub(super) fn new(config: ExecConfig, entry: &Entry, environment: &Environment) -> Result<Self, Problem> {
        let user = entry.user_name.clone().unwrap_or_default();
        let invalid = |text: String| Problem::new(Code::KubeconfigInvalid, format!("user {user:?}: {text}"));
        let command = config.command.clone().filter(|it| !it.is_empty());
        let command = command.ok_or_else(|| invalid("exec has no command".to_owned()))?;
        let api_version = match config.api_version.as_deref() {
            Some(V1) => V1,
            Some(V1BETA1) => V1BETA1,
            other => {
                let found = other.unwrap_or("nothing");
                return Err(invalid(format!(
                    "exec.apiVersion is {found}, but only {V1} and {V1BETA1} are known"
                )));
            }
        };
        let mut spec = serde_json::json!({ "interactive": false });
        if config.provide_cluster_info {
            let mut cluster =
                ExecAuthCluster::try_from(&entry.cluster).map_err(|error| invalid(error.to_string()))?;
            cluster.certificate_authority_data.clone_from(&entry.ca);
            spec["cluster"] = serde_json::to_value(cluster).map_err(|error| invalid(error.to_string()))?;
        }
        let info = serde_json::json!({ "apiVersion": api_version, "kind": "ExecCredential", "spec": spec });
        Ok(Self {
            config,
            api_version,
            command,
            info: info.to_string(),
            environment: environment.clone(),
            context: entry.context.clone(),
        })
    }

    /// The program's name as the kubeconfig writes it.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// For a doctor: names only, since values and arguments may be secret.
    pub(super) fn report(&self, took: Option<Duration>) -> PluginReport {
        let path = self.locate().ok().filter(|path| is_executable(path));
        let names = self.config.env.iter().flatten().filter_map(|variable| variable.get("name"));
        PluginReport {
            command: self.command.clone(),
            path: path.map(|path| path.display().to_string()),
            variables: names.cloned().collect(),
            took_ms: took.and_then(|took| u64::try_from(took.as_millis()).ok()),
        }
    }

    /// Runs the plugin once. Dropping the future ends its whole process group.
    pub(super) async fn run(&self) -> Result<Issued, Problem> {
        if self.config.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(self.failed("wants a terminal (interactiveMode: Always), and there is none here"));
        }
        let program = self.locate()?;
        let mut child = self.command_line(&program).spawn().map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                self.missing()
            } else {
                self.failed(&format!("cannot be started: {error}"))
            }
        })?;
        let mut group = Group::of(&child);
        let output = tokio::time::timeout(LIMIT, collect(&mut child)).await;
        let Ok(output) = output else {
            return Err(self.failed(&format!(
                "has not answered within {} s; it may be waiting for an answer or a browser login",
                LIMIT.as_secs()
            )));
        };
        let output = output.map_err(|error| self.failed(&format!("could not be read: {error}")))?;
        group.release();
        if !output.status.success() {
            let how = match output.status.code() {
                Some(code) => format!("ended with code {code}"),
                None => format!("was killed ({})", output.status),
            };
            return Err(self.failed(&format!("{how}{}", quote(&output.stderr))));
        }
        self.parse(&output)
    }

    /// Where the program is. We look ourselves, so that a miss can name the `PATH` that was searched: desktop programs
    /// often have another one than the user's shell.
    fn locate(&self) -> Result<PathBuf, Problem> {
        let command = Path::new(&self.command);
        if command.components().count() > 1 || cfg!(windows) {
            return Ok(self.environment.absolute(command));
        }
        let path = self.environment.get("PATH").unwrap_or_default();
        std::env::split_paths(path)
            .map(|folder| self.environment.absolute(&folder).join(command))
            .find(|candidate| is_executable(candidate))
            .ok_or_else(|| self.missing())
    }

    fn command_line(&self, program: &Path) -> Command {
        let mut command = if cfg!(windows) { Command::new(&self.command) } else { Command::new(program) };
        command.args(self.config.args.iter().flatten());
        command.env_clear().envs(self.environment.variables());
        for variable in self.config.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        command.env("KUBERNETES_EXEC_INFO", &self.info);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A group of its own, so that a hanging plugin's children can be ended with it, and Ctrl-C is ours alone.
        #[cfg(unix)]
        command.process_group(0);
        command
    }

    fn parse(&self, output: &Output) -> Result<Issued, Problem> {
        let credential: ExecCredential = serde_json::from_slice(&output.stdout).map_err(|error| {
            let start = output.stdout.trim_ascii_start().first();
            let text = match start {
                None => "printed nothing, where an ExecCredential is expected".to_owned(),
                // The output may be half a credential: its place is told, its content is not.
                Some(b'{') => format!(
                    "printed something that is no ExecCredential (line {}, column {})",
                    error.line(),
                    error.column()
                ),
                Some(_) => format!(
                    "printed {} bytes that are no JSON, where an ExecCredential is expected",
                    output.stdout.len()
                ),
            };
            self.failed(&format!("{text}{}", quote(&output.stderr)))
        })?;
        if credential.kind.as_deref() != Some("ExecCredential")
            || credential.api_version.as_deref() != Some(self.api_version)
        {
            return Err(self.failed(&format!(
                "printed {}/{}, but the kubeconfig says {}/ExecCredential",
                credential.api_version.as_deref().map_or_else(|| "no apiVersion".to_owned(), redact),
                credential.kind.as_deref().map_or_else(|| "no kind".to_owned(), redact),
                self.api_version
            )));
        }
        let status = credential.status.ok_or_else(|| {
            self.failed(&format!("printed an ExecCredential without a status{}", quote(&output.stderr)))
        })?;
        let expiry = match status.expiration_timestamp.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|error| {
                self.failed(&format!("printed an expirationTimestamp that is no time: {error}"))
            })?),
        };
        let certificate = match (&status.client_certificate_data, &status.client_key_data) {
            (Some(certificate), Some(key)) => Some(
                ClientCertificate::from_pem(
                    certificate.as_bytes(),
                    secrecy::ExposeSecret::expose_secret(key).as_bytes(),
                )
                .map_err(|text| {
                    self.failed(&format!("issued a client certificate that is unusable: {text}"))
                })?,
            ),
            (None, None) => None,
            _ => return Err(self.failed("issued half of a certificate pair")),
        };
        let token = status.token.filter(|token| !secrecy::ExposeSecret::expose_secret(token).is_empty());
        if token.is_none() && certificate.is_none() {
            return Err(self.failed("issued neither a token nor a certificate"));
        }
        Ok(Issued { token, certificate, expiry })
    }

    fn missing(&self) -> Problem {
        let place = if Path::new(&self.command).components().count() > 1 {
            String::new()
        } else {
            let path = self.environment.text("PATH").unwrap_or("(empty)");
            format!(" in PATH {path}")
        };
        let problem = Problem::new(
            Code::PluginMissing,
            format!("credential plugin {} was not found{place}", self.command),
        );
        match self.config.install_hint.as_deref().map(str::trim).filter(|hint| !hint.is_empty()) {
            Some(hint) => problem.with_remedy(hint),
            None => problem,
        }
    }

    fn failed(&self, text: &str) -> Problem {
        Problem::new(Code::PluginFailed, format!("credential plugin {} {text}", self.command)).with_remedy(
            format!(
                "Run `kubectl --context {} version` in a terminal and answer what it asks, then try again.",
                self.context
            ),
        )
    }
}

struct Output {
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn collect(child: &mut Child) -> std::io::Result<Output> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let status = {
        let reading = async {
            tokio::join!(read_head(out, &mut stdout), read_tail(err, &mut stderr));
        };
        tokio::pin!(reading);
        let mut read_all = false;
        let status = tokio::select! {
            status = child.wait() => status?,
            () = &mut reading => { read_all = true; child.wait().await? }
        };
        if !read_all {
            // Past that, what is there is all there is.
            let _late = tokio::time::timeout(DRAIN, &mut reading).await;
        }
        status
    };
    Ok(Output { status, stdout, stderr })
}

/// Keeps the beginning, reads to the end.
async fn read_head(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 8192];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let room = STDOUT_LIMIT.saturating_sub(into.len()).min(count);
        into.extend_from_slice(&chunk[..room]);
    }
}

/// Keeps the end.
async fn read_tail(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        into.extend_from_slice(&chunk[..count]);
        let excess = into.len().saturating_sub(STDERR_KEPT);
        into.drain(..excess);
    }
}

/// The last lines of stderr, in one line, without secrets.
fn quote(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    let line: String = redact(&lines.join(" | ")).chars().filter(|c| !c.is_control()).collect();
    let count = line.chars().count();
    if count <= STDERR_SHOWN {
        format!(": {line}")
    } else {
        format!(": ...{}", line.chars().skip(count - STDERR_SHOWN).collect::<String>())
    }
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}

/// The plugin's process group, ended when dropped unless released.
struct Group {
    #[cfg(unix)]
    leader: Option<nix::unistd::Pid>,
}

#[cfg(unix)]
impl Group {
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
        Self { leader }
    }

    /// It ended by itself; what it left behind on purpose (an agent) may stay.
    fn release(&mut self) {
        self.leader = None;
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader
            && let Err(error) = nix::sys::signal::killpg(leader, nix::sys::signal::Signal::SIGKILL)
        {
            tracing::debug!(%error, "the plugin's process group was gone already");
        }
    }
}

#[cfg(not(unix))]
impl Group {
    fn of(_child: &Child) -> Self {
        Self {}
    }

    #[expect(
        clippy::unused_self,
        reason = "same functions on each system; here kill_on_drop ends the plugin itself"
    )]
    fn release(&mut self) {}
}
