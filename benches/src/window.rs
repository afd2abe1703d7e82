//! The window at its largest: 5,000 configs, 500 of them running. How long a key press takes until it is drawn, and what host
//! and window cost while nobody does anything.
//!
//! The window is the built program in a terminal of its own (a pty without anything between), and the host the process that
//! it finds running. A key press counts as drawn with the last byte of the picture that it brings about.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::{NAMESPACE, cost_of};

/// How much there is, and for how long it is watched.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Configs in the store
    #[arg(long, default_value_t = 5_000)]
    configs: u32,
    /// Forwards that run
    #[arg(long, default_value_t = 500)]
    running: u32,
    /// Seconds for which the idle cost is watched, and then the cost under a light load
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Forwards that carry the light load: two requests a second on each
    #[arg(long, default_value_t = 10)]
    loaded: u32,
}

/// The terminal.
const COLUMNS: u16 = 200;
const ROWS: u16 = 50;

/// A picture has ended when nothing more comes for this long: ratatui writes one at once, and the next comes 33 ms later at the
/// earliest.
const QUIET: Duration = Duration::from_millis(10);
/// A key that draws nothing for this long draws nothing.
const NOTHING: Duration = Duration::from_secs(2);
/// Between two presses, as a fast typist has it.
const PAUSE: Duration = Duration::from_millis(50);

/// Local ports of the running ones; the others' are above. Below the range of ephemeral ports.
const FIRST_PORT: u32 = 20_000;

/// What the configs point to, in turn; all of them exist.
const SERVICES: [(&str, u16); 6] =
    [("web", 80), ("single", 80), ("sts", 80), ("nginx", 80), ("redis", 6379), ("postgres", 5432)];

/// Measures and prints.
pub(crate) async fn run(arguments: &Arguments, kftui: &Path, kubeconfig: &Path) -> Result<()> {
    let home = tempfile::tempdir()?;
    let place = Place { kftui: kftui.to_owned(), kubeconfig: kubeconfig.to_owned(), home };
    place.fill(arguments).await?;
    let result = place.measure(arguments).await;
    place.run(&["host", "stop"]).await?;
    result
}

/// A home of its own.
struct Place {
    kftui: PathBuf,
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Place {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kftui);
        command.args(words).env("HOME", self.home.path()).env("KUBECONFIG", &self.kubeconfig);
        command.env("KFTRAY_CONFIG", self.home.path().join("kftray")).env("TERM", "xterm-256color");
        command.env_remove("NO_COLOR").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kftui {}: {}: {said}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The configs are imported, and the first of them started.
    async fn fill(&self, arguments: &Arguments) -> Result<()> {
        let configs: Vec<Value> = (0..arguments.configs).map(|number| config(number, arguments)).collect();
        let file = self.home.path().join("configs.json");
        std::fs::write(&file, serde_json::to_vec(&configs)?)?;
        let begun = Instant::now();
        self.run(&["import", &file.display().to_string()]).await?;
        println!("{} configs imported in {:.1} s", arguments.configs, begun.elapsed().as_secs_f32());
        let begun = Instant::now();
        self.run(&["start", "--tag", "running", "--timeout", "300", "--output", "name"]).await?;
        println!("{} forwards ready after {:.1} s", arguments.running, begun.elapsed().as_secs_f32());
        Ok(())
    }

    async fn measure(&self, arguments: &Arguments) -> Result<()> {
        let status: Value = serde_json::from_str(&self.run(&["host", "status", "--output", "json"]).await?)?;
        let host = status["pid"].as_u64().context("a process id")?.try_into()?;
        let begun = Instant::now();
        let mut window = Window::open(self)?;
        // The line at the top counts what runs: once it is there, so is the list.
        window.shows(&format!("{} ready", arguments.running)).await?;
        window.settle().await?;
        println!("window drawn in full after {:.2} s", (window.last - begun).as_secs_f32());
        presses(&mut window).await?;
        let pair = Pair { host, window: window.pid()? };
        window.settle().await?;
        pair.watch("idle", &mut window, arguments.seconds).await?;
        let mut load = JoinSet::new();
        for number in
            (0..arguments.running).filter(|number| serves_http(*number)).take(arguments.loaded as usize)
        {
            load.spawn(light_load(u16::try_from(FIRST_PORT + number)?));
        }
        let name = format!("{} forwards with two requests a second each", load.len());
        pair.watch(&name, &mut window, arguments.seconds).await?;
        ensure!(load.try_join_next().is_none(), "the load has ended early");
        window.press(b"q").await.ok();
        Ok(())
    }
}

fn config(number: u32, arguments: &Arguments) -> Value {
    let (service, port) = SERVICES[number as usize % SERVICES.len()];
    let running = number < arguments.running;
    let tag = if running { "running" } else { "waiting" };
    json!({
        "alias": format!("{service}-{number:04}"), "service": service, "namespace": NAMESPACE,
        "remote_port": port, "local_port": FIRST_PORT + number, "local_address": "127.0.0.1",
        "workload_type": "service", "protocol": "tcp", "tags": { tag: "", "team": format!("team-{}", number % 20) },
    })
}

fn serves_http(number: u32) -> bool {
    SERVICES[number as usize % SERVICES.len()].1 == 80
}

/// Two requests a second, until dropped. Ends with the first that fails.
async fn light_load(port: u16) -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let mut clock = tokio::time::interval(Duration::from_millis(500));
    loop {
        clock.tick().await;
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "port {port}: not 200");
    }
}

/// `kftui` in a terminal.
struct Window {
    child: Child,
    from: pipe::Receiver,
    to: File,
    /// When the last byte came.
    last: Instant,
    /// What came last.
    drawn: Vec<u8>,
}

impl Window {
    fn open(place: &Place) -> Result<Self> {
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None)?;
        let end = |fd: &OwnedFd| -> Result<Stdio> { Ok(Stdio::from(fd.try_clone()?)) };
        let mut command = place.command(&[]);
        let child = command.stdin(end(&pty.slave)?).stdout(end(&pty.slave)?).stderr(Stdio::null()).spawn()?;
        let to = File::from(pty.master.try_clone()?);
        fcntl(pty.master.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            child,
            // A terminal is read like a pipe.
            from: pipe::Receiver::from_owned_fd_unchecked(pty.master)?,
            to,
            last: Instant::now(),
            drawn: vec![0; 64 << 10],
        })
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().context("the window has ended")
    }

    /// Waits for something to be drawn; how many bytes.
    async fn read(&mut self) -> Result<usize> {
        let read = self.from.read(&mut self.drawn).await.context("the window has ended")?;
        self.last = Instant::now();
        Ok(read)
    }

    /// Until these words have been drawn, in one piece.
    async fn shows(&mut self, words: &str) -> Result<()> {
        let mut all = Vec::new();
        let shown = async {
            while !String::from_utf8_lossy(&all).contains(words) {
                let read = self.read().await?;
                all.extend_from_slice(self.drawn.get(..read).unwrap_or_default());
            }
            anyhow::Ok(())
        };
        timeout(Duration::from_secs(30), shown)
            .await
            .with_context(|| format!("the window never shows {words:?}"))?
    }

    /// Until nothing has been drawn for a second.
    async fn settle(&mut self) -> Result<()> {
        while let Ok(read) = timeout(Duration::from_secs(1), self.read()).await {
            read?;
        }
        Ok(())
    }

    /// Time until the picture that the key brings about is there.
    async fn press(&mut self, key: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        self.to.write_all(key)?;
        let shown = String::from_utf8_lossy(key).into_owned();
        timeout(NOTHING, self.read()).await.with_context(|| format!("{shown:?} draws nothing"))??;
        while let Ok(read) = timeout(QUIET, self.read()).await {
            read?;
        }
        Ok(self.last - begun)
    }
}

/// Keys as a terminal sends them.
const DOWN: &[u8] = b"\x1b[B";
const UP: &[u8] = b"\x1b[A";
const PAGE_DOWN: &[u8] = b"\x1b[6~";
const END: &[u8] = b"\x1b[F";
const HOME: &[u8] = b"\x1b[H";
const ESC: &[u8] = b"\x1b";
const ENTER: &[u8] = b"\r";
const BACKSPACE: &[u8] = b"\x7f";

/// Some 200 presses, by what they are for.
fn script() -> Vec<(&'static str, Vec<&'static [u8]>)> {
    let letters = |text: &'static str| text.as_bytes().chunks(1);
    let mut search: Vec<&[u8]> = vec![b"/"];
    let mut palette: Vec<&[u8]> = Vec::new();
    for text in ["web-00", "team-7", "redis"] {
        search.extend(letters(text));
        search.extend(text.bytes().map(|_| BACKSPACE));
    }
    search.push(ESC);
    for text in ["web-12", "stop"] {
        palette.push(b":");
        palette.extend(letters(text));
        palette.push(ESC);
    }
    let mut details: Vec<&[u8]> = vec![DOWN];
    for _ in 0..10 {
        details.extend([ENTER, ESC, DOWN]);
    }
    let mut pages = vec![PAGE_DOWN; 16];
    pages.extend([END, HOME, END, HOME]);
    vec![
        ("one line down or up", [vec![DOWN; 40], vec![UP; 39]].concat()),
        ("a page, first, last", pages),
        ("search, letter by letter", search),
        ("details, and back", details),
        ("command palette, letter by letter", palette),
    ]
}

async fn presses(window: &mut Window) -> Result<()> {
    println!("| key press to drawn, ms | presses | p50 | p99 | max |\n|---|---|---|---|---|");
    let mut all = Vec::new();
    for (name, keys) in script() {
        let mut times = Vec::new();
        for key in keys {
            times.push(window.press(key).await.context(name)?);
            tokio::time::sleep(PAUSE).await;
        }
        println!("{}", row(name, &mut times));
        all.extend(times);
    }
    println!("{}", row("all", &mut all));
    Ok(())
}

fn row(name: &str, times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        let last = times.len().saturating_sub(1);
        times.get((last * percent).div_ceil(100)).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    format!("| {name} | {} | {:.1} | {:.1} | {:.1} |", times.len(), at(50), at(99), at(100))
}

/// The two processes.
struct Pair {
    host: u32,
    window: u32,
}

impl Pair {
    /// Prints what both cost over this time, with everything read that the window draws.
    async fn watch(&self, name: &str, window: &mut Window, seconds: u64) -> Result<()> {
        let before = (cost_of(self.host)?, cost_of(self.window)?);
        let begun = Instant::now();
        let until = begun + Duration::from_secs(seconds);
        let mut drawn = 0;
        while let Ok(read) = tokio::time::timeout_at(until, window.read()).await {
            drawn += read?;
        }
        let after = (cost_of(self.host)?, cost_of(self.window)?);
        let share = |from: f64, to: f64| 100.0 * (to - from) / begun.elapsed().as_secs_f64();
        println!(
            "{name}, {seconds} s: host {:.2} %, window {:.2} % of a core; {drawn} bytes drawn; peak RSS {:.0} and {:.0} MiB",
            share(before.0.cpu, after.0.cpu),
            share(before.1.cpu, after.1.cpu),
            after.0.peak_mib,
            after.1.peak_mib,
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_the_script() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(row("x", &mut times), "| x | 100 | 51.0 | 100.0 | 100.0 |");
        let presses: usize = script().iter().map(|(_, keys)| keys.len()).sum();
        assert!((180..=260).contains(&presses), "{presses}");
    }
}
