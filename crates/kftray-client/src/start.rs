//! Starting a host on demand: one lock, so that two clients do not start two; a pipe on which the new host says that it
//! serves, or why it does not, so that nobody has to poll.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kftray_commons::api::{Error, Hello, PROTOCOL, Place};
use kftray_commons::{Code, Problem};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::connect::hello;
use crate::version::{Relation, mismatch, relation};
use crate::{Result, platform};

/// How a host is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The program whose `host` command is the host.
    pub program: PathBuf,
    /// How long it may take until it serves. A handover from an older host is part of it.
    pub deadline: Duration,
    /// Whether a host that is older than this program is replaced.
    pub upgrade: bool,
}

/// On a busy machine a process takes a second or two to start, and a large store some more to open; ten times that means
/// that something hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// The line on which a new host says that it serves; anything else on its output is an [`Error`] as JSON.
const SERVING: &str = "serving";

impl StartOptions {
    /// This program as the host.
    ///
    /// # Errors
    /// If the system does not say which program this is.
    pub fn this_program() -> Result<Self> {
        let program = std::env::current_exe().map_err(|error| {
            Error::new(Code::HostUnreachable, format!("this program's own file is not known: {error}"))
        })?;
        Ok(Self { program, deadline: DEADLINE, upgrade: true })
    }
}

/// A host that this client understands, started or replaced if need be.
pub(crate) async fn ensure(place: &Place, options: &StartOptions) -> Result<Hello> {
    match look(place, options).await? {
        Found::Good(hello) => return Ok(hello),
        Found::None | Found::Old => {}
    }
    let work = async {
        let _guard = startup_lock(place).await?;
        // Somebody else may have been quicker.
        match look(place, options).await? {
            Found::Good(hello) => Ok(hello),
            Found::None => launch(place, options, false).await,
            Found::Old => launch(place, options, true).await,
        }
    };
    timeout(options.deadline, work).await.unwrap_or_else(|_| {
        let seconds = options.deadline.as_secs();
        Err(Error::new(Code::HostUnreachable, format!("the host did not start within {seconds} s")))
    })
}

/// What was found.
enum Found {
    /// A host to talk to.
    Good(Hello),
    /// One that shall be replaced.
    Old,
    /// None.
    None,
}

async fn look(place: &Place, options: &StartOptions) -> Result<Found> {
    let ours = env!("CARGO_PKG_VERSION");
    let hello = match hello(place).await {
        Ok(hello) => hello,
        Err(error) if error.code == Code::HostUnreachable => {
            tracing::debug!(%error, "no host");
            return Ok(Found::None);
        }
        Err(error) => return Err(error),
    };
    match relation(PROTOCOL, ours, &hello) {
        Relation::Fits => Ok(Found::Good(hello)),
        Relation::Older if !options.upgrade => Ok(Found::Good(hello)),
        Relation::Older | Relation::TooOld if options.upgrade => Ok(Found::Old),
        Relation::Older | Relation::TooOld | Relation::TooNew => Err(mismatch(PROTOCOL, ours, &hello)),
    }
}

/// Held until dropped. Whoever holds it has a deadline of its own, so that waiting for it ends, too.
async fn startup_lock(place: &Place) -> Result<File> {
    let path = place.startup_lock.clone();
    let failed = |error: std::io::Error, path: &std::path::Path| {
        Error::new(Code::HostUnreachable, format!("{} cannot be locked: {error}", path.display()))
    };
    let locked = tokio::task::spawn_blocking(move || {
        if let Some(directory) = path.parent() {
            platform::private_directory(directory).map_err(|error| failed(error, directory))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| failed(error, &path))?;
        file.lock().map_err(|error| failed(error, &path))?;
        Ok(file)
    });
    locked.await.map_err(|error| Error::new(Code::Internal, error.to_string()))?
}

async fn launch(place: &Place, options: &StartOptions, take_over: bool) -> Result<Hello> {
    let mut command = Command::new(&options.program);
    command.args(["host", "run", "--background"]).env("KFTRAY_CONFIG", &place.directory);
    if take_over {
        command.arg("--take-over");
    }
    platform::detach(&mut command);
    command.stdout(Stdio::piped());
    let program = options.program.display();
    let unreachable = |message: String| Error::new(Code::HostUnreachable, message);
    let mut child =
        command.spawn().map_err(|error| unreachable(format!("{program} cannot be run: {error}")))?;
    let said = match child.stdout.take() {
        Some(pipe) => BufReader::new(pipe).lines().next_line().await.ok().flatten(),
        None => None,
    };
    match said.as_deref() {
        Some(SERVING) => hello(place).await,
        Some(line) => Err(reason(place, line)),
        None => {
            let status = child.wait().await.map(|status| format!(" ({status})")).unwrap_or_default();
            let mut error = unreachable(format!("the host ended before it served{status}"));
            if let Some(last) = last_line(place) {
                error.message = format!("{}; its log ends with: {last}", error.message);
            }
            Err(error)
        }
    }
}

/// What a host that did not start said.
fn reason(place: &Place, line: &str) -> Error {
    let said: Error = serde_json::from_str(line)
        .unwrap_or_else(|_| Problem::new(Code::HostUnreachable, line.to_owned()).into());
    let log = place.log.display();
    let mut error = said;
    error.message = format!("the host did not start: {} (its log: {log})", error.message);
    error
}

/// The last line of the host's log.
fn last_line(place: &Place) -> Option<String> {
    let text = std::fs::read(&place.log).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
