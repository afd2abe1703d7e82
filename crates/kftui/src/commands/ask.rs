//! Questions that need a yes: asked on a terminal, refused where nobody can answer.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::Result;

use crate::exit::Exit;
use crate::shown;

/// Asks. `None`: yes; else what the command ends with.
///
/// # Errors
/// Standard input cannot be read.
pub(crate) fn confirm(question: &str, flag: &str) -> Result<Option<Exit>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        shown::aside(&format!("{question} There is nobody to ask here: say {flag}."));
        return Ok(Some(Exit::NeedsUser));
    }
    let mut out = io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    drop(out);
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(None);
    }
    shown::aside("nothing was done");
    Ok(Some(Exit::NeedsUser))
}
