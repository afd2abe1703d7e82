//! `kftui rm`.

use anyhow::Result;
use clap::Args;

use super::ask::confirm;
use super::select::SelectArgs;
use crate::connect;
use crate::exit::Exit;
use crate::shown::{self, Forward, OutputArgs};

pub(crate) const RM_HELP: &str = "\
Examples:
  kftui rm db
  kftui rm --group shop --yes";

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Removes forwards from the store; what runs is stopped.
pub(crate) async fn rm(args: RmArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let mut chosen = args.select.must_choose(&Forward::all(&client.snapshot().await?))?;
    chosen.retain(|one| one.stored);
    // One that is named is meant; a set may hold more than one thinks of.
    let named_only = args.select.group.is_empty() && args.select.tag.is_empty() && !args.select.all;
    let exactly = named_only && chosen.len() <= args.select.names.len();
    if !chosen.is_empty() && !exactly && !args.yes {
        let names: Vec<&str> = chosen.iter().map(|one| one.name.as_str()).collect();
        let question = format!("Remove {} forwards ({})?", chosen.len(), names.join(", "));
        if let Some(exit) = confirm(&question, "--yes")? {
            return Ok(exit);
        }
    }
    for one in &chosen {
        client.remove_config(one.id).await?;
    }
    let table = |paint: crate::render::Paint| {
        chosen.iter().map(|one| format!("removed {}\n", paint.strong(&one.name))).collect()
    };
    shown::answer(args.output.output, &chosen, table, |one| one.name.clone())
}
