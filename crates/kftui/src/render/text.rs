//! Lines for people: one when a forward is ready, then one per change.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use kftray_commons::{Counters, Cure, Event, Problem, Status};
use tokio::time::Instant;

use super::progress::Progress;
use super::{Paint, Screen};

/// Widest state word, so that what follows stands in a column.
const STATE_WIDTH: usize = "recovering".len();

/// Labels longer than this do not push the others aside.
const LABEL_MAX: usize = 40;

/// Failed connections of one forward are told at most once in this time; the rest is counted.
const FAILURES_APART: Duration = Duration::from_secs(2);

/// While the cause stays the same, its changing details (which pod is how far) are told at most this often.
const DETAILS_APART: Duration = Duration::from_secs(10);

/// The time of day where this machine stands.
pub(super) fn wall_clock() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}

/// What was last told of a forward.
#[derive(Default)]
struct Told {
    ready: bool,
    not_ready_since: Option<Instant>,
    /// The last trouble told, and when.
    trouble: Option<(Problem, Instant)>,
    failure_at: Option<Instant>,
    failures_untold: u64,
}

pub(super) struct TextScreen {
    to: Box<dyn Write>,
    paint: Paint,
    aside: Box<dyn Write>,
    aside_paint: Paint,
    progress: Option<Progress>,
    width: usize,
    clock: fn() -> String,
    told: HashMap<String, Told>,
}

impl TextScreen {
    pub(super) fn new(
        to: Box<dyn Write>,
        paint: Paint,
        aside: Box<dyn Write>,
        aside_paint: Paint,
        progress: Option<Progress>,
        width: usize,
        clock: fn() -> String,
    ) -> Self {
        let width = width.min(LABEL_MAX);
        Self { to, paint, aside, aside_paint, progress, width, clock, told: HashMap::new() }
    }

    /// `12:00:00 svc/web:80  ready  what`, the state already painted and `state_len` characters wide.
    fn line(&mut self, forward: &str, state: &str, painted: &str, what: &str) -> io::Result<()> {
        let gap = " ".repeat(STATE_WIDTH.saturating_sub(state.chars().count()));
        let label = format!("{forward:<width$}", width = self.width);
        let clock = self.paint.dim((self.clock)());
        let line = format!("{clock} {}  {painted}{gap}  {what}\n", self.paint.strong(label));
        self.print(&line)
    }

    fn print(&mut self, line: &str) -> io::Result<()> {
        let to = &mut self.to;
        let mut write = || {
            to.write_all(line.as_bytes())?;
            to.flush()
        };
        match &self.progress {
            Some(progress) => progress.aside(write),
            None => write(),
        }
    }

    fn print_aside(&mut self, line: &str) -> io::Result<()> {
        let to = &mut self.aside;
        let mut write = || {
            to.write_all(line.as_bytes())?;
            to.flush()
        };
        match &self.progress {
            Some(progress) => progress.aside(write),
            None => write(),
        }
    }

    fn remedy(&mut self, problem: &Problem) -> io::Result<()> {
        let indent = " ".repeat("12:00:00 ".len() + self.width + 2 + STATE_WIDTH + 2);
        let line = format!("{indent}{}\n", self.paint.dim(&problem.remedy));
        self.print(&line)
    }

    fn status(&mut self, forward: &str, status: &Status) -> io::Result<()> {
        let told = self.told.entry(forward.to_owned()).or_default();
        if !matches!(status, Status::Ready | Status::Stopping | Status::Stopped) && told.ready {
            told.ready = false;
            told.not_ready_since = Some(Instant::now());
        }
        let Some(problem) = status.problem() else { return Ok(()) };
        let needs_user = matches!(status, Status::NeedsUser { .. });
        // Every detail is news to a script; to a person another cause is, and now and then how it stands.
        let now = Instant::now();
        let news = told.trouble.as_ref().is_none_or(|(before, at)| {
            let detail = before.message != problem.message;
            before.code != problem.code || detail && (needs_user || now >= *at + DETAILS_APART)
        });
        if news {
            told.trouble = Some((problem.clone(), now));
        }
        match status {
            Status::Resolving { .. } if news => {
                let painted = self.paint.busy("waiting");
                self.line(forward, "waiting", &painted, &problem.message)?;
                self.remedy_where_it_helps(problem)
            }
            Status::Recovering { retry_in_ms, .. } if news => {
                let next =
                    retry_in_ms.map(|ms| format!("; next try in {}", seconds(Duration::from_millis(ms))));
                let painted = self.paint.busy("recovering");
                let what = format!("{}{}", problem.message, self.paint.dim(next.unwrap_or_default()));
                self.line(forward, "recovering", &painted, &what)?;
                self.remedy_where_it_helps(problem)
            }
            Status::NeedsUser { .. } if news => {
                let painted = self.paint.bad("needs you");
                self.line(forward, "needs you", &painted, &problem.message)?;
                self.remedy(problem)
            }
            Status::Stopped
            | Status::Binding
            | Status::Resolving { .. }
            | Status::Ready
            | Status::Recovering { .. }
            | Status::NeedsUser { .. }
            | Status::Stopping => Ok(()),
        }
    }

    fn remedy_where_it_helps(&mut self, problem: &Problem) -> io::Result<()> {
        match problem.code.cure() {
            Cure::Retry => Ok(()),
            Cure::Wait | Cure::User => self.remedy(problem),
        }
    }

    fn ready(
        &mut self,
        forward: &str,
        addresses: &[String],
        endpoint: &str,
        transport: &str,
    ) -> io::Result<()> {
        let told = self.told.entry(forward.to_owned()).or_default();
        told.trouble = None;
        let what = if std::mem::replace(&mut told.ready, true) {
            format!("now by way of {endpoint}")
        } else {
            let again =
                told.not_ready_since.take().map(|since| format!(", after {}", seconds(since.elapsed())));
            let via = self.paint.dim(format!("({transport}{})", again.unwrap_or_default()));
            format!("{} -> {endpoint} {via}", self.paint.strong(shown(addresses)))
        };
        let painted = self.paint.good("ready");
        self.line(forward, "ready", &painted, &what)
    }

    fn connection_failed(&mut self, forward: &str, problem: &Problem) -> io::Result<()> {
        let told = self.told.entry(forward.to_owned()).or_default();
        let now = Instant::now();
        if told.failure_at.is_some_and(|at| now < at + FAILURES_APART) {
            told.failures_untold += 1;
            return Ok(());
        }
        told.failure_at = Some(now);
        let more = match std::mem::take(&mut told.failures_untold) {
            0 => String::new(),
            more => format!(" (and {more} more before)"),
        };
        let painted = self.paint.bad("failed");
        let what = format!("one connection: {}{}", problem.message, self.paint.dim(more));
        self.line(forward, "failed", &painted, &what)
    }

    fn stopped(&mut self, forward: &str, counters: &Counters) -> io::Result<()> {
        let mut what = match counters.connections {
            1 => "1 connection".to_owned(),
            count => format!("{count} connections"),
        };
        if counters.failed > 0 {
            what.push_str(&format!(", {} failed", counters.failed));
        }
        what.push_str(&format!(", {} down, {} up", bytes(counters.bytes_down), bytes(counters.bytes_up)));
        if counters.datagrams_dropped > 0 {
            what.push_str(&format!(", {} datagrams dropped", counters.datagrams_dropped));
        }
        let painted = self.paint.dim("stopped");
        self.line(forward, "stopped", &painted, &what)
    }
}

impl Screen for TextScreen {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            // Ready says where, and only ready is worth a connection.
            Event::Listening { .. } => Ok(()),
            Event::Status { forward, status } => self.status(forward, status),
            Event::Ready { forward, addresses, endpoint, transport } => {
                self.ready(forward, addresses, endpoint, transport)
            }
            Event::AllReady => Ok(()),
            Event::ConnectionFailed { forward, problem } => self.connection_failed(forward, problem),
            Event::InvalidEntry { source, entry, alias, problem } => {
                let alias = alias.as_ref().map(|alias| format!(" ({alias})")).unwrap_or_default();
                // Entry 0 is the file as a whole.
                let entry = if *entry == 0 { String::new() } else { format!(": entry {entry}{alias}") };
                let place = self.aside_paint.strong(format!("{}{entry}", named(source)));
                let message = self.aside_paint.bad(&problem.message);
                let remedy = self.aside_paint.dim(&problem.remedy);
                self.print_aside(&format!("{place}: {message}\n    {remedy}\n"))
            }
            Event::Warning { source, message } => {
                let line = self.aside_paint.dim(format!("{}: warning: {message}", named(source)));
                self.print_aside(&format!("{line}\n"))
            }
            Event::Stopped { forward, counters } => self.stopped(forward, counters),
        }
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        let line = self.aside_paint.dim(text);
        self.print_aside(&format!("{line}\n"))
    }

    fn waiting(&mut self, for_what: Option<String>) {
        if let Some(progress) = &mut self.progress {
            progress.set(for_what);
        }
    }

    fn interrupted(&mut self) -> io::Result<()> {
        if self.progress.is_none() {
            return Ok(());
        }
        // Back to the first column, and the line erased (ECMA-48).
        self.print("\r\u{1b}[K")
    }
}

fn named(source: &str) -> &str {
    if source == "-" { "standard input" } else { source }
}

/// `localhost:8080` for its two addresses, else all of them.
fn shown(addresses: &[String]) -> String {
    if let [one, other] = addresses
        && let (Some(a), Some(b)) = (one.strip_prefix("127.0.0.1:"), other.strip_prefix("[::1]:"))
        && a == b
    {
        return format!("localhost:{a}");
    }
    addresses.join(", ")
}

/// `0.9 s`, `12 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

/// `512 B`, `3.4 kB`, `12 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: &[&str] = &["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {}", UNITS.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use kftray_commons::Code;

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn script() -> Vec<Event> {
        let forward = || "svc/web:80".to_owned();
        let status = |status| Event::Status { forward: forward(), status };
        let ready = |pod: &str| Event::Ready {
            forward: forward(),
            addresses: vec!["127.0.0.1:8080".into(), "[::1]:8080".into()],
            endpoint: format!("default/{pod}:8080"),
            transport: "websocket".into(),
        };
        let gone = || Problem::new(Code::PodGone, "pod web-1 is gone");
        vec![
            status(Status::Binding),
            status(Status::Resolving {
                waiting_for: Some(Problem::new(Code::NoReadyPods, "0 of 2 pods are ready")),
            }),
            status(Status::Resolving {
                waiting_for: Some(Problem::new(Code::NoReadyPods, "0 of 2 pods are ready")),
            }),
            status(Status::Ready),
            ready("web-1"),
            Event::AllReady,
            ready("web-2"),
            status(Status::Recovering { attempt: 1, retry_in_ms: Some(900), cause: gone() }),
            status(Status::Recovering { attempt: 2, retry_in_ms: None, cause: gone() }),
            // Another detail of the same cause a moment later is no news.
            status(Status::Recovering {
                attempt: 3,
                retry_in_ms: None,
                cause: Problem::new(Code::PodGone, "pod web-2 is gone"),
            }),
            status(Status::Ready),
            ready("web-3"),
            Event::ConnectionFailed { forward: forward(), problem: gone() },
            Event::ConnectionFailed { forward: forward(), problem: gone() },
            status(Status::NeedsUser { cause: Problem::new(Code::Unauthorized, "the token has expired") }),
            Event::Warning {
                source: "-".into(),
                message: "line 1, column 2: unknown field `x` is ignored".into(),
            },
            Event::InvalidEntry {
                source: "team.json".into(),
                entry: 3,
                alias: Some("x".into()),
                problem: Problem::new(
                    Code::SpecInvalid,
                    "line 4, column 12: local_port: expected a port, found `80a`",
                )
                .with_remedy("Write a number from 1 to 65535."),
            },
            Event::Stopped {
                forward: forward(),
                counters: Counters {
                    bytes_up: 999,
                    bytes_down: 3_400_000,
                    connections: 12,
                    failed: 1,
                    ..Counters::default()
                },
            },
        ]
    }

    fn printed(colours: bool) -> String {
        let (out, err) = (Paper::default(), Paper::default());
        let paint = Paint::new(colours);
        let mut screen = TextScreen::new(
            Box::new(out.clone()),
            paint,
            Box::new(err.clone()),
            paint,
            None,
            "svc/web:80".len(),
            || "12:00:00".to_owned(),
        );
        for event in script() {
            screen.event(&event).expect("paper takes all");
        }
        screen.note("no ::1 on this machine").expect("paper takes all");
        let text = |paper: &Paper| String::from_utf8(paper.0.borrow().clone()).expect("UTF-8");
        format!("{}--- stderr\n{}", text(&out), text(&err))
    }

    #[tokio::test(start_paused = true)]
    async fn plain_lines() {
        insta::assert_snapshot!(printed(false));
    }

    #[tokio::test(start_paused = true)]
    async fn colours_change_nothing_but_colour() {
        let coloured = printed(true);
        assert!(coloured.contains("\u{1b}[1m\u{1b}[32mready\u{1b}[0m"), "{coloured:?}");
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, after)| after);
        }
        plain.push_str(rest);
        assert_eq!(plain, printed(false));
    }

    #[test]
    fn amounts() {
        assert_eq!(
            [0, 999, 1000, 12_345, 999_600, 5_000_000_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "12 kB", "1.0 MB", "5.0 GB"]
        );
        assert_eq!([0, 900, 12_000].map(|ms| seconds(Duration::from_millis(ms))), ["0.0 s", "0.9 s", "12 s"]);
    }

    #[test]
    fn addresses() {
        let text = |all: &[&str]| shown(&all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
        assert_eq!(text(&["127.0.0.1:1", "[::1]:1"]), "localhost:1");
        assert_eq!(text(&["127.0.0.1:1"]), "127.0.0.1:1");
        assert_eq!(text(&["127.0.0.1:1", "[::1]:2"]), "127.0.0.1:1, [::1]:2");
    }
}
