//! What many idle forwards on one Service cost: memory, processor time, requests to the API server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::Instant;

use crate::{NAMESPACE, SERVICE, cost_of};

/// What to hold, and for how long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Number of forwards
    #[arg(long, default_value_t = 500)]
    forwards: usize,
    /// Minutes to watch
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The API server's audit log, to count what the forwards asked of it
    #[arg(long)]
    audit_log: Option<PathBuf>,
}

/// Holds the forwards and prints what they cost.
pub(crate) async fn run(arguments: &Arguments, kftui: &Path, kubeconfig: &Path) -> Result<()> {
    let service = format!("svc/{SERVICE}");
    let mut command = Command::new(kftui);
    command.arg("forward").arg("--kubeconfig").arg(kubeconfig).args([
        "-n",
        NAMESPACE,
        "--address",
        "127.0.0.1",
        "--output",
        "json",
        &service,
    ]);
    command.args(vec![":80"; arguments.forwards]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let pid = child.id().context("it has ended")?;
    let begun = Instant::now();
    let mut events = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
    while let Some(line) = events.next_line().await? {
        if line.contains("\"all_ready\"") {
            break;
        }
    }
    println!("{} forwards ready after {:.2} s", arguments.forwards, begun.elapsed().as_secs_f32());
    // What starting them left behind is not idleness.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (before, asked) = (cost_of(pid)?, requests(arguments.audit_log.as_deref())?);
    let watched = Instant::now();
    tokio::time::sleep(Duration::from_secs(60 * arguments.minutes)).await;
    let (after, seconds) = (cost_of(pid)?, watched.elapsed().as_secs_f64());
    println!("peak RSS {:.1} MiB", after.peak_mib);
    println!(
        "processor: {:.3} s in {seconds:.0} s, {:.3} % of a core",
        after.cpu - before.cpu,
        100.0 * (after.cpu - before.cpu) / seconds
    );
    if let Some(path) = &arguments.audit_log {
        println!("requests to the API server by kftui in that time:");
        for line in requests(Some(path))?.iter().skip(asked.len()) {
            println!("  {line}");
        }
    }
    child.kill().await.context("kill")
}

/// Verb and address of each request that our program made, from an audit log of JSON lines.
fn requests(audit_log: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = audit_log else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path)?;
    let entries = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ours = entries.filter(|entry| {
        entry["userAgent"]
            .as_str()
            .is_some_and(|agent| agent.starts_with("kftui") || agent.starts_with("kftray"))
    });
    Ok(ours.map(|entry| format!("{} {} {}", entry["stage"], entry["verb"], entry["requestURI"])).collect())
}
