//! The list of forwards.

use ratatui::layout::Rect;
use ratatui::style::Style;

use kftray_commons::Status;
use kftray_commons::api::EndedBy;

use super::super::data::Entry;
use super::super::keys::Action;
use super::super::list::{Group, Row};
use super::super::message::Target;
use super::super::model::{Host, Mode, Model};
use super::super::text::{self, fit};
use super::super::theme;
use super::canvas::{Canvas, Spans};
use super::{key_of, rate, tick};

/// Blank columns between two columns of text.
const GAP: usize = 2;

/// Width from which the target has a column of its own.
const WITH_TARGET: usize = 96;

/// Columns of a sparkline in the list.
const BARS: usize = 8;

/// Widths of the columns.
#[derive(Debug, Clone, Copy)]
struct Columns {
    label: usize,
    target: usize,
    address: usize,
    rest: usize,
}

/// Tick and sign, each with a blank behind, after one column of margin.
const BEFORE: usize = 5;

impl Columns {
    fn of(model: &Model, width: usize) -> Self {
        let widths = model.list.widths;
        let address = widths.address.clamp(12, 21);
        let mut label = widths.label.clamp(12, if width >= WITH_TARGET { 28 } else { 18 });
        let target = if width >= WITH_TARGET { widths.target.clamp(12, 26) } else { 0 };
        let fixed =
            BEFORE + GAP + address + GAP + theme::WORD + GAP + 1 + if target > 0 { target + GAP } else { 0 };
        // At least the rate fits behind the state.
        label = label.min(width.saturating_sub(fixed + 19)).max(8);
        Self { label, target, address, rest: width.saturating_sub(fixed + label) }
    }

    fn state_at(self) -> usize {
        let target = if self.target > 0 { self.target + GAP } else { 0 };
        BEFORE + self.label + GAP + target + self.address + GAP
    }
}

pub(super) fn draw(model: &Model, canvas: &mut Canvas<'_>) {
    let areas = model.areas();
    if model.data.is_empty() {
        nothing_yet(model, canvas, areas.list);
        return;
    }
    let columns = Columns::of(model, usize::from(areas.list.width));
    head(model, canvas, areas.head, columns);
    if model.list.rows.is_empty() {
        let text = format!(
            "Nothing is found. {} clears the search, {} chooses what is shown.",
            key_of(Action::Back),
            key_of(Action::Arrange)
        );
        canvas.put(
            3,
            areas.list.y + 1,
            usize::from(areas.list.width.saturating_sub(4)),
            &text,
            canvas.theme.dim(),
        );
        return;
    }
    let rows = model.list.rows.iter().enumerate().skip(model.list.top);
    for (y, (number, row)) in (areas.list.y..areas.list.bottom()).zip(rows) {
        let line = Rect { y, height: 1, ..areas.list };
        canvas.hit(line, Target::Row(number));
        if number == model.list.cursor {
            let has_keys = matches!(model.mode(), Mode::List | Mode::Search);
            let style = if has_keys { canvas.theme.cursor() } else { canvas.theme.cursor_aside() };
            canvas.tint(line, style);
        }
        match row {
            Row::Group(group) => {
                if let Some(group) = model.list.groups.get(*group) {
                    draw_group(model, canvas, line, group, columns);
                }
            }
            Row::Forward(id) => {
                if let Some(entry) = model.data.get(*id) {
                    canvas.hit(Rect { width: 3, ..line }, Target::Tick(number));
                    draw_forward(model, canvas, line, entry, columns, number == model.list.cursor);
                }
            }
        }
    }
}

/// Headings; or the search, what is filtered, or that the host is away.
fn head(model: &Model, canvas: &mut Canvas<'_>, line: Rect, columns: Columns) {
    let theme = canvas.theme;
    canvas.hit(line, Target::Search);
    if let Host::Away(problem) = &model.host {
        let text = format!(" ▲ {}; it is looked for, what is shown is old", problem.message);
        canvas.put(line.x, line.y, usize::from(line.width), &text, theme.bad());
        return;
    }
    let searching = matches!(model.mode(), Mode::Search);
    let filtered = model.list.arrangement.words();
    if searching || !model.list.search.is_empty() || filtered.is_some() {
        let shown = format!("{} of {}", model.list.shown().len(), model.list.totals.all());
        let only = filtered.map(|words| format!("only {words}   ")).unwrap_or_default();
        let aside = format!("{only}{shown} ");
        let wide = text::width(&aside).min(usize::from(line.width) * 2 / 3);
        canvas.put_right(line, &text::cut(&aside, wide), theme.dim());
        if searching || !model.list.search.is_empty() {
            canvas.put(line.x + 1, line.y, 2, "/", theme.accent().patch(theme.strong()));
            let room = line.width.saturating_sub(u16::try_from(wide).unwrap_or(0) + 5);
            canvas.input(
                Rect { x: line.x + 3, width: room, ..line },
                &model.list.search,
                searching,
                theme.text(),
            );
            return;
        }
    }
    let mut spans: Spans = vec![(" ".repeat(BEFORE), theme.dim())];
    spans.push((fit("Forward", columns.label + GAP), theme.dim()));
    if columns.target > 0 {
        spans.push((fit("Target", columns.target + GAP), theme.dim()));
    }
    spans.push((fit("Local address", columns.address + GAP), theme.dim()));
    spans.push((fit("State", theme::WORD + GAP), theme.dim()));
    if model.list.arrangement.words().is_none() {
        spans.push((fit("Traffic", columns.rest), theme.dim()));
    }
    canvas.spans(line, &spans);
}

fn draw_group(model: &Model, canvas: &mut Canvas<'_>, line: Rect, group: &Group, columns: Columns) {
    let theme = canvas.theme;
    let ticked = !group.members.is_empty() && group.members.iter().all(|id| model.list.ticks.contains(id));
    let sign = if group.folded { "▸" } else { "▾" };
    canvas.put(line.x + 1, line.y, 1, tick(ticked), theme.accent());
    canvas.put(line.x + 3, line.y, 1, sign, theme.accent());
    let at = columns.state_at();
    let room = at.saturating_sub(BEFORE + 1);
    canvas.put(line.x + BEFORE as u16, line.y, room, &group.title, theme.strong());
    let totals = group.totals;
    let mut spans: Spans = vec![(format!("{} of {} ready", totals.ready, totals.all()), theme.dim())];
    if totals.needs_user > 0 {
        let word = if totals.needs_user == 1 { "needs you" } else { "need you" };
        spans.push((format!("   ▲ {} {word}", totals.needs_user), theme.bad()));
    }
    if totals.busy > 0 {
        spans.push((format!("   ◐ {}", totals.busy), theme.busy()));
    }
    let x = line.x + u16::try_from(at).unwrap_or(0);
    canvas.spans(Rect { x, width: line.right().saturating_sub(x), ..line }, &spans);
}

fn draw_forward(
    model: &Model,
    canvas: &mut Canvas<'_>,
    line: Rect,
    entry: &Entry,
    columns: Columns,
    under_cursor: bool,
) {
    let theme = canvas.theme;
    let status = entry.status();
    let style = theme.status(status);
    let quiet = if entry.is_active() { theme.text() } else { theme.dim() };
    let name = if under_cursor { quiet.patch(theme.strong()) } else { quiet };
    let gap = " ".repeat(GAP);
    let mut spans: Spans = vec![
        (" ".to_owned(), theme.text()),
        (format!("{} ", tick(model.list.ticks.contains(&entry.id))), theme.accent()),
        (format!("{} ", theme::sign(status)), style),
        (format!("{}{gap}", fit(entry.label(), columns.label)), name),
    ];
    if columns.target > 0 {
        spans.push((format!("{}{gap}", fit(entry.target(), columns.target)), theme.dim()));
    }
    spans.push((format!("{}{gap}", fit(&entry.address(), columns.address)), quiet));
    spans.push((format!("{}{gap}", fit(theme::word(status), theme::WORD)), style));
    if entry.is_active() && entry.is_public() {
        spans.push(("PUBLIC  ".to_owned(), theme.bad()));
    }
    spans.extend(rest(model, canvas, entry, columns.rest));
    canvas.spans(line, &spans);
}

/// What is worth knowing beside the state: the reason where it is not ready, else what flows.
fn rest(model: &Model, canvas: &Canvas<'_>, entry: &Entry, width: usize) -> Spans {
    let theme = canvas.theme;
    if let (Some(problem), true) = (entry.problem(), entry.is_active()) {
        let needs_user = matches!(entry.status(), Status::NeedsUser { .. });
        let style: Style = if needs_user { theme.text() } else { theme.dim() };
        let next = entry.retry_at().filter(|at| *at > model.now.wall);
        let wait = next.map(|at| format!("{}  ", text::span(model.until(at)))).unwrap_or_default();
        return vec![(wait, theme.busy()), (text::clean(&problem.message).into_owned(), style)];
    }
    if let Some(ended) = entry.state.as_ref().and_then(|state| state.ended.as_ref()) {
        let why = match ended.by {
            EndedBy::Ttl => "its time to live was over",
            EndedBy::Idle => "no traffic for its idle limit",
            EndedBy::Lease => "its client went away",
            EndedBy::Request | EndedBy::Removed | EndedBy::Other => "",
        };
        return vec![(why.to_owned(), theme.dim())];
    }
    let mut spans = Spans::new();
    if let Some((bars, number)) = rate(entry, BARS) {
        spans.push((bars, theme.accent()));
        spans.push((text::fit_right(&number, 11), theme.text()));
    }
    let open = entry.counters().open;
    if open > 0 {
        let told = format!("{open} open");
        // In a column of its own, with or without traffic.
        let gap = if spans.is_empty() { BARS + 11 } else { 0 } + GAP;
        if width >= gap + text::width(&told) {
            spans.push((" ".repeat(gap), theme.text()));
            spans.push((told, theme.dim()));
        }
    }
    spans
}

/// The first thing a newcomer sees: what to do.
fn nothing_yet(model: &Model, canvas: &mut Canvas<'_>, area: Rect) {
    let theme = canvas.theme;
    let x = area.x + 3;
    let width = usize::from(area.width.saturating_sub(6));
    let mut y = area.y + 1;
    let mut say = |canvas: &mut Canvas<'_>, spans: Spans| {
        canvas.spans(Rect::new(x, y, u16::try_from(width).unwrap_or(0), 1), &spans);
        y += 1;
    };
    match &model.host {
        Host::Away(problem) if !model.heard => {
            say(canvas, vec![("The host cannot be reached.".to_owned(), theme.bad())]);
            for line in text::wrap(&problem.message, width) {
                say(canvas, vec![(line, theme.text())]);
            }
            for line in text::wrap(&problem.remedy, width) {
                say(canvas, vec![(line, theme.dim())]);
            }
            return;
        }
        Host::Connecting if !model.heard => {
            say(
                canvas,
                vec![(
                    "Looking for the host that holds the forwards, or starting it...".to_owned(),
                    theme.dim(),
                )],
            );
            return;
        }
        Host::Away(_) | Host::Connecting | Host::Connected(_) => {}
    }
    say(canvas, vec![("No forwards yet.".to_owned(), theme.strong())]);
    say(canvas, Spans::new());
    let ways = [
        ("Enter".to_owned(), "browse a cluster and pick a Service: it runs at once"),
        (key_of(Action::New), "fill in a form"),
        (key_of(Action::Import), "import a file, or paste its JSON here"),
        (key_of(Action::Help), "all keys"),
    ];
    for (key, what) in ways {
        let key = format!("{}  ", text::fit_right(&key, 7));
        say(canvas, vec![(key, theme.accent().patch(theme.strong())), (what.to_owned(), theme.text())]);
    }
    say(canvas, Spans::new());
    for line in text::wrap(
        "A forward stays up through pod restarts, rollouts, sleep and network changes. Closing this window stops nothing.",
        width,
    ) {
        say(canvas, vec![(line, theme.dim())]);
    }
}
