//! Whatever happens in whatever order, nothing panics, the cursor is on something that is there, and what is drawn fits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use kftray_client::Link;
use kftray_commons::api::{
    ContextInfo, ContextList, Error, ImportReport, NamespaceList, PortInfo, ServiceInfo, ServiceList,
    WorkloadList,
};
use kftray_commons::{Code, ForwardId, Problem, Status};
use proptest::prelude::*;

use super::super::keys::Action;
use super::super::message::{Answer, Effect, ExportFault, Exported, Gesture, Message, Outcome, Seen, Target};
use super::script::{Desk, config, history, state};

#[derive(Debug, Clone)]
enum Step {
    Key(KeyCode, KeyModifiers),
    Mouse(Gesture, u16, u16),
    Stray(Gesture, Target),
    Paste(String),
    Size(u16, u16),
    Wait(u64),
    Put(u64, String, u8),
    Gone(u64),
    Traffic(u64, u64),
    Away,
    /// Answers the wish of that number, well or badly.
    Answer(usize, bool),
}

fn key() -> impl Strategy<Value = Step> {
    let code = prop_oneof![
        6 => prop::sample::select("fbn/:hq arSXcDdutpyviesjkgGl?yY1=,".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
        1 => any::<char>().prop_map(KeyCode::Char),
        4 => prop::sample::select(vec![
            KeyCode::Enter, KeyCode::Esc, KeyCode::Tab, KeyCode::BackTab, KeyCode::Up, KeyCode::Down, KeyCode::Left,
            KeyCode::Right, KeyCode::PageUp, KeyCode::PageDown, KeyCode::Home, KeyCode::End, KeyCode::Backspace,
            KeyCode::Delete, KeyCode::F(1), KeyCode::F(2), KeyCode::Null,
        ]),
    ];
    let modifiers = prop_oneof![8 => Just(KeyModifiers::NONE), 1 => Just(KeyModifiers::CONTROL), 1 => Just(KeyModifiers::ALT)];
    (code, modifiers).prop_map(|(code, modifiers)| Step::Key(code, modifiers))
}

fn gesture() -> impl Strategy<Value = Gesture> {
    prop::sample::select(vec![Gesture::Click, Gesture::Up, Gesture::Down])
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        any::<usize>().prop_map(Target::Row),
        any::<usize>().prop_map(Target::Tick),
        any::<usize>().prop_map(Target::Item),
        Just(Target::Search),
        Just(Target::Legend(Action::Open)),
        Just(Target::Legend(Action::Toggle)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => key(),
        3 => (gesture(), 0_u16..130, 0_u16..45).prop_map(|(gesture, x, y)| Step::Mouse(gesture, x, y)),
        2 => (gesture(), target()).prop_map(|(gesture, target)| Step::Stray(gesture, target)),
        1 => any::<String>().prop_map(Step::Paste),
        1 => (0_u16..220, 0_u16..70).prop_map(|(width, height)| Step::Size(width, height)),
        3 => (0_u64..3000).prop_map(Step::Wait),
        6 => (0_u64..20, "\\PC{0,12}", 0_u8..6).prop_map(|(id, name, how)| Step::Put(id, name, how)),
        3 => (0_u64..20).prop_map(Step::Gone),
        3 => (0_u64..20, any::<u64>()).prop_map(|(id, bytes)| Step::Traffic(id, bytes)),
        1 => Just(Step::Away),
        10 => (any::<usize>(), any::<bool>()).prop_map(|(wish, good)| Step::Answer(wish, good)),
    ]
}

fn play(desk: &mut Desk, step: Step) {
    match step {
        Step::Key(code, modifiers) => desk.send(Message::Key(KeyEvent::new(code, modifiers))),
        Step::Mouse(gesture, x, y) => {
            let (_, hits) = desk.draw();
            desk.send(Message::Mouse(gesture, hits.at(x, y)));
        }
        Step::Stray(gesture, target) => desk.send(Message::Mouse(gesture, Some(target))),
        Step::Paste(text) => desk.send(Message::Paste(text)),
        Step::Size(width, height) => desk.send(Message::Size(width, height)),
        Step::Wait(millis) => desk.wait(Duration::from_millis(millis)),
        Step::Put(id, name, how) => {
            let context = (how % 2 == 0).then_some("prod");
            let new = config(id, context, "shop", &name, 8080);
            let cause = Problem::new(Code::NoReadyPods, name);
            let status = match how {
                0 => None,
                1 => Some(Status::Ready),
                2 => Some(Status::Recovering { attempt: 1, retry_in_ms: Some(u64::from(how) * 700), cause }),
                3 => Some(Status::NeedsUser { cause }),
                4 => Some(Status::Resolving { waiting_for: Some(cause) }),
                _ => Some(Status::Stopping),
            };
            desk.say(|snapshot| {
                snapshot.configs.retain(|known| known.id != new.id);
                snapshot.forwards.retain(|known| known.id != new.id);
                if let Some(status) = status {
                    let place = snapshot.forwards.partition_point(|known| known.id < new.id);
                    snapshot.forwards.insert(place, Arc::new(state(&new, status)));
                }
                let place = snapshot.configs.partition_point(|known| known.id < new.id);
                // Some run without being written down.
                if how != 5 {
                    snapshot.configs.insert(place, new);
                }
            });
        }
        Step::Gone(id) => desk.say(|snapshot| {
            snapshot.configs.retain(|known| known.id != ForwardId(id));
            snapshot.forwards.retain(|known| known.id != ForwardId(id));
        }),
        Step::Traffic(id, bytes) => desk.say(|snapshot| {
            if let Some(forward) = snapshot.forwards.iter_mut().find(|forward| forward.id == ForwardId(id)) {
                let counters = &mut Arc::make_mut(forward).counters;
                counters.bytes_down = counters.bytes_down.saturating_add(bytes);
                counters.open = bytes;
            }
        }),
        Step::Away => desk.hear(Link::Disconnected { problem: Error::new(Code::HostUnreachable, "gone") }),
        Step::Answer(wish, good) => {
            let Some(effect) =
                desk.wishes.len().checked_sub(1).and_then(|last| desk.wishes.get(wish % (last + 1))).cloned()
            else {
                return;
            };
            if let Some(outcome) = answer(effect, good) {
                desk.done(outcome);
            }
        }
    }
}

fn answer(effect: Effect, good: bool) -> Option<Outcome> {
    let error = || Error::new(Code::ClusterUnreachable, "the cluster cannot be reached");
    let or = |fine: bool| if fine { Ok(()) } else { Err(error()) };
    Some(match effect {
        Effect::Quit | Effect::Copy(_) => return None,
        Effect::Act(deed, _) => Outcome::Acted(deed, or(good).map(|()| Default::default())),
        Effect::Save(save) => {
            let new = config(19, None, "x", "new", 1);
            let results = save.puts.iter().map(|_| or(good).map(|()| (*new).clone())).collect();
            Outcome::Saved { save, results, started: None }
        }
        Effect::Delete(ids) => Outcome::Deleted(ids.into_iter().map(|id| (id, or(good))).collect()),
        Effect::History(id) => Outcome::History(id, or(good).map(|()| history())),
        Effect::Contexts(number) => {
            let contexts =
                ["a", "b"].map(|name| ContextInfo { name: name.into(), ..ContextInfo::default() }).to_vec();
            Outcome::Listed(
                number,
                Answer::Contexts(or(good).map(|()| ContextList { contexts, ..ContextList::default() })),
            )
        }
        Effect::Namespaces(number, _) => {
            let namespaces = vec!["default".to_owned(), "日本".to_owned()];
            Outcome::Listed(
                number,
                Answer::Namespaces(or(good).map(|()| NamespaceList { namespaces, problem: None })),
            )
        }
        Effect::Services(number, _) => {
            let port = PortInfo { port: 65_535, protocol: "UDP".into(), ..PortInfo::default() };
            let service =
                |name: &str, ports| ServiceInfo { name: name.into(), ports, ..ServiceInfo::default() };
            let services = vec![service("a", vec![port.clone(), port]), service("b", Vec::new())];
            Outcome::Listed(
                number,
                Answer::Services(or(good).map(|()| ServiceList { services, problem: None })),
            )
        }
        Effect::Workloads(number, _) => {
            Outcome::Listed(number, Answer::Workloads(or(good).map(|()| WorkloadList::default())))
        }
        Effect::Import(request) => {
            let report = ImportReport { dry_run: request.dry_run, ..ImportReport::default() };
            Outcome::Imported(request, or(good).map(|()| report))
        }
        Effect::Export { path, .. } => {
            let result =
                if good { Ok(Exported { count: 1, remarks: Vec::new() }) } else { Err(ExportFault::Exists) };
            Outcome::Exported { path, result }
        }
        Effect::Look(_) => {
            let seen = vec![
                Seen { folder: true, name: "ordner".into() },
                Seen { folder: false, name: "ö.json".into() },
            ];
            Outcome::Looked(PathBuf::from("/home/me"), seen)
        }
        Effect::Settings(_) => Outcome::Settings(or(good)),
        Effect::FreePort { id, .. } => Outcome::FreePort { id, port: good.then_some(9) },
    })
}

fn check(desk: &mut Desk) {
    let list = &desk.model.list;
    if list.rows.is_empty() {
        assert_eq!(list.cursor, 0);
    } else {
        assert!(list.cursor < list.rows.len(), "the cursor is on a row");
    }
    assert!(list.ticks.iter().all(|id| desk.model.data.get(*id).is_some()), "what is ticked is there");
    let height = usize::from(desk.model.areas().list.height);
    if height > 0 && !list.rows.is_empty() {
        assert!(list.top <= list.cursor && list.cursor < list.top + height, "the cursor is on the screen");
    }
    if desk.model.size.0 > 0 && desk.model.size.1 > 0 {
        desk.draw();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_it(steps in prop::collection::vec(step(), 1..60)) {
        let mut desk = Desk::new(100, 30);
        desk.hear(Link::Connected);
        for step in steps {
            play(&mut desk, step);
            check(&mut desk);
        }
    }
}
