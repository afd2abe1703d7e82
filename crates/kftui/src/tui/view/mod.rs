//! The model on the screen. Pure: the same model and size give the same cells, and what of them can be clicked.

mod canvas;
mod details;
mod form;
mod list;
mod picker;
mod windows;

use ratatui::Frame;
use ratatui::layout::Rect;

pub(super) use canvas::Hits;
use canvas::{Canvas, Spans};

use super::keys::Action;
use super::message::Target;
use super::model::{Host, Mode, Model, NoticeKind, SMALLEST};
use super::{text, theme};

/// Lines that the details of the forward under the cursor have.
pub(super) fn details_height(model: &Model) -> usize {
    details::lines(model, usize::from(model.size.0.saturating_sub(4))).len()
}

/// Lines that the help has.
pub(super) fn help_height(_model: &Model) -> usize {
    windows::help_lines().len()
}

/// Draws everything and answers what can be clicked.
pub(super) fn view(model: &Model, frame: &mut Frame<'_>) -> Hits {
    let mut canvas =
        Canvas { theme: model.theme(), hits: Hits::default(), caret: None, buffer: frame.buffer_mut() };
    draw(model, &mut canvas);
    let Canvas { hits, caret, .. } = canvas;
    if let Some(caret) = caret {
        frame.set_cursor_position(caret);
    }
    hits
}

fn draw(model: &Model, canvas: &mut Canvas<'_>) {
    let (width, height) = (canvas.area().width, canvas.area().height);
    if width < SMALLEST.0 || height < SMALLEST.1 {
        let (wide, high) = SMALLEST;
        canvas.put(0, 0, usize::from(width), &format!("kftray needs {wide}x{high}"), canvas.theme.text());
        return;
    }
    title(model, canvas);
    list::draw(model, canvas);
    let Some(areas_details) = model.areas().details else {
        front(model, canvas);
        return;
    };
    details::pane(model, canvas, areas_details);
    front(model, canvas);
}

/// What is in front of the list, and the legend of what has the keys.
fn front(model: &Model, canvas: &mut Canvas<'_>) {
    for mode in model.modes() {
        let has_keys = std::ptr::eq(mode, model.mode());
        match mode {
            Mode::List | Mode::Search => {}
            Mode::Details(top) => details::full(model, canvas, *top),
            Mode::Picker(picker) => picker::draw(picker, canvas, has_keys),
            Mode::Form(form) => form::draw(form, canvas, has_keys),
            Mode::Prompt(prompt) => windows::prompt(prompt, canvas, has_keys),
            Mode::Report(report) => windows::report(report, canvas),
            Mode::Arrange(arranging) => windows::arrange(model, arranging, canvas),
            Mode::Settings(pane) => windows::settings(model, *pane, canvas),
            Mode::Palette(palette) => windows::palette(model, palette, canvas, has_keys),
            Mode::Ask(ask) => windows::ask(ask, canvas),
            Mode::Help(top) => windows::help(canvas, *top),
        }
    }
    legend(model, canvas, model.areas().legend);
}

/// Name, counts, host.
fn title(model: &Model, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let line = model.areas().title;
    let mut spans: Spans = vec![(" kftray  ".to_owned(), theme.accent().patch(theme.strong()))];
    let totals = model.list.totals;
    let counts = [
        (totals.ready, "●", "ready", theme.good()),
        (totals.busy, "◐", "not ready", theme.busy()),
        (totals.needs_user, "▲", if totals.needs_user == 1 { "needs you" } else { "need you" }, theme.bad()),
        (totals.stopped, "○", "stopped", theme.dim()),
    ];
    for (number, sign, word, style) in counts {
        if number > 0 {
            spans.push((format!(" {sign} {number} {word} "), style));
        }
    }
    let used = canvas.spans(line, &spans);
    let (host, style) = match &model.host {
        Host::Connecting => ("looking for the host".to_owned(), theme.busy()),
        Host::Away(_) => ("the host is away".to_owned(), theme.bad()),
        Host::Connected(_) if model.is_embedded() => {
            ("forwards end with this window".to_owned(), theme.busy())
        }
        Host::Connected(hello) => (format!("host {}", hello.version), theme.dim()),
    };
    let room = line.width.saturating_sub(used + 2);
    if usize::from(room) >= text::width(&host) {
        canvas.put_right(Rect { width: line.width - 1, ..line }, &host, style);
    }
}

/// The last line: what just happened, else the keys of what is in front.
fn legend(model: &Model, canvas: &mut Canvas<'_>, line: Rect) {
    let theme = canvas.theme;
    canvas.put(line.x, line.y, usize::from(line.width), &" ".repeat(usize::from(line.width)), theme.text());
    if let Some(notice) = &model.notice {
        let (sign, style) = match notice.kind {
            NoticeKind::Done => ("✓", theme.good()),
            NoticeKind::Failed => ("▲", theme.bad()),
        };
        canvas.put(1, line.y, 2, sign, style);
        canvas.put(3, line.y, usize::from(line.width.saturating_sub(4)), &notice.text, theme.text());
        return;
    }
    let mut x = 1;
    for (key, word, action) in model.legend() {
        let wide = u16::try_from(text::width(&key) + 1 + text::width(word)).unwrap_or(line.width);
        if x + wide + 1 > line.width {
            break;
        }
        let area = Rect { x, width: wide, ..line };
        let used = canvas.put(x, line.y, usize::from(wide), &key, theme.accent().patch(theme.strong()));
        canvas.put(x + used + 1, line.y, usize::from(wide), word, theme.dim());
        canvas.hit(area, Target::Legend(action));
        x += wide + 2;
    }
    // Ticks are out of sight as soon as one scrolls.
    if matches!(model.mode(), Mode::List) && !model.list.ticks.is_empty() {
        let told = format!("{} ticked ", model.list.ticks.len());
        let room = usize::from(line.width.saturating_sub(x));
        if room > text::width(&told) {
            canvas.put_right(line, &told, theme.accent());
        }
    }
}

/// The sign of a tick.
fn tick(ticked: bool) -> &'static str {
    if ticked { "✓" } else { " " }
}

/// A rate as bars and a number.
fn rate(entry: &super::data::Entry, bars: usize) -> Option<(String, String)> {
    let shown = entry.rate.bars(bars);
    (!shown.is_empty())
        .then(|| (text::fit_right(&shown, bars), format!("{}/s", text::bytes(entry.rate.now()))))
}

/// A state as people read it: sign and word.
fn state(status: &kftray_commons::Status) -> String {
    format!("{} {}", theme::sign(status), theme::word(status))
}

/// Keys by which something can be reached, for texts that name them.
fn key_of(action: Action) -> String {
    let mut bindings = super::keys::Scope::List.bindings();
    bindings.find(|binding| binding.action == action).map(super::keys::Binding::key).unwrap_or_default()
}
