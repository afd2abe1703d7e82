//! What the host has told: every forward that is written down or runs, and what it carried lately.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::api::{Config, Exposed, ForwardState, Millis, Settings, Snapshot, Summary};
use kftray_commons::{Counters, ForwardId, Problem, Status};

use super::theme;

/// Samples of a sparkline; as many as the widest one has columns.
pub(super) const SAMPLES: usize = 20;

/// Time between two samples of traffic.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Everything the host has told.
#[derive(Debug, Clone, Default)]
pub(super) struct Data {
    entries: BTreeMap<ForwardId, Entry>,
    pub(super) settings: Arc<Settings>,
    /// Those with traffic in the last samples.
    live: BTreeSet<ForwardId>,
    sampled_at: Duration,
}

/// A forward: as it is written down, as it runs, or both.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: ForwardId,
    pub(super) config: Option<Arc<Config>>,
    pub(super) state: Option<Arc<ForwardState>>,
    pub(super) rate: Rate,
    /// What a search looks at, in lower case.
    hay: String,
    /// By what it is sorted.
    order: String,
}

/// Bytes per second over the last samples, oldest first; both directions together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rate {
    samples: VecDeque<u64>,
    /// Bytes counted at the last sample.
    counted: u64,
}

/// What a change means for what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shift {
    Nothing,
    /// Only numbers changed.
    Numbers,
    /// The list may look different.
    List,
}

static STOPPED: Status = Status::Stopped;

impl Data {
    pub(super) fn get(&self, id: ForwardId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// In order of ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes over what the host says now. What is the same value as before costs nothing.
    pub(super) fn take(&mut self, snapshot: &Snapshot) -> Shift {
        let mut shift = Shift::Nothing;
        let known = |id: ForwardId| snapshot.config(id).is_some() || snapshot.forward(id).is_some();
        let before = self.entries.len();
        self.entries.retain(|id, _| known(*id));
        if self.entries.len() != before {
            self.live.retain(|id| self.entries.contains_key(id));
            shift = Shift::List;
        }
        for config in &snapshot.configs {
            let entry = self.entries.entry(config.id).or_insert_with(|| Entry::new(config.id));
            shift = shift.max(entry.take_config(Some(config)));
        }
        for state in &snapshot.forwards {
            let entry = self.entries.entry(state.id).or_insert_with(|| Entry::new(state.id));
            let change = entry.take_state(Some(state));
            if change != Shift::Nothing && entry.counted() != entry.rate.counted {
                self.live.insert(entry.id);
            }
            shift = shift.max(change);
        }
        for entry in self.entries.values_mut() {
            // Where one of the two is gone. Looked up only for those that had it.
            if entry.config.is_some() && snapshot.config(entry.id).is_none() {
                shift = shift.max(entry.take_config(None));
            }
            if entry.state.is_some() && snapshot.forward(entry.id).is_none() {
                shift = shift.max(entry.take_state(None));
            }
        }
        if self.settings != snapshot.settings {
            self.settings = Arc::clone(&snapshot.settings);
            shift = Shift::List;
        }
        shift
    }

    /// Whether rates move, so that samples have to be taken.
    pub(super) fn is_live(&self) -> bool {
        !self.live.is_empty()
    }

    /// Takes a sample of what flows, if it is time for one. `now` is time since the start of this window.
    pub(super) fn sample(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.sampled_at);
        if passed < SAMPLE_EVERY {
            return;
        }
        self.sampled_at = now;
        // After a pause the traffic is that of the last moment, not of the pause.
        let passed = passed.min(SAMPLE_EVERY * 2);
        let entries = &mut self.entries;
        self.live.retain(|id| entries.get_mut(id).is_some_and(|entry| entry.sample(passed)));
    }

    /// When the next sample is due.
    pub(super) fn next_sample(&self) -> Option<Duration> {
        self.is_live().then(|| self.sampled_at + SAMPLE_EVERY)
    }
}

/// Which state of a forward is meant: another one has another.
pub(super) type Stamp = (Millis, Millis, Millis);

impl Entry {
    /// What tells the present state from those before.
    pub(super) fn stamp(&self) -> Stamp {
        let Some(state) = &self.state else { return (0, 0, 0) };
        (state.started_at, state.since, state.ended.as_ref().map_or(0, |ended| ended.at))
    }

    fn new(id: ForwardId) -> Self {
        Self {
            id,
            config: None,
            state: None,
            rate: Rate::default(),
            hay: String::new(),
            order: String::new(),
        }
    }

    fn take_config(&mut self, config: Option<&Arc<Config>>) -> Shift {
        if same(self.config.as_ref(), config) {
            return Shift::Nothing;
        }
        self.config = config.cloned();
        self.index();
        Shift::List
    }

    fn take_state(&mut self, state: Option<&Arc<ForwardState>>) -> Shift {
        if same(self.state.as_ref(), state) {
            return Shift::Nothing;
        }
        let before = std::mem::replace(&mut self.state, state.cloned());
        let run = |state: Option<&ForwardState>| state.map(|state| state.started_at);
        if run(before.as_deref()) != run(self.state.as_deref()) {
            self.rate = Rate { samples: VecDeque::new(), counted: self.counted() };
        }
        // Traffic changes nothing but numbers, and there is much of it.
        if let (Some(before), Some(now)) = (&before, &self.state)
            && before.label == now.label
            && before.status == now.status
            && before.addresses == now.addresses
            && before.ended == now.ended
        {
            return Shift::Numbers;
        }
        self.index();
        Shift::List
    }

    fn index(&mut self) {
        let mut hay = String::new();
        let mut add = |word: &str| {
            hay.push_str(word);
            hay.push('\n');
        };
        add(self.label());
        add(self.target());
        if let Some(summary) = self.summary() {
            add(&summary.kind);
            add(&summary.protocol);
            let texts = [&summary.namespace, &summary.context, &summary.kubeconfig, &summary.group];
            texts.into_iter().flatten().for_each(|text| add(text));
            for (key, value) in &summary.tags {
                add(&format!("{key}={value}"));
            }
            if summary.local_port != 0 {
                add(&summary.local_port.to_string());
            }
        }
        for address in self.state.iter().flat_map(|state| &state.addresses) {
            add(address);
        }
        self.hay = hay.to_lowercase();
        self.order = self.label().to_lowercase();
    }

    pub(super) fn summary(&self) -> Option<&Summary> {
        self.config.as_ref().map(|config| &config.summary)
    }

    /// What people call it.
    pub(super) fn label(&self) -> &str {
        let told = self.summary().map(|summary| summary.label.as_str());
        told.or(self.state.as_ref().map(|state| state.label.as_str())).unwrap_or("")
    }

    pub(super) fn target(&self) -> &str {
        let told = self.summary().map(|summary| summary.target.as_str());
        told.or(self.state.as_ref().map(|state| state.target.as_str())).unwrap_or("")
    }

    pub(super) fn status(&self) -> &Status {
        match &self.state {
            Some(state) if state.is_active() => &state.status,
            Some(_) | None => &STOPPED,
        }
    }

    /// Whether it runs or tries to.
    pub(super) fn is_active(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_active())
    }

    /// Whether it makes, or would make, a program of this machine reachable from the internet.
    pub(super) fn is_public(&self) -> bool {
        match self.exposed() {
            Some(exposed) => exposed.public,
            None => self.summary().is_some_and(|summary| summary.public),
        }
    }

    /// Who may call, and who does, while it runs as an expose.
    pub(super) fn exposed(&self) -> Option<&Exposed> {
        self.state.as_ref().filter(|state| state.is_active())?.exposed.as_ref()
    }

    /// What stands in its way now, or ended it.
    pub(super) fn problem(&self) -> Option<&Problem> {
        self.state.as_ref()?.status.problem()
    }

    /// When it tries again, while it waits for that.
    pub(super) fn retry_at(&self) -> Option<Millis> {
        let state = self.state.as_ref()?;
        match &state.status {
            Status::Recovering { retry_in_ms: Some(wait), .. } => Some(state.since + wait),
            Status::Stopped
            | Status::Binding
            | Status::Resolving { .. }
            | Status::Ready
            | Status::Recovering { retry_in_ms: None, .. }
            | Status::NeedsUser { .. }
            | Status::Stopping => None,
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.state.as_ref().map(|state| state.counters).unwrap_or_default()
    }

    fn counted(&self) -> u64 {
        let counters = self.counters();
        counters.bytes_up.saturating_add(counters.bytes_down)
    }

    /// Where programs on this machine reach it: where it listens, else where it would.
    pub(super) fn address(&self) -> String {
        if let Some(state) = &self.state
            && state.is_active()
            && let Some(address) = shown(&state.addresses)
        {
            return address;
        }
        let Some(summary) = self.summary() else { return String::new() };
        if summary.kind == "expose" {
            return summary.target.strip_prefix("expose/").unwrap_or("").to_owned();
        }
        let host = summary.local_hosts.first().map_or("localhost", String::as_str);
        match summary.local_port {
            0 => format!("{host}:any"),
            port => format!("{host}:{port}"),
        }
    }

    /// Whether every word of a search in lower case is found.
    pub(super) fn matches(&self, words: &[String]) -> bool {
        words.iter().all(|word| {
            self.hay.contains(word.as_str()) || theme::word(self.status()).contains(word.as_str())
        })
    }

    pub(super) fn order(&self) -> (&str, ForwardId) {
        (&self.order, self.id)
    }

    /// Whether anything has flowed in the samples that are kept.
    fn sample(&mut self, passed: Duration) -> bool {
        let counted = self.counted();
        let bytes = counted.saturating_sub(self.rate.counted);
        let per_second = u128::from(bytes) * 1000 / passed.as_millis().max(1);
        self.rate.counted = counted;
        self.rate.push(u64::try_from(per_second).unwrap_or(u64::MAX));
        let flows = self.rate.samples.iter().any(|sample| *sample > 0);
        if !flows {
            self.rate.samples.clear();
        }
        flows
    }
}

fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// The address to name among those a forward listens on: both loopback addresses together are `localhost`.
fn shown(addresses: &[String]) -> Option<String> {
    let first = addresses.first()?;
    let port = first.rsplit(':').next()?;
    let has = |host: &str| addresses.iter().any(|address| *address == format!("{host}:{port}"));
    if has("127.0.0.1") && (has("[::1]") || addresses.len() == 1) {
        return Some(format!("localhost:{port}"));
    }
    Some(first.clone())
}

impl Rate {
    fn push(&mut self, sample: u64) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Bytes per second now.
    pub(super) fn now(&self) -> u64 {
        self.samples.back().copied().unwrap_or(0)
    }

    /// The last `columns` samples as bars, empty while nothing flows.
    pub(super) fn bars(&self, columns: usize) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let from = self.samples.len().saturating_sub(columns);
        let shown = || self.samples.iter().skip(from);
        let top = shown().copied().max().unwrap_or(0);
        let mut bars = String::new();
        if top == 0 {
            return bars;
        }
        for sample in shown() {
            // 0 to 7; a little is more than nothing.
            let height = (u128::from(*sample) * 7).div_ceil(u128::from(top));
            let bar = usize::try_from(height).ok().and_then(|height| BARS.get(height)).unwrap_or(&'█');
            bars.push(*bar);
        }
        bars
    }
}

/// How many forwards are in each state that matters, in words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) ready: usize,
    pub(super) busy: usize,
    pub(super) needs_user: usize,
    pub(super) stopped: usize,
}

impl Totals {
    pub(super) fn add(&mut self, status: &Status) {
        match status {
            Status::Ready => self.ready += 1,
            Status::Binding | Status::Resolving { .. } | Status::Recovering { .. } | Status::Stopping => {
                self.busy += 1;
            }
            Status::NeedsUser { .. } => self.needs_user += 1,
            Status::Stopped => self.stopped += 1,
        }
    }

    pub(super) fn all(self) -> usize {
        self.active() + self.stopped
    }

    pub(super) fn active(self) -> usize {
        self.ready + self.busy + self.needs_user
    }
}

/// `key=value, key2` as people type it.
pub(super) fn tags_text(tags: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (key, value) in tags {
        let gap = if text.is_empty() { "" } else { ", " };
        let equals = if value.is_empty() { "" } else { "=" };
        // Writing to a text never fails.
        write!(text, "{gap}{key}{equals}{value}").ok();
    }
    text
}
