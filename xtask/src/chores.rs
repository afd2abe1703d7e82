//! The small chores: demo, benchmarks, fuzzing.

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::cluster::{self, Profile, Which};
use crate::command::{command, on_path, run, show};
use crate::paths::root;
use crate::test;

/// `kftui demo`: the main job on an in-process cluster.
pub(crate) fn demo(args: &[String]) -> Result<()> {
    show(
        command("cargo", ["run", "--release", "--locked", "-p", "kftui", "--", "demo"])
            .args(args)
            .current_dir(root())
            .stdin(std::process::Stdio::inherit()),
    )
}

const BENCH_HELP: &str = "\
Examples:
  cargo xtask bench                                 what can be measured
  cargo xtask bench -- speed --rounds 3             beside kubectl and kube-rs
  cargo xtask bench -- speed --added-rtt 50         the same with 50 ms between client and cluster
  cargo xtask bench -- idle --forwards 500
  cargo xtask bench -- window                       5,000 configs: key press to drawn, idle cost
  cargo xtask bench --keep -- window                and leave the cluster up for the next run

Figures with their commands are in docs/benchmarks.md. Everything is built with optimisation first.";

/// The benchmarks, on a cluster of their own.
#[derive(Args)]
#[command(after_help = BENCH_HELP)]
pub(crate) struct Bench {
    /// Leave the cluster up, for the next run
    #[arg(long)]
    keep: bool,
    /// What to measure: speed, idle, relay or window, each with options of its own (`-- window --help`)
    #[arg(last = true)]
    args: Vec<String>,
}

impl Bench {
    /// Builds with optimisation, brings the cluster up, measures.
    pub(crate) fn run(&self) -> Result<()> {
        let asks = |arg: &String| ["-h", "--help", "help"].contains(&arg.as_str());
        if self.args.is_empty() || self.args.iter().any(asks) {
            // Its help needs no cluster.
            let mut help = command("cargo", ["run", "--release", "--locked", "-p", "kftray-benches", "--"]);
            // Asked for twice, it is told once.
            return show(help.args(&self.args).arg("--help").current_dir(root()));
        }
        test::build()?;
        show(
            command("cargo", ["build", "--release", "--locked", "-p", "kftray-benches"]).current_dir(root()),
        )?;
        let which = Which::named(Profile::Default, "bench");
        cluster::up(&which, false)?;
        let result = cluster::load(&which).and_then(|()| cluster::load_relay(&which)).and_then(|()| {
            let mut bench = command("cargo", ["run", "--release", "--locked", "-p", "kftray-benches", "--"]);
            bench.args(&self.args).current_dir(root());
            test::environment(&mut bench, &which)?;
            show(&mut bench)
        });
        if !self.keep {
            cluster::down(&which)?;
        }
        result
    }
}

/// Fuzzing the protocol parsers.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// How long each target runs
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Only run every input of the corpus once
    #[arg(long)]
    replay: bool,
    /// Targets (default: all in fuzz/fuzz_targets)
    targets: Vec<String>,
}

impl Fuzz {
    /// Fuzzes where the nightly toolchain and cargo-fuzz are there; else replays the corpus with the stable toolchain.
    pub(crate) fn run(&self) -> Result<()> {
        let nightly = run(&mut command("rustup", ["run", "nightly", "rustc", "--version"])).is_ok();
        let can_fuzz = nightly && on_path("cargo-fuzz");
        if self.replay || !can_fuzz {
            if !can_fuzz {
                println!(
                    "fuzzing needs `rustup toolchain install nightly` and `cargo install --locked cargo-fuzz`;"
                );
                println!("replaying the committed corpus instead");
            }
            let crates = ["-p", "kftray-spdy", "-p", "kftray-relay-proto"];
            return show(
                command("cargo", ["test", "--locked", "--test", "corpus"]).args(crates).current_dir(root()),
            );
        }
        let known = targets()?;
        if let Some(unknown) = self.targets.iter().find(|target| !known.contains(target)) {
            bail!("there is no fuzz target {unknown}; there are: {}", known.join(", "));
        }
        let chosen = if self.targets.is_empty() { &known } else { &self.targets };
        let time = format!("-max_total_time={}", self.minutes * 60);
        for target in chosen {
            show(command("cargo", ["+nightly", "fuzz", "run", target, "--", &time]).current_dir(root()))?;
        }
        Ok(())
    }
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) = (path.extension().and_then(|end| end.to_str()), path.file_stem()) {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}
