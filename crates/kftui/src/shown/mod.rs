//! What commands print: one answer as a table for people, or as JSON, YAML or names for scripts.

mod forward;
mod table;
mod view;

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::exit::Exit;
use crate::render::{Paint, colours_on};

pub(crate) use forward::Forward;
pub(crate) use table::{Cell, Table, Tone};
pub(crate) use view::{Condition, Field, Grouping};

/// The forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
    Name,
}

/// `--output` of every command that answers with forwards.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// Form of the answer: columns for people, a document, or names alone
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// Words of others, such as names in files and in clusters, and what callers ask: without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Colours of standard output.
pub(crate) fn paint() -> Paint {
    Paint::new(colours_on(io::stdout().is_terminal()))
}

/// Prints an answer. `name` is what `--output name` prints of each.
pub(crate) fn answer<T: Serialize>(
    format: Format,
    all: &[T],
    table: impl FnOnce(Paint) -> String,
    name: impl Fn(&T) -> String,
) -> Result<Exit> {
    let text = match format {
        Format::Table => table(paint()),
        Format::Name => all.iter().map(|one| name(one) + "\n").collect(),
        Format::Json | Format::Yaml => document(format, &all)?,
    };
    crate::documents::print(text.as_bytes())
}

/// A value as JSON or, for every other form, YAML.
pub(crate) fn document(format: Format, value: &impl Serialize) -> Result<String> {
    // By way of a value, so that both have the same fields in the same order.
    let value = serde_json::to_value(value)?;
    Ok(match format {
        Format::Json => format!("{value:#}\n"),
        Format::Table | Format::Yaml | Format::Name => {
            let mut text = serde_saphyr::to_string(&value)?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        }
    })
}

/// A line for people beside the answer, on standard error. Where even that fails, nobody is left to be told.
pub(crate) fn aside(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// A problem on standard error, with its remedy.
pub(crate) fn trouble(label: &str, problem: &kftray_commons::Problem) {
    let paint = Paint::new(colours_on(io::stderr().is_terminal()));
    let label = if label.is_empty() { String::new() } else { format!("{}: ", paint.strong(label)) };
    aside(&format!("{label}{}", paint.bad(&problem.message)));
    aside(&format!("    {}", paint.dim(&problem.remedy)));
}
