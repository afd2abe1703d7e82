//! `kftui run`: forwards from JSON files in the reference's format.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::Result;
use kftray_commons::border::{self, Defaults, Import};
use kftray_commons::spec::{LocalPort, Protocol};
use kftray_commons::{Code, Event, ForwardSpec, Problem, Workload};

use crate::cli::{PlaceArgs, RunArgs};
use crate::exit::Exit;
use crate::project::{self, Format};
use crate::render::Screen;
use crate::session::{self, Rules};
use crate::signals::Signals;
use crate::stack::Stack;
use crate::{forward, render, shown};

/// The name of standard input on the command line and in events.
const STANDARD_INPUT: &str = "-";

/// What the words of `kftui run` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Files, run in this process.
    Files,
    /// Stored forwards, run in the host.
    Names,
}

/// Tells files from names. The error is for the person who mixed them.
pub(crate) fn kind(words: &[String]) -> Result<Kind, String> {
    let (files, names): (Vec<_>, Vec<_>) = words.iter().partition(|word| is_file(word));
    match (files.first(), names.first()) {
        (Some(file), Some(name)) => Err(format!(
            "`{file}` is a file and `{name}` is none: run files or stored forwards, one of them at a time"
        )),
        (Some(_), None) | (None, None) => Ok(Kind::Files),
        (None, Some(_)) => Ok(Kind::Names),
    }
}

/// Names of forwards may hold slashes and dots (`svc/web:80`): what looks like a file by its ending is one, there or not.
fn is_file(word: &str) -> bool {
    let path = Path::new(word);
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    word == STANDARD_INPUT
        || matches!(ending.as_deref(), Some("json" | "yaml" | "yml" | "toml"))
        || path.exists()
}

/// What the files held.
#[derive(Debug, Default)]
struct Gathered {
    specs: Vec<ForwardSpec>,
    /// What has to be told, in the order of the files.
    events: Vec<Event>,
}

/// Reads the files and runs what can be run.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let gathered = gather(&args);
    let items = session::items(gathered.specs);
    let width = items.iter().map(|item| item.label.chars().count()).max().unwrap_or_default();
    let mut screen = render::screen(args.common.output, !args.command.is_empty(), width);
    for event in &gathered.events {
        screen.event(event)?;
    }
    if items.is_empty() {
        return nothing_to_run(screen.as_mut());
    }
    let rules = Rules {
        hold: args.common.hold,
        ready_timeout: args.common.ready_timeout,
        keep_trying: args.common.keep_trying,
        others_go_on: true,
        command: args.command,
    };
    let mut signals = Signals::install()?;
    let stack = Stack::new(args.common.transport, args.common.relay_image.as_deref());
    let exit = session::run(&stack.engine, items, &rules, screen.as_mut(), &mut signals).await;
    stack.finish().await;
    exit
}

fn nothing_to_run(screen: &mut dyn Screen) -> Result<Exit> {
    screen.note("there is no forward left to run")?;
    Ok(Exit::BadInput)
}

fn gather(args: &RunArgs) -> Gathered {
    let defaults = defaults(&args.common.place);
    let mut gathered = Gathered::default();
    let mut ports = Ports::default();
    for source in &args.files {
        match read(source) {
            Ok(text) => {
                let format = Format::of(Path::new(source));
                gathered.add(source, project::read(&text, format, &defaults), &mut ports);
            }
            Err(problem) => gathered.events.push(invalid(source, 0, None, problem)),
        }
    }
    gathered
}

fn defaults(common: &PlaceArgs) -> Defaults {
    let usual = Defaults::default();
    Defaults {
        namespace: common.namespace.clone().unwrap_or(usual.namespace),
        context: common.context.clone().filter(|name| name != "@current"),
        kubeconfig: common.kubeconfig.clone(),
        hosts: forward::hosts(common),
    }
}

fn read(source: &str) -> Result<String, Problem> {
    let bytes = if source == STANDARD_INPUT {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(source)
    };
    let failed = |message: String| {
        Problem::new(Code::SpecInvalid, message)
            .with_remedy("Name a JSON, YAML or TOML file that can be read, or - for standard input.")
    };
    let bytes = bytes.map_err(|error| failed(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count()
                + 1;
        failed(format!("line {line}: not UTF-8 text"))
    })
}

fn invalid(source: &str, entry: usize, alias: Option<String>, problem: Problem) -> Event {
    Event::InvalidEntry { source: source.to_owned(), entry, alias, problem }
}

impl Gathered {
    fn add(&mut self, source: &str, import: Import, ports: &mut Ports) {
        if import.entries.is_empty() {
            let problem = Problem::new(Code::SpecInvalid, "there is no entry in it")
                .with_remedy("Write {\"service\": \"web\", \"local_port\": 8080, \"remote_port\": 80}.");
            self.events.push(invalid(source, 0, None, problem));
        }
        let warn = |warning: &border::Warning| Event::Warning {
            source: source.to_owned(),
            message: format!("{}: {}", warning.place, warning.message),
        };
        self.events.extend(import.warnings.iter().map(warn));
        for entry in import.entries {
            self.events.extend(entry.warnings.iter().map(warn));
            match entry.result {
                Err(fault) => {
                    let alias = fault.alias.clone();
                    let told =
                        fault.problems().map(|problem| invalid(source, entry.number, alias.clone(), problem));
                    self.events.extend(told);
                }
                Ok(spec) => {
                    let place = entry.place;
                    let problem = ports.taken(source, entry.number, &spec);
                    if let Some(mut problem) = problem {
                        problem.message = format!("{place}: {}", problem.message);
                        self.events.push(invalid(source, entry.number, spec.alias, problem));
                        continue;
                    }
                    for message in not_served_yet_of(&spec) {
                        let message = format!("{place}: {}: {message}", spec.label());
                        self.events.push(Event::Warning { source: source.to_owned(), message });
                    }
                    self.specs.push(spec);
                }
            }
        }
    }
}

/// What of an entry is left out although the forward runs.
fn not_served_yet_of(spec: &ForwardSpec) -> Vec<&'static str> {
    // An expose has its name in the cluster, not here.
    let is_forward = !matches!(spec.workload, Workload::Expose(_));
    let wishes = [
        (spec.domain_enabled && is_forward, "domain_enabled is not served yet: use localhost"),
        (
            spec.listen.auto_loopback,
            "auto_loopback_address is not served yet: it listens where local_address says",
        ),
        (spec.http_logs.enabled, "http_logs_enabled is not served yet: nothing is recorded"),
    ];
    wishes.into_iter().filter(|(wanted, _)| *wanted).map(|(_, message)| message).collect()
}

/// Local ports that entries before have taken, so that a clash is told as one, and not as a strange program's.
#[derive(Debug, Default)]
pub(crate) struct Ports(HashMap<(String, u16, Protocol), String>);

impl Ports {
    /// The spec if this process can run it; else why not is told.
    pub(crate) fn take(&mut self, source: &str, spec: ForwardSpec) -> Option<ForwardSpec> {
        let number = usize::try_from(spec.id.0).unwrap_or_default();
        match self.taken(source, number, &spec) {
            Some(problem) => {
                shown::trouble(&format!("{source}: {}", spec.label()), &problem);
                None
            }
            None => {
                for message in not_served_yet_of(&spec) {
                    shown::aside(&format!("{source}: {}: {message}", spec.label()));
                }
                Some(spec)
            }
        }
    }

    fn taken(&mut self, source: &str, entry: usize, spec: &ForwardSpec) -> Option<Problem> {
        let LocalPort::Fixed(port) = spec.listen.port else { return None };
        if matches!(spec.workload, Workload::Expose(_)) {
            // Its local port is the program's, which any number of exposes may share.
            return None;
        }
        let who = format!("entry {entry} of {source} ({})", spec.label());
        let places = || spec.listen.hosts.iter().map(|host| (host.clone(), port.get(), spec.protocol));
        if let Some(other) = places().find_map(|place| self.0.get(&place)) {
            let message = format!("local_port {port} is taken by {other}");
            return Some(
                Problem::new(Code::SpecInvalid, message)
                    .with_remedy("Give one of them another local_port, or 0 for any free one."),
            );
        }
        self.0.extend(places().map(|place| (place, who.clone())));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(text: &str) -> (Vec<String>, Vec<String>) {
        let mut gathered = Gathered::default();
        gathered.add("f.json", border::import(text, &Defaults::default()), &mut Ports::default());
        let told = gathered.events.iter().map(|event| serde_json::to_string(event).expect("JSON"));
        (gathered.specs.iter().map(ForwardSpec::label).collect(), told.collect())
    }

    #[test]
    fn what_is_not_served_is_told_and_the_others_run() {
        let (labels, told) = gathered(
            r#"[
  {"alias": "dns", "service": "dns", "protocol": "udp", "local_port": 53, "remote_port": 53},
  {"alias": "p", "workload_type": "proxy", "remote_address": "db:1"},
  {"alias": "e", "workload_type": "expose", "local_port": 1},
  {"alias": "a", "service": "web", "local_port": 8080, "remote_port": 80, "domain_enabled": true},
  {"alias": "b", "service": "web", "local_port": 8080, "remote_port": 80},
  {"alias": "c", "service": "web", "local_port": 8080, "remote_port": 80, "local_address": "127.0.0.2"},
  {"alias": "d", "service": "web", "remote_port": 80, "http_logs_enabled": true, "auto_loopback_address": true},
  {"alias": "f", "service": "web", "remote_port": "8 0"},
  {"alias": "u", "service": "dns", "protocol": "udp", "local_port": 8080, "remote_port": 53},
  {"alias": "x", "workload_type": "expose", "local_port": 8080}
]"#,
        );
        assert_eq!(labels, ["dns", "p", "e", "a", "c", "d", "u", "x"]);
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn nothing_in_it() {
        let (labels, told) = gathered(" \n");
        assert!(labels.is_empty());
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("no entry"), "{told:?}");
    }
}
