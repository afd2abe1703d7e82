//! All that the window knows: what the host said, what is in front, and where the cursor is.
//!
//! Nothing here draws, waits or asks; [`super::update`] changes it and [`super::view`] shows it.

use std::time::Duration;

use jiff::tz::TimeZone;
use kftray_client::{Link, State};
use kftray_commons::api::{ConfigPut, Hello, History, Millis, Mode as HostMode};
use kftray_commons::{ForwardId, Problem};

use super::arrange::{Arrangement, SETTING};
use super::data::{Data, Stamp};
use super::dialogs::{Arranging, Ask, Palette, Prompt, Report};
use super::form::Form;
use super::keys::{Action, Scope};
use super::list::List;
use super::message::Now;
use super::picker::Picker;
use super::settings::SettingsPane;
use super::theme::{Choice, Surroundings, Theme};

/// The smallest window in which anything can be drawn.
pub(super) const SMALLEST: (u16, u16) = (40, 10);

/// From this width on the details stand beside the list instead of below it.
const WIDE: u16 = 150;

/// A notice stays for so long, or until the next key.
const NOTICE_STAYS: Duration = Duration::from_secs(8);

/// The history of a forward is asked for when the cursor has rested on it for so long: whoever pages through thousands
/// asks for none of theirs.
const RESTS: Duration = Duration::from_millis(250);

/// Numbers of questions that one picker has for itself; nobody looks into a million namespaces.
const QUESTIONS: u64 = 1_000_000;

const MINUTE: Duration = Duration::from_secs(60);

/// The setting in which this window keeps its colours.
pub(super) const COLOURS: &str = "tui_colours";

/// What is in front, with everything that belongs to it.
#[derive(Debug, Clone)]
pub(super) enum Mode {
    List,
    /// First line that is shown.
    Details(usize),
    /// Typing goes to the search above the list.
    Search,
    Picker(Box<Picker>),
    Form(Box<Form>),
    Prompt(Box<Prompt>),
    Report(Report),
    Arrange(Arranging),
    Settings(SettingsPane),
    Palette(Palette),
    Ask(Ask),
    /// First line that is shown.
    Help(usize),
}

impl Mode {
    pub(super) fn scope(&self) -> Scope {
        match self {
            Self::List => Scope::List,
            Self::Details(_) => Scope::Details,
            Self::Search => Scope::Search,
            Self::Picker(_) => Scope::Picker,
            Self::Form(_) => Scope::Form,
            Self::Prompt(_) => Scope::Prompt,
            Self::Report(_) => Scope::Report,
            Self::Arrange(_) => Scope::Arrange,
            Self::Settings(_) => Scope::Settings,
            Self::Palette(_) => Scope::Palette,
            Self::Ask(_) => Scope::Confirm,
            Self::Help(_) => Scope::Help,
        }
    }
}

/// How things stand with the host.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Host {
    Connecting,
    Connected(Box<Hello>),
    /// What is shown is old.
    Away(Problem),
}

/// One line about what just happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) kind: NoticeKind,
    until: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoticeKind {
    Done,
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) now: Now,
    /// Columns and rows.
    pub(super) size: (u16, u16),
    pub(super) host: Host,
    /// Why the host lives in this window although that was not asked for.
    pub(super) embedded: Option<Problem>,
    /// Whether the host has said anything yet: before that, nothing is not "no forwards".
    pub(super) heard: bool,
    pub(super) data: Data,
    pub(super) list: List,
    /// What is in front of what; the first is the list, and always there.
    modes: Vec<Mode>,
    pub(super) notice: Option<Notice>,
    /// The history that was asked for last, and what was known of the forward then.
    pub(super) history: Option<(ForwardId, Stamp, Option<History>)>,
    /// What the cursor is on, and since when that is as it is.
    rested: (Option<(ForwardId, Stamp)>, Duration),
    /// What was deleted last, to be put back.
    pub(super) deleted: Vec<ConfigPut>,
    /// Number of the first question of the picker that was opened last.
    pub(super) asked: u64,
    /// The rows are older than the data.
    pub(super) stale: bool,
    pub(super) home: Option<String>,
    surroundings: Surroundings,
    pub(super) zone: TimeZone,
}

impl Model {
    pub(super) fn new(
        size: (u16, u16),
        surroundings: Surroundings,
        zone: TimeZone,
        home: Option<String>,
    ) -> Self {
        Self {
            now: Now::default(),
            size,
            host: Host::Connecting,
            embedded: None,
            heard: false,
            data: Data::default(),
            list: List::default(),
            modes: vec![Mode::List],
            notice: None,
            history: None,
            rested: (None, Duration::ZERO),
            deleted: Vec::new(),
            asked: 0,
            stale: false,
            home,
            surroundings,
            zone,
        }
    }

    /// What has the keys.
    pub(super) fn mode(&self) -> &Mode {
        self.modes.last().unwrap_or(&Mode::List)
    }

    /// Takes out what has the keys, so that it can be worked with; it has to be put back with [`Self::push`] unless it is
    /// closed.
    pub(super) fn pop(&mut self) -> Mode {
        if self.modes.len() > 1 { self.modes.pop().unwrap_or(Mode::List) } else { Mode::List }
    }

    /// Puts something in front. The list is always there and is never put anywhere.
    pub(super) fn push(&mut self, mode: Mode) {
        if !matches!(mode, Mode::List) {
            self.modes.push(mode);
        }
    }

    /// From back to front.
    pub(super) fn modes(&self) -> &[Mode] {
        &self.modes
    }

    pub(super) fn modes_mut(&mut self) -> &mut [Mode] {
        &mut self.modes
    }

    /// Takes over what the host says.
    pub(super) fn hear(&mut self, state: State) {
        self.host = match (state.link, state.host) {
            (Link::Connected, Some(hello)) => Host::Connected(Box::new((*hello).clone())),
            (Link::Disconnected { problem }, _) => Host::Away(problem.problem()),
            (Link::Connecting | Link::Connected, _) => Host::Connecting,
        };
        self.heard |= matches!(self.host, Host::Connected(_));
        let settings = self.data.settings.clone();
        match self.data.take(&state.snapshot) {
            super::data::Shift::List => self.stale = true,
            super::data::Shift::Numbers | super::data::Shift::Nothing => {}
        }
        if self.data.settings.other.get(SETTING) != settings.other.get(SETTING) {
            let arrangement = Arrangement::read(self.data.settings.other.get(SETTING).map(String::as_str));
            // While somebody chooses a view, what another window chose waits.
            if !self.modes.iter().any(|mode| matches!(mode, Mode::Arrange(_))) {
                self.list.arrangement = arrangement;
            }
        }
    }

    /// Whether closing this window ends the forwards.
    pub(super) fn is_embedded(&self) -> bool {
        match &self.host {
            Host::Connected(hello) => hello.mode == HostMode::Embedded && hello.pid == std::process::id(),
            Host::Connecting | Host::Away(_) => self.embedded.is_some(),
        }
    }

    pub(super) fn colours(&self) -> Choice {
        let stored = self.data.settings.other.get(COLOURS);
        stored.and_then(|word| Choice::parse(word)).unwrap_or_default()
    }

    pub(super) fn theme(&self) -> Theme {
        Theme::of(self.colours(), self.surroundings)
    }

    pub(super) fn say(&mut self, kind: NoticeKind, text: impl Into<String>) {
        self.notice = Some(Notice { text: text.into(), kind, until: self.now.at + NOTICE_STAYS });
    }

    /// Brings rows, cursor and scrolling in line with everything else.
    pub(super) fn settle(&mut self) {
        if self.stale {
            self.stale = false;
            self.list.rebuild(&self.data);
        }
        let height = self.areas().list.height;
        self.list.follow(usize::from(height));
        let on = self.detailed().map(|entry| (entry.id, entry.stamp()));
        if self.rested.0 != on {
            self.rested = (on, self.now.at);
        }
    }

    /// Whose history is to be asked for: the cursor has rested on it.
    pub(super) fn history_wanted(&mut self) -> Option<ForwardId> {
        let (id, stamp) = self.rested.0?;
        if self.knows_history() || self.now.at < self.rested.1 + RESTS || !self.shows_details() {
            return None;
        }
        // What is known of the same one is shown until there is more.
        let before = self.history.take().filter(|(known, ..)| *known == id).and_then(|(.., history)| history);
        self.history = Some((id, stamp, before));
        Some(id)
    }

    fn knows_history(&self) -> bool {
        let asked = self.history.as_ref().map(|(id, stamp, _)| (*id, *stamp));
        asked.is_some() && asked == self.rested.0
    }

    fn shows_details(&self) -> bool {
        self.areas().details.is_some() || self.modes.iter().any(|mode| matches!(mode, Mode::Details(_)))
    }

    /// Time after which something changes by itself; `None`: nothing does until something happens.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let notice = self.notice.as_ref().map(|notice| notice.until);
        let asks = self.rested.0.is_some() && self.shows_details() && !self.knows_history();
        let rests = asks.then(|| self.rested.1 + RESTS);
        [notice, rests, self.data.next_sample(), self.next_countdown(), self.next_age()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next full second while a time that runs down is on the screen.
    fn next_countdown(&self) -> Option<Duration> {
        let height = usize::from(self.areas().list.height);
        let visible = self.list.rows.iter().skip(self.list.top).take(height);
        let mut entries = visible.filter_map(|row| match row {
            super::list::Row::Forward(id) => self.data.get(*id),
            super::list::Row::Group(_) => None,
        });
        let runs = entries.any(|entry| entry.retry_at().is_some_and(|at| at > self.now.wall));
        runs.then(|| Duration::from_secs(self.now.at.as_secs() + 1))
    }

    /// When the age of the state that the details show is written differently.
    fn next_age(&self) -> Option<Duration> {
        let state = self.detailed()?.state.as_ref()?;
        if !self.shows_details() {
            return None;
        }
        let since = state.ended.as_ref().map_or(state.since, |ended| ended.at);
        let age = self.since(since);
        // Seconds are shown up to a minute, then minutes.
        let unit = if age < MINUTE { Duration::from_secs(1) } else { MINUTE };
        let into = Duration::from_nanos(u64::try_from(age.as_nanos() % unit.as_nanos()).unwrap_or(0));
        Some(self.now.at + (unit - into))
    }

    /// The time of this message has come for what ends by time.
    pub(super) fn expire(&mut self) {
        if self.notice.as_ref().is_some_and(|notice| self.now.at >= notice.until) {
            self.notice = None;
        }
    }

    pub(super) fn clear_notice(&mut self) {
        self.notice = None;
    }

    /// Number of the first question of another picker.
    pub(super) fn next_question(&mut self) -> u64 {
        self.asked += QUESTIONS;
        self.asked
    }

    /// The forward that details are about.
    pub(super) fn detailed(&self) -> Option<&super::data::Entry> {
        self.list.forward().and_then(|id| self.data.get(id))
    }

    /// Milliseconds of the wall clock from then to now.
    pub(super) fn since(&self, then: Millis) -> Duration {
        Duration::from_millis(self.now.wall.saturating_sub(then))
    }

    /// Milliseconds of the wall clock from now to then.
    pub(super) fn until(&self, then: Millis) -> Duration {
        Duration::from_millis(then.saturating_sub(self.now.wall))
    }

    /// Where things are on the screen.
    pub(super) fn areas(&self) -> Areas {
        Areas::of(self.size, self.data.is_empty())
    }

    /// The keys worth showing now: key, word, action.
    pub(super) fn legend(&self) -> Vec<(String, &'static str, Action)> {
        let mode = self.mode();
        let bindings = mode.scope().bindings();
        let all = bindings.filter_map(|binding| Some((binding.key(), binding.short?, binding.action)));
        match mode {
            // With nothing there, only what brings something.
            Mode::List if self.data.is_empty() => {
                let useful = [Action::Browse, Action::New, Action::Palette, Action::Help, Action::Quit];
                all.filter(|(_, _, action)| useful.contains(action)).collect()
            }
            Mode::Report(Report { next: None, .. }) => all
                .filter(|(_, _, action)| *action == Action::No)
                .map(|(key, _, action)| (key, "close", action))
                .collect(),
            Mode::Picker(picker) if !picker.can_tick() => {
                all.filter(|(_, _, action)| matches!(action, Action::Open | Action::Back)).collect()
            }
            Mode::List
            | Mode::Details(_)
            | Mode::Search
            | Mode::Picker(_)
            | Mode::Form(_)
            | Mode::Prompt(_)
            | Mode::Report(_)
            | Mode::Arrange(_)
            | Mode::Settings(_)
            | Mode::Palette(_)
            | Mode::Ask(_)
            | Mode::Help(_) => all.collect(),
        }
    }
}

/// Parts of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Areas {
    pub(super) title: ratatui::layout::Rect,
    /// Column headings, or the search.
    pub(super) head: ratatui::layout::Rect,
    pub(super) list: ratatui::layout::Rect,
    pub(super) details: Option<ratatui::layout::Rect>,
    pub(super) legend: ratatui::layout::Rect,
}

impl Areas {
    fn of((width, height): (u16, u16), empty: bool) -> Self {
        use ratatui::layout::Rect;
        let line = |y: u16| Rect::new(0, y.min(height.saturating_sub(1)), width, height.min(1));
        let middle = height.saturating_sub(3);
        let mut list = Rect::new(0, 2.min(height), width, middle);
        let mut details = None;
        if !empty && width >= WIDE {
            // The list keeps the larger part.
            let beside = (width * 2 / 5).min(84);
            list.width = width - beside;
            details = Some(Rect::new(list.width, 1, beside, middle + 1));
        } else if !empty && height >= 20 {
            let below = (middle * 2 / 5).clamp(8, 16);
            list.height = middle - below;
            details = Some(Rect::new(0, 2 + list.height, width, below));
        }
        let head = Rect { width: list.width, ..line(1) };
        Self { title: line(0), head, list, details, legend: line(height.saturating_sub(1)) }
    }
}
