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
///
/// New here? `cargo xtask demo` shows the program at work without a cluster; `cargo xtask test` runs every test.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

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
    /// Measure against other port-forwards on a real cluster (Linux, root)
    Bench(chores::Bench),
    /// Build the relay's image (static, from scratch) as OCI and docker archives
    Image(image::Image),
    /// Build for Windows and try the host under Wine (Linux, root for what has to be installed)
    Windows,
    /// Fuzz the protocol parsers (nightly toolchain), or replay the corpus
    Fuzz(chores::Fuzz),
    /// A real one-node Kubernetes on this machine (Linux, root)
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
        Chore::Bench(bench) => bench.run(),
        Chore::Image(image) => image.run(),
        Chore::Windows => windows::windows(),
        Chore::Fuzz(fuzz) => fuzz.run(),
        Chore::Cluster { which, verb } => cluster::run(&which, verb),
    }
}
