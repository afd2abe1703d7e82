//! Keys, pastes and clicks, by what is in front.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the table of keys decides what can come; the rest means nothing here"
)]

use crossterm::event::{KeyCode, KeyEvent};
use kftray_commons::api::{ImportRequest, SettingsPatch};

use super::super::arrange::{Arrangement, Choice, SETTING};
use super::super::dialogs::{Arranging, Ask, Palette, PaletteTarget, Prompt, Report, Yes};
use super::super::form::{Form, Input};
use super::super::keys::{self, Action};
use super::super::message::{Effect, Save, Then};
use super::super::model::{Mode, Model, NoticeKind};
use super::super::picker::{Going, Picker};
use super::super::settings::{Setting, SettingsPane};
use super::commands;

/// Rows that a page of a dialog moves; less than any of them shows.
const PAGE: isize = 8;

/// A key was pressed.
pub(super) fn key(model: &mut Model, key: KeyEvent, effects: &mut Vec<Effect>) {
    match keys::action(model.mode().scope(), key) {
        Some(action) => act(model, action, effects),
        None => typed(model, key, effects),
    }
}

/// An action of what is in front was asked for, by key, click or name.
pub(super) fn act(model: &mut Model, action: Action, effects: &mut Vec<Effect>) {
    if action == Action::QuitNow {
        effects.push(Effect::Quit);
        return;
    }
    match model.pop() {
        Mode::List => commands::list(model, action, effects),
        Mode::Details(top) => details(model, top, action, effects),
        Mode::Search => search(model, action),
        Mode::Picker(picker) => self::picker(model, picker, action, effects),
        Mode::Form(form) => self::form(model, form, action, effects),
        Mode::Prompt(prompt) => self::prompt(model, prompt, action, effects),
        Mode::Report(report) => self::report(model, report, action, effects),
        Mode::Arrange(arranging) => arrange(model, arranging, action, effects),
        Mode::Settings(pane) => settings(model, pane, action, effects),
        Mode::Palette(palette) => self::palette(model, palette, action, effects),
        Mode::Ask(ask) => self::ask(model, ask, action, effects),
        Mode::Help(top) => help(model, top, action),
    }
}

/// A key that is bound to nothing: typing, where one types.
fn typed(model: &mut Model, key: KeyEvent, effects: &mut Vec<Effect>) {
    let mut mode = model.pop();
    match &mut mode {
        Mode::Search => {
            if model.list.search.key(key) {
                model.stale = true;
            }
        }
        Mode::Picker(picker) => {
            // A blank ticks, so that it is never typed.
            if picker.filter.key(key) {
                picker.refilter();
            }
        }
        Mode::Palette(palette) => {
            if palette.editor.key(key) {
                palette.cursor = 0;
            }
        }
        Mode::Form(form) => {
            form.input(|input| match input {
                Input::Text(editor) => editor.key(key),
                Input::Flag(flag) => {
                    let turns = matches!(key.code, KeyCode::Char(' ') | KeyCode::Left | KeyCode::Right);
                    *flag ^= turns;
                    turns
                }
                Input::Choice { options, chosen } => choose(key.code, options, chosen),
            });
        }
        Mode::Prompt(prompt) => type_into_prompt(model, prompt, key, effects),
        Mode::List
        | Mode::Details(_)
        | Mode::Report(_)
        | Mode::Arrange(_)
        | Mode::Settings(_)
        | Mode::Ask(_)
        | Mode::Help(_) => {}
    }
    model.push(mode);
}

/// The next option, the one before, or the next that begins with the letter.
fn choose(code: KeyCode, options: &[&str], chosen: &mut usize) -> bool {
    let count = options.len().max(1);
    if let KeyCode::Char(letter) = code
        && letter != ' '
    {
        let begins = |option: &str| option.starts_with(letter.to_ascii_lowercase());
        let after = (1..=count).map(|step| (*chosen + step) % count);
        let found = after.into_iter().find(|place| options.get(*place).is_some_and(|option| begins(option)));
        *chosen = found.unwrap_or(*chosen);
        return true;
    }
    if matches!(code, KeyCode::Right | KeyCode::Char(' ')) {
        *chosen = (*chosen + 1) % count;
    } else if code == KeyCode::Left {
        *chosen = (*chosen + count - 1) % count;
    } else {
        return false;
    }
    true
}

fn type_into_prompt(model: &Model, prompt: &mut Prompt, key: KeyEvent, effects: &mut Vec<Effect>) {
    match prompt {
        Prompt::Import(line) | Prompt::Export { line, .. } => {
            if line.editor.key(key) {
                effects.extend(line.look(model.home.as_deref()));
            }
        }
        Prompt::Tags(lines) => {
            let line = if lines.on_group { &mut lines.group } else { &mut lines.tags };
            if line.key(key) {
                lines.fault = lines.read().err();
            }
        }
        Prompt::Setting(line) => {
            if line.editor.key(key) {
                line.fault = None;
            }
        }
    }
}

/// Something was pasted: into a line if there is one; configs into the list.
pub(super) fn paste(model: &mut Model, text: &str, effects: &mut Vec<Effect>) {
    let mut mode = model.pop();
    match &mut mode {
        Mode::Search => {
            model.list.search.insert(text);
            model.stale = true;
        }
        Mode::Picker(picker) => {
            picker.filter.insert(text);
            picker.refilter();
        }
        Mode::Palette(palette) => {
            palette.editor.insert(text);
            palette.cursor = 0;
        }
        Mode::Form(form) => {
            form.input(|input| {
                if let Input::Text(editor) = input {
                    editor.insert(text);
                }
                true
            });
        }
        Mode::Prompt(prompt) => match prompt.as_mut() {
            Prompt::Import(line) | Prompt::Export { line, .. } => {
                line.editor.insert(text);
                effects.extend(line.look(model.home.as_deref()));
            }
            Prompt::Tags(lines) => {
                if lines.on_group { &mut lines.group } else { &mut lines.tags }.insert(text);
                lines.fault = lines.read().err();
            }
            Prompt::Setting(line) => {
                line.editor.insert(text);
                line.fault = None;
            }
        },
        Mode::List if text.trim_start().starts_with(['[', '{']) => {
            effects.push(Effect::Import(ImportRequest {
                text: text.to_owned(),
                dry_run: true,
                ..ImportRequest::default()
            }));
        }
        Mode::List
        | Mode::Details(_)
        | Mode::Report(_)
        | Mode::Arrange(_)
        | Mode::Settings(_)
        | Mode::Ask(_)
        | Mode::Help(_) => {}
    }
    model.push(mode);
}

/// The wheel was turned.
pub(super) fn wheel(model: &mut Model, by: isize) {
    let mut mode = model.pop();
    match &mut mode {
        Mode::List | Mode::Search => model.list.step(by),
        Mode::Details(top) | Mode::Help(top) => *top = top.saturating_add_signed(by),
        Mode::Report(report) => report.top = report.top.saturating_add_signed(by),
        Mode::Picker(picker) => picker.step_cursor(by),
        Mode::Arrange(arranging) => arranging.step(by),
        Mode::Palette(palette) => step_palette(model, palette, by),
        Mode::Form(form) => form.step(by.signum()),
        Mode::Settings(pane) => step_settings(pane, by.signum()),
        Mode::Prompt(_) | Mode::Ask(_) => {}
    }
    model.push(mode);
}

/// An item of the window in front was clicked: as if the cursor were moved there and, where that does no harm, Enter
/// pressed.
pub(super) fn click_item(model: &mut Model, item: usize, effects: &mut Vec<Effect>) {
    let mut mode = model.pop();
    let go_on = match &mut mode {
        Mode::Picker(picker) => {
            picker.cursor = item.min(picker.items().len().saturating_sub(1));
            true
        }
        Mode::Palette(palette) => {
            palette.cursor = item;
            true
        }
        Mode::Form(form) => {
            form.go(item);
            false
        }
        Mode::Settings(pane) => {
            pane.cursor = item;
            step_settings(pane, 0);
            model.push(mode);
            return act(model, Action::Right, effects);
        }
        Mode::Arrange(arranging) => {
            if matches!(arranging.choices.get(item), Some(Choice::GroupBy(_) | Choice::Only(..))) {
                arranging.cursor = item;
                model.push(mode);
                return act(model, Action::Tick, effects);
            }
            false
        }
        Mode::Prompt(prompt) => {
            match prompt.as_mut() {
                Prompt::Import(line) | Prompt::Export { line, .. } => {
                    line.choose(item);
                    effects.extend(line.look(model.home.as_deref()));
                }
                Prompt::Tags(lines) => lines.on_group = item == 1,
                Prompt::Setting(_) => {}
            }
            false
        }
        // The first is yes, the second no.
        Mode::Ask(_) => {
            model.push(mode);
            return act(model, if item == 0 { Action::Yes } else { Action::No }, effects);
        }
        Mode::List | Mode::Search | Mode::Details(_) | Mode::Report(_) | Mode::Help(_) => false,
    };
    model.push(mode);
    if go_on {
        act(model, Action::Open, effects);
    }
}

fn details(model: &mut Model, mut top: usize, action: Action, effects: &mut Vec<Effect>) {
    use Action as A;
    match action {
        A::Up => top = top.saturating_sub(1),
        A::Down => top += 1,
        A::PageUp => top = top.saturating_sub(PAGE as usize),
        A::PageDown => top += PAGE as usize,
        A::First => top = 0,
        A::Back => return,
        A::Help => {
            model.push(Mode::Details(top));
            model.push(Mode::Help(0));
            return;
        }
        _ => {
            // What comes up stays in front of the details.
            model.push(Mode::Details(top));
            commands::on_meant(model, action, effects);
            return;
        }
    }
    // No further than there is something to see.
    let most = super::super::view::details_height(model).saturating_sub(1);
    model.push(Mode::Details(top.min(most)));
}

fn search(model: &mut Model, action: Action) {
    match action {
        Action::Up => model.list.step(-1),
        Action::Down => model.list.step(1),
        Action::Back => {
            model.list.search = Default::default();
            model.stale = true;
            return;
        }
        _ => return,
    }
    model.push(Mode::Search);
}

fn picker(model: &mut Model, mut picker: Box<Picker>, action: Action, effects: &mut Vec<Effect>) {
    use Action as A;
    match action {
        A::Up => picker.step_cursor(-1),
        A::Down => picker.step_cursor(1),
        A::PageUp => picker.step_cursor(-PAGE),
        A::PageDown => picker.step_cursor(PAGE),
        A::First => picker.cursor = 0,
        A::Last => picker.step_cursor(isize::MAX),
        A::Tick => picker.tick(),
        A::Next => effects.extend(picker.switch()),
        A::Back if !picker.back() => return,
        A::Back => {}
        A::Edit => {
            if let Some(spec) = picker.for_form(&model.data) {
                model.push(Mode::Picker(picker));
                model.push(Mode::Form(Box::new(Form::new(spec, None))));
                return;
            }
        }
        A::Open | A::Right if !picker.busy => match picker.go_on(&model.data) {
            Going::Nowhere => {}
            Going::NoPorts(name) => {
                model.say(NoticeKind::Failed, format!("{name} has no ports; Ctrl+E takes it into the form"));
            }
            Going::On(effect) => effects.extend(effect),
            Going::Add(puts) => {
                picker.busy = true;
                let puts = puts.into_iter().map(|put| (None, put)).collect();
                effects.push(Effect::Save(Save { puts, then: Then::Start, form: false }));
            }
        },
        _ => {}
    }
    model.push(Mode::Picker(picker));
}

fn form(model: &mut Model, mut form: Box<Form>, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::Next => form.step(1),
        Action::Previous => form.step(-1),
        Action::First => form.go(0),
        Action::Last => form.go(usize::MAX),
        Action::Back => {
            if form.is_dirty() {
                let lines = vec!["What was entered is lost.".to_owned()];
                model.push(Mode::Form(form));
                model.push(Mode::Ask(Ask { title: "Leave the form?".to_owned(), lines, yes: Yes::DropForm }));
            }
            return;
        }
        Action::Open | Action::SaveStart if !form.busy => {
            form.strict = true;
            form.check();
            if !form.go_to_fault() {
                form.busy = true;
                let id = form.of.map(|(id, _)| id);
                let then = if action == Action::SaveStart { Then::Start } else { Then::Nothing };
                effects.push(Effect::Save(Save { puts: vec![(id, form.put())], then, form: true }));
            }
        }
        _ => {}
    }
    model.push(Mode::Form(form));
}

fn prompt(model: &mut Model, mut prompt: Box<Prompt>, action: Action, effects: &mut Vec<Effect>) {
    let home = model.home.clone();
    match (prompt.as_mut(), action) {
        (_, Action::Back) => return,
        (Prompt::Import(line) | Prompt::Export { line, .. }, Action::Next) => {
            line.complete();
            effects.extend(line.look(home.as_deref()));
        }
        (Prompt::Import(line) | Prompt::Export { line, .. }, Action::Down) => {
            line.cursor = (line.cursor + 1).min(line.suggestions().len());
        }
        (Prompt::Import(line) | Prompt::Export { line, .. }, Action::Up) => {
            line.cursor = line.cursor.saturating_sub(1);
        }
        (Prompt::Import(line) | Prompt::Export { line, .. }, Action::Open) if line.cursor > 0 => {
            line.choose(line.cursor - 1);
            effects.extend(line.look(home.as_deref()));
        }
        (Prompt::Import(line), Action::Open) if !line.busy => {
            if line.editor.is_empty() {
                line.fault = Some("write the path of a file".to_owned());
            } else {
                line.busy = true;
                let path = line.path(home.as_deref()).display().to_string();
                let request = ImportRequest { path: Some(path), dry_run: true, ..ImportRequest::default() };
                effects.push(Effect::Import(request));
            }
        }
        (Prompt::Export { line, ids }, Action::Open) if !line.busy => {
            if line.editor.is_empty() {
                line.fault = Some("write the path of a file".to_owned());
            } else {
                line.busy = true;
                let path = line.path(home.as_deref());
                effects.push(Effect::Export { path, ids: ids.clone(), replace: false });
            }
        }
        (Prompt::Tags(lines), Action::Next | Action::Previous | Action::Up | Action::Down) => {
            lines.on_group = !lines.on_group;
        }
        (Prompt::Tags(lines), Action::Open) => match lines.read() {
            Err(fault) => lines.fault = Some(fault),
            Ok(tags) => {
                effects.extend(commands::tag(model, &lines.ids, &tags, lines.group.text()));
                return;
            }
        },
        (Prompt::Setting(line), Action::Open) => {
            if let Some(patch) = line.patch() {
                effects.push(Effect::Settings(patch));
                return;
            }
        }
        _ => {}
    }
    model.push(Mode::Prompt(prompt));
}

fn report(model: &mut Model, mut report: Report, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::Up => report.top = report.top.saturating_sub(1),
        Action::Down => report.top += 1,
        Action::PageUp => report.top = report.top.saturating_sub(PAGE as usize),
        Action::PageDown => report.top += PAGE as usize,
        Action::Yes => {
            effects.extend(report.next.map(|(_, effect)| effect));
            return;
        }
        _ => return,
    }
    report.top = report.top.min(report.lines.len().saturating_sub(1));
    model.push(Mode::Report(report));
}

fn arrange(model: &mut Model, mut arranging: Arranging, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::Up => arranging.step(-1),
        Action::Down => arranging.step(1),
        Action::PageUp => arranging.step(-PAGE),
        Action::PageDown => arranging.step(PAGE),
        Action::Tick => {
            match arranging.choices.get(arranging.cursor) {
                Some(Choice::GroupBy(field)) => model.list.arrangement.group_by.clone_from(field),
                Some(Choice::Only(field, value, _)) => {
                    let values = model.list.arrangement.filters.entry(field.clone()).or_default();
                    if !values.remove(value) {
                        values.insert(value.clone());
                    }
                    if values.is_empty() {
                        model.list.arrangement.filters.remove(field);
                    }
                }
                Some(Choice::Heading(_)) | None => {}
            }
            model.stale = true;
        }
        Action::Clear => {
            model.list.arrangement =
                Arrangement { filters: Default::default(), ..model.list.arrangement.clone() };
            model.stale = true;
        }
        _ => {
            let text = model.list.arrangement.write();
            if model.data.settings.other.get(SETTING) != Some(&text) {
                let mut patch = SettingsPatch::default();
                patch.other.insert(SETTING.to_owned(), Some(text));
                effects.push(Effect::Settings(patch));
            }
            return;
        }
    }
    model.push(Mode::Arrange(arranging));
}

fn step_settings(pane: &mut SettingsPane, by: isize) {
    pane.cursor = pane.cursor.saturating_add_signed(by).min(Setting::all().len().saturating_sub(1));
}

fn settings(model: &mut Model, mut pane: SettingsPane, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::Up => step_settings(&mut pane, -1),
        Action::Down => step_settings(&mut pane, 1),
        Action::Left | Action::Right => {
            let Some(setting) = Setting::all().get(pane.cursor).copied() else { return };
            if let Some(line) = setting.line(&model.data.settings) {
                model.push(Mode::Settings(pane));
                model.push(Mode::Prompt(Box::new(Prompt::Setting(line))));
                return;
            }
            effects.push(Effect::Settings(setting.change(&model.data.settings, action == Action::Right)));
        }
        _ => return,
    }
    model.push(Mode::Settings(pane));
}

fn step_palette(model: &Model, palette: &mut Palette, by: isize) {
    let last = palette.items(&model.data).len().saturating_sub(1);
    palette.cursor = palette.cursor.saturating_add_signed(by).min(last);
}

fn palette(model: &mut Model, mut palette: Palette, action: Action, effects: &mut Vec<Effect>) {
    match action {
        Action::Up => step_palette(model, &mut palette, -1),
        Action::Down => step_palette(model, &mut palette, 1),
        Action::PageUp => step_palette(model, &mut palette, -PAGE),
        Action::PageDown => step_palette(model, &mut palette, PAGE),
        Action::Open => {
            let item = palette.items(&model.data).into_iter().nth(palette.cursor);
            match item.map(|item| item.what) {
                Some(PaletteTarget::Command(action)) => commands::list(model, action, effects),
                Some(PaletteTarget::Forward(id)) => commands::show(model, id),
                None => {}
            }
            return;
        }
        _ => return,
    }
    model.push(Mode::Palette(palette));
}

fn ask(model: &mut Model, ask: Ask, action: Action, effects: &mut Vec<Effect>) {
    if action != Action::Yes {
        return;
    }
    match ask.yes {
        Yes::Do(effect) => {
            if let Effect::Delete(ids) = &effect {
                commands::remember(model, ids);
            }
            effects.push(effect);
        }
        // What is behind the question.
        Yes::DropForm => drop(model.pop()),
    }
}

fn help(model: &mut Model, mut top: usize, action: Action) {
    match action {
        Action::Up => top = top.saturating_sub(1),
        Action::Down => top += 1,
        Action::PageUp => top = top.saturating_sub(PAGE as usize),
        Action::PageDown => top += PAGE as usize,
        Action::First => top = 0,
        Action::Last => top = usize::MAX,
        _ => return,
    }
    let most = super::super::view::help_height(model).saturating_sub(1);
    model.push(Mode::Help(top.min(most)));
}
