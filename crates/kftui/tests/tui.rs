//! The window in a real terminal (tmux), on a real host in the background, against a cluster in this process.

#![cfg(unix)]
#![expect(clippy::print_stdout, reason = "why a test is skipped is told")]

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
        terminal.start(home, kubeconfig, size);
        Some(terminal)
    }

    fn start(&self, home: &Path, kubeconfig: &Path, size: (u16, u16)) {
        let (width, height) = (size.0.to_string(), size.1.to_string());
        let mut command = self.command();
        command.args(["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height]);
        for (name, value) in [
            ("HOME", home.as_os_str()),
            ("KFTRAY_CONFIG", home.join("kftray").as_os_str()),
            ("KUBECONFIG", kubeconfig.as_os_str()),
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
        // Each shell has a prompt of its own, and another one for root.
        self.until("a prompt", |screen| screen.trim_end().ends_with(['$', '#', '>', '%'])).await;
        self.type_text(env!("CARGO_BIN_EXE_kftui"));
        self.press("Enter");
    }

    /// The process of the window: the shell's only child.
    fn window_id(&self) -> String {
        let shell = self.ask("#{pane_pid}");
        let output = Command::new("pgrep").args(["-P", &shell]).output().expect("pgrep runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until the shell has its terminal back as it was.
    async fn is_given_back(&self) {
        let begun = Instant::now();
        while !self
            .ask("#{alternate_on}#{mouse_any_flag}#{bracket_paste_flag}#{cursor_flag}")
            .starts_with('0')
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

/// Two Services in a namespace that is not the default one; the first has this port.
async fn shop(port: u16) -> FakeCluster {
    let cluster = FakeCluster::builder().namespace("shop").start().await.expect("a cluster");
    for (name, replicas, port) in [("front", 2, port), ("shelf", 1, 80)] {
        let program = cluster.deployment(name).namespace("shop").replicas(replicas);
        program.port("http", 8080, handlers::http_hello()).create().expect("created");
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

/// From the empty window to a forward that runs. Answers the screens.
async fn first_use(terminal: &Terminal) -> Cast {
    let mut cast = Cast::default();
    terminal.start_window().await;
    cast.frame(None, &terminal.shows("No forwards yet.").await);
    let steps = [
        ("Enter", "current"),
        ("Enter", "› namespaces"),
        ("s", "/ s"),
        ("Enter", "› Services"),
        ("Enter", "› ports"),
        ("Enter", "● 1 ready"),
    ];
    for (key, then) in steps {
        terminal.press(key);
        let screen = terminal.until(then, |screen| screen.contains(then) && !screen.contains("asking")).await;
        cast.frame(Some(key), &screen);
    }
    cast
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_running_forward_in_six_keys() {
    let home = tempfile::tempdir().expect("a folder");
    let cast_to = std::env::var_os(CAST);
    // For the document the port that people know.
    let (remote, local) = if cast_to.is_some() {
        (80, 8080)
    } else {
        let port = free_port();
        (port, port)
    };
    let cluster = shop(remote).await;
    let Some(terminal) = Terminal::open(home.path(), &cluster.kubeconfig_path(), (80, 24)) else { return };
    let host = EndHost(home.path().join("kftray"));
    let cast = first_use(&terminal).await;
    assert!(get(local).await.contains("200 OK"));
    assert!(cast.presses <= 6, "{} presses\n{}", cast.presses, cast.text);
    terminal.press("q");
    terminal.is_given_back().await;
    assert!(get(local).await.contains("200 OK"), "closing the window stops nothing");
    if let Some(path) = cast_to {
        std::fs::write(path, format!("{HEAD}{}\n", cast.text.trim_end())).expect("written");
    }
    host.now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_windows_on_one_host() {
    let home = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let cluster = shop(port).await;
    let Some(one) = Terminal::open(home.path(), &cluster.kubeconfig_path(), (80, 24)) else { return };
    let host = EndHost(home.path().join("kftray"));
    first_use(&one).await;
    let two = Terminal { name: format!("{}-two", one.name) };
    two.start(home.path(), &cluster.kubeconfig_path(), (160, 45));
    two.start_window().await;
    two.shows("● 1 ready").await;
    // Stopped in one, started in the other.
    one.press("f");
    two.shows("○ 1 stopped").await;
    two.press("Down");
    two.press("f");
    one.shows("● 1 ready").await;
    // Changed in one: the alias is the seventh field.
    one.press("c");
    one.shows("Change forward").await;
    for _ in 0..5 {
        one.press("Down");
    }
    one.press("C-u");
    one.type_text("Größe 大");
    one.press("Enter");
    two.shows("Größe 大").await;
    assert!(get(port).await.contains("200 OK"));
    // The host dies; whoever looks starts it again, and what ran runs.
    let client = Client::connect(&host.0).await.expect("a host");
    let id = client.host().pid.to_string();
    drop(client);
    assert!(Command::new("kill").args(["-9", &id]).status().expect("kill runs").success());
    let begun = Instant::now();
    loop {
        let back = Client::connect(&host.0).await.is_ok_and(|client| client.host().pid.to_string() != id);
        if back {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "no new host:\n{}", one.screen());
        tokio::time::sleep(LOOK).await;
    }
    one.until("ready again", |screen| screen.contains("● 1 ready") && !screen.contains("▲")).await;
    assert!(get(port).await.contains("200 OK"));
    // A window that is ended from outside gives the terminal back, too.
    let id = one.window_id();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    one.is_given_back().await;
    two.press("q");
    two.is_given_back().await;
    host.now().await;
}

/// What stands above the screens.
const HEAD: &str = "# First use

From an empty machine with a kubeconfig to a running forward: six key presses, or five where the namespace is the
context's own. Screens of 80x24, written by `KFTRAY_CAST=docs/casts/first-use.md cargo test -p kftui --test tui` on the
cluster inside the test.

";

/// Where no host can be started in the background the window has one of its own, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_background_the_window_is_the_host() {
    let home = tempfile::tempdir().expect("a directory");
    let directory = home.path().join("kftray");
    // A background host cannot write its log here, so that it does not start.
    std::fs::create_dir_all(directory.join("host.log")).expect("made");
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("set");
    let cluster = shop(80).await;
    let Some(terminal) = Terminal::open(home.path(), &cluster.kubeconfig_path(), (100, 30)) else { return };
    let _end = EndHost(directory.clone());
    terminal.start_window().await;
    let screen = terminal.shows("Forwards end with this window").await;
    assert!(screen.contains("host.log"), "the reason is told:\n{screen}");
    terminal.press("Escape");
    terminal.shows("No forwards yet.").await;

    // It is a host like any other: another program starts a forward in it.
    let client = Client::connect(&directory).await.expect("the window is a host");
    assert_eq!(client.host().mode, kftray_commons::api::Mode::Embedded);
    let port = free_port();
    let entry =
        serde_json::json!({"service": "front", "namespace": "shop", "remote_port": 80, "local_port": port});
    let serde_json::Value::Object(spec) = entry else { panic!("no object") };
    let put = kftray_commons::api::ConfigPut { spec, ..Default::default() };
    let config = client.add_config(&put).await.expect("added");
    let selection = kftray_commons::api::Selection::ids([config.id]);
    let request = kftray_commons::api::ActionRequest { selection, ..Default::default() };
    client.act(kftray_commons::api::Action::Start, &request).await.expect("started");
    terminal.shows("● 1 ready").await;
    assert!(get(port).await.contains("200 OK"));

    // It ends with the window.
    terminal.press("q");
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        assert!(begun.elapsed() < LIMIT, "the forward goes on:\n{}", terminal.screen());
        // A window whose forwards end with it asks.
        if terminal.screen().contains("y Yes") {
            terminal.press("y");
        }
        tokio::time::sleep(LOOK).await;
    }
    terminal.is_given_back().await;
}
