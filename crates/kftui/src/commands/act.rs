//! `kftui start`, `stop`, `restart`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kftray_client::Client;
use kftray_commons::api::{Action, ActionOutcome, ActionReport, ActionRequest, Selection};
use kftray_commons::{ForwardId, Problem};
use serde::Serialize;

use super::select::{self, SelectArgs};
use super::settle::settle;
use crate::connect;
use crate::exit::Exit;
use crate::render::Paint;
use crate::shown::{self, Cell, Format, Forward, OutputArgs, Table};

/// Long enough for a login plugin and a slow cluster; what is not ready by then has something to say.
pub(crate) const PATIENCE: &str = "30";

pub(crate) const START_HELP: &str = "\
Examples:
  kftui start db web
  kftui start --group shop
  kftui start --tag team=blue --no-wait
  kftui start --all

It waits until each is ready or needs you (code 4); after --timeout it ends with code 5, and the
forwards go on. They run in the host and stay when this terminal closes.";

pub(crate) const STOP_HELP: &str = "\
Examples:
  kftui stop db
  kftui stop --all";

pub(crate) const RESTART_HELP: &str = "\
Examples:
  kftui restart db
  kftui restart --all           those that run";

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// Do not wait until they are ready
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Seconds to wait at most
    #[arg(long, value_parser = crate::cli::duration, default_value = PATIENCE, value_name = "SECONDS")]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What came of it for one forward, as `--output json` tells it.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    id: ForwardId,
    name: String,
    outcome: ActionOutcome,
    state: &'static str,
    addresses: Vec<String>,
    problem: Option<Problem>,
}

/// Starts or restarts, and waits.
pub(crate) async fn start(action: Action, args: StartArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let all = Forward::all(&client.snapshot().await?);
    let mut chosen = args.select.must_choose(&all)?;
    if action == Action::Restart && args.select.all {
        chosen.retain(|one| one.state != "stopped");
    }
    let request =
        ActionRequest { selection: Selection::ids(select::ids(&chosen)), ..ActionRequest::default() };
    let report = act(&client, action, &request).await?;
    let limit = (!args.no_wait).then_some(args.timeout);
    finish(&client, report, limit, args.output.output).await
}

/// Stops.
pub(crate) async fn stop(args: StopArgs) -> Result<Exit> {
    let Some(client) = connect::running().await? else {
        // Nothing runs where no host does.
        shown::aside("nothing runs");
        return Ok(Exit::Clean);
    };
    let all = Forward::all(&client.snapshot().await?);
    let mut chosen = args.select.must_choose(&all)?;
    if args.select.all {
        chosen.retain(|one| one.state != "stopped");
    }
    let request =
        ActionRequest { selection: Selection::ids(select::ids(&chosen)), ..ActionRequest::default() };
    let report = act(&client, Action::Stop, &request).await?;
    finish(&client, report, None, args.output.output).await
}

/// Asks the host; nothing selected is nothing asked.
pub(crate) async fn act(client: &Client, action: Action, request: &ActionRequest) -> Result<ActionReport> {
    if request.selection.is_empty() && request.ad_hoc.is_empty() {
        return Ok(ActionReport::default());
    }
    Ok(client.act(action, request).await?)
}

/// Tells what came of an action, after waiting for what was started if a limit is given.
pub(crate) async fn finish(
    client: &Client,
    report: ActionReport,
    wait: Option<Duration>,
    format: Format,
) -> Result<Exit> {
    let runs = |outcome: ActionOutcome| {
        matches!(outcome, ActionOutcome::Started | ActionOutcome::AlreadyRunning | ActionOutcome::Restarted)
    };
    let begun: BTreeMap<ForwardId, String> = report
        .results
        .iter()
        .filter(|result| runs(result.outcome))
        .map(|result| (result.id, result.label.clone()))
        .collect();
    let (snapshot, mut exit) = match wait.filter(|_| !begun.is_empty()) {
        Some(limit) => {
            let settled = settle(client, &begun, Some(limit), false).await?;
            let exit = settled.tell();
            (settled.snapshot, exit)
        }
        None => (client.snapshot().await?, Exit::Clean),
    };
    for result in &report.results {
        if let (ActionOutcome::Failed, Some(problem)) = (result.outcome, &result.problem) {
            shown::trouble(&result.label, problem);
            exit = Exit::NeedsUser;
        }
    }
    let all = Forward::all(&snapshot);
    let results: Vec<Outcome> = report
        .results
        .into_iter()
        .map(|result| {
            let now = all.iter().find(|one| one.id == result.id);
            Outcome {
                id: result.id,
                state: now.map_or("stopped", |one| one.state),
                addresses: now.map(|one| one.addresses.clone()).unwrap_or_default(),
                problem: result.problem.or_else(|| now.and_then(|one| one.problem.clone())),
                name: result.label,
                outcome: result.outcome,
            }
        })
        .collect();
    let table = |paint: Paint| {
        let mut table = Table::new(&["NAME", "OUTCOME", "STATE", "LOCAL"]);
        for result in &results {
            let now = all.iter().find(|one| one.id == result.id);
            let local = now.filter(|one| one.state != "stopped").map(Forward::local).unwrap_or_default();
            table.row(vec![
                Cell::strong(result.name.clone()),
                word(result.outcome).into(),
                now.map_or_else(|| "stopped".into(), Forward::state_cell),
                local.into(),
            ]);
        }
        table.render(paint)
    };
    shown::answer(format, &results, table, |result| result.name.clone())?;
    Ok(exit)
}

fn word(outcome: ActionOutcome) -> &'static str {
    match outcome {
        ActionOutcome::Started => "started",
        ActionOutcome::AlreadyRunning => "ran already",
        ActionOutcome::Stopped => "stopped",
        ActionOutcome::NotRunning => "did not run",
        ActionOutcome::Restarted => "restarted",
        ActionOutcome::Failed => "failed",
        ActionOutcome::Other => "done",
    }
}
