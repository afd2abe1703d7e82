//! A user's home for a test: a configuration directory, a host in it, a kubeconfig.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{Kftui, Run, kftui};

/// A busy machine may be slow; a test that hangs must end.
const LIMIT: Duration = Duration::from_secs(60);

/// A configuration directory of its own, with the host that the first command starts in it. Dropping it ends the host.
pub(crate) struct Home {
    directory: tempfile::TempDir,
    kubeconfig: Option<std::path::PathBuf>,
}

impl Home {
    /// A new one; the current context is that of the kubeconfig.
    pub(crate) fn new(kubeconfig: Option<std::path::PathBuf>) -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), kubeconfig }
    }

    /// Where files of a test can be put.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The program in this home.
    pub(crate) fn kftui(&self, words: &[&str]) -> Kftui {
        let mut kftui = kftui(words);
        kftui.command.env("KFTRAY_CONFIG", self.path("config")).env("HOME", self.directory.path());
        for name in ["XDG_CONFIG_HOME", "VISUAL", "EDITOR"] {
            kftui.command.env_remove(name);
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            kftui.command.env("KUBECONFIG", kubeconfig);
        }
        kftui.command.current_dir(self.directory.path());
        kftui
    }

    /// Runs it to its end; it must end with this code.
    #[track_caller]
    pub(crate) fn run(&self, code: i32, words: &[&str]) -> Run {
        let run = self.kftui(words).run();
        assert_eq!(run.code, code, "kftui {}: {run:#?}", words.join(" "));
        run
    }

    /// As [`Self::run`] with code 0; the answer as JSON.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> serde_json::Value {
        let run = self.run(0, &[words, &["--output", "json"]].concat());
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let run = self.kftui(&["host", "stop"]).run();
        if !std::thread::panicking() && !matches!(run.code, 0 | 6) {
            panic!("the host does not end: {run:#?}");
        }
    }
}

/// A running program whose lines are read as they come.
pub(crate) struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    pub(crate) fn start(home: &Home, words: &[&str]) -> Self {
        let mut command = home.kftui(words).command;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("starts");
        let out: ChildStdout = child.stdout.take().expect("piped");
        let (told, lines) = mpsc::channel();
        // Ends with the program's output.
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| told.send(line))
        });
        Self { child, lines, seen: Vec::new() }
    }

    pub(crate) fn until(&mut self, wanted: &[&str]) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(LIMIT)
                .unwrap_or_else(|_| panic!("no {wanted:?} in {:#?}", self.seen));
            self.seen.push(line.clone());
            if wanted.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }

    pub(crate) fn end(mut self, signal: &str) -> i32 {
        let kill = std::process::Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        self.child.wait().expect("ends").code().unwrap_or(-1)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
