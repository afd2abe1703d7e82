//! `kftui list` and `kftui status`: what there is, and how it stands.

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kftray_commons::api::{Call, Snapshot};

use super::select::SelectArgs;
use crate::connect;
use crate::exit::Exit;
use crate::render::{Paint, bytes};
use crate::shown::{self, Cell, Condition, Field, Format, Forward, Grouping, OutputArgs, Table, Tone};

pub(crate) const LIST_HELP: &str = "\
Examples:
  kftui list
  kftui list --filter namespace=shop --filter tag:team=blue --group-by context
  kftui list --output json | jq -r '.[] | select(.state == \"ready\") | .name'
  kftui list --output name | fzf | xargs kftui start

Fields: context, namespace, kubeconfig, workload_type, protocol, group, tag:KEY.";

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// Only what has FIELD=V1,V2; FIELD alone: has any; repeatable, all must hold
    #[arg(long, value_name = "CONDITION")]
    pub(crate) filter: Vec<Condition>,

    /// Group by a field, or `none`
    #[arg(long, value_name = "FIELD", default_value = "none")]
    pub(crate) group_by: Grouping,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Lists what is written down or runs.
pub(crate) async fn list(args: ListArgs) -> Result<Exit> {
    let snapshot = connect::host().await?.snapshot().await?;
    let chosen = args.select.choose_or_all(&Forward::all(&snapshot))?;
    let chosen: Vec<Forward> =
        chosen.into_iter().filter(|one| args.filter.iter().all(|condition| condition.holds(one))).collect();
    if chosen.is_empty() && args.output.output == Format::Table {
        shown::aside("no forwards; add one with `kftui add svc/web 8080:80` or `kftui import FILE`");
    }
    let table = |paint: Paint| table(&args.group_by, chosen.clone(), paint);
    shown::answer(args.output.output, &chosen, table, |one| one.name.clone())
}

fn table(grouping: &Grouping, forwards: Vec<Forward>, paint: Paint) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "STATE", "LOCAL", "TARGET", "NAMESPACE", "CONTEXT", "GROUP", "TAGS"]);
    for (name, members) in grouping.apply(forwards) {
        if let Some(name) = name {
            let field = grouping.0.as_ref().map(Field::to_string).unwrap_or_default();
            table.group(format!("{field}: {name}"));
        }
        for one in members {
            // Numbers of what is written down nowhere are large and of no use to anybody.
            let id = if one.stored { one.id.0.to_string() } else { "-".to_owned() };
            table.row(vec![
                Cell::dim(id),
                Cell::strong(one.name.clone()),
                one.state_cell(),
                one.local().into(),
                one.target.clone().into(),
                one.namespace.clone().unwrap_or_default().into(),
                one.context.clone().unwrap_or_default().into(),
                one.group.clone().unwrap_or_default().into(),
                Cell::dim(one.tags_text()),
            ]);
        }
    }
    table.render(paint)
}

pub(crate) const STATUS_HELP: &str = "\
Examples:
  kftui status                 what runs, by which pod, and what it carries
  kftui status db              everything about one
  kftui status --output json";

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Shows what runs; with names, whatever state it is in.
pub(crate) async fn status(args: StatusArgs) -> Result<Exit> {
    let snapshot: Snapshot = connect::host().await?.snapshot().await?;
    let mut chosen = args.select.choose_or_all(&Forward::all(&snapshot))?;
    if args.select.is_empty() {
        chosen.retain(|one| one.state != "stopped");
        if chosen.is_empty() && args.output.output == Format::Table {
            shown::aside("nothing runs; `kftui start NAME` starts a forward, `kftui list` shows them all");
        }
    }
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    let named = args.select.names.len();
    let exit = shown::answer(
        args.output.output,
        &chosen,
        |paint| if named == 1 { details(&chosen, now, paint) } else { running(&chosen, now, paint) },
        |one| one.name.clone(),
    )?;
    if args.output.output == Format::Table && named != 1 {
        for one in &chosen {
            if let Some(problem) = &one.problem {
                shown::trouble(&one.name, problem);
            }
        }
    }
    Ok(exit)
}

fn running(forwards: &[Forward], now: u64, paint: Paint) -> String {
    let mut table =
        Table::new(&["NAME", "STATE", "LOCAL", "POD", "BY", "OPEN", "DOWN", "UP", "FOR", "ENDS IN"]);
    for one in forwards {
        let state = one.forward.as_ref().filter(|state| state.is_active());
        let via = state.and_then(|state| state.ready_via.as_ref());
        let counters = state.map(|state| state.counters).unwrap_or_default();
        let ends =
            state.and_then(|state| [state.expires_at, state.idle_limit_at].into_iter().flatten().min());
        let open = if state.is_some() { counters.open.to_string() } else { String::new() };
        let carried = |count: u64| if state.is_some() { bytes(count) } else { String::new() };
        table.row(vec![
            Cell::strong(one.name.clone()),
            one.state_cell(),
            one.local().into(),
            via.map(|via| via.pod.clone()).unwrap_or_default().into(),
            match state.and_then(|state| state.exposed.as_ref()) {
                Some(exposed) if exposed.public => Cell::toned("PUBLIC", Tone::Bad),
                Some(_) => Cell::dim("cluster"),
                None => Cell::dim(via.map(|via| via.transport.clone()).unwrap_or_default()),
            },
            open.into(),
            carried(counters.bytes_down).into(),
            carried(counters.bytes_up).into(),
            state.map(|state| span(now.saturating_sub(state.started_at))).unwrap_or_default().into(),
            ends.map(|end| span(end.saturating_sub(now))).unwrap_or_default().into(),
        ]);
    }
    table.render(paint)
}

/// Everything about forwards, one line per fact.
fn details(forwards: &[Forward], now: u64, paint: Paint) -> String {
    let mut text = String::new();
    for one in forwards {
        let mut line = |name: &str, value: String| {
            if !value.is_empty() {
                text.push_str(&format!("{} {value}\n", paint.dim(format!("{:<11}", format!("{name}:")))));
            }
        };
        line("name", paint.strong(&one.name));
        line("state", one.state.to_owned());
        line("local", if one.addresses.is_empty() { one.local() } else { one.addresses.join(", ") });
        line("target", one.target.clone());
        line("namespace", one.namespace.clone().unwrap_or_default());
        line("context", one.context.clone().unwrap_or_else(|| "(current)".to_owned()));
        line("group", one.group.clone().unwrap_or_default());
        line("tags", one.tags_text());
        if let Some(state) = one.forward.as_ref().filter(|state| state.is_active()) {
            if let Some(via) = &state.ready_via {
                #[expect(clippy::cast_precision_loss, reason = "microseconds of a round trip")]
                let rtt = via.rtt_us as f64 / 1000.0;
                line("by", format!("{} ({}, round trip {rtt:.1} ms)", via.pod, via.transport));
            }
            if let Some(exposed) = &state.exposed {
                let reach = exposed.reach();
                line("reach", if exposed.public { paint.bad(reach) } else { reach.to_owned() });
                line("calls", exposed.calls.total.to_string());
                for call in &exposed.calls.last {
                    line("caller", told_call(call, now));
                }
            }
            for pod in &state.endpoints {
                let condition = serde_json::to_value(pod.condition).unwrap_or_default();
                let condition = condition.as_str().unwrap_or_default().replace('_', " ");
                line("pod", format!("{}/{}:{} {condition}", pod.namespace, pod.pod, pod.port));
            }
            let counters = &state.counters;
            let failed =
                if counters.failed > 0 { format!(", {} failed", counters.failed) } else { String::new() };
            line(
                "carried",
                format!(
                    "{} connection{}, {} open{failed}; {} down, {} up",
                    counters.connections,
                    if counters.connections == 1 { "" } else { "s" },
                    counters.open,
                    bytes(counters.bytes_down),
                    bytes(counters.bytes_up)
                ),
            );
            line("started", format!("{} ago", span(now.saturating_sub(state.started_at))));
            line(
                "ends",
                state
                    .expires_at
                    .map(|end| format!("in {}", span(end.saturating_sub(now))))
                    .unwrap_or_default(),
            );
            let idle = state
                .idle_limit_at
                .map(|end| format!("in {} without traffic", span(end.saturating_sub(now))));
            line("idle end", idle.unwrap_or_default());
            for note in &state.notes {
                line("note", note.clone());
            }
        }
        let problem = one.problem.as_ref();
        if let Some(problem) = problem {
            line("problem", paint.bad(&problem.message));
            line("cure", problem.remedy.clone());
        }
        let last = one
            .forward
            .as_ref()
            .and_then(|state| state.last_problem.as_ref())
            .filter(|last| Some(*last) != problem);
        line("last fault", last.map(|last| last.message.clone()).unwrap_or_default());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// `4s ago  203.0.113.7  GET /hook  200 in 3.1 ms`.
fn told_call(call: &Call, now: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of an answer")]
    let took = call.took_us as f64 / 1000.0;
    let ago = span(now.saturating_sub(call.at));
    let what = match (&call.request, &call.problem) {
        (_, Some(problem)) => problem.message.clone(),
        (request, None) => {
            let request = request.as_deref().unwrap_or("connection");
            let status = call.status.map(|status| format!("{status} ")).unwrap_or_default();
            format!("{request}  {status}in {took:.1} ms")
        }
    };
    format!("{ago} ago  {}  {what}", call.caller)
}

/// A span of time in one or two units: `42s`, `3m10s`, `5h2m`, `3d4h`.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let told: Vec<String> = [0, 42_999, 190_000, 18_120_000, 273_600_000].map(span).into();
        assert_eq!(told, ["0s", "42s", "3m10s", "5h2m", "3d4h"]);
    }
}
