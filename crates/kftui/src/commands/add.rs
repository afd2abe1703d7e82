//! `kftui add`: a forward written down, in the words of `kftui forward`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use kftray_commons::api::{Action, ActionRequest, ConfigPut, Selection};
use kftray_commons::tags::Tags;
use kftray_commons::{ForwardSpec, border};
use serde_json::Map;

use super::act;
use crate::cli::{PlaceArgs, Way, duration};
use crate::connect;
use crate::exit::Exit;
use crate::forward;
use crate::shown::{self, Forward, OutputArgs};

pub(crate) const ADD_HELP: &str = "\
Examples:
  kftui add svc/web 8080:80
  kftui add svc/postgres 15432:5432 --alias db --namespace shop --tag team=blue --group shop
  kftui add deploy/api :http --context prod --start
  kftui add svc/web 80 svc/db 5432            several at once

Everything else of an entry (idle time, host name, kind `proxy`, ...) can be set by `kftui edit`.";

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Target, then its ports, then the next target, as in `kftui forward`
    #[arg(value_name = "TARGET PORT", required = true, num_args = 1..)]
    pub(crate) words: Vec<String>,

    /// Which way TCP takes to pods; `auto` is by the relay if one is there. UDP and proxy/ always go by the relay
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub(crate) via: Way,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// What it is called [default: target and port]
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Option<String>,

    /// A mark for filters and groups: KEY or KEY=VALUE, repeatable
    #[arg(short, long, value_name = "TAG")]
    pub(crate) tag: Vec<String>,

    /// The group it belongs to
    #[arg(short, long, value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// Start it at once
    #[arg(long)]
    pub(crate) start: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Checks the command line. The error is for the person who wrote it.
pub(crate) fn specs(args: &AddArgs) -> Result<Vec<ForwardSpec>, String> {
    let mut specs = forward::specs_of(&args.words, &args.place, args.via)?;
    if let (Some(alias), [only]) = (&args.alias, &mut specs[..]) {
        only.alias = Some(alias.clone());
    } else if args.alias.is_some() {
        return Err(format!("--alias names one forward, and these are {}", specs.len()));
    }
    let mut tags = Tags::new();
    for tag in &args.tag {
        let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
        tags.insert(key, value).map_err(|fault| format!("--tag {tag}: {fault}"))?;
    }
    for spec in &mut specs {
        spec.tags.clone_from(&tags);
        if let Some(fault) = spec.check().into_iter().next() {
            return Err(format!("{}: {}\n\n  {}", fault.field, fault.message, fault.remedy));
        }
    }
    Ok(specs)
}

/// Writes them down.
pub(crate) async fn add(args: AddArgs, specs: Vec<ForwardSpec>) -> Result<Exit> {
    let client = connect::host().await?;
    let mut ids = Vec::new();
    for spec in &specs {
        let put =
            ConfigPut { spec: border::object(spec, &Map::new()), revision: None, group: args.group.clone() };
        ids.push(client.add_config(&put).await?.id);
    }
    if args.start {
        let request = ActionRequest { selection: Selection::ids(ids), ..ActionRequest::default() };
        let report = act::act(&client, Action::Start, &request).await?;
        let Ok(limit) = duration(act::PATIENCE) else { bail!("the usual patience is no duration") };
        return act::finish(&client, report, Some(limit), args.output.output).await;
    }
    let all = Forward::all(&client.snapshot().await?);
    let added: BTreeMap<_, _> =
        all.into_iter().filter(|one| ids.contains(&one.id)).map(|one| (one.id, one)).collect();
    let added: Vec<Forward> = added.into_values().collect();
    let table = |paint: crate::render::Paint| {
        let line = |one: &Forward| format!("added {} ({})\n", paint.strong(&one.name), one.target);
        added.iter().map(line).collect()
    };
    shown::answer(args.output.output, &added, table, |one| one.name.clone())
}
