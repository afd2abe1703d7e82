//! `kftui wait`: until forwards are ready.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::select::SelectArgs;
use super::settle::settle;
use crate::cli::duration;
use crate::connect;
use crate::exit::Exit;
use crate::shown::{self, Forward};

pub(crate) const WAIT_HELP: &str = "\
Examples:
  kftui wait --ready db web --timeout 60
  kftui start --all --no-wait && make build && kftui wait --ready && make test

Without names it waits for everything that runs. Code 5 when the time is over, 4 when one needs
you, 3 when one that is named does not run.";

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// Until they are ready (the only condition there is, and the default)
    #[arg(long)]
    pub(crate) ready: bool,

    /// Wait on when one needs you: somebody may be at it
    #[arg(long)]
    pub(crate) keep_waiting: bool,

    /// Give up after so many seconds [default: wait]
    #[arg(long, value_parser = duration, value_name = "SECONDS")]
    pub(crate) timeout: Option<Duration>,
}

/// Waits.
pub(crate) async fn wait(args: WaitArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let all = Forward::all(&client.snapshot().await?);
    let mut chosen = args.select.choose_or_all(&all)?;
    if args.select.is_empty() || args.select.all {
        chosen.retain(|one| one.state != "stopped");
    }
    let stopped: Vec<&str> =
        chosen.iter().filter(|one| one.state == "stopped").map(|one| one.name.as_str()).collect();
    if !stopped.is_empty() {
        let names = stopped.join(" ");
        shown::aside(&format!("nothing to wait for: {names} does not run; start with `kftui start {names}`"));
        return Ok(Exit::BadInput);
    }
    let wanted: BTreeMap<_, _> = chosen.into_iter().map(|one| (one.id, one.name)).collect();
    Ok(settle(&client, &wanted, args.timeout, args.keep_waiting).await?.tell())
}
