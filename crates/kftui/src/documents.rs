//! What is printed once and for all: completions, manual pages, the last complaint.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::cli::Cli;
use crate::complete;
use crate::exit::Exit;

/// Writes to standard output; a reader that has gone away is no fault.
pub(crate) fn print(bytes: &[u8]) -> Result<Exit> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(Exit::Clean),
    }
}

/// Writes a line to standard error. Where even that fails, nobody is left to be told.
pub(crate) fn complain(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// The completion script of a shell: it asks this program, which knows the stored forwards.
pub(crate) fn completion(shell: Shell) -> Result<Exit> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells.completer(&name).with_context(|| format!("there is no completion for {name}"))?;
    let mut script = Vec::new();
    completer.write_registration(complete::VARIABLE, "kftui", "kftui", "kftui", &mut script)?;
    print(&script)
}

/// The manual page of a command, or of all; `None` if there is no such command.
pub(crate) fn man(command: Option<&str>) -> Option<Result<Vec<u8>>> {
    let mut root = Cli::command();
    root.build();
    let page = match command {
        None => root,
        Some(name) => root.find_subcommand(name)?.clone(),
    };
    // `kftui forward` is the page kftui-forward(1).
    let title = page.get_display_name().unwrap_or(page.get_name()).to_owned();
    let mut bytes = Vec::new();
    let page = clap_mangen::Man::new(page).title(title);
    Some(page.render(&mut bytes).map(|()| bytes).map_err(Into::into))
}
