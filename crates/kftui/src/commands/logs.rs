//! `kftui logs`: what happened to forwards.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kftray_client::Client;
use kftray_commons::ForwardId;
use kftray_commons::api::{HistoryEntry, HistoryKind};
use serde::Serialize;

use super::select::SelectArgs;
use crate::connect;
use crate::exit::Exit;
use crate::shown::{self, Forward};
use crate::signals::Signals;

pub(crate) const LOGS_HELP: &str = "\
Examples:
  kftui logs db                what happened to it, oldest first
  kftui logs --follow          everything, as it happens
  kftui logs db --output json  one JSON object per line";

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// Newest entries of each forward
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    pub(crate) lines: u32,

    /// Go on as things happen, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Lines for people, or one JSON object per line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: crate::cli::Output,
}

/// One entry with its forward.
#[derive(Debug, Serialize)]
struct Line {
    id: ForwardId,
    name: String,
    #[serde(flatten)]
    entry: HistoryEntry,
}

/// Prints histories.
pub(crate) async fn logs(args: LogsArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let chosen = args.select.choose_or_all(&Forward::all(&client.snapshot().await?))?;
    let names: BTreeMap<ForwardId, String> = chosen.iter().map(|one| (one.id, one.name.clone())).collect();
    let width = names.values().map(|name| name.chars().count()).max().unwrap_or_default();
    let mut told = Told::default();
    // The stream first, so that nothing falls between.
    let mut follow = args.follow.then(|| client.follow());
    let first = told.news(&client, &names, args.lines).await?;
    if print(&first, width, args.output)? == Printed::Gone {
        return Ok(Exit::Clean);
    }
    let Some(follow) = &mut follow else {
        if first.is_empty() && args.output == crate::cli::Output::Text {
            shown::aside("nothing has happened yet");
        }
        return Ok(Exit::Clean);
    };
    let mut signals = Signals::install()?;
    loop {
        tokio::select! {
            _ = crate::session::ending(&mut signals) => return Ok(Exit::Clean),
            state = follow.changed() => {
                let changed: BTreeMap<ForwardId, String> = state
                    .snapshot
                    .forwards
                    .iter()
                    .filter(|forward| args.select.is_empty() || names.contains_key(&forward.id))
                    .filter(|forward| told.changed(forward.id, forward.since))
                    .map(|forward| (forward.id, forward.label.clone()))
                    .collect();
                let news = told.news(&client, &changed, args.lines).await?;
                if print(&news, width, args.output)? == Printed::Gone {
                    return Ok(Exit::Clean);
                }
            }
        }
    }
}

/// What has been printed of each forward.
#[derive(Debug, Default)]
struct Told {
    /// Time of the last entry told, and how many entries of that time.
    last: BTreeMap<ForwardId, (u64, usize)>,
    /// The state that was looked at last.
    since: BTreeMap<ForwardId, u64>,
}

impl Told {
    /// Whether a forward's state is another than the one looked at before.
    fn changed(&mut self, id: ForwardId, since: u64) -> bool {
        self.since.insert(id, since) != Some(since)
    }

    /// Entries that have not been told, oldest first.
    async fn news(
        &mut self,
        client: &Client,
        names: &BTreeMap<ForwardId, String>,
        limit: u32,
    ) -> Result<Vec<Line>> {
        let mut news = Vec::new();
        for (id, name) in names {
            let entries = client.history(*id, limit).await?.entries;
            let last = self.last.get(id).copied();
            let newest = entries.iter().map(|entry| entry.at).max().unwrap_or_default();
            let of_newest = entries.iter().filter(|entry| entry.at == newest).count();
            // Oldest first; of several in one millisecond those are new that were not counted.
            let mut skip = last.map_or(0, |(_, count)| count);
            for entry in entries.into_iter().rev() {
                let is_new = match last {
                    None => true,
                    Some((at, _)) if entry.at == at && skip > 0 => {
                        skip -= 1;
                        false
                    }
                    Some((at, _)) => entry.at >= at,
                };
                if is_new {
                    news.push(Line { id: *id, name: name.clone(), entry });
                }
            }
            if newest > 0 {
                self.last.insert(*id, (newest, of_newest));
            }
        }
        news.sort_by_key(|line| line.entry.at);
        Ok(news)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Printed {
    Yes,
    /// Nobody reads any more, as after `| head`.
    Gone,
}

fn print(lines: &[Line], width: usize, output: crate::cli::Output) -> Result<Printed> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    for line in lines {
        let text = match output {
            crate::cli::Output::Json => serde_json::to_string(line)?,
            crate::cli::Output::Text => person(line, width),
        };
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Printed::Gone),
            done => done?,
        }
    }
    Ok(Printed::Yes)
}

fn person(line: &Line, width: usize) -> String {
    let paint = shown::paint();
    let entry = &line.entry;
    let time = Timestamp::from_millisecond(i64::try_from(entry.at).unwrap_or_default()).unwrap_or_default();
    let time = time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S");
    let word = format!("{:<10}", kind(entry.kind));
    let word = match entry.kind {
        HistoryKind::Ready => paint.good(word),
        HistoryKind::Recovering => paint.busy(word),
        HistoryKind::NeedsUser | HistoryKind::ConnectionFailed => paint.bad(word),
        HistoryKind::Started | HistoryKind::Ended | HistoryKind::Edited | HistoryKind::Other => {
            paint.dim(word)
        }
    };
    let name = paint.strong(format!("{:<width$}", line.name));
    format!("{} {name}  {word}  {}", paint.dim(time), entry.message)
}

fn kind(kind: HistoryKind) -> &'static str {
    match kind {
        HistoryKind::Started => "started",
        HistoryKind::Ready => "ready",
        HistoryKind::Recovering => "recovering",
        HistoryKind::NeedsUser => "needs you",
        HistoryKind::ConnectionFailed => "failed",
        HistoryKind::Ended => "ended",
        HistoryKind::Edited => "edited",
        HistoryKind::Other => "",
    }
}
