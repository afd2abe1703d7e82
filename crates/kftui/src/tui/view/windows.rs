//! The small windows.

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::arrange::Choice;
use super::super::dialogs::{Arranging, Ask, Palette, PathLine, Prompt, Report, SUGGESTIONS, TagLines, Tone};
use super::super::keys::Scope;
use super::super::message::Target;
use super::super::model::Model;
use super::super::settings::{Setting, SettingLine, SettingsPane};
use super::super::text;
use super::super::theme::Theme;
use super::canvas::{Canvas, Spans, line_of};

/// Columns of the keys in the help.
const KEYS: usize = 16;

fn rows(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

pub(super) fn ask(ask: &Ask, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let width = canvas.area().width.saturating_sub(4).min(64);
    let lines: Vec<String> =
        ask.lines.iter().flat_map(|line| text::wrap(line, usize::from(width.saturating_sub(4)))).collect();
    let inner = canvas.window(&ask.title, width, rows(lines.len()).saturating_add(4));
    for (number, line) in lines.iter().enumerate() {
        let place = line_of(inner, rows(number));
        canvas.put(place.x, place.y, usize::from(place.width), line, theme.text());
    }
    let bottom = line_of(inner, inner.height.saturating_sub(1));
    let buttons = [("Yes", "y"), ("No", "n")];
    let mut x = bottom.x;
    for (number, (word, key)) in buttons.into_iter().enumerate() {
        let label = format!("{key} {word}");
        let wide = rows(text::width(&label));
        canvas.spans(
            Rect { x, width: wide, ..bottom },
            &[(key.to_owned(), theme.accent().patch(theme.strong())), (format!(" {word}"), theme.text())],
        );
        canvas.hit(Rect { x, width: wide, ..bottom }, Target::Item(number));
        x += wide + 4;
    }
}

pub(super) fn report(report: &Report, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let whole = canvas.area();
    let width = whole.width.saturating_sub(4).min(88);
    let mut lines: Vec<(String, Style)> = Vec::new();
    for (tone, line) in report.lines.iter().skip(report.top) {
        let style = match tone {
            Tone::Plain => theme.text(),
            Tone::Heading => theme.strong(),
            Tone::Dim => theme.dim(),
            Tone::Bad => theme.bad(),
        };
        // What is indented goes on indented.
        let indent = line.len() - line.trim_start().len();
        let room = usize::from(width.saturating_sub(4)).saturating_sub(indent);
        lines.extend(
            text::wrap(line.trim_start(), room)
                .into_iter()
                .map(|part| (format!("{}{part}", " ".repeat(indent)), style)),
        );
    }
    let high = rows(lines.len()).saturating_add(4).min(whole.height.saturating_sub(2));
    let inner = canvas.window(&report.title, width, high);
    let list = Rect { height: inner.height.saturating_sub(2), ..inner };
    for (y, (line, style)) in (list.y..list.bottom()).zip(&lines) {
        canvas.put(list.x, y, usize::from(list.width), line, *style);
    }
    if lines.len() > usize::from(list.height) && list.height > 0 {
        canvas.put(inner.right(), list.bottom() - 1, 1, "↓", theme.dim());
    }
    let strong = theme.accent().patch(theme.strong());
    let end: Spans = match &report.next {
        Some((word, _)) => vec![
            ("Enter".to_owned(), strong),
            (format!(" {word}    "), theme.text()),
            ("Esc".to_owned(), strong),
            (" cancel".to_owned(), theme.text()),
        ],
        None => vec![("Esc".to_owned(), strong), (" close".to_owned(), theme.text())],
    };
    canvas.spans(line_of(inner, inner.height.saturating_sub(1)), &end);
}

pub(super) fn prompt(prompt: &Prompt, canvas: &mut Canvas<'_>, has_keys: bool) {
    match prompt {
        Prompt::Import(line) => {
            let hint = "A JSON file, or a database of the reference (configs.db, kftray.db). What it would change is shown first.";
            path(line, canvas, "Import", hint, has_keys);
        }
        Prompt::Export { line, ids } => {
            let which =
                if ids.is_empty() { "All forwards".to_owned() } else { format!("The {} ticked", ids.len()) };
            path(line, canvas, "Export", &format!("{which}, as JSON."), has_keys);
        }
        Prompt::Tags(lines) => tags(lines, canvas, has_keys),
        Prompt::Setting(line) => setting(line, canvas, has_keys),
    }
}

fn path(line: &PathLine, canvas: &mut Canvas<'_>, title: &str, hint: &str, has_keys: bool) {
    let theme = canvas.theme;
    let width = canvas.area().width.saturating_sub(4).min(80);
    let inner = canvas.window(title, width, rows(SUGGESTIONS) + 8);
    let mut y = 0;
    let hint_lines = text::wrap(hint, usize::from(inner.width));
    for part in &hint_lines {
        let place = line_of(inner, y);
        canvas.put(place.x, place.y, usize::from(place.width), part, theme.dim());
        y += 1;
    }
    let place = line_of(inner, y + 1);
    canvas.put(place.x, place.y, 5, "File", theme.accent());
    let typed = Rect { x: place.x + 6, width: place.width.saturating_sub(6), ..place };
    canvas.input(typed, &line.editor, has_keys && line.cursor == 0, theme.text());
    let fault = line.fault.as_ref().map(|fault| text::wrap(fault, usize::from(inner.width)));
    let list = Rect { y: inner.y + y + 3, height: inner.height.saturating_sub(y + 3), ..inner };
    if let Some(fault) = fault {
        for (number, part) in fault.iter().enumerate() {
            let place = line_of(list, rows(number));
            canvas.put(place.x, place.y, usize::from(place.width), part, theme.bad());
        }
        return;
    }
    if line.busy {
        canvas.put(list.x, list.y, usize::from(list.width), "one moment...", theme.dim());
        return;
    }
    for (number, seen) in line.suggestions().into_iter().enumerate() {
        let place = line_of(list, rows(number));
        let slash = if seen.folder { "/" } else { "" };
        let focused = line.cursor == number + 1;
        if focused {
            canvas.tint(place, theme.cursor());
        }
        let style = if focused { theme.strong() } else { theme.dim() };
        canvas.put(
            place.x + 6,
            place.y,
            usize::from(place.width.saturating_sub(6)),
            &format!("{}{slash}", seen.name),
            style,
        );
        canvas.hit(place, Target::Item(number));
    }
}

fn tags(lines: &TagLines, canvas: &mut Canvas<'_>, has_keys: bool) {
    let theme = canvas.theme;
    let width = canvas.area().width.saturating_sub(4).min(72);
    let title = match lines.ids.len() {
        1 => "Tags and group".to_owned(),
        several => format!("Tags and group of {several}"),
    };
    let inner = canvas.window(&title, width, 8);
    let both = [("Tags", &lines.tags, false), ("Group", &lines.group, true)];
    for (number, (name, editor, second)) in both.into_iter().enumerate() {
        let place = line_of(inner, rows(number));
        let focused = has_keys && lines.on_group == second;
        if focused {
            canvas.tint(place, theme.cursor());
        }
        canvas.hit(place, Target::Item(number));
        canvas.put(place.x, place.y, 6, name, if focused { theme.accent() } else { theme.dim() });
        let typed = Rect { x: place.x + 8, width: place.width.saturating_sub(8), ..place };
        canvas.input(typed, editor, focused, theme.text());
    }
    let (hint, style) = match (&lines.fault, lines.ids.len()) {
        (Some(fault), _) => (fault.as_str(), theme.bad()),
        (None, 1) => ("Tags as key=value, key2. Empty takes away.", theme.dim()),
        (None, _) => ("What is entered is added to each; empty changes nothing.", theme.dim()),
    };
    let foot = Rect { y: inner.y + 3, height: inner.height.saturating_sub(3), ..inner };
    for (number, part) in text::wrap(hint, usize::from(inner.width)).iter().enumerate() {
        let place = line_of(foot, rows(number));
        canvas.put(place.x, place.y, usize::from(place.width), part, style);
    }
}

fn setting(line: &SettingLine, canvas: &mut Canvas<'_>, has_keys: bool) {
    let theme = canvas.theme;
    let width = canvas.area().width.saturating_sub(4).min(80);
    let inner = canvas.window(line.known.key, width, 9);
    let (hint, style) = match &line.fault {
        Some(fault) => (fault.as_str(), theme.bad()),
        None => (line.known.meaning, theme.dim()),
    };
    canvas.input(line_of(inner, 0), &line.editor, has_keys, theme.text());
    for (number, part) in text::wrap(hint, usize::from(inner.width)).iter().enumerate() {
        let place = line_of(inner, rows(number) + 2);
        canvas.put(place.x, place.y, usize::from(place.width), part, style);
    }
}

pub(super) fn arrange(model: &Model, arranging: &Arranging, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let whole = canvas.area();
    let high = rows(arranging.choices.len()).saturating_add(2).min(whole.height.saturating_sub(2));
    let inner = canvas.window("View", 56, high);
    let list = Rect { width: inner.width.saturating_sub(1), ..inner };
    let arrangement = &model.list.arrangement;
    for (line, number, focused) in canvas.rows(list, arranging.choices.len(), arranging.cursor) {
        if focused {
            canvas.tint(line, theme.cursor());
        }
        let spans: Spans = match arranging.choices.get(number) {
            Some(Choice::Heading(title)) => vec![(title.clone(), theme.strong())],
            Some(Choice::GroupBy(field)) => {
                let sign = if arrangement.group_by == *field { "●" } else { "○" };
                let word = field.as_ref().map_or_else(|| "nothing".to_owned(), |field| field.title());
                vec![(format!("  {sign} "), theme.accent()), (word, theme.text())]
            }
            Some(Choice::Only(field, value, count)) => {
                let chosen = arrangement.filters.get(field).is_some_and(|values| values.contains(value));
                let sign = if chosen { "[x]" } else { "[ ]" };
                vec![
                    (format!("  {sign} "), theme.accent()),
                    (value.clone(), theme.text()),
                    (format!("  {count}"), theme.dim()),
                ]
            }
            None => Spans::new(),
        };
        canvas.spans(line, &spans);
    }
}

pub(super) fn settings(model: &Model, pane: SettingsPane, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let width = canvas.area().width.saturating_sub(4).min(72);
    let all = Setting::all();
    let high = rows(all.len()).saturating_add(6).min(canvas.area().height.saturating_sub(2));
    let inner = canvas.window("Settings", width, high);
    let high = inner.height.saturating_sub(4);
    let list = Rect { height: high, width: inner.width.saturating_sub(1), ..inner };
    for (line, number, focused) in canvas.rows(list, all.len(), pane.cursor) {
        let Some(setting) = all.get(number) else { continue };
        if focused {
            canvas.tint(line, theme.cursor());
        }
        let value = setting.value(&model.data.settings);
        let shown = if focused { format!("‹ {value} ›") } else { value };
        let name = if focused { theme.accent().patch(theme.strong()) } else { theme.text() };
        canvas.spans(line, &[(text::fit(&setting.title(), 25), name), (shown, theme.text())]);
    }
    let foot = Rect { y: list.bottom() + 1, height: inner.height.saturating_sub(list.height + 1), ..inner };
    let hint = all.get(pane.cursor).map_or("", |setting| setting.hint());
    for (number, part) in text::wrap(hint, usize::from(foot.width)).iter().enumerate() {
        let place = line_of(foot, rows(number));
        canvas.put(place.x, place.y, usize::from(place.width), part, theme.dim());
    }
}

pub(super) fn palette(model: &Model, palette: &Palette, canvas: &mut Canvas<'_>, has_keys: bool) {
    let theme = canvas.theme;
    let inner = canvas.large_window("Commands", 90, 28);
    let line = line_of(inner, 0);
    canvas.put(line.x, line.y, 2, ":", theme.accent().patch(theme.strong()));
    let typed = Rect { x: line.x + 2, width: line.width.saturating_sub(2), ..line };
    canvas.input(typed, &palette.editor, has_keys, theme.text());
    let list = Rect {
        y: inner.y + 2,
        height: inner.height.saturating_sub(2),
        width: inner.width.saturating_sub(1),
        ..inner
    };
    let items = palette.items(&model.data);
    if items.is_empty() {
        canvas.put(list.x, list.y, usize::from(list.width), "nothing like that", theme.dim());
    }
    for (line, number, focused) in canvas.rows(list, items.len(), palette.cursor) {
        let Some(item) = items.get(number) else { continue };
        if focused {
            canvas.tint(line, theme.cursor());
        }
        let aside = text::width(&item.aside).min(usize::from(line.width) / 2);
        let room = usize::from(line.width).saturating_sub(aside + 2);
        let style = if focused { theme.accent().patch(theme.strong()) } else { theme.text() };
        canvas.put(line.x, line.y, room, &item.text, style);
        canvas.put_right(line, &text::cut(&item.aside, aside), theme.dim());
    }
}

/// A line of the help: a heading, or keys and what they do.
pub(super) enum HelpLine {
    Heading(&'static str),
    Key(String, &'static str),
    Blank,
}

pub(super) fn help_lines() -> Vec<HelpLine> {
    let mut lines = Vec::new();
    for scope in Scope::ALL {
        if !lines.is_empty() {
            lines.push(HelpLine::Blank);
        }
        lines.push(HelpLine::Heading(scope.title()));
        lines.extend(scope.bindings().map(|binding| HelpLine::Key(binding.keys(), binding.text)));
    }
    lines
}

pub(super) fn help(canvas: &mut Canvas<'_>, top: usize) {
    let theme: Theme = canvas.theme;
    let inner = canvas.large_window("Keys", 96, canvas.area().height);
    let lines = help_lines();
    // The last page is full.
    let top = top.min(lines.len().saturating_sub(usize::from(inner.height)));
    for (y, line) in (inner.y..inner.bottom()).zip(lines.iter().skip(top)) {
        let place = Rect { y, height: 1, ..inner };
        let spans: Spans = match line {
            HelpLine::Heading(title) => vec![((*title).to_owned(), theme.strong())],
            HelpLine::Key(keys, what) => vec![
                (format!("  {}", text::fit(keys, KEYS)), theme.accent()),
                ((*what).to_owned(), theme.text()),
            ],
            HelpLine::Blank => Spans::new(),
        };
        canvas.spans(place, &spans);
    }
    if top + usize::from(inner.height) < lines.len() && inner.height > 0 {
        canvas.put(inner.right(), inner.bottom() - 1, 1, "↓", theme.dim());
    }
}
