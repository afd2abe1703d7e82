//! Starts the built program as a person or a script would.

use std::process::{Command, Stdio};
use std::time::Duration;

/// A program about to be started.
pub(crate) struct Kftui {
    /// The command, for tests that want more of it.
    pub(crate) command: Command,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// Exit code; -1 for a signal.
    pub(crate) code: i32,
    /// All of standard output.
    pub(crate) stdout: String,
    /// All of standard error.
    pub(crate) stderr: String,
}

/// Longest that a run may take on a busy machine before the test fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(120);

/// The built program with these arguments, away from the developer's own kubeconfig, proxies and terminal.
pub(crate) fn kftui(words: &[&str]) -> Kftui {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kftui"));
    command.args(words).stdin(Stdio::null());
    for name in [
        "KUBECONFIG",
        "KFTRAY_LOG",
        "NO_COLOR",
        "COLUMNS",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ] {
        command.env_remove(name);
    }
    Kftui { command }
}

impl Kftui {
    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Run {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn().expect("starts");
        let id = child.id();
        let (done, overdue) = std::sync::mpsc::channel::<()>();
        // Ends a run that hangs, so that the test tells what it printed.
        let guard = std::thread::spawn(move || {
            if overdue.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                Command::new("kill").args(["-9", &id.to_string()]).status().ok();
            }
        });
        let output = child.wait_with_output().expect("ends");
        drop(done);
        guard.join().expect("no panic");
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}
