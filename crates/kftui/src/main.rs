//! The terminal program: a page that reads the command line, prepares the process and hands over.

mod child;
mod cli;
mod commands;
mod complete;
mod connect;
mod demo;
mod documents;
mod exit;
mod forward;
mod host;
mod logging;
mod platform;
mod project;
mod rbac;
mod reference;
mod relay;
mod render;
mod run;
mod session;
mod shown;
mod signals;
mod stack;
mod target;
mod tui;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use exit::Exit;
use kftray_commons::api::Action;
use reference::ReferenceArgs;

/// How long the process waits for blocking calls (name look-ups, reads of standard input) at its end.
const LAST_WAIT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // A shell asks for candidates: answered before anything else, and nothing else is done.
    clap_complete::CompleteEnv::with_factory(Cli::command).var(complete::VARIABLE).complete();
    let cli = Cli::parse();
    let logging = match &cli.command {
        Some(Command::Host(args)) if args.in_background() => host::start_log(cli.verbose),
        Some(_) => logging::start(cli.verbose, &cli.reference, false),
        None => {
            let window = cli.reference.wants_window() || cli.reference.interactive();
            logging::start(cli.verbose, &cli.reference, window)
        }
    };
    if let Err(error) = logging {
        documents::complain(&format!("kftui: {error:#}"));
        return Exit::Failed.into();
    }
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(error) => tell(&error).into(),
    }
}

/// The last word about a failure, and what it ends the program with.
fn tell(error: &anyhow::Error) -> Exit {
    if let Some(refused) = error.downcast_ref::<kftray_commons::api::Error>() {
        shown::trouble("kftui", &refused.clone().problem());
        return Exit::of(refused.code);
    }
    if let Some(problem) = error.downcast_ref::<kftray_commons::Problem>() {
        shown::trouble("kftui", problem);
        return Exit::of(problem.code);
    }
    documents::complain(&format!("kftui: {error:#}"));
    if error.is::<commands::select::Unmatched>() { Exit::BadInput } else { Exit::Failed }
}

fn dispatch(cli: Cli) -> Result<Exit> {
    // Before anything opens TLS: one provider for the process, chosen here and not by whichever crate comes first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    if cli.command.is_some() && cli.reference != ReferenceArgs::default() {
        usage("", "the flags before the command go without one; every command has flags of its own");
    }
    let Some(command) = cli.command else { return without_command(cli.reference, cli.embedded) };
    match command {
        Command::Forward(args) => match forward::specs(&args) {
            Ok(specs) => on_runtime(forward::run(args, specs)),
            Err(message) => usage("forward", &message),
        },
        Command::Run(args) => match run::kind(&args.files) {
            Ok(run::Kind::Files) => on_runtime(run::run(args)),
            Ok(run::Kind::Names) => match commands::hold::check(&args) {
                Ok(()) => on_runtime(commands::hold::run(args)),
                Err(message) => usage("run", &message),
            },
            Err(message) => usage("run", &message),
        },
        Command::Add(args) => match commands::add::specs(&args) {
            Ok(specs) => on_runtime(commands::add::add(args, specs)),
            Err(message) => usage("add", &message),
        },
        Command::List(args) => on_runtime(commands::list::list(args)),
        Command::Status(args) => on_runtime(commands::list::status(args)),
        Command::Start(args) => on_runtime(commands::act::start(Action::Start, args)),
        Command::Restart(args) => on_runtime(commands::act::start(Action::Restart, args)),
        Command::Stop(args) => on_runtime(commands::act::stop(args)),
        Command::Wait(args) => on_runtime(commands::wait::wait(args)),
        Command::Logs(args) => on_runtime(commands::logs::logs(args)),
        Command::Edit(args) => on_runtime(commands::edit::edit(args)),
        Command::Rm(args) => on_runtime(commands::remove::rm(args)),
        Command::Group(args) => on_runtime(commands::group::group(args)),
        Command::Import(args) => on_runtime(commands::import::import(args)),
        Command::Export(args) => on_runtime(commands::import::export(args)),
        Command::Up(args) => on_runtime(commands::up::up(args)),
        Command::Down(args) => on_runtime(commands::up::down(args)),
        Command::Env(args) => on_runtime(commands::env::env(args)),
        Command::Settings(args) => on_runtime(commands::settings::settings(args)),
        Command::Doctor(args) => on_runtime(commands::doctor::doctor(args)),
        Command::Host(args) => on_runtime(host::host(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Relay(command) => on_runtime(relay::run(command)),
        Command::Rbac(command) => rbac::run(command),
        Command::Completion { shell } => documents::completion(shell),
        Command::Schema => documents::print(format!("{:#}\n", project::schema()).as_bytes()),
        Command::Man { command } => match documents::man(command.as_deref()) {
            Some(page) => documents::print(&page?),
            None => usage("man", "there is no such command; `kftui --help` lists them"),
        },
    }
}

/// Flags alone: the window, or what the reference's flags say.
fn without_command(args: ReferenceArgs, embedded: bool) -> Result<Exit> {
    if let Err(message) = args.check() {
        usage("", &message);
    }
    if !args.wants_window() {
        return on_runtime(reference::run(args));
    }
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return window(embedded);
    }
    // A script that forgot its command must not hang in a window nobody sees.
    documents::complain(&Cli::command().render_help().to_string());
    Ok(Exit::Usage)
}

/// The window on the user's host.
fn window(embedded: bool) -> Result<Exit> {
    let directory = kftray_commons::store::Directory::of_process()?;
    on_runtime(tui::run(directory, embedded))
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
