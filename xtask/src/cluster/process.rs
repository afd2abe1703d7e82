//! The cluster's processes: started detached, remembered in a record each, ended by exactly that process id.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::command;
use crate::wait;

/// A process after SIGKILL is gone when the kernel has torn it down: an instant, but on a loaded machine not at once.
const KILLED: Duration = Duration::from_secs(20);

/// What is remembered of a started process, as `<state>/run/<name>.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Start time in clock ticks since boot, from /proc: with the pid it names one process for ever.
    started: u64,
    argv: Vec<String>,
}

/// One of the cluster's processes, running or not.
pub(crate) struct Process {
    name: String,
    record: PathBuf,
    log: PathBuf,
}

impl Process {
    /// The process of this name in the cluster with this state directory.
    pub(crate) fn new(state: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            record: state.join("run").join(format!("{name}.json")),
            log: state.join("log").join(format!("{name}.log")),
        }
    }

    /// Starts it in a session of its own, so that it outlives this program and its terminal.
    pub(crate) fn start(&self, argv: Vec<String>) -> Result<()> {
        let open = || fs::OpenOptions::new().append(true).create(true).open(&self.log);
        let child = command("setsid", &argv)
            .stdout(Stdio::from(open()?))
            .stderr(Stdio::from(open()?))
            .current_dir("/")
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let pid = i32::try_from(child.id())?;
        let started = started(pid)
            .with_context(|| format!("{} ended at once; see {}", self.name, self.log.display()))?;
        fs::write(&self.record, serde_json::to_vec_pretty(&Record { pid, started, argv })?)?;
        Ok(())
    }

    /// Starts it again as it was started before.
    pub(crate) fn start_again(&self) -> Result<()> {
        if self.pid()?.is_some() {
            return Ok(());
        }
        let record =
            self.record()?.with_context(|| format!("{} was never started in this cluster", self.name))?;
        self.start(record.argv)
    }

    /// Its process id, if it runs.
    pub(crate) fn pid(&self) -> Result<Option<i32>> {
        let record = self.record()?;
        Ok(record.filter(|record| started(record.pid) == Some(record.started)).map(|record| record.pid))
    }

    /// Sends the signal, if it runs, and waits for its end.
    pub(crate) fn end(&self, signal: Signal) -> Result<()> {
        if self.signal(signal)? {
            wait::until(&format!("end of {}", self.name), KILLED, || Ok(self.pid()?.is_none()))?;
        }
        Ok(())
    }

    /// Sends the signal; false when it does not run.
    pub(crate) fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = self.pid()? else { return Ok(false) };
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {} ({pid})", self.name))?;
        Ok(true)
    }

    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if self.pid()?.is_some() {
            return Ok(());
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        bail!("{} has ended; the end of {}:\n{tail}", self.name, self.log.display());
    }

    fn record(&self) -> Result<Option<Record>> {
        match fs::read(&self.record) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.record.display())),
        }
    }
}

/// When a living process started; none for a dead one or a zombie.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, so count from its end: state is the first field, start time the twentieth.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Ends every process whose command line has all these arguments: containerd's shims, which outlive it by design.
pub(crate) fn end_by_arguments(program: &str, argument: &str) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = line.split(|byte| *byte == 0);
        let is_program = words.next().is_some_and(|word| word.ends_with(program.as_bytes()));
        if is_program && words.any(|word| word == argument.as_bytes()) {
            end_pid(pid);
        }
    }
    Ok(())
}

/// Kills one process; that it may have ended meanwhile is no error.
pub(crate) fn end_pid(pid: i32) {
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        && error != nix::errno::Errno::ESRCH
    {
        println!("cannot end process {pid}: {error}");
    }
}
