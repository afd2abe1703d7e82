//! The form: a field a line, faults beside them, what the field is for at the bottom.

use ratatui::layout::Rect;

use super::super::form::{Field, Form, Input};
use super::super::text;
use super::canvas::{Canvas, line_of};

/// Columns of the titles.
const TITLES: u16 = 16;

/// Columns of what is entered, where a fault is told beside it.
const VALUES: u16 = 26;

/// Lines below the fields: a rule, and three of explanation.
const FOOT: u16 = 4;

pub(super) fn draw(form: &Form, canvas: &mut Canvas<'_>, has_keys: bool) {
    let theme = canvas.theme;
    let fields = form.visible();
    let high = u16::try_from(fields.len()).unwrap_or(u16::MAX).saturating_add(FOOT + 2);
    let title = if form.is_new() { "New forward" } else { "Change forward" };
    let inner = canvas.large_window(title, 92, high);
    let list =
        Rect { height: inner.height.saturating_sub(FOOT), width: inner.width.saturating_sub(1), ..inner };
    for (line, number, focused) in canvas.rows(list, fields.len(), form.focus) {
        if let Some(field) = fields.get(number) {
            draw_field(form, canvas, line, field, focused && has_keys);
        }
    }
    let foot = Rect { y: list.bottom(), height: FOOT.min(inner.height), ..inner };
    canvas.rule(line_of(foot, 0), &[]);
    let text = Rect { y: foot.y + 1, height: foot.height.saturating_sub(1), ..foot };
    let width = usize::from(text.width);
    let fault = form.focused().and_then(|field| form.fault(field));
    let (said, style) = match (&form.refusal, fault, form.focused()) {
        _ if form.busy => ("Saving...".to_owned(), theme.dim()),
        (Some(refusal), _, _) => (refusal.clone(), theme.bad()),
        (None, Some(fault), _) => (format!("It {}. {}", says(&fault.message), fault.remedy), theme.text()),
        (None, None, Some(field)) => (field.hint.to_owned(), theme.dim()),
        (None, None, None) => return,
    };
    for (number, line) in text::wrap(&said, width).into_iter().enumerate() {
        let place = line_of(text, u16::try_from(number).unwrap_or(u16::MAX));
        canvas.put(place.x, place.y, usize::from(place.width), &line, style);
    }
}

/// A message about a field as the end of a sentence that begins with "It".
fn says(message: &str) -> String {
    let verb = ["is ", "has ", "cannot "].iter().any(|verb| message.starts_with(verb));
    if verb { message.to_owned() } else { format!("does not fit: {message}") }
}

fn draw_field(form: &Form, canvas: &mut Canvas<'_>, line: Rect, field: &Field, focused: bool) {
    let theme = canvas.theme;
    if focused {
        canvas.tint(line, theme.cursor());
    }
    let fault = form.fault(field);
    let sign = if fault.is_some() { "▲" } else { " " };
    canvas.put(line.x, line.y, 1, sign, theme.bad());
    let title = if focused { theme.accent().patch(theme.strong()) } else { theme.dim() };
    canvas.put(line.x + 2, line.y, usize::from(TITLES), field.title, title);
    let value = Rect { x: line.x + TITLES + 2, width: line.width.saturating_sub(TITLES + 2), ..line };
    // While one types, the whole line is for what is typed.
    let narrow = if fault.is_some() && !focused { VALUES.min(value.width) } else { value.width };
    let value = Rect { width: narrow, ..value };
    match &field.input {
        Input::Text(editor) => canvas.input(value, editor, focused, theme.text()),
        Input::Choice { options, chosen } => {
            let word = options.get(*chosen).copied().unwrap_or("");
            let shown = if focused { format!("‹ {word} ›") } else { word.to_owned() };
            canvas.put(value.x, value.y, usize::from(value.width), &shown, theme.text());
        }
        Input::Flag(flag) => {
            let word = if *flag { "yes" } else { "no" };
            let shown = if focused { format!("‹ {word} ›") } else { word.to_owned() };
            canvas.put(value.x, value.y, usize::from(value.width), &shown, theme.text());
        }
    }
    if let (Some(fault), false) = (fault, focused) {
        let x = value.right() + 2;
        let room = usize::from(line.right().saturating_sub(x));
        canvas.put(x, line.y, room, &fault.message, theme.bad());
    }
}
