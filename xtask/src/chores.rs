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

/// The benchmarks, on a cluster of their own.
#[derive(Args)]
pub(crate) struct Bench {
    /// Leave the cluster up, for the next run
    #[arg(long)]
    keep: bool,
    /// For the benchmark program (see `cargo xtask bench -- --help`)
    #[arg(last = true)]
    args: Vec<String>,
}

impl Bench {
    /// Builds with optimisation, brings the cluster up, measures.
    pub(crate) fn run(&self) -> Result<()> {
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
