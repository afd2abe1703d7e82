//! The flags of the reference's `kftui`, with the same meaning: what its users have in scripts runs unchanged. They go
//! without a command; commands have flags of their own.
//!
//! A source without `--save` is run in this process and forgotten. With `--save` it goes into the host's store, and what is
//! started then runs in the host for as long as this program lives, as it did there.

mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use clap::builder::PossibleValuesParser;
use futures::StreamExt as _;
use kftray_client::Client;
use kftray_commons::api::{Action, ActionRequest, ImportFormat, ImportRequest, Selection};
use kftray_commons::store::{Directory, Draft, Store};
use kftray_commons::{ForwardId, ForwardSpec, border};
use serde_json::Map;

use crate::cli::{Output, Transport};
use crate::commands::{act, env, hold, settle};
use crate::exit::Exit;
use crate::session::{self, Names, Rules};
use crate::shown::{self, Cell, Condition, Field, Forward, Grouping, Table};
use crate::signals::Signals;
use crate::stack::Stack;
use crate::{child, connect, documents, render, tui};

use source::Source;

/// Where these flags stand in the long help.
const HEADING: &str = "Flags without a command, as in kftray's kftui";

/// What `--hold` is unless told otherwise.
const HOLD: std::time::Duration = kftray_portforward::DEFAULT_HOLD;

/// Flags that may stand without a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct ReferenceArgs {
    /// Run the forwards of a file (JSON, YAML, TOML)
    #[arg(short, long, value_name = "PATH", hide_short_help = true)]
    pub(crate) configs_path: Option<PathBuf>,

    /// Run the forwards of a Git repository (not served yet)
    #[arg(short, long, value_name = "URL", hide_short_help = true)]
    pub(crate) github_url: Option<String>,

    /// Run the forwards of a JSON text
    #[arg(short, long, value_name = "JSON", hide_short_help = true)]
    pub(crate) json: Option<String>,

    /// Run the forwards of standard input (JSON)
    #[arg(long, hide_short_help = true)]
    pub(crate) stdin: bool,

    /// Write the source into the store, instead of running it from memory
    #[arg(short, long, hide_short_help = true)]
    pub(crate) save: bool,

    /// Start the forwards of the source, or without one those of the store
    #[arg(short, long, hide_short_help = true)]
    pub(crate) auto_start: bool,

    /// With --save: remove what is in the store first
    #[arg(long, requires = "save", hide_short_help = true)]
    pub(crate) flush: bool,

    /// Lines instead of the window; needs --auto-start or --save
    #[arg(long, hide_short_help = true)]
    pub(crate) non_interactive: bool,

    /// Take Services that ask for it by annotation
    #[arg(long, hide_short_help = true)]
    pub(crate) auto_discover: bool,

    /// Context to discover in
    #[arg(long, value_name = "NAME", requires = "auto_discover", hide_short_help = true)]
    pub(crate) context: Option<String>,

    /// Namespace to discover in [default: all, or those you may list]
    #[arg(long, value_name = "NAME", requires = "auto_discover", hide_short_help = true)]
    pub(crate) namespace: Option<String>,

    /// Kubeconfig to discover with: file, folder or list
    #[arg(long, value_name = "PATH", requires = "auto_discover", hide_short_help = true)]
    pub(crate) kubeconfig: Option<String>,

    /// Make the aliases of discovered forwards host names
    #[arg(long, requires = "auto_discover", hide_short_help = true)]
    pub(crate) alias_as_domain: bool,

    /// Give discovered forwards loopback addresses of their own
    #[arg(long, requires = "auto_discover", hide_short_help = true)]
    pub(crate) auto_loopback: bool,

    /// Go on discovering: what is annotated later is added
    #[arg(long, requires = "auto_discover", hide_short_help = true)]
    pub(crate) watch: bool,

    /// Only what has FIELD=V1,V2, or FIELD at all; repeatable, all must hold
    #[arg(long, value_name = "CONDITION", hide_short_help = true)]
    pub(crate) filter: Vec<Condition>,

    /// Group by context, namespace, kubeconfig, workload_type, protocol, tag:KEY or none
    #[arg(long, value_name = "FIELD", hide_short_help = true)]
    pub(crate) group_by: Option<Grouping>,

    /// TLS for local addresses (not served yet)
    #[arg(long, hide_short_help = true)]
    pub(crate) ssl: bool,

    /// How much is logged
    #[arg(long, value_name = "LEVEL", hide_short_help = true, ignore_case = true,
        value_parser = PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"]))]
    pub(crate) log_level: Option<String>,

    /// Log into a file in the configuration directory
    #[arg(long, hide_short_help = true)]
    pub(crate) logs_to_file: bool,

    /// Without meaning: this program asks nobody about updates
    #[arg(long, hide_short_help = true)]
    pub(crate) no_update_check: bool,

    /// A command to run while the forwards are up; needs --auto-start
    #[arg(value_name = "CMD", last = true, hide_short_help = true)]
    pub(crate) command: Vec<OsString>,
}

impl ReferenceArgs {
    /// Whether the window is meant: no flag asks for anything that has an end.
    pub(crate) fn wants_window(&self) -> bool {
        let source = self.source_names();
        source.is_empty()
            && !self.auto_start
            && !self.save
            && !self.non_interactive
            && self.command.is_empty()
    }

    /// Whether somebody looks who can be shown the window. A watch tells its news in lines.
    pub(crate) fn interactive(&self) -> bool {
        !self.non_interactive
            && self.command.is_empty()
            && !self.watch
            && io::stdin().is_terminal()
            && io::stdout().is_terminal()
    }

    /// The flags that name a source.
    fn source_names(&self) -> Vec<&'static str> {
        let all = [
            ("--configs-path", self.configs_path.is_some()),
            ("--json", self.json.is_some()),
            ("--stdin", self.stdin),
            ("--auto-discover", self.auto_discover),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// What the flags say that does not fit together. The error is for the person who wrote them.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.github_url.is_some() {
            return Err(
                "--github-url comes with a later version; `git clone` it and use --configs-path".to_owned()
            );
        }
        if self.ssl {
            return Err("--ssl comes with a later version; leave it out".to_owned());
        }
        let sources = self.source_names();
        if sources.len() > 1 {
            return Err(format!(
                "one source at a time, and these are {}: {}",
                sources.len(),
                sources.join(", ")
            ));
        }
        if self.save && sources.is_empty() {
            return Err("--save needs something to save: --configs-path, --json, --stdin or --auto-discover"
                .to_owned());
        }
        if self.non_interactive && !self.auto_start && !self.save {
            return Err("--non-interactive needs --auto-start or --save".to_owned());
        }
        if !self.command.is_empty() && !self.auto_start {
            return Err("a command after `--` needs --auto-start".to_owned());
        }
        Ok(())
    }
}

/// Does what the flags say.
pub(crate) async fn run(args: ReferenceArgs) -> Result<Exit> {
    let source = match source::open(&args).await {
        Ok(source) => source,
        Err(exit) => return Ok(exit),
    };
    match (source, args.save) {
        (None, _) => stored(&args).await,
        (Some(source), true) => saved(source, &args).await,
        (Some(source), false) => in_memory(source, &args).await,
    }
}

/// A source in this process.
async fn in_memory(source: Source, args: &ReferenceArgs) -> Result<Exit> {
    if source.specs.is_empty() && source.more.is_none() {
        shown::aside("there is no forward left to run");
        return Ok(Exit::BadInput);
    }
    if args.interactive() {
        return in_window(&source.specs, args.auto_start).await;
    }
    if !args.auto_start {
        return overview(source.specs, args);
    }
    let mut names = Names::default();
    let items: Vec<_> = source.specs.into_iter().map(|spec| names.item(spec)).collect();
    let width = items.iter().map(|item| item.label.chars().count()).max().unwrap_or_default();
    let mut screen = render::screen(Output::Text, !args.command.is_empty(), width);
    let rules = Rules {
        hold: HOLD,
        ready_timeout: None,
        keep_trying: source.more.is_some(),
        others_go_on: true,
        command: args.command.clone(),
    };
    let mut signals = Signals::install()?;
    let stack = Stack::new(Transport::Auto, None);
    let more = match source.more {
        Some(more) => {
            let mut ports = source.ports;
            let items = more.flat_map(futures::stream::iter);
            let usable = items.filter_map(move |spec| {
                let usable = ports.take("--auto-discover", spec);
                std::future::ready(usable)
            });
            usable.map(move |spec| names.item(spec)).boxed()
        }
        None => futures::stream::pending().boxed(),
    };
    let exit = session::run_with(&stack.engine, items, more, &rules, screen.as_mut(), &mut signals).await;
    stack.finish().await;
    exit
}

/// A source in a window over a host of this process, in a directory that goes with it.
async fn in_window(specs: &[ForwardSpec], start: bool) -> Result<Exit> {
    let folder = tempfile::Builder::new().prefix("kftui-").tempdir()?;
    let directory = Directory::at(folder.path().join("memory"));
    let mut store = Store::open(&directory)?;
    let ids = store.add(&specs.iter().cloned().map(Draft::new).collect::<Vec<_>>())?;
    if start {
        // The host starts what is desired.
        store.set_desired(&ids, true)?;
    }
    drop(store);
    tui::run(directory, true).await
}

/// What a source holds; nothing is started without `--auto-start`.
fn overview(specs: Vec<ForwardSpec>, args: &ReferenceArgs) -> Result<Exit> {
    let mut table = Table::new(&["NAME", "TARGET", "NAMESPACE", "CONTEXT", "LOCAL"]);
    let grouping = args.group_by.clone().unwrap_or(Grouping(None));
    for (name, members) in grouping.apply(specs) {
        if let Some(name) = name {
            let field = grouping.0.as_ref().map(Field::to_string).unwrap_or_default();
            table.group(format!("{field}: {name}"));
        }
        for spec in members {
            let context = match &spec.cluster.context {
                kftray_commons::ContextRef::Named(name) => name.clone(),
                kftray_commons::ContextRef::Current => String::new(),
            };
            let port = match spec.listen.port.number() {
                0 => "any".to_owned(),
                port => port.to_string(),
            };
            table.row(vec![
                Cell::strong(spec.label()),
                spec.workload.to_string().into(),
                spec.namespace.clone().unwrap_or_default().into(),
                context.into(),
                format!("{}:{port}", spec.listen.hosts.first().map_or("localhost", String::as_str)).into(),
            ]);
        }
    }
    documents::print(table.render(shown::paint()).as_bytes())?;
    shown::aside("nothing was started: add --auto-start to run them, or --save to keep them");
    Ok(Exit::Clean)
}

/// A source into the store.
async fn saved(source: Source, args: &ReferenceArgs) -> Result<Exit> {
    let client = connect::host().await?;
    if source.specs.is_empty() && source.more.is_none() {
        shown::aside("there is nothing to save");
        return Ok(Exit::BadInput);
    }
    let ids = save(&client, &source.specs, args.flush).await?;
    if args.interactive() {
        return over_host(&client, if args.auto_start { ids } else { Vec::new() }).await;
    }
    if !args.auto_start {
        return Ok(Exit::Clean);
    }
    hold_stored(&client, ids, args, source.more).await
}

async fn save(client: &Client, specs: &[ForwardSpec], flush: bool) -> Result<Vec<ForwardId>> {
    let entries: Vec<_> = specs.iter().map(|spec| border::object(spec, &Map::new())).collect();
    let text = serde_json::to_string(&entries)?;
    let request =
        ImportRequest { text, format: ImportFormat::Json, replace: flush, ..ImportRequest::default() };
    let report = client.import(&request).await?;
    for warning in &report.warnings {
        shown::aside(warning);
    }
    for refused in &report.faults {
        for problem in &refused.problems {
            shown::trouble(&format!("entry {}", refused.entry), problem);
        }
    }
    let (added, changed) = (report.added.len(), report.changed.len());
    shown::aside(&format!("saved: {added} added, {changed} changed, {} unchanged", report.unchanged.len()));
    let all = report.added.iter().chain(&report.changed).chain(&report.unchanged).chain(&report.conflicting);
    Ok(all.filter_map(|entry| entry.id).collect())
}

/// What the store holds.
async fn stored(args: &ReferenceArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let mut all = Forward::all(&client.snapshot().await?);
    all.retain(|one| one.stored && args.filter.iter().all(|condition| condition.holds(one)));
    if all.is_empty() {
        shown::aside("there is no forward in the store that could be started; `kftui add`, `kftui import`");
        return Ok(Exit::BadInput);
    }
    let ids = all.iter().map(|one| one.id).collect();
    if args.interactive() {
        return over_host(&client, ids).await;
    }
    hold_stored(&client, ids, args, None).await
}

/// Starts some, which then stay as everything in the host does, and opens the window.
async fn over_host(client: &Client, start: Vec<ForwardId>) -> Result<Exit> {
    let request = ActionRequest { selection: Selection::ids(start), ..ActionRequest::default() };
    act::act(client, Action::Start, &request).await?;
    tui::run(Directory::at(client.place().directory.clone()), false).await
}

/// Starts stored forwards, and ends them with the command, or at Ctrl-C.
async fn hold_stored(
    client: &Client,
    ids: Vec<ForwardId>,
    args: &ReferenceArgs,
    more: Option<source::More>,
) -> Result<Exit> {
    let mut lease = match hold::start(client, Selection::ids(ids.clone())).await? {
        Ok(lease) => lease,
        Err(exit) => return Ok(exit),
    };
    let names: BTreeMap<ForwardId, String> = {
        let all = Forward::all(&client.snapshot().await?);
        all.into_iter().filter(|one| ids.contains(&one.id)).map(|one| (one.id, one.name)).collect()
    };
    let mut signals = Signals::install()?;
    if args.command.is_empty() {
        let adding = add_later(client, more);
        return tokio::select! {
            ended = hold::show(client.follow(), &names, Output::Text, &mut lease, &mut signals) => ended,
            failed = adding => failed,
        };
    }
    let settled = tokio::select! {
        settled = settle::settle(client, &names, None, false) => settled?,
        _ = session::ending(&mut signals) => return Ok(Exit::Clean),
    };
    let told = settled.tell();
    if told != Exit::Clean {
        return Ok(told);
    }
    let chosen: Vec<Forward> =
        Forward::all(&settled.snapshot).into_iter().filter(|one| names.contains_key(&one.id)).collect();
    let variables = env::listening(&chosen);
    let variables =
        variables.iter().flat_map(|one| child::environment(&one.variable, &one.addresses)).collect();
    hold::command(&args.command, variables, &mut signals).await
}

/// Saves and starts what is discovered later. Its forwards stay leased as long as this future lives, which is for ever.
async fn add_later(client: &Client, more: Option<source::More>) -> Result<Exit> {
    let Some(mut more) = more else { return std::future::pending().await };
    let mut leases = Vec::new();
    while let Some(specs) = more.next().await {
        let ids = save(client, &specs, false).await?;
        // What cannot be started has been told; the others go on.
        if let Ok(lease) = hold::start(client, Selection::ids(ids)).await? {
            leases.push(lease);
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn parse(words: &[&str]) -> Result<ReferenceArgs, String> {
        let cli = Cli::try_parse_from([&["kftui"], words].concat()).map_err(|error| error.to_string())?;
        assert!(cli.command.is_none(), "{words:?}");
        cli.reference.check().map(|()| cli.reference)
    }

    #[test]
    fn every_flag_is_taken() {
        let discover = [
            "--auto-discover",
            "--context",
            "c",
            "--namespace",
            "n",
            "--kubeconfig",
            "k",
            "--alias-as-domain",
            "--auto-loopback",
            "--watch",
            "-a",
            "-s",
            "--flush",
            "--filter",
            "namespace=shop",
            "--filter",
            "tag:x",
            "--group-by",
            "none",
            "--log-level",
            "DEBUG",
            "--logs-to-file",
            "--no-update-check",
            "--non-interactive",
        ];
        assert!(!parse(&discover).expect("fits").wants_window());
        for source in
            [&["-c", "x.json"][..], &["--configs-path", "x"], &["-j", "[]"], &["--json", "[]"], &["--stdin"]]
        {
            assert!(parse(source).is_ok(), "{source:?}");
        }
        assert!(parse(&["--group-by", "tag:team", "--filter", "context"]).expect("fits").wants_window());
        let command = parse(&["-c", "x", "-a", "--", "psql", "-h", "x"]).expect("fits");
        assert_eq!(command.command, ["psql", "-h", "x"]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (words, told) in [
            (&["-g", "u", "-c", "p"][..], "comes with a later version"),
            (&["--ssl"], "comes with a later version"),
            (&["-c", "a", "--stdin"], "one source at a time"),
            (&["-s"], "needs something to save"),
            (&["-c", "a", "--non-interactive"], "needs --auto-start or --save"),
            (&["-c", "a", "--", "x"], "needs --auto-start"),
            (&["-c", "a", "--flush"], "--save"),
            (&["--context", "c"], "--auto-discover"),
            (&["--watch"], "--auto-discover"),
            (&["--filter", "colour=blue"], "is no field"),
            (&["--log-level", "loud"], "possible values"),
        ] {
            let refused = parse(words).expect_err("refused");
            assert!(refused.contains(told), "{words:?}: {refused}");
        }
    }
}
