//! Everything about one forward.

use std::time::Duration;

use jiff::Timestamp;
use kftray_commons::api::{Call, EndedBy, ForwardState, HistoryKind, Millis, Origin, PodCondition};
use kftray_commons::{Problem, Status};
use ratatui::layout::Rect;

use super::super::data::{Entry, SAMPLES, tags_text};
use super::super::list::Group;
use super::super::message::Target;
use super::super::model::Model;
use super::super::text::{self, count};
use super::super::theme::Theme;
use super::canvas::{Canvas, Spans, line_of};
use super::{rate, state};

/// Columns of the names of facts.
const NAMES: usize = 14;

/// From this width on, pods and history stand beside the facts in the pane below the list.
const TWO_COLUMNS: u16 = 76;

/// Most pods that are named; a forward to a large workload has hundreds.
const PODS: usize = 40;

/// The pane below or beside the list.
pub(super) fn pane(model: &Model, canvas: &mut Canvas<'_>, area: Rect) {
    let theme = canvas.theme;
    let beside = area.x > 0;
    let inner = if beside {
        for y in area.top()..area.bottom() {
            canvas.put(area.x, y, 1, "│", theme.dim());
        }
        Rect { x: area.x + 2, width: area.width.saturating_sub(3), ..area }
    } else {
        let title = match (model.detailed(), model.list.group()) {
            (Some(entry), _) => heading(model, theme, entry),
            (None, Some(group)) => group_heading(theme, group),
            (None, None) => Spans::new(),
        };
        canvas.rule(line_of(area, 0), &title);
        Rect {
            x: area.x + 1,
            y: area.y + 1,
            width: area.width.saturating_sub(2),
            height: area.height.saturating_sub(1),
        }
    };
    let Some(entry) = model.detailed() else {
        if let Some(group) = model.list.group() {
            let mut lines = if beside { vec![group_heading(theme, group), Spans::new()] } else { Vec::new() };
            lines.extend(troubles(model, theme, group));
            draw(canvas, inner, &lines, 0);
        }
        return;
    };
    let mut lines = if beside { vec![heading(model, theme, entry), Spans::new()] } else { Vec::new() };
    lines.extend(trouble(model, theme, entry, usize::from(inner.width)));
    if beside || inner.width < TWO_COLUMNS {
        lines.extend(facts(model, theme, entry, usize::from(inner.width)));
        let more = aside(model, theme, entry, usize::from(inner.width));
        if !more.is_empty() {
            lines.push(Spans::new());
            lines.extend(more);
        }
        draw(canvas, inner, &lines, 0);
        return;
    }
    draw(canvas, inner, &lines, 0);
    let used = u16::try_from(lines.len()).unwrap_or(inner.height).min(inner.height);
    let inner = Rect { y: inner.y + used, height: inner.height - used, ..inner };
    let left = Rect { width: (inner.width * 11 / 20).min(90), ..inner };
    let right = Rect { x: left.right() + 2, width: inner.width - left.width - 2, ..inner };
    draw(canvas, left, &facts(model, theme, entry, usize::from(left.width)), 0);
    draw(canvas, right, &aside(model, theme, entry, usize::from(right.width)), 0);
}

/// The whole screen for one forward.
pub(super) fn full(model: &Model, canvas: &mut Canvas<'_>, top: usize) {
    let whole = canvas.area();
    let area = Rect { y: whole.y + 1, height: whole.height.saturating_sub(2), ..whole };
    for y in area.top()..area.bottom() {
        let blank = " ".repeat(usize::from(area.width));
        let style = ratatui::style::Style::reset();
        canvas.put(area.x, y, usize::from(area.width), &blank, style);
    }
    canvas.hit(area, Target::Window);
    let title = model.detailed().map_or_else(Spans::new, |entry| heading(model, canvas.theme, entry));
    canvas.rule(line_of(area, 0), &title);
    let inner = Rect {
        x: area.x + 2,
        y: area.y + 2,
        width: area.width.saturating_sub(4),
        height: area.height.saturating_sub(2),
    };
    let lines = lines(model, usize::from(inner.width));
    draw(canvas, inner, &lines, top);
}

/// Everything, one below the other.
pub(super) fn lines(model: &Model, width: usize) -> Vec<Spans> {
    let theme = model.theme();
    let Some(entry) = model.detailed() else {
        return vec![vec![("The forward is gone.".to_owned(), theme.dim())]];
    };
    let mut lines = trouble(model, theme, entry, width);
    if !lines.is_empty() {
        lines.push(Spans::new());
    }
    lines.extend(facts(model, theme, entry, width));
    lines.push(Spans::new());
    lines.extend(aside(model, theme, entry, width));
    lines
}

fn draw(canvas: &mut Canvas<'_>, area: Rect, lines: &[Spans], top: usize) {
    let shown = lines.iter().skip(top);
    for (y, spans) in (area.y..area.bottom()).zip(shown) {
        canvas.spans(Rect { y, height: 1, ..area }, spans);
    }
    if lines.len() > top + usize::from(area.height) && area.height > 0 {
        canvas.put(area.right().saturating_sub(1), area.bottom() - 1, 1, "↓", canvas.theme.dim());
    }
}

fn group_heading(theme: Theme, group: &Group) -> Spans {
    let told = format!("{}, {} running", count(group.members.len(), "forward"), group.totals.active());
    vec![(format!("{}  ", text::cut(&group.title, 40)), theme.strong()), (told, theme.dim())]
}

/// What is not as it should be in a group.
fn troubles(model: &Model, theme: Theme, group: &Group) -> Vec<Spans> {
    let entries = group.members.iter().filter_map(|id| model.data.get(*id));
    let troubled = entries.filter_map(|entry| Some((entry, entry.problem().filter(|_| entry.is_active())?)));
    let troubled: Vec<(&Entry, &Problem)> = troubled.collect();
    let widest = troubled.iter().map(|(entry, _)| text::width(entry.label())).max().unwrap_or(0).min(24);
    let lines: Vec<Spans> = troubled
        .into_iter()
        .map(|(entry, problem)| {
            let style = theme.status(entry.status());
            vec![
                (format!("{} ", super::super::theme::sign(entry.status())), style),
                (format!("{}  ", text::fit(entry.label(), widest)), theme.text()),
                (text::clean(&problem.message).into_owned(), theme.dim()),
            ]
        })
        .collect();
    if lines.is_empty() {
        vec![vec![("Nothing in it needs attention.".to_owned(), theme.dim())]]
    } else {
        lines
    }
}

fn heading(model: &Model, theme: Theme, entry: &Entry) -> Spans {
    let mut spans: Spans = vec![
        (format!("{}  ", text::cut(entry.label(), 40)), theme.strong()),
        (state(entry.status()), theme.status(entry.status())),
    ];
    if let Some(told) = &entry.state
        && told.is_active()
    {
        spans.push((format!(" for {}", text::span(model.since(told.since))), theme.dim()));
    }
    if entry.is_public() {
        spans.push(("  PUBLIC".to_owned(), theme.bad()));
    }
    spans
}

/// A fact with its name; a long one goes on below, indented.
fn fact(lines: &mut Vec<Spans>, theme: Theme, width: usize, name: &str, value: &str) {
    for (number, part) in text::wrap(value, width.saturating_sub(NAMES)).into_iter().enumerate() {
        let name = if number == 0 { name } else { "" };
        lines.push(vec![(text::fit(name, NAMES), theme.dim()), (part, theme.text())]);
    }
}

fn problem(lines: &mut Vec<Spans>, theme: Theme, width: usize, problem: &Problem, needs_user: bool) {
    let style = if needs_user { theme.bad() } else { theme.busy() };
    lines.extend(text::wrap(&problem.message, width).into_iter().map(|part| vec![(part, style)]));
    for (number, part) in text::wrap(&problem.remedy, width.saturating_sub(2)).into_iter().enumerate() {
        let sign = if number == 0 { "→ " } else { "  " };
        lines.push(vec![(sign.to_owned(), theme.accent()), (part, theme.text())]);
    }
}

/// That it is open to the internet; what stands in its way, and what to do about it.
fn trouble(model: &Model, theme: Theme, entry: &Entry, width: usize) -> Vec<Spans> {
    let mut lines = Vec::new();
    if let Some(exposed) = entry.exposed().filter(|exposed| exposed.public) {
        lines.push(vec![(exposed.reach().to_owned(), theme.bad())]);
    }
    if let (Some(state), Some(found)) =
        (entry.state.as_ref().filter(|state| state.is_active()), entry.problem())
    {
        let needs_user = matches!(state.status, Status::NeedsUser { .. });
        problem(&mut lines, theme, width, found, needs_user);
        if let Status::Recovering { attempt, .. } = &state.status {
            let next = match entry.retry_at().filter(|at| *at > model.now.wall) {
                Some(at) => format!("attempt {attempt} failed; the next in {}", text::span(model.until(at))),
                None => format!("attempt {attempt} failed; the next is under way"),
            };
            lines.push(vec![(next, theme.dim())]);
        }
    }
    lines
}

fn facts(model: &Model, theme: Theme, entry: &Entry, width: usize) -> Vec<Spans> {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: &str| fact(&mut lines, theme, width, name, value);
    add("Target", entry.target());
    add("Where", &place(entry));
    if let Some(why) = entry.summary().and_then(|summary| summary.unsupported.as_deref()) {
        add("Note", why);
    }
    match entry.state.as_ref().filter(|state| state.is_active()) {
        Some(state) => running(model, state, entry, &mut add),
        None => {
            add("Local", &entry.address());
            if let Some(ended) = entry.state.as_ref().and_then(|state| state.ended.as_ref()) {
                add("Ended", &format!("{} ago: {}", text::span(model.since(ended.at)), ended_by(ended.by)));
            }
        }
    }
    if let Some(summary) = entry.summary() {
        if let Some(group) = &summary.group {
            add("Group", group);
        }
        if !summary.tags.is_empty() {
            add("Tags", &tags_text(&summary.tags));
        }
        if let Some(kubeconfig) = &summary.kubeconfig {
            add("Kubeconfig", kubeconfig);
        }
    }
    let cured =
        |state: &&std::sync::Arc<ForwardState>| !state.is_active() || state.status.problem().is_none();
    if let Some(last) = entry.state.as_ref().filter(cured).and_then(|state| state.last_problem.as_ref()) {
        add("Last problem", &last.message);
    }
    lines
}

/// `prod-eu / shop`.
fn place(entry: &Entry) -> String {
    let Some(summary) = entry.summary() else { return "written down nowhere".to_owned() };
    let context = summary.context.as_deref().unwrap_or("current context");
    let namespace = summary.namespace.as_deref().unwrap_or("its namespace");
    let udp = if summary.protocol == "udp" { ", UDP" } else { "" };
    format!("{context} / {namespace}{udp}")
}

fn running(model: &Model, state: &ForwardState, entry: &Entry, add: &mut impl FnMut(&str, &str)) {
    let addresses = state.addresses.join(" ");
    let name = if state.exposed.is_some() { "Reached at" } else { "Local" };
    add(name, if addresses.is_empty() { "not open yet" } else { &addresses });
    if let Some(exposed) = state.exposed.as_ref().filter(|exposed| !exposed.public) {
        add("Reach", exposed.reach());
    }
    if let Some(via) = &state.ready_via {
        // The namespace is the target's.
        add("By way of", via.pod.split_once('/').map_or(via.pod.as_str(), |(_, pod)| pod));
        let rtt =
            if via.rtt_us > 0 { format!(", round trip {}", text::micros(via.rtt_us)) } else { String::new() };
        add("Transport", &format!("{}{rtt}", via.transport));
    }
    let counters = &state.counters;
    let failed = if counters.failed > 0 { format!(", {} failed", counters.failed) } else { String::new() };
    add("Connections", &format!("{} open, {} in all{failed}", counters.open, counters.connections));
    if counters.datagrams_dropped > 0 {
        add("Dropped", &format!("{} datagrams", counters.datagrams_dropped));
    }
    if counters.flows_refused > 0 {
        add("Refused", &format!("{} peers: there were too many", counters.flows_refused));
    }
    add("Traffic", &format!("↑ {}  ↓ {}", text::bytes(counters.bytes_up), text::bytes(counters.bytes_down)));
    if let Some((bars, number)) = rate(entry, SAMPLES) {
        add("Now", &format!("{} {number}", bars.trim_start()));
    }
    if counters.open_p50_us > 0 {
        let told = format!(
            "{} median, {} p99",
            text::micros(counters.open_p50_us),
            text::micros(counters.open_p99_us)
        );
        add("Opening", &told);
    }
    if let Some(at) = state.idle_limit_at {
        add("Idle limit", &format!("ends in {} without traffic", text::span(model.until(at))));
    }
    if let Some(at) = state.expires_at {
        add("Time to live", &format!("ends in {}", text::span(model.until(at))));
    }
    match state.origin {
        Origin::Config { lease: None } | Origin::AdHoc { lease: None } => {}
        Origin::Config { lease: Some(_) } | Origin::AdHoc { lease: Some(_) } => {
            add("Lease", "ends with the program that started it");
        }
    }
    for note in &state.notes {
        add("Note", note);
    }
}

fn ended_by(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Request => "somebody stopped it",
        EndedBy::Ttl => "its time to live was over",
        EndedBy::Idle => "there was no traffic for its idle limit",
        EndedBy::Lease => "the program that started it went away",
        EndedBy::Removed => "it was deleted",
        EndedBy::Other => "a cause that this version does not know",
    }
}

/// Pods or callers, and history.
fn aside(model: &Model, theme: Theme, entry: &Entry, width: usize) -> Vec<Spans> {
    let mut lines = Vec::new();
    if let Some(state) = entry.state.as_ref().filter(|state| state.is_active()) {
        pods(state, theme, width, &mut lines);
        callers(model, state, width, &mut lines);
    }
    let Some((id, _, Some(history))) = &model.history else { return lines };
    if *id != entry.id || history.entries.is_empty() {
        return lines;
    }
    if !lines.is_empty() {
        lines.push(Spans::new());
    }
    lines.push(vec![("History".to_owned(), theme.dim())]);
    for happened in &history.entries {
        let style = match happened.kind {
            HistoryKind::Ready => theme.good(),
            HistoryKind::Recovering | HistoryKind::ConnectionFailed => theme.busy(),
            HistoryKind::NeedsUser => theme.bad(),
            HistoryKind::Started | HistoryKind::Ended | HistoryKind::Edited | HistoryKind::Other => {
                theme.dim()
            }
        };
        let clock = clock(model, happened.at);
        let indent = text::width(&clock) + 3;
        for (number, part) in
            text::wrap(&happened.message, width.saturating_sub(indent)).into_iter().enumerate()
        {
            lines.push(if number == 0 {
                vec![(format!("{clock} "), theme.dim()), ("• ".to_owned(), style), (part, theme.text())]
            } else {
                vec![(" ".repeat(indent), theme.text()), (part, theme.text())]
            });
        }
    }
    lines
}

/// Who called an expose, newest first.
fn callers(model: &Model, state: &ForwardState, width: usize, lines: &mut Vec<Spans>) {
    let theme = model.theme();
    let Some(calls) = state.exposed.as_ref().map(|exposed| &exposed.calls) else { return };
    let told = match calls.total {
        0 => "Callers  none yet".to_owned(),
        total => format!("Callers  {} in all", count(usize::try_from(total).unwrap_or(usize::MAX), "call")),
    };
    lines.push(vec![(told, theme.dim())]);
    for call in &calls.last {
        let clock = clock(model, call.at);
        let (sign, style) = match (&call.problem, call.status) {
            (Some(_), _) => ("▲ ", theme.bad()),
            (None, Some(400..)) => ("• ", theme.busy()),
            (None, _) => ("• ", theme.good()),
        };
        let room = width.saturating_sub(text::width(&clock) + 3);
        let told = text::clean(&told_call(call)).into_owned();
        lines.push(vec![
            (format!("{clock} "), theme.dim()),
            (sign.to_owned(), style),
            (text::cut(&told, room).into_owned(), theme.text()),
        ]);
    }
}

/// `GET /hook 200 3 ms from 203.0.113.7`.
fn told_call(call: &Call) -> String {
    let answer = call.status.map(|status| format!(" {status}")).unwrap_or_default();
    match (&call.request, &call.problem) {
        (None, Some(problem)) => problem.message.clone(),
        (request, _) => {
            let request = request.as_deref().unwrap_or("connection");
            format!("{request}{answer} {} from {}", text::micros(call.took_us), call.caller)
        }
    }
}

fn pods(state: &ForwardState, theme: Theme, width: usize, lines: &mut Vec<Spans>) {
    if state.endpoints.is_empty() {
        return;
    }
    let ready = state.endpoints.iter().filter(|pod| pod.condition == PodCondition::Ready).count();
    lines.push(vec![(format!("Pods  {ready} of {} ready", state.endpoints.len()), theme.dim())]);
    for pod in state.endpoints.iter().take(PODS) {
        let (sign, word, style) = match pod.condition {
            PodCondition::Ready => ("●", "", theme.good()),
            PodCondition::Draining => ("◐", "  draining", theme.busy()),
            PodCondition::NotReady => ("○", "  not ready", theme.busy()),
            PodCondition::Unknown => ("○", "  unknown", theme.dim()),
        };
        let node = pod.node.as_ref().map(|node| format!("  {node}")).unwrap_or_default();
        let name = format!("{}:{}", pod.pod, pod.port);
        let room = width.saturating_sub(2 + text::width(word));
        let name = text::cut(&name, room).into_owned();
        // A node is worth nothing in half.
        let node = if text::width(&name) + text::width(&node) <= room { node } else { String::new() };
        lines.push(vec![
            (format!("{sign} "), style),
            (name, theme.text()),
            (word.to_owned(), style),
            (node, theme.dim()),
        ]);
    }
    if state.endpoints.len() > PODS {
        lines.push(vec![(format!("  and {} more", state.endpoints.len() - PODS), theme.dim())]);
    }
}

/// The time of day; with the date where it is not today.
fn clock(model: &Model, at: Millis) -> String {
    let stamp = |millis: Millis| {
        let millis = i64::try_from(millis).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(model.zone.clone())
    };
    let then = stamp(at);
    let today = model.since(at) < Duration::from_secs(86_400) && then.date() == stamp(model.now.wall).date();
    then.strftime(if today { "%H:%M:%S" } else { "%d.%m. %H:%M" }).to_string()
}
