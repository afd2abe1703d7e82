//! From a message to a changed model and what has to be done in the world. Pure: no clock, no socket, no file.

mod commands;
mod input;
mod outcome;

use kftray_commons::Problem;

use super::dialogs::{Report, Tone};
use super::message::{Effect, Gesture, Message, Now, Target};
use super::model::{Host, Mode, Model};

/// Rows that one notch of a mouse wheel moves.
const WHEEL: isize = 3;

/// Takes a message in.
pub(super) fn update(model: &mut Model, message: Message, now: Now) -> Vec<Effect> {
    // The clock on the wall may be set back; what is shown only goes on.
    model.now = Now { at: model.now.at.max(now.at), wall: now.wall };
    model.expire();
    let mut effects = Vec::new();
    match message {
        Message::Host(state) => model.hear(*state),
        Message::Embedded(problem) => embedded(model, problem),
        Message::NoHost(problem) => model.host = Host::Away(problem),
        Message::Size(width, height) => model.size = (width, height),
        Message::Tick => {}
        Message::Key(key) => {
            model.settle();
            model.clear_notice();
            input::key(model, key, &mut effects);
        }
        Message::Paste(text) => {
            model.settle();
            input::paste(model, &text, &mut effects);
        }
        Message::Mouse(gesture, target) => {
            model.settle();
            mouse(model, gesture, target, &mut effects);
        }
        Message::Done(outcome) => outcome::take(model, outcome, &mut effects),
    }
    model.data.sample(model.now.at);
    effects
}

/// What has to be done before the model is shown, once for any number of messages.
pub(super) fn settle(model: &mut Model) -> Vec<Effect> {
    model.settle();
    model.history_wanted().map(Effect::History).into_iter().collect()
}

/// Whoever closes this window must know what that does.
fn embedded(model: &mut Model, problem: Problem) {
    let lines = vec![
        (Tone::Plain, "The host could not be started in the background; it lives in this window. The forwards end when the window is closed.".to_owned()),
        (Tone::Plain, String::new()),
        (Tone::Bad, problem.message.clone()),
        (Tone::Plain, problem.remedy.clone()),
    ];
    let title = "Forwards end with this window".to_owned();
    model.push(Mode::Report(Report { title, lines, top: 0, next: None }));
    model.embedded = Some(problem);
}

fn mouse(model: &mut Model, gesture: Gesture, target: Option<Target>, effects: &mut Vec<Effect>) {
    match gesture {
        Gesture::Up => input::wheel(model, -WHEEL),
        Gesture::Down => input::wheel(model, WHEEL),
        Gesture::Click => match target {
            Some(Target::Row(row)) => click_row(model, row),
            Some(Target::Tick(row)) => {
                model.list.cursor = row.min(model.list.rows.len().saturating_sub(1));
                model.list.tick();
            }
            Some(Target::Legend(action)) => {
                model.clear_notice();
                input::act(model, action, effects);
            }
            Some(Target::Search) if matches!(model.mode(), Mode::List) => model.push(Mode::Search),
            Some(Target::Item(item)) => input::click_item(model, item, effects),
            Some(Target::Search | Target::Window) | None => {}
        },
    }
}

/// The first click goes there; on a group, or a second one on a forward, opens it.
fn click_row(model: &mut Model, row: usize) {
    if row >= model.list.rows.len() || !matches!(model.mode(), Mode::List | Mode::Search) {
        return;
    }
    let again = model.list.cursor == row;
    model.list.cursor = row;
    if let Some(folded) = model.list.group().map(|group| group.folded) {
        model.list.fold(!folded);
        model.stale = true;
    } else if again && matches!(model.mode(), Mode::List) {
        model.push(Mode::Details(0));
    }
}
