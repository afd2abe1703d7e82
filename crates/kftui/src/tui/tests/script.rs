//! A model that is driven as a person would drive it, and a host that says what the test wants.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::tz::TimeZone;
use kftray_client::{Link, State};
use kftray_commons::api::{
    Call, Calls, Config, EndpointInfo, Exposed, ForwardState, Hello, History, HistoryEntry, HistoryKind,
    Millis, Mode as HostMode, Origin, PROTOCOL, PodCondition, ReadyVia, Settings, Snapshot, Summary,
};
use kftray_commons::{Code, Counters, ForwardId, Problem, Status};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};
use serde_json::json;

use super::super::message::{Effect, Message, Now, Outcome};
use super::super::model::Model;
use super::super::theme::Surroundings;
use super::super::update::{settle, update};
use super::super::view::{Hits, view};

/// 2026-11-21 12:00:00 UTC.
pub(super) const NOON: Millis = 1_795_262_400_000;

/// A window, its host, and everything it wished for.
pub(super) struct Desk {
    pub(super) model: Model,
    pub(super) at: Duration,
    pub(super) wishes: Vec<Effect>,
    pub(super) snapshot: Snapshot,
}

impl Desk {
    pub(super) fn new(width: u16, height: u16) -> Self {
        Self::with(width, height, Surroundings::default())
    }

    pub(super) fn with(width: u16, height: u16, surroundings: Surroundings) -> Self {
        let model = Model::new((width, height), surroundings, TimeZone::UTC, Some("/home/me".to_owned()));
        Self { model, at: Duration::ZERO, wishes: Vec::new(), snapshot: Snapshot::default() }
    }

    pub(super) fn now(&self) -> Now {
        Now { at: self.at, wall: NOON + u64::try_from(self.at.as_millis()).expect("short") }
    }

    pub(super) fn send(&mut self, message: Message) {
        let now = self.now();
        self.wishes.extend(update(&mut self.model, message, now));
        self.wishes.extend(settle(&mut self.model));
    }

    /// Presses keys: letters as they are, others by name in angle brackets, as in `/web<enter><ctrl+s>`.
    pub(super) fn press(&mut self, keys: &str) {
        let mut rest = keys;
        while let Some(first) = rest.chars().next() {
            let (code, modifiers, after) = match rest.strip_prefix('<').and_then(|rest| rest.split_once('>'))
            {
                Some((name, after)) => {
                    let (code, modifiers) = named(name);
                    (code, modifiers, after)
                }
                None => (KeyCode::Char(first), KeyModifiers::NONE, &rest[first.len_utf8()..]),
            };
            self.send(Message::Key(KeyEvent::new(code, modifiers)));
            rest = after;
        }
    }

    /// Lets time pass as the loop would: every deadline is met.
    pub(super) fn wait(&mut self, time: Duration) {
        let until = self.at + time;
        while let Some(deadline) = self.model.deadline().filter(|deadline| *deadline <= until) {
            assert!(deadline >= self.at || self.model.deadline() != Some(deadline), "a deadline in the past");
            self.at = deadline.max(self.at);
            self.send(Message::Tick);
            assert!(self.model.deadline().is_none_or(|next| next > self.at), "a deadline that does not pass");
        }
        self.at = until;
    }

    pub(super) fn hear(&mut self, link: Link) {
        let hello = Hello {
            protocol: PROTOCOL,
            version: "0.1.0".to_owned(),
            build: String::new(),
            instance: "i".to_owned(),
            pid: 4242,
            started_at: NOON,
            mode: HostMode::Background,
            config_dir: "/home/me/.kftray".to_owned(),
            clients: 1,
        };
        let state = State { link, snapshot: Arc::new(self.snapshot.clone()), host: Some(Arc::new(hello)) };
        self.send(Message::Host(Box::new(state)));
    }

    pub(super) fn say(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.hear(Link::Connected);
    }

    pub(super) fn done(&mut self, outcome: Outcome) {
        self.send(Message::Done(outcome));
    }

    pub(super) fn last_wish(&self) -> &Effect {
        self.wishes.last().expect("a wish")
    }

    /// The screen as text; below it, for each colour or attribute, where it is, if `styled`.
    pub(super) fn screen(&mut self, styled: bool) -> String {
        self.draw().0.pipe(|terminal| {
            let buffer = terminal.backend().buffer();
            let mut text = String::new();
            for y in 0..buffer.area.height {
                let mut line = String::new();
                let mut skip = 0;
                for x in 0..buffer.area.width {
                    let Some(cell) = buffer.cell((x, y)) else { continue };
                    if skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    line.push_str(cell.symbol());
                    skip = super::super::text::width(cell.symbol()).saturating_sub(1);
                }
                writeln!(text, "{}", line.trim_end()).expect("a text");
            }
            if styled {
                let mut styles: BTreeMap<String, usize> = BTreeMap::new();
                for cell in buffer.content() {
                    if cell.fg != Color::Reset || cell.bg != Color::Reset || !cell.modifier.is_empty() {
                        *styles
                            .entry(format!("{:?} on {:?} {:?}", cell.fg, cell.bg, cell.modifier))
                            .or_default() += 1;
                    }
                }
                for (style, count) in styles {
                    writeln!(text, "{count:>5} cells {style}").expect("a text");
                }
            }
            text
        })
    }

    /// Whether any cell has a colour.
    pub(super) fn is_coloured(&mut self) -> bool {
        let (terminal, _) = self.draw();
        let cells = terminal.backend().buffer().content();
        cells.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
            && cells.iter().all(|cell| cell.modifier != Modifier::HIDDEN)
    }

    pub(super) fn draw(&mut self) -> (Terminal<TestBackend>, Hits) {
        let (width, height) = self.model.size;
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        let mut hits = Hits::default();
        terminal.draw(|frame| hits = view(&self.model, frame)).expect("drawn");
        (terminal, hits)
    }

    /// The forward under the cursor.
    pub(super) fn on(&self) -> Option<&str> {
        self.model.detailed().map(|entry| entry.label())
    }
}

trait Pipe: Sized {
    fn pipe<T>(self, with: impl FnOnce(Self) -> T) -> T {
        with(self)
    }
}

impl<T> Pipe for T {}

fn named(name: &str) -> (KeyCode, KeyModifiers) {
    if let Some(letter) = name.strip_prefix("ctrl+") {
        return (KeyCode::Char(letter.chars().next().expect("a letter")), KeyModifiers::CONTROL);
    }
    let code = match name {
        "enter" => KeyCode::Enter,
        "esc" => KeyCode::Esc,
        "tab" => KeyCode::Tab,
        "up" => KeyCode::Up,
        "down" => KeyCode::Down,
        "left" => KeyCode::Left,
        "right" => KeyCode::Right,
        "home" => KeyCode::Home,
        "end" => KeyCode::End,
        "pgdn" => KeyCode::PageDown,
        "pgup" => KeyCode::PageUp,
        "back" => KeyCode::Backspace,
        "space" => KeyCode::Char(' '),
        other => panic!("{other}"),
    };
    (code, KeyModifiers::NONE)
}

/// A config of a Service.
pub(super) fn config(
    id: u64,
    context: Option<&str>,
    namespace: &str,
    service: &str,
    local: u16,
) -> Arc<Config> {
    let spec = json!({
        "alias": service, "workload_type": "service", "service": service, "namespace": namespace,
        "context": context, "remote_port": 80, "local_port": local, "protocol": "tcp",
    });
    let serde_json::Value::Object(spec) = spec else { panic!("no object") };
    let summary = Summary {
        label: service.to_owned(),
        alias: Some(service.to_owned()),
        kind: "service".to_owned(),
        target: format!("svc/{service}:80"),
        remote: "80".to_owned(),
        namespace: Some(namespace.to_owned()),
        context: context.map(str::to_owned),
        protocol: "tcp".to_owned(),
        local_hosts: vec!["localhost".to_owned()],
        local_port: local,
        ..Summary::default()
    };
    Arc::new(Config { id: ForwardId(id), revision: 1, desired: true, spec, summary })
}

/// How a config runs.
pub(super) fn state(config: &Config, status: Status) -> ForwardState {
    let port = config.summary.local_port;
    ForwardState {
        id: config.id,
        label: config.summary.label.clone(),
        target: config.summary.target.clone(),
        origin: Origin::Config { lease: None },
        status,
        since: NOON - 185_000,
        addresses: vec![format!("127.0.0.1:{port}"), format!("[::1]:{port}")],
        ready_via: None,
        endpoints: Vec::new(),
        exposed: None,
        counters: Counters::default(),
        notes: Vec::new(),
        started_at: NOON - 7_800_000,
        expires_at: None,
        idle_limit_at: None,
        last_problem: None,
        ended: None,
    }
}

/// A morning's work: two clusters, every state there is, names of every width.
pub(super) fn morning() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut add = |config: Arc<Config>, status: Option<Status>| {
        if let Some(status) = status {
            snapshot.forwards.push(Arc::new(state(&config, status)));
        }
        snapshot.configs.push(config);
    };
    add(config(1, Some("prod-eu"), "shop", "front", 8080), Some(Status::Ready));
    let cause = Problem::new(
        Code::NoReadyPods,
        "no pod of Service cart is ready: cart-6b7f-x2x is Pending (0/3 nodes available)",
    );
    let recovering = Status::Recovering { attempt: 3, retry_in_ms: Some(190_000), cause };
    add(config(2, Some("prod-eu"), "shop", "cart", 8081), Some(recovering));
    let cause = Problem::new(Code::PortInUse, "127.0.0.1:5432 is in use by postgres (pid 812)");
    add(config(3, Some("prod-eu"), "shop", "postgres", 5432), Some(Status::NeedsUser { cause }));
    add(config(4, Some("prod-eu"), "shop", "catalogue", 8082), None);
    add(config(5, None, "default", "日本語サービス", 9000), Some(Status::Binding));
    let waiting = Problem::new(Code::TargetMissing, "there is no Service billing in namespace pay");
    let waiting = Status::Resolving { waiting_for: Some(waiting) };
    add(config(6, Some("staging"), "pay", "billing", 8090), Some(waiting));
    add(
        config(7, Some("staging"), "pay", "a-service-with-a-name-that-is-longer-than-any-column", 8091),
        Some(Status::Ready),
    );
    snapshot.settings = Arc::new(Settings::default());
    if let Some(front) = snapshot.forwards.first_mut() {
        let front = Arc::make_mut(front);
        front.ready_via = Some(ReadyVia {
            pod: "shop/front-7d9f6c-x2x8p:8080".to_owned(),
            transport: "websocket".to_owned(),
            rtt_us: 812,
        });
        let pod = |name: &str, condition| EndpointInfo {
            pod: name.to_owned(),
            namespace: "shop".to_owned(),
            port: 8080,
            node: Some("node-1".to_owned()),
            condition,
        };
        front.endpoints = vec![
            pod("front-7d9f6c-x2x8p", PodCondition::Ready),
            pod("front-7d9f6c-9k4lm", PodCondition::Ready),
            pod("front-5c8b77-q7w2e", PodCondition::Draining),
        ];
        front.counters = Counters {
            bytes_up: 1_234_567,
            bytes_down: 30_456_789,
            connections: 120,
            open: 2,
            failed: 0,
            open_p50_us: 812,
            open_p99_us: 3_240,
            idle_ms: Some(5),
            ..Counters::default()
        };
        front.expires_at = Some(NOON + 3 * 3_600_000);
    }
    snapshot
}

/// A program of this machine that the internet reaches, and its callers.
pub(super) fn add_public_hook(snapshot: &mut Snapshot) {
    let mut hook = Config::clone(&config(8, Some("prod-eu"), "shop", "hook", 3000));
    hook.summary.kind = "expose".to_owned();
    hook.summary.target = "expose/localhost:3000".to_owned();
    hook.summary.public = true;
    let call = |ago: u64, caller: &str, request: Option<&str>, status| Call {
        at: NOON - ago * 1000,
        caller: caller.to_owned(),
        request: request.map(str::to_owned),
        status,
        took_us: 3_100,
        problem: None,
    };
    let refused = "198.51.100.9 was turned away from hook: it has shown no credentials, or wrong ones";
    let last = vec![
        call(2, "203.0.113.7", Some("POST /webhooks/payments"), Some(204)),
        call(9, "203.0.113.7", Some("GET /missing"), Some(404)),
        Call {
            problem: Some(Problem::new(Code::CallerRefused, refused)),
            ..call(31, "198.51.100.9", None, None)
        },
        call(64, "203.0.113.8", None, None),
    ];
    let mut told = state(&hook, Status::Ready);
    told.addresses = vec!["https://hook.example.com".to_owned()];
    told.exposed = Some(Exposed { public: true, open: false, calls: Calls { total: 1_204, last } });
    snapshot.configs.push(Arc::new(hook));
    snapshot.forwards.push(Arc::new(told));
}

pub(super) fn history() -> History {
    let entry = |ago: u64, kind, message: &str| HistoryEntry {
        at: NOON - ago * 1000,
        kind,
        message: message.to_owned(),
        problem: None,
    };
    History {
        entries: vec![
            entry(185, HistoryKind::Ready, "ready by way of front-7d9f6c-x2x8p, after 2 s"),
            entry(187, HistoryKind::Recovering, "front-5c8b77-q7w2e is gone"),
            entry(7_800, HistoryKind::Started, "started"),
            entry(100_000, HistoryKind::Ended, "somebody stopped it"),
        ],
    }
}

/// The morning on a window of this size, the host connected, traffic flowing on the first.
pub(super) fn desk(width: u16, height: u16) -> Desk {
    let mut desk = Desk::new(width, height);
    desk.say(|snapshot| *snapshot = morning());
    flow(&mut desk, &[4, 9, 3, 12, 30, 22, 8, 12]);
    desk
}

/// Traffic on the first forward, in kilobytes per second.
pub(super) fn flow(desk: &mut Desk, kilobytes: &[u64]) {
    for amount in kilobytes {
        desk.say(|snapshot| {
            let front = Arc::make_mut(snapshot.forwards.first_mut().expect("one"));
            front.counters.bytes_down += amount * 1000;
        });
        desk.wait(Duration::from_secs(1));
    }
}
