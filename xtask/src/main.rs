//! `cargo xtask`: the one door to every chore of this repository.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program speaks to its terminal"
)]

mod check;
mod chores;
mod cluster;
mod command;
mod compat;
mod image;
mod layers;
mod paths;
mod setup;
mod test;
mod wait;
mod windows;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The chores of this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true, max_term_width = 110, after_help = BEGIN)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

/// Where to begin, for somebody who has just cloned it.
const BEGIN: &str = "\
New here:
  cargo xtask demo                    see the program at work: no cluster, no root, no network
  cargo xtask test --no-e2e           every test that needs no cluster, on any system
  cargo xtask check                   what is asked of every change besides the tests
  cargo xtask cluster up              a Kubernetes of your own to try things on (Linux, root)
  cargo xtask test                    everything, real clusters included (Linux, root; the first
                                      time builds Kubernetes: ten minutes more)

Only when asked for, since they take long: compat, bench, fuzz, test --e2e --profile old.";

#[derive(Subcommand)]
enum Chore {
    /// Show forwards surviving pod restarts, on a cluster inside the process: no root, no network
    Demo {
        /// For `kftui demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Install what is missing on Debian or Ubuntu; elsewhere say what to install
    Setup,
    /// Judge the sources: format, lints, layers, documentation, licences and advisories
    Check,
    /// Run all tests: units, documentation, and the built program on real clusters (Linux, root)
    Test(test::Test),
    /// Run an older build and this one together: host, client, hand-over, store (Linux, root)
    Compat(compat::Compat),
    /// Measure: speed beside other port-forwards, idle cost, the window (Linux, root)
    Bench(chores::Bench),
    /// Build the relay's image (static, from scratch) as OCI and docker archives
    Image(image::Image),
    /// Build for Windows and try the host under Wine (Linux, root for what has to be installed)
    Windows,
    /// Fuzz the protocol parsers (nightly toolchain), or replay the corpus
    Fuzz(chores::Fuzz),
    /// A real one-node Kubernetes on this machine (Linux, root)
    #[command(after_help = cluster::HELP)]
    Cluster {
        #[command(flatten)]
        which: cluster::Which,
        #[command(subcommand)]
        verb: cluster::Verb,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, without the backtrace that anyhow prints when RUST_BACKTRACE is set.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    match chore {
        Chore::Demo { args } => chores::demo(&args),
        Chore::Setup => setup::setup(),
        Chore::Check => check::check(),
        Chore::Test(test) => test.run(),
        Chore::Compat(compat) => compat.run(),
        Chore::Bench(bench) => bench.run(),
        Chore::Image(image) => image.run(),
        Chore::Windows => windows::windows(),
        Chore::Fuzz(fuzz) => fuzz.run(),
        Chore::Cluster { which, verb } => cluster::run(&which, verb),
    }
}
