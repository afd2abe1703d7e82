//! What can be done with forwards from the list and the details.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the table of keys decides what can come; the rest means nothing here"
)]

use kftray_commons::ForwardId;
use kftray_commons::api::{Action as Deed, Config, ConfigPut};
use kftray_commons::tags::Tags;
use serde_json::{Map, Value};

use super::super::arrange::choices;
use super::super::data::tags_text;
use super::super::dialogs::{Arranging, Ask, Palette, PathLine, Prompt, TagLines, Yes};
use super::super::editor::Editor;
use super::super::form::Form;
use super::super::keys::Action;
use super::super::list::List;
use super::super::message::{Effect, Save, Then};
use super::super::model::{Mode, Model, NoticeKind};
use super::super::picker::Picker;
use super::super::settings::SettingsPane;
use super::super::text::count;

/// Most names that a question lists.
const NAMES: usize = 6;

/// File that an export is offered as.
const EXPORT: &str = "~/kftray.json";

/// An action in the list.
pub(super) fn list(model: &mut Model, action: Action, effects: &mut Vec<Effect>) {
    use Action as A;
    let page = isize::try_from(model.areas().list.height.saturating_sub(1).max(1)).unwrap_or(1);
    match action {
        A::Up => model.list.step(-1),
        A::Down => model.list.step(1),
        A::PageUp => model.list.step(-page),
        A::PageDown => model.list.step(page),
        A::First => model.list.cursor = 0,
        A::Last => model.list.step(isize::MAX),
        A::Left | A::Right => fold(model, action == A::Left),
        A::Open => match model.list.group().map(|group| group.folded) {
            Some(folded) => fold(model, !folded),
            // Nothing is there yet: the way to the first forward.
            None if model.data.is_empty() && model.heard => browse(model, effects),
            None => details(model),
        },
        A::Next => details(model),
        A::Back => back(model),
        A::Tick => {
            model.list.tick();
            model.list.step(1);
        }
        A::TickAll => {
            let shown = model.list.shown();
            model.list.tick_all_of(&shown);
        }
        A::Search => model.push(Mode::Search),
        A::Browse => browse(model, effects),
        A::New => model.push(Mode::Form(Box::new(Form::new(beginning(model), None)))),
        A::Import => {
            let mut line = PathLine::new("~/");
            effects.extend(line.look(model.home.as_deref()));
            model.push(Mode::Prompt(Box::new(Prompt::Import(line))));
        }
        A::Export => {
            let ids = model.list.ticks.iter().copied().collect();
            let mut line = PathLine::new(EXPORT);
            effects.extend(line.look(model.home.as_deref()));
            model.push(Mode::Prompt(Box::new(Prompt::Export { line, ids })));
        }
        A::Arrange => {
            let choices = choices(&model.data, &model.list.arrangement);
            let mut arranging = Arranging { choices, cursor: 0 };
            arranging.step(1);
            model.push(Mode::Arrange(arranging));
        }
        A::Settings => model.push(Mode::Settings(SettingsPane::default())),
        A::Palette => model.push(Mode::Palette(Palette::default())),
        A::Help => model.push(Mode::Help(0)),
        A::Quit => quit(model, effects),
        A::StartAll => start_all(model, effects),
        A::StopAll => stop_all(model, effects),
        A::Undo => undo(model, effects),
        _ => on_meant(model, action, effects),
    }
}

/// An action on the ticked ones, the group, or the forward under the cursor.
pub(super) fn on_meant(model: &mut Model, action: Action, effects: &mut Vec<Effect>) {
    let meant = match model.mode() {
        // Details are about one, whatever is ticked.
        Mode::Details(_) => model.list.forward().into_iter().collect(),
        _ => model.list.meant(),
    };
    if meant.is_empty() {
        return;
    }
    match action {
        Action::Toggle => {
            let is_active = |id: &ForwardId| model.data.get(*id).is_some_and(|entry| entry.is_active());
            let stopped: Vec<ForwardId> = meant.iter().copied().filter(|id| !is_active(id)).collect();
            let deed = if stopped.is_empty() { Deed::Stop } else { Deed::Start };
            effects.push(Effect::Act(deed, if stopped.is_empty() { meant } else { stopped }));
        }
        Action::Restart => effects.push(Effect::Act(Deed::Restart, meant)),
        Action::Edit => edit(model, &meant),
        Action::Duplicate => {
            if let Some(config) = one_config(model, &meant) {
                model.push(Mode::Form(Box::new(Form::duplicate(&config))));
            }
        }
        Action::Delete => delete(model, meant),
        Action::Tags => tags(model, meant),
        Action::FreePort => free_port(model, &meant, effects),
        Action::Copy => {
            let entry = meant.first().and_then(|id| model.data.get(*id));
            if let Some(address) = entry.map(|entry| entry.address()).filter(|address| !address.is_empty()) {
                model.say(NoticeKind::Done, format!("copied {address}"));
                effects.push(Effect::Copy(address));
            }
        }
        _ => {}
    }
}

/// Goes to a forward, whatever hides it.
pub(super) fn show(model: &mut Model, id: ForwardId) {
    if model.list.go_to(id) {
        return;
    }
    model.list.search = Editor::default();
    model.list.arrangement.filters.clear();
    model.list.unfold(id);
    model.list.wanted = Some(id);
    model.stale = true;
}

fn details(model: &mut Model) {
    if model.list.forward().is_some() {
        model.push(Mode::Details(0));
    }
}

fn fold(model: &mut Model, folded: bool) {
    model.list.fold(folded);
    model.stale = true;
}

/// Ticks first, then the search.
fn back(model: &mut Model) {
    let List { ticks, search, .. } = &mut model.list;
    if !ticks.is_empty() {
        ticks.clear();
    } else if !search.is_empty() {
        *search = Editor::default();
        model.stale = true;
    }
}

fn browse(model: &mut Model, effects: &mut Vec<Effect>) {
    let (picker, effect) = Picker::open(model.next_question());
    effects.push(effect);
    model.push(Mode::Picker(Box::new(picker)));
}

/// A new forward begins where the cursor is: mostly one wants another of the same place.
fn beginning(model: &Model) -> Map<String, Value> {
    let mut base = Map::new();
    let near = model.detailed().or_else(|| {
        let first = model.list.group().and_then(|group| group.members.first());
        first.and_then(|id| model.data.get(*id))
    });
    if let Some(config) = near.and_then(|entry| entry.config.as_ref()) {
        for field in ["context", "namespace", "kubeconfig"] {
            if let Some(value) = config.spec.get(field) {
                base.insert(field.to_owned(), value.clone());
            }
        }
    }
    base
}

fn quit(model: &mut Model, effects: &mut Vec<Effect>) {
    let active = model.list.totals.active();
    if !model.is_embedded() || active == 0 {
        effects.push(Effect::Quit);
        return;
    }
    let lines = vec![format!("The host lives in this window: {} with it.", ends(active))];
    model.push(Mode::Ask(Ask { title: "Close?".to_owned(), lines, yes: Yes::Do(Effect::Quit) }));
}

fn ends(number: usize) -> String {
    if number == 1 { "1 forward ends".to_owned() } else { format!("{number} forwards end") }
}

fn start_all(model: &mut Model, effects: &mut Vec<Effect>) {
    let shown = model.list.shown();
    let stopped = shown.into_iter().filter(|id| model.data.get(*id).is_some_and(|entry| !entry.is_active()));
    let stopped: Vec<ForwardId> = stopped.collect();
    if stopped.is_empty() {
        model.say(NoticeKind::Done, "everything shown runs already");
        return;
    }
    effects.push(Effect::Act(Deed::Start, stopped));
}

fn stop_all(model: &mut Model, effects: &mut Vec<Effect>) {
    let active: Vec<ForwardId> =
        model.data.iter().filter(|entry| entry.is_active()).map(|entry| entry.id).collect();
    match active.len() {
        0 => model.say(NoticeKind::Done, "nothing runs"),
        // One is not worth a question.
        1 => effects.push(Effect::Act(Deed::Stop, active)),
        number => {
            let title = format!("Stop all {number}?");
            let lines = names(model, &active);
            model.push(Mode::Ask(Ask { title, lines, yes: Yes::Do(Effect::Act(Deed::Stop, active)) }));
        }
    }
}

/// The labels of some forwards, as many as a question can have.
fn names(model: &Model, ids: &[ForwardId]) -> Vec<String> {
    let label = |id: &ForwardId| model.data.get(*id).map(|entry| entry.label().to_owned());
    let mut names: Vec<String> = ids.iter().filter_map(label).take(NAMES).collect();
    if ids.len() > NAMES {
        names.push(format!("and {} more", ids.len() - NAMES));
    }
    names
}

fn configs(model: &Model, ids: &[ForwardId]) -> Vec<Config> {
    let config = |id: &ForwardId| model.data.get(*id)?.config.as_deref().cloned();
    ids.iter().filter_map(config).collect()
}

/// The one config that is meant; says so if there is none or are several.
fn one_config(model: &mut Model, ids: &[ForwardId]) -> Option<Config> {
    let id = match (ids, model.list.forward()) {
        ([id], _) => *id,
        // Ticks are for commands on several; this is about the one under the cursor.
        (_, Some(id)) => id,
        (_, None) => return None,
    };
    let config = configs(model, &[id]).pop();
    if config.is_none() {
        model.say(NoticeKind::Failed, "it is written down nowhere: it can only be stopped");
    }
    config
}

fn edit(model: &mut Model, ids: &[ForwardId]) {
    if let Some(config) = one_config(model, ids) {
        model.push(Mode::Form(Box::new(Form::edit(&config))));
    }
}

fn delete(model: &mut Model, ids: Vec<ForwardId>) {
    let ids: Vec<ForwardId> = configs(model, &ids).into_iter().map(|config| config.id).collect();
    if ids.is_empty() {
        model.say(NoticeKind::Failed, "it is written down nowhere: it can only be stopped");
        return;
    }
    let running = ids.iter().filter(|id| model.data.get(**id).is_some_and(|entry| entry.is_active())).count();
    let title = format!("Delete {}?", count(ids.len(), "forward"));
    let mut lines = names(model, &ids);
    if running > 0 {
        lines.push(String::new());
        lines.push(format!("{} and {} stopped.", runs(running), if running == 1 { "is" } else { "are" }));
    }
    model.push(Mode::Ask(Ask { title, lines, yes: Yes::Do(Effect::Delete(ids)) }));
}

fn runs(number: usize) -> String {
    if number == 1 { "1 runs".to_owned() } else { format!("{number} run") }
}

/// Keeps what will be deleted, so that it can be put back.
pub(super) fn remember(model: &mut Model, ids: &[ForwardId]) {
    let put = |config: Config| ConfigPut { spec: config.spec, revision: None, group: config.summary.group };
    model.deleted = configs(model, ids).into_iter().map(put).collect();
}

fn undo(model: &mut Model, effects: &mut Vec<Effect>) {
    let puts: Vec<_> = std::mem::take(&mut model.deleted).into_iter().map(|put| (None, put)).collect();
    if puts.is_empty() {
        model.say(NoticeKind::Done, "nothing was deleted in this window");
        return;
    }
    effects.push(Effect::Save(Save { puts, then: Then::Nothing, form: false }));
}

fn tags(model: &mut Model, ids: Vec<ForwardId>) {
    let configs = configs(model, &ids);
    let (tags, group) = match configs.as_slice() {
        [] => {
            model.say(NoticeKind::Failed, "it is written down nowhere: it can have no tags");
            return;
        }
        [one] => (tags_text(&one.summary.tags), one.summary.group.clone().unwrap_or_default()),
        // What is entered is added to each.
        _ => (String::new(), String::new()),
    };
    let ids = configs.into_iter().map(|config| config.id).collect();
    let lines =
        TagLines { ids, tags: Editor::of(tags), group: Editor::of(group), on_group: false, fault: None };
    model.push(Mode::Prompt(Box::new(Prompt::Tags(lines))));
}

/// The wish to give tags and group to forwards: one gets exactly these, several get them in addition.
pub(super) fn tag(model: &Model, ids: &[ForwardId], tags: &Tags, group: &str) -> Option<Effect> {
    let configs = configs(model, ids);
    let several = configs.len() > 1;
    let mut puts = Vec::new();
    for config in configs {
        let mut all = if several { config.summary.tags.clone() } else { Default::default() };
        all.extend(tags.iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        let mut spec = config.spec.clone();
        if all.is_empty() {
            spec.remove("tags");
        } else {
            spec.insert(
                "tags".to_owned(),
                all.iter().map(|(key, value)| (key.clone(), value.as_str())).collect(),
            );
        }
        let group = group.trim();
        let group = (!several || !group.is_empty()).then(|| group.to_owned());
        let same_group =
            group.as_deref().is_none_or(|group| group == config.summary.group.as_deref().unwrap_or(""));
        if spec != config.spec || !same_group {
            let put = ConfigPut { spec, revision: Some(config.revision), group };
            puts.push((Some(config.id), put));
        }
    }
    (!puts.is_empty()).then(|| Effect::Save(Save { puts, then: Then::Nothing, form: false }))
}

fn free_port(model: &mut Model, ids: &[ForwardId], effects: &mut Vec<Effect>) {
    let Some(config) = one_config(model, ids) else { return };
    let host = config.summary.local_hosts.first().cloned().unwrap_or_else(|| "localhost".to_owned());
    effects.push(Effect::FreePort { id: config.id, host, above: config.summary.local_port });
}
