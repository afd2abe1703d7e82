//! One run of forwards, from start to stop: what `forward` and `run` have in common.
//!
//! Everything that happens comes to one loop: the forwards' events, signals, the end of the command, the time limit.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use futures::FutureExt as _;
use futures::future::join_all;
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use kftray_commons::api::Exposed;
use kftray_commons::spec::Direction;
use kftray_commons::{Code, Event, ForwardSpec, Problem, Status, Workload};
use kftray_portforward::{Call, Config, Engine, Event as Happening, Forward};
use tokio::process::Child;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;

use crate::child;
use crate::exit::Exit;
use crate::render::Screen;
use crate::shown::plain;
use crate::signals::{Signal, Signals};

/// How long open connections may finish after Ctrl-C: enough for an answer that is under way, too short to annoy.
const GRACE: Duration = Duration::from_millis(250);

/// A forward to run.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Unique name for people and scripts.
    pub(crate) label: String,
    /// Unique part of the names of the command's variables.
    pub(crate) variable: String,
    pub(crate) spec: ForwardSpec,
}

/// How a run behaves.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) hold: Duration,
    pub(crate) ready_timeout: Option<Duration>,
    /// Whether causes that the cluster's side watches are waited for at the start.
    pub(crate) keep_trying: bool,
    /// Whether the others go on when one needs the user at the start.
    pub(crate) others_go_on: bool,
    /// Run when all are ready; empty: none.
    pub(crate) command: Vec<OsString>,
}

/// Gives forwards names that are unique: the alias, else target and port; and so for the variables.
#[derive(Debug, Default)]
pub(crate) struct Names {
    labels: HashMap<String, u32>,
    variables: HashMap<String, u32>,
}

impl Names {
    pub(crate) fn item(&mut self, spec: ForwardSpec) -> Item {
        let unique = |taken: &mut HashMap<String, u32>, name: String, mark: &str| {
            let count = taken.entry(name.clone()).or_default();
            *count += 1;
            if *count == 1 { name } else { format!("{name}{mark}{count}") }
        };
        let plain =
            spec.alias.clone().or_else(|| spec.workload.object().map(|(object, _)| object.name().to_owned()));
        let variable = child::variable(&plain.unwrap_or_else(|| spec.label()));
        Item {
            label: unique(&mut self.labels, spec.label(), "#"),
            variable: unique(&mut self.variables, variable, "_"),
            spec,
        }
    }
}

/// Names a run's forwards.
pub(crate) fn items(specs: Vec<ForwardSpec>) -> Vec<Item> {
    let mut names = Names::default();
    specs.into_iter().map(|spec| names.item(spec)).collect()
}

/// Forwards that come to a run later.
pub(crate) type More = BoxStream<'static, Item>;

/// Runs forwards until somebody or something ends it.
pub(crate) async fn run(
    engine: &Engine,
    items: Vec<Item>,
    rules: &Rules,
    screen: &mut dyn Screen,
    signals: &mut Signals,
) -> Result<Exit> {
    run_with(engine, items, futures::stream::pending().boxed(), rules, screen, signals).await
}

/// The same; `more` are started as they come.
pub(crate) async fn run_with(
    engine: &Engine,
    items: Vec<Item>,
    more: More,
    rules: &Rules,
    screen: &mut dyn Screen,
    signals: &mut Signals,
) -> Result<Exit> {
    let mut session = Session::start(engine, items, more, rules, screen);
    let ended = session.until_the_end(signals).await;
    session.screen.waiting(None);
    // Whatever happened, nothing is left running; a second Ctrl-C does not even wait for that.
    let stopped = tokio::select! {
        stopped = session.stop() => stopped,
        _ = ending(signals) => Ok(()),
    };
    match ended.and_then(|exit| stopped.map(|()| exit)) {
        Ok(exit) => Ok(exit),
        // Nobody reads any more, as after `| head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Clean),
        Err(error) => Err(error.into()),
    }
}

/// A call of an expose: `203.0.113.7 POST /hook 200 12 ms`. Strangers choose the words: nothing in them moves a terminal.
fn told(call: &Call) -> String {
    let mut words = vec![call.caller.clone()];
    if let Some((method, path)) = &call.request {
        words.extend([method.clone(), path.clone()]);
    }
    words.extend(call.status.map(|status| status.to_string()));
    words.push(format!("{} ms", call.took.as_millis()));
    plain(&words.join(" "))
}

/// The next signal that asks for the end.
pub(crate) async fn ending(signals: &mut Signals) -> Signal {
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            return signal;
        }
    }
}

struct Running {
    item: Item,
    forward: Forward,
    /// Has told where it listens, or that it cannot: the next one's turn.
    announced: bool,
    /// What came before its turn.
    early: VecDeque<Happening>,
    was_ready: bool,
    /// What stands between it and being ready, in words.
    waits_for: Option<String>,
    /// Cannot start without a person.
    given_up: bool,
}

struct Session<'a> {
    engine: &'a Engine,
    running: Vec<Running>,
    happenings: SelectAll<BoxStream<'static, (usize, Happening)>>,
    more: More,
    rules: &'a Rules,
    screen: &'a mut dyn Screen,
    all_ready: bool,
    child: Option<Child>,
}

impl<'a> Session<'a> {
    fn start(
        engine: &'a Engine,
        items: Vec<Item>,
        more: More,
        rules: &'a Rules,
        screen: &'a mut dyn Screen,
    ) -> Self {
        let (running, happenings) = (Vec::new(), SelectAll::new());
        let mut session =
            Self { engine, running, happenings, more, rules, screen, all_ready: false, child: None };
        for item in items {
            session.add(item);
        }
        session.show_waiting();
        session
    }

    fn add(&mut self, item: Item) {
        let forward = self.engine.start(Config::of(&item.spec, item.label.clone(), self.rules.hold));
        self.happenings.push(stream(self.running.len(), &forward));
        let exposes = matches!(item.spec.workload, Workload::Expose(_));
        let first = if exposes { "looking for the relay" } else { "opening the local port" };
        self.running.push(Running {
            waits_for: Some(first.to_owned()),
            item,
            forward,
            // An expose listens nowhere here: nobody waits for its turn.
            announced: exposes,
            early: VecDeque::new(),
            was_ready: false,
            given_up: false,
        });
    }

    async fn until_the_end(&mut self, signals: &mut Signals) -> io::Result<Exit> {
        let limit = self.rules.ready_timeout.map(|limit| Instant::now() + limit);
        loop {
            let all_ready = self.all_ready;
            let deadline = async {
                match limit {
                    Some(limit) if !all_ready => tokio::time::sleep_until(limit).await,
                    Some(_) | None => std::future::pending().await,
                }
            };
            let child_end = async {
                match &mut self.child {
                    Some(child) => child.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                signal = signals.next() => {
                    if signal == Signal::Resumed {
                        self.engine.network_changed();
                    }
                    match &self.child {
                        Some(child) => child::pass_on(child, signal),
                        None if signal.ends() => {
                            self.screen.waiting(None);
                            self.screen.interrupted()?;
                            return Ok(Exit::Clean);
                        }
                        None => {}
                    }
                }
                status = child_end => {
                    self.child = None;
                    return Ok(Exit::Command(child::code(status?)));
                }
                Some(item) = self.more.next() => {
                    self.add(item);
                    self.show_waiting();
                }
                Some((index, happening)) = self.happenings.next() => {
                    if let Some(exit) = self.happened(index, happening)? {
                        return Ok(exit);
                    }
                }
                () = deadline => return self.too_late(),
                else => return Ok(Exit::Failed),
            }
        }
    }

    /// Takes an event in, or keeps it until every forward before this one has told where it listens.
    fn happened(&mut self, index: usize, happening: Happening) -> io::Result<Option<Exit>> {
        if self.running.iter().take(index).any(|before| !before.announced) {
            if let Some(one) = self.running.get_mut(index) {
                one.early.push_back(happening);
            }
            return Ok(None);
        }
        let mut exit = self.take(index, happening)?;
        // Its turn may have been what others waited for.
        let mut next = index + 1;
        while exit.is_none() && self.running.iter().take(next).all(|before| before.announced) {
            let Some(early) = self.running.get_mut(next).and_then(|one| one.early.pop_front()) else {
                next += 1;
                if next >= self.running.len() {
                    break;
                }
                continue;
            };
            exit = self.take(next, early)?;
        }
        self.show_waiting();
        Ok(exit)
    }

    fn take(&mut self, index: usize, happening: Happening) -> io::Result<Option<Exit>> {
        let Some(one) = self.running.get_mut(index) else { return Ok(None) };
        let label = one.item.label.clone();
        match happening {
            Happening::Listening { addresses, notes } => {
                one.announced = true;
                let Some((object, port)) = one.item.spec.workload.object() else { return Ok(None) };
                let event = Event::Listening {
                    forward: label,
                    target: object.to_string(),
                    remote_port: port.clone(),
                    addresses: texts(&addresses),
                };
                self.screen.event(&event)?;
                for note in notes {
                    self.screen.note(&note)?;
                }
                Ok(None)
            }
            Happening::Status(status) => self.status(index, status),
            Happening::Ready(via) => {
                let addresses = texts(&one.forward.addresses());
                let endpoint = via.endpoint.to_string();
                let transport = via.transport.to_owned();
                self.screen.event(&Event::Ready { forward: label, addresses, endpoint, transport })?;
                if let Some(one) = self.running.get_mut(index) {
                    one.was_ready = true;
                    one.waits_for = None;
                }
                self.maybe_all_ready()
            }
            Happening::ConnectionFailed { peer, problem } => {
                tracing::debug!(forward = label, %peer, %problem, "a connection failed");
                self.screen.event(&Event::ConnectionFailed { forward: label, problem })?;
                Ok(None)
            }
            Happening::Published { urls, notes } => {
                (one.announced, one.was_ready, one.waits_for) = (true, true, None);
                let reach = match one.item.spec.workload.direction() {
                    Direction::FromCluster(expose) => Some(Exposed::of(expose).reach().to_owned()),
                    Direction::ToCluster(..) => None,
                };
                for note in urls.into_iter().chain(reach).chain(notes) {
                    self.screen.note(&format!("{label}: {note}"))?;
                }
                self.maybe_all_ready()
            }
            Happening::Note(problem) => {
                self.screen.note(&format!("{label}: {problem}. {}", problem.remedy))?;
                Ok(None)
            }
            Happening::Called(call) => {
                self.screen.note(&format!("{label}: {}", told(&call)))?;
                Ok(None)
            }
            Happening::CallFailed { caller, problem } => {
                tracing::debug!(forward = label, caller, %problem, "a call failed");
                self.screen.event(&Event::ConnectionFailed { forward: label, problem })?;
                Ok(None)
            }
            Happening::Stopped { counters } => {
                one.announced = true;
                self.screen.event(&Event::Stopped { forward: label, counters })?;
                Ok(None)
            }
        }
    }

    fn status(&mut self, index: usize, status: Status) -> io::Result<Option<Exit>> {
        let Some(one) = self.running.get_mut(index) else { return Ok(None) };
        one.waits_for = waits_for(&status);
        let needs_user = match &status {
            Status::NeedsUser { cause } => {
                one.announced = true;
                // Before the first success there is nothing to hold on to, and a script must not hang on a slip.
                let mends_itself = self.rules.keep_trying && is_watched(cause);
                one.given_up = !one.was_ready && !mends_itself;
                one.given_up
            }
            Status::Stopped
            | Status::Binding
            | Status::Resolving { .. }
            | Status::Ready
            | Status::Recovering { .. }
            | Status::Stopping => {
                one.given_up = false;
                false
            }
        };
        self.screen.event(&Event::Status { forward: one.item.label.clone(), status })?;
        if !needs_user {
            return Ok(None);
        }
        let some_left = self.running.iter().any(|one| !one.given_up);
        let go_on = self.rules.others_go_on && self.rules.command.is_empty() && some_left;
        Ok((!go_on).then_some(Exit::NeedsUser))
    }

    fn maybe_all_ready(&mut self) -> io::Result<Option<Exit>> {
        // The command is started once, with those that were there.
        if self.all_ready || !self.running.iter().all(|one| one.was_ready) {
            return Ok(None);
        }
        self.all_ready = true;
        self.screen.event(&Event::AllReady)?;
        if self.rules.command.is_empty() {
            return Ok(None);
        }
        let told = self.running.iter();
        let environment =
            told.flat_map(|one| child::environment(&one.item.variable, &one.forward.addresses()));
        match child::start(&self.rules.command, environment.collect()) {
            Ok(child) => {
                self.child = Some(child);
                Ok(None)
            }
            Err(why) => {
                self.screen.note(&why.to_string())?;
                Ok(Some(Exit::Command(why.code)))
            }
        }
    }

    fn too_late(&mut self) -> io::Result<Exit> {
        let late: Vec<String> = self.running.iter().filter(|one| !one.was_ready).map(said).collect();
        self.screen.note(&format!("not ready in time: {}", late.join("; ")))?;
        Ok(Exit::NotReady)
    }

    fn show_waiting(&mut self) {
        // While the command runs, the terminal is its.
        let waiting: Vec<&Running> = self.running.iter().filter(|one| one.waits_for.is_some()).collect();
        let text = match waiting.first() {
            Some(first) if self.child.is_none() => {
                let ready = self.running.len() - waiting.len();
                let count = if self.running.len() > 1 {
                    format!("{ready} of {} ready; ", self.running.len())
                } else {
                    String::new()
                };
                Some(format!("{count}{}", said(first)))
            }
            Some(_) | None => None,
        };
        self.screen.waiting(text);
    }

    /// Stops every forward at once and tells their last words.
    async fn stop(&mut self) -> io::Result<()> {
        join_all(self.running.iter().map(|one| one.forward.stop(GRACE))).await;
        // They have all been told by now.
        let mut last = Vec::new();
        while let Some(Some(told)) = self.happenings.next().now_or_never() {
            last.push(told);
        }
        last.sort_by_key(|(index, _)| *index);
        for (index, happening) in last {
            self.take(index, happening)?;
        }
        Ok(())
    }
}

/// What a forward waits for, with its name.
fn said(one: &Running) -> String {
    format!("{}: {}", one.item.label, one.waits_for.as_deref().unwrap_or("ready"))
}

fn waits_for(status: &Status) -> Option<String> {
    Some(match status {
        Status::Ready | Status::Stopped | Status::Stopping => return None,
        Status::Binding => "opening the local port".to_owned(),
        Status::Resolving { waiting_for: None } => "looking for a ready pod and connecting".to_owned(),
        Status::Resolving { waiting_for: Some(problem) } => format!("waiting: {problem}"),
        Status::Recovering { attempt, cause, .. } => format!("recovering, attempt {attempt}: {cause}"),
        Status::NeedsUser { cause } => format!("needs you: {cause}"),
    })
}

/// Whether a cure of this is noticed without a restart: files and the cluster are watched, local ports are not.
fn is_watched(cause: &Problem) -> bool {
    !matches!(
        cause.code,
        Code::PortInUse
            | Code::PortPrivileged
            | Code::AddressUnavailable
            | Code::SpecInvalid
            | Code::Unsupported
    )
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(SocketAddr::to_string).collect()
}

/// A forward's events until it has stopped.
fn stream(index: usize, forward: &Forward) -> BoxStream<'static, (usize, Happening)> {
    // A receiver that fell behind reads where things stand from the status.
    let state = (forward.events(), forward.status(), false);
    futures::stream::unfold(state, move |(mut events, status, ended)| async move {
        if ended {
            return None;
        }
        let happening = next(&mut events, &status).await?;
        let ended = matches!(happening, Happening::Stopped { .. });
        Some(((index, happening), (events, status, ended)))
    })
    .boxed()
}

async fn next(
    events: &mut broadcast::Receiver<Happening>,
    status: &tokio::sync::watch::Receiver<Status>,
) -> Option<Happening> {
    match events.recv().await {
        Ok(happening) => Some(happening),
        Err(RecvError::Lagged(lost)) => {
            tracing::warn!(lost, "events came faster than they could be printed");
            Some(Happening::Status(status.borrow().clone()))
        }
        Err(RecvError::Closed) => None,
    }
}

#[cfg(test)]
mod tests {
    use kftray_commons::{ForwardId, RemotePort, TargetObject, Workload};

    use super::*;

    #[test]
    fn a_call_is_one_line() {
        let request = Some(("POST".to_owned(), "/hook".to_owned()));
        let took = Duration::from_micros(12_345);
        let mut call = Call { caller: "203.0.113.7".to_owned(), request, status: Some(200), took };
        assert_eq!(told(&call), "203.0.113.7 POST /hook 200 12 ms");
        (call.request, call.status) = (None, None);
        assert_eq!(told(&call), "203.0.113.7 12 ms");
        call.caller = "\u{9b}2J\u{1b}c".to_owned();
        assert_eq!(told(&call), "\u{fffd}2J\u{fffd}c 12 ms");
    }

    #[test]
    fn names_are_unique() {
        let spec = |alias: Option<&str>, object: TargetObject| {
            let port = RemotePort::Name("http".to_owned());
            let mut spec = ForwardSpec::new(ForwardId(0), Workload::of(object, port).expect("no host"));
            spec.alias = alias.map(str::to_owned);
            spec
        };
        let service = || TargetObject::Service("my-web".to_owned());
        let all = items(vec![
            spec(None, service()),
            spec(None, service()),
            spec(Some("db"), service()),
            spec(Some("db"), service()),
            spec(None, TargetObject::Labels("app=web".to_owned())),
        ]);
        let told: Vec<_> = all.iter().map(|item| format!("{} {}", item.label, item.variable)).collect();
        assert_eq!(
            told,
            [
                "svc/my-web:http MY_WEB",
                "svc/my-web:http#2 MY_WEB_2",
                "db DB",
                "db#2 DB_2",
                "app=web:http APP_WEB"
            ]
        );
    }

    #[test]
    fn a_busy_port_is_not_waited_for() {
        assert!(!is_watched(&Problem::new(Code::PortInUse, "x")));
        assert!(is_watched(&Problem::new(Code::ContextMissing, "x")));
    }
}
