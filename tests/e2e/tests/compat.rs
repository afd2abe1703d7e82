//! An older build and this one together: each as client of the other's host, hand-over with a live forward, one store.
//!
//! `cargo xtask compat --old REV` builds the older one, brings a cluster up and runs this; the table it prints is the one in
//! `docs/reliability.md`.
#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kftray_e2e::{Ground, client};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

/// One command on a busy machine; a hang is a finding.
const LIMIT: Duration = Duration::from_secs(90);

/// Exit codes that say "not with this host": nothing here that fits, and no host to talk to.
const REFUSALS: [i32; 2] = [3, 6];

/// Both programs, and a directory that they share.
struct Pair {
    old: PathBuf,
    new: PathBuf,
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Pair {
    fn from_env() -> Result<Self> {
        let ground = Ground::from_env()?;
        let old = std::env::var_os("KFTRAY_E2E_OLD").map(PathBuf::from);
        let old = old.context("KFTRAY_E2E_OLD is not set: run this with `cargo xtask compat`")?;
        Ok(Self { old, new: ground.kftui, kubeconfig: ground.kubeconfig, home: tempfile::tempdir()? })
    }

    fn command(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).env("HOME", self.home.path());
        command.env("KFTRAY_CONFIG", self.home.path().join("kftray")).env("EDITOR", "true");
        command.current_dir(self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, program: &Path, words: &[&str]) -> Result<Ran> {
        let mut command = self.command(program, words);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{words:?} hangs"))??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// Runs a command that has to work.
    async fn works(&self, program: &Path, words: &[&str]) -> Result<String> {
        let ran = self.run(program, words).await?;
        ensure!(ran.code == Some(0), "{} {words:?}: {ran:?}", self.called(program));
        Ok(ran.out)
    }

    async fn json(&self, program: &Path, words: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.works(program, words).await?)?)
    }

    fn called(&self, program: &Path) -> &'static str {
        if program == self.old { "old" } else { "new" }
    }

    /// Which of the two the host is, and its process id.
    async fn host(&self) -> Result<(&'static str, u64)> {
        let status = self.json(&self.new, &["host", "status", "--output", "json"]).await?;
        let pid = status["pid"].as_u64().context("a process id")?;
        let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        Ok((self.called(&program.canonicalize()?), pid))
    }

    async fn stop_host(&self) -> Result<()> {
        self.works(&self.new, &["host", "stop"]).await.map(drop)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Whatever a test left running.
        let lock = std::fs::read_to_string(self.home.path().join("kftray/host.lock")).unwrap_or_default();
        let pid: String = lock.chars().take_while(char::is_ascii_digit).collect();
        if !pid.is_empty() {
            std::process::Command::new("kill").arg(pid).status().ok();
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Adds a forward to the fixture under this name and starts it; its local port.
async fn forward(pair: &Pair, program: &Path, alias: &str) -> Result<u16> {
    let port = free_port()?;
    let ports = format!("{port}:80");
    pair.works(program, &["add", "svc/web", &ports, "-n", "kftest", "--alias", alias]).await?;
    pair.works(program, &["start", alias]).await?;
    client::get(port, "/", LIMIT).await?;
    Ok(port)
}

/// A command of one against the host of the other: it works, or says that these two do not fit. All else is a fault.
fn judge(words: &[&str], ran: &Ran) -> Result<String> {
    ensure!(!ran.err.contains("panicked"), "{words:?}: {ran:?}");
    match ran.code {
        Some(0) => Ok("works".to_owned()),
        Some(code) if REFUSALS.contains(&code) && !ran.err.trim().is_empty() => {
            Ok(ran.err.lines().next().unwrap_or_default().to_owned())
        }
        _ => bail!("{words:?}: {ran:?}"),
    }
}

/// What one does in a day; `PORT` is a free port.
const DAY: [&[&str]; 22] = [
    &["host", "status"],
    &["add", "svc/web", "PORT:80", "-n", "kftest", "--alias", "web", "--tag", "team=blue"],
    &["add", "svc/redis", ":6379", "-n", "kftest", "--alias", "redis"],
    &["list", "--output", "json"],
    &["group", "add", "shop", "web", "redis"],
    &["group", "list"],
    &["start", "--group", "shop"],
    &["wait", "--ready", "web", "--timeout", "60"],
    &["status", "--output", "json"],
    &["env", "--format", "json"],
    &["logs", "web", "--output", "json"],
    &["run", "web", "--", "true"],
    &["edit", "redis", "--set", "idle_minutes=30"],
    &["restart", "redis"],
    &["export", "--file", "all.json"],
    &["import", "all.json"],
    &["doctor", "--output", "json"],
    &["up", "--file", "project.yaml", "--yes"],
    &["down", "--file", "project.yaml"],
    &["stop", "--all"],
    &["rm", "redis", "--yes"],
    &["host", "logs"],
];

/// A project for `up` and `down`.
const PROJECT: &str = "namespace: kftest\nforwards:\n  - {alias: p, service: nginx, remote_port: 80}\n";

/// A day with `host`'s host and `client` as the client. Returns a line for each command.
async fn day(pair: &Pair, host: &Path, client: &Path) -> Result<Vec<String>> {
    std::fs::write(pair.home.path().join("project.yaml"), PROJECT)?;
    pair.works(host, &["list"]).await.context("the host's own client")?;
    let (before, pid) = pair.host().await?;
    ensure!(before == pair.called(host), "the host is the {before} one");
    let port = free_port()?.to_string();
    let mut lines = Vec::new();
    for words in DAY {
        let words: Vec<String> = words.iter().map(|word| word.replace("PORT", &port)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ran = pair.run(client, &words).await?;
        let verdict = judge(&words, &ran)?;
        let shown = words.join(" ").replace(&port, "PORT");
        lines.push(format!("| `{shown}` | {verdict} |"));
        if words[0] == "wait" && verdict == "works" {
            let local: u16 = port.parse()?;
            client::get(local, "/", LIMIT).await.context("through the forward")?;
        }
    }
    // What one wrote, the other reads.
    for program in [host, client] {
        let list = pair.works(program, &["list", "--output", "name"]).await?;
        ensure!(list.split_whitespace().any(|name| name == "web"), "{}: {list}", pair.called(program));
        ensure!(!list.split_whitespace().any(|name| name == "redis"), "{}: {list}", pair.called(program));
    }
    let (after, now) = pair.host().await?;
    let stayed = now == pid;
    lines.push(format!("| the host | {} |", if stayed { "stays" } else { "is replaced, see hand-over" }));
    ensure!(stayed || after == pair.called(client), "the host is the {after} one, and another process");
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_host_new_client() -> Result<()> {
    let pair = Pair::from_env()?;
    let lines = day(&pair, &pair.old, &pair.new).await?;
    println!("old host, new client:\n{}", lines.join("\n"));
    pair.stop_host().await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_host_old_client() -> Result<()> {
    let pair = Pair::from_env()?;
    let lines = day(&pair, &pair.new, &pair.old).await?;
    println!("new host, old client:\n{}", lines.join("\n"));
    pair.stop_host().await
}

/// Hands a host with a forward, an open connection and traffic over to the other program.
async fn hand_over(pair: &Pair, from: &Path, to: &Path) -> Result<()> {
    let port = forward(pair, from, "web").await?;
    let mut kept = client::connect(port).await?;
    let mut rest = Vec::new();
    client::get_kept(&mut kept, &mut rest, "/").await?;
    let (done, mut stop) = tokio::sync::watch::channel(false);
    let mut traffic = tokio::task::JoinSet::new();
    traffic.spawn(async move {
        let mut served = 0_u32;
        while !*stop.borrow_and_update() {
            client::get(port, "/", LIMIT).await.context("a connection during the hand-over")?;
            served += 1;
        }
        anyhow::Ok(served)
    });
    let begun = tokio::time::Instant::now();
    let mut command = pair.command(to, &["host", "run", "--background", "--take-over"]);
    let mut next = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut said = tokio::io::BufReader::new(next.stdout.take().context("piped")?);
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line).await?;
    ensure!(line == "serving\n", "it says {line:?}");
    let took = begun.elapsed();
    let (who, _) = pair.host().await?;
    ensure!(who == pair.called(to), "the host is the {who} one");
    pair.works(to, &["wait", "web", "--timeout", "60"]).await?;
    still_open(&mut kept, &mut rest).await?;
    client::get(port, "/", LIMIT).await?;
    done.send_replace(true);
    let served = traffic.join_next().await.context("one")???;
    println!(
        "hand-over from {} to {}: serving after {:.2} s, {served} connections meanwhile, none failed, the open one went on",
        pair.called(from),
        pair.called(to),
        took.as_secs_f32()
    );
    drop(kept);
    pair.stop_host().await
}

async fn still_open(kept: &mut TcpStream, rest: &mut Vec<u8>) -> Result<()> {
    let answer = tokio::time::timeout(LIMIT, client::get_kept(kept, rest, "/")).await;
    answer.context("the open connection is silent")?.context("the open connection").map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrade_with_a_live_forward() -> Result<()> {
    let pair = Pair::from_env()?;
    hand_over(&pair, &pair.old, &pair.new).await
}

#[tokio::test(flavor = "multi_thread")]
async fn downgrade_with_a_live_forward() -> Result<()> {
    let pair = Pair::from_env()?;
    hand_over(&pair, &pair.new, &pair.old).await
}

/// One writes, the other opens: it reads everything, or says that the store is too new for it.
async fn store(pair: &Pair, writer: &Path, reader: &Path) -> Result<()> {
    let words = ["add", "svc/web", ":80", "-n", "kftest", "--alias"];
    for alias in ["one", "two"] {
        pair.works(writer, &[&words[..], &[alias]].concat()).await?;
    }
    pair.works(writer, &["group", "add", "shop", "one"]).await?;
    pair.stop_host().await?;
    let ran = pair.run(reader, &["list", "--output", "name"]).await?;
    let verdict = if ran.code == Some(0) {
        ensure!(ran.out.contains("one") && ran.out.contains("two"), "{ran:?}");
        pair.works(reader, &["edit", "two", "--set", "remote_port=9000"]).await?;
        pair.stop_host().await?;
        let kept = pair.json(writer, &["list", "--output", "json"]).await?;
        ensure!(kept.to_string().contains("9000") && kept.to_string().contains("shop"), "{kept}");
        "read, changed, and read again by the writer".to_owned()
    } else {
        ensure!(ran.code == Some(6) && ran.err.contains("later version"), "{ran:?}");
        ran.err.lines().next().unwrap_or_default().to_owned()
    };
    println!("a store of the {} one, opened by the {}: {verdict}", pair.called(writer), pair.called(reader));
    pair.stop_host().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_new_one_opened_by_the_old() -> Result<()> {
    let pair = Pair::from_env()?;
    store(&pair, &pair.new, &pair.old).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_old_one_opened_by_the_new() -> Result<()> {
    let pair = Pair::from_env()?;
    store(&pair, &pair.old, &pair.new).await
}
