//! `kftui` without a command: a window on the forwards of the host.
//!
//! One model ([`model`]), changed by messages ([`update`]), shown by a pure view ([`view`]); what has to be done in the world
//! comes out as effects, which [`shell`] has done over the client. Everything but [`shell`], [`effects`], [`link`] and
//! [`terminal`] is pure and tested without a terminal.

mod arrange;
mod data;
mod dialogs;
mod editor;
mod effects;
mod form;
mod keys;
mod link;
mod list;
mod message;
mod model;
mod picker;
mod settings;
mod shell;
mod terminal;
#[cfg(test)]
mod tests;
mod text;
mod theme;
mod update;
mod view;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result, bail};
use kftray_commons::store::Directory;

use crate::exit::Exit;

/// Opens the window. With `embedded` the host lives in this process, and the forwards end with the window.
pub(crate) async fn run(directory: Directory, embedded: bool) -> Result<Exit> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!("the window needs a terminal; `kftui --help` lists the commands for scripts");
    }
    shell::run(directory, embedded).await.context("the terminal")?;
    Ok(Exit::Clean)
}
