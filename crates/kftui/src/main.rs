//! The terminal program: a page that reads the command line, prepares the process and hands over.

mod child;
mod cli;
mod demo;
mod documents;
mod exit;
mod forward;
mod logging;
mod rbac;
mod relay;
mod render;
mod run;
mod session;
mod signals;
mod stack;
mod target;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use exit::Exit;

/// How long the process waits for blocking calls (name look-ups, reads of standard input) at its end.
const LAST_WAIT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.verbose);
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            documents::complain(&format!("kftui: {error:#}"));
            Exit::Failed.into()
        }
    }
}

fn dispatch(command: Command) -> Result<Exit> {
    // Before anything opens TLS: one provider for the process, chosen here and not by whichever crate comes first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    match command {
        Command::Forward(args) => match forward::specs(&args) {
            Ok(specs) => on_runtime(forward::run(args, specs)),
            Err(message) => usage("forward", &message),
        },
        Command::Run(args) => on_runtime(run::run(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Relay(command) => on_runtime(relay::run(command)),
        Command::Rbac(command) => rbac::run(command),
        Command::Completion { shell } => documents::completion(shell),
        Command::Man { command } => match documents::man(command.as_deref()) {
            Some(page) => documents::print(&page?),
            None => usage("man", "there is no such command; `kftui --help` lists them"),
        },
    }
}

/// Ends as clap does for a command line that is not understood.
fn usage(command: &str, message: &str) -> ! {
    let mut root = Cli::command();
    root.build();
    match root.find_subcommand_mut(command) {
        Some(found) => found.error(ErrorKind::ValueValidation, message).exit(),
        None => root.error(ErrorKind::ValueValidation, message).exit(),
    }
}

fn on_runtime(work: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let exit = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WAIT);
    exit
}
