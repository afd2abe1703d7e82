//! Browsing a cluster.

use ratatui::layout::Rect;

use super::super::picker::{Objects, Picker, Step};
use super::super::text;
use super::canvas::{Canvas, Spans, line_of};
use super::tick;

/// Lines of a problem at the bottom.
const PROBLEM: u16 = 4;

pub(super) fn draw(picker: &Picker, canvas: &mut Canvas<'_>, has_keys: bool) {
    let theme = canvas.theme;
    let inner = canvas.large_window("Browse a cluster", 96, 30);
    let mut spans: Spans = Vec::new();
    for part in picker.path() {
        spans.push((text::cut(part, 30).into_owned(), theme.text()));
        spans.push((" › ".to_owned(), theme.dim()));
    }
    let what = match (picker.step, picker.objects) {
        (Step::Context, _) => "contexts",
        (Step::Namespace, _) => "namespaces",
        (Step::Object, Objects::Services) => "Services",
        (Step::Object, Objects::Workloads) => "workloads",
        (Step::Port, _) => "ports",
    };
    spans.push((what.to_owned(), theme.strong()));
    canvas.spans(line_of(inner, 0), &spans);
    let filter = line_of(inner, 1);
    canvas.put(filter.x, filter.y, 2, "/", theme.dim());
    let typed = Rect { x: filter.x + 2, width: filter.width.saturating_sub(2), ..filter };
    canvas.input(typed, &picker.filter, has_keys && !picker.busy, theme.text());
    if picker.filter.is_empty() {
        // Behind the caret.
        canvas.put(typed.x + 1, typed.y, usize::from(typed.width), " type to filter", theme.dim());
    }
    let problem = picker.problem();
    let below = if problem.is_some() { PROBLEM } else { 0 };
    let list = Rect {
        y: inner.y + 3,
        height: inner.height.saturating_sub(3 + below),
        width: inner.width.saturating_sub(1),
        ..inner
    };
    let items = picker.items();
    if items.is_empty() {
        let told = match (picker.busy, picker.is_waiting(), problem.is_some(), picker.filter.is_empty()) {
            (true, ..) => "adding...",
            (_, true, ..) => "asking the cluster...",
            (_, _, true, _) => "",
            (_, _, _, false) => "nothing like that",
            (_, _, _, true) => "there is none",
        };
        canvas.put(list.x, list.y, usize::from(list.width), told, theme.dim());
    }
    let widest =
        items.iter().map(|item| text::width(&item.text)).max().unwrap_or(0).min(usize::from(list.width) / 2);
    for (line, number, focused) in canvas.rows(list, items.len(), picker.cursor) {
        let Some(item) = items.get(number) else { continue };
        if focused {
            canvas.tint(line, theme.cursor());
        }
        let ticks = matches!(picker.step, Step::Object | Step::Port);
        let mark = if ticks { tick(picker.ticks.contains(&item.key)) } else { " " };
        // Seen without colours, too.
        let at = if focused { "›" } else { " " };
        let name = if focused { theme.accent().patch(theme.strong()) } else { theme.text() };
        canvas.spans(
            line,
            &[
                (format!("{at}{mark} "), theme.accent()),
                (format!("{}  ", text::fit(&item.text, widest)), name),
                (item.aside.clone(), theme.dim()),
            ],
        );
    }
    if let Some((message, remedy)) = problem {
        let area = Rect { y: inner.bottom().saturating_sub(PROBLEM), height: PROBLEM, ..inner };
        let width = usize::from(area.width);
        let message = text::wrap(&message, width).into_iter().map(|line| (line, theme.busy()));
        let remedy = text::wrap(&remedy, width).into_iter().map(|line| (line, theme.text()));
        for (number, (line, style)) in message.chain(remedy).enumerate() {
            let place = line_of(area, u16::try_from(number).unwrap_or(u16::MAX));
            canvas.put(place.x, place.y, usize::from(place.width), &line, style);
        }
    }
}
