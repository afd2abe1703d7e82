//! The window in a real terminal (tmux), on a real host in the background, against a cluster in this process.

#![cfg(unix)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use kftray_client::Client;
use kftray_testkit::{FakeCluster, handlers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A busy machine may be slow; a test that hangs must end.
const LIMIT: Duration = Duration::from_secs(60);

/// How often the screen is looked at; tmux tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(50);

/// Where the screens of the first use are written, if set: `docs/casts/first-use.md` is made by it.
const CAST: &str = "KFTRAY_CAST";

/// A terminal with a shell in it.
struct Terminal {
    name: String,
}

impl Terminal {
    /// `None`, with the reason printed, where there is no tmux.
    fn open(home: &Path, kubeconfig: &Path, size: (u16, u16)) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: tmux is not installed (`cargo xtask setup` does it)");
            return None;
        }
        let tag = home.file_name()?.to_str()?.trim_start_matches('.');
        let terminal = Self { name: format!("kftui-test-{tag}") };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        let mut command = terminal.command();
        command.args(["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height]);
        for (name, value) in [
            ("HOME", home.as_os_str()),
            ("KFTRAY_CONFIG", home.join("kftray").as_os_str()),
            ("KUBECONFIG", kubeconfig.as_os_str()),
            ("PS1", "prompt> ".as_ref()),
            ("LC_ALL", "C.UTF-8".as_ref()),
            ("NO_COLOR", "".as_ref()),
            ("HTTPS_PROXY", "".as_ref()),
            ("https_proxy", "".as_ref()),
        ] {
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg("-e").arg(pair);
        }
        // Plain sh: no start-up files of anybody.
        let output = command.args(["sh"]).output().expect("tmux runs");
        assert!(output.status.success(), "{output:?}");
        Some(terminal)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        // UTF-8 whatever the locale of the test is.
        command.args(["-u", "-L", &self.name]).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        command
    }

    fn tmux(&self, words: &[&str]) -> Output {
        self.command().args(words).output().expect("tmux runs")
    }

    /// Presses a key by tmux's name (`Enter`, `Escape`, `Space`, `f`).
    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    fn ask(&self, format: &str) -> String {
        String::from_utf8_lossy(&self.tmux(&["display-message", "-p", format]).stdout).trim().to_owned()
    }

    /// The screen as soon as it is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(begun.elapsed() < LIMIT, "not seen: {what}; the screen is:\n{screen}");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text)).await
    }

    async fn start_window(&self) {
        self.shows("prompt>").await;
        self.type_text(env!("CARGO_BIN_EXE_kftui"));
        self.press("Enter");
    }

    /// Waits until the shell has its terminal back as it was.
    async fn is_given_back(&self) {
        let begun = Instant::now();
        while self.ask("#{alternate_on}#{mouse_any_flag}#{bracket_paste_flag}#{cursor_flag}").chars().next()
            != Some('0')
        {
            assert!(begun.elapsed() < LIMIT, "the terminal is not given back:\n{}", self.screen());
            tokio::time::sleep(LOOK).await;
        }
        assert_eq!(self.ask("#{alternate_on} #{mouse_any_flag} #{cursor_flag}"), "0 0 1");
        // Echo is on again: what is typed is seen.
        self.type_text("echo back-$((40+2))");
        self.shows("echo back-$((40+2))").await;
        self.press("Enter");
        self.shows("back-42").await;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Screens one after another, as text.
#[derive(Default)]
struct Cast {
    text: String,
    presses: usize,
}

impl Cast {
    fn frame(&mut self, pressed: Option<&str>, screen: &str) {
        let title = match pressed {
            Some(key) => {
                self.presses += 1;
                format!("{}. `{key}`", self.presses)
            }
            None => "`kftui`".to_owned(),
        };
        let lines: Vec<&str> = screen.lines().map(str::trim_end).collect();
        write!(self.text, "## {title}\n\n```text\n{}\n```\n\n", lines.join("\n").trim_end()).expect("a text");
    }
}

async fn shop(port: u16) -> FakeCluster {
    let cluster = FakeCluster::start().await.expect("a cluster");
    for (name, replicas) in [("front", 2), ("cart", 1)] {
        cluster
            .deployment(name)
            .namespace("shop")
            .replicas(replicas)
            .port("http", 8080, handlers::http_hello())
            .create()
            .expect("created");
        // Only the one that is used has the port that is free here.
        let port = if name == "front" { port } else { 80 };
        cluster.service(name).namespace("shop").port(port, "http").create().expect("created");
        cluster.wait_ready("shop", name, usize::try_from(replicas).expect("small")).await.expect("ready");
    }
    cluster
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

async fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");
    answer
}

/// Ends the background host, also when the test fails.
struct EndHost(std::path::PathBuf);

impl EndHost {
    async fn now(&self) {
        if let Ok(client) = Client::connect(&self.0).await {
            client.shutdown().await.ok();
        }
    }
}

impl Drop for EndHost {
    fn drop(&mut self) {
        let lock = std::fs::read_to_string(self.0.join("host.lock")).unwrap_or_default();
        let id: String = lock.chars().take_while(char::is_ascii_digit).collect();
        if !id.is_empty() {
            Command::new("kill").arg(&id).status().ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_running_forward_in_six_keys() {
    let home = tempfile::tempdir().expect("a folder");
    let cast_to = std::env::var_os(CAST);
    // For the document the port that people know.
    let (remote, port) = if cast_to.is_some() { (80, 8080) } else { (free_port(), 0) };
    let port = if port == 0 { remote } else { port };
    let cluster = shop(remote).await;
    let Some(terminal) = Terminal::open(home.path(), &cluster.kubeconfig_path(), (80, 24)) else { return };
    let host = EndHost(home.path().join("kftray"));
    terminal.start_window().await;
    let mut cast = Cast::default();
    cast.frame(None, &terminal.shows("No forwards yet.").await);
    for (key, then) in [("Enter", "shop"), ("Enter", "front"), ("Down", "front"), ("Enter", "http")] {
        terminal.press(key);
        // The cursor has no colour here; that the next step is there is seen by its words.
        let step = match cast.presses {
            0 => "› namespaces",
            1 | 2 => "› Services",
            _ => "› ports",
        };
        let screen = terminal
            .until(step, |screen| {
                screen.contains(step) && screen.contains(then) && !screen.contains("asking")
            })
            .await;
        if cast.presses == 0 {
            // The namespace of the shop is not the first one; the next two keys go there.
            assert!(screen.contains("default"), "{screen}");
        }
        cast.frame(Some(key), &screen);
        if cast.presses == 1 {
            terminal.type_text("sh");
            cast.frame(Some("s"), &terminal.shows("/ sh").await);
        }
    }
    terminal.press("Enter");
    let screen = terminal.until("ready", |screen| screen.contains("● 1 ready")).await;
    cast.frame(Some("Enter"), &screen);
    assert!(get(port).await.contains("200 OK"));
    assert!(cast.presses <= 6, "{} presses\n{}", cast.presses, cast.text);
    terminal.press("q");
    terminal.is_given_back().await;
    assert!(get(port).await.contains("200 OK"), "closing the window stops nothing");
    if let Some(path) = cast_to {
        std::fs::write(path, format!("{HEAD}{}", cast.text.trim_end())).expect("written");
    }
    host.now().await;
}

/// What stands above the screens.
const HEAD: &str = "# First use\n\n";
