//! What a person does, from key presses to what the host is asked for.

use std::path::PathBuf;
use std::sync::Arc;

use kftray_client::Link;
use kftray_commons::api::{
    Action as Deed, ActionOutcome, ActionReport, ActionResult, ContextInfo, ContextList, Error, ImportReport,
    ImportedEntry, NamespaceList, PortInfo, ServiceInfo, ServiceList,
};
use kftray_commons::{Code, ForwardId, Problem};
use serde_json::{Value, json};

use super::super::keys::Scope;
use super::super::message::{
    Answer, Effect, ExportFault, Exported, Gesture, Message, Outcome, Save, Target, Then,
};
use super::super::model::Mode;
use super::script::{Desk, config, desk, history};

fn ids(numbers: &[u64]) -> Vec<ForwardId> {
    numbers.iter().copied().map(ForwardId).collect()
}

fn saved(desk: &Desk) -> &Save {
    let Effect::Save(save) = desk.last_wish() else { panic!("{:?}", desk.last_wish()) };
    save
}

#[test]
fn first_use_takes_five_keys() {
    let mut desk = Desk::new(80, 24);
    desk.hear(Link::Connected);
    assert!(desk.screen(false).contains("No forwards yet."));
    desk.press("<enter>");
    let Effect::Contexts(asked) = *desk.last_wish() else { panic!("{:?}", desk.wishes) };
    let context = |name: &str, current| ContextInfo { name: name.into(), current, ..ContextInfo::default() };
    let contexts = vec![context("a", false), context("kind", true)];
    desk.done(Outcome::Listed(
        asked,
        Answer::Contexts(Ok(ContextList { contexts, ..ContextList::default() })),
    ));
    desk.press("<enter>");
    let Effect::Namespaces(asked, place) = desk.last_wish().clone() else { panic!("{:?}", desk.wishes) };
    assert_eq!(place.context, "kind", "the current context is under the cursor");
    let namespaces = ["kube-system", "shop"].map(str::to_owned).to_vec();
    desk.done(Outcome::Listed(asked, Answer::Namespaces(Ok(NamespaceList { namespaces, problem: None }))));
    desk.press("<enter>");
    let Effect::Services(asked, place) = desk.last_wish().clone() else { panic!("{:?}", desk.wishes) };
    assert_eq!(place.namespace, "shop", "those of the cluster come last");
    let port =
        PortInfo { name: Some("http".into()), port: 80, protocol: "TCP".into(), ..PortInfo::default() };
    let service = ServiceInfo {
        name: "front".into(),
        namespace: "shop".into(),
        ports: vec![port],
        ..ServiceInfo::default()
    };
    desk.done(Outcome::Listed(
        asked,
        Answer::Services(Ok(ServiceList { services: vec![service], problem: None })),
    ));
    desk.press("<enter><enter>");
    let save = saved(&desk).clone();
    assert_eq!(save.then, Then::Start);
    let (None, put) = &save.puts[0] else { panic!("{save:?}") };
    assert_eq!(
        Value::Object(put.spec.clone()),
        json!({
            "alias": "front", "workload_type": "service", "service": "front", "namespace": "shop", "context": "kind",
            "remote_port": 80, "local_port": 8080, "protocol": "tcp",
        })
    );
    let config = config(1, Some("kind"), "shop", "front", 8080);
    desk.done(Outcome::Saved { save, results: vec![Ok((*config).clone())], started: None });
    assert!(matches!(desk.model.mode(), Mode::List));
    desk.say(|snapshot| snapshot.configs.push(config));
    assert_eq!(desk.on(), Some("front"), "the cursor is on what was added");
    assert!(desk.screen(false).contains("added and started front"));
}

#[test]
fn start_and_stop() {
    let mut desk = desk(80, 24);
    desk.press("<home><down>f");
    assert_eq!(desk.on(), Some("日本語サービス"));
    assert_eq!(*desk.last_wish(), Effect::Act(Deed::Stop, ids(&[5])));
    // A group where one is stopped: that one is started.
    desk.press("<down>f");
    assert_eq!(*desk.last_wish(), Effect::Act(Deed::Start, ids(&[4])));
    desk.press("<down><space><space>f");
    assert_eq!(desk.model.list.ticks.len(), 2);
    assert_eq!(*desk.last_wish(), Effect::Act(Deed::Start, ids(&[4])));
    desk.press("<esc>X");
    assert!(matches!(desk.model.mode(), Mode::Ask(_)));
    desk.press("n");
    assert!(matches!(desk.model.mode(), Mode::List));
    desk.press("Xy");
    assert_eq!(*desk.last_wish(), Effect::Act(Deed::Stop, ids(&[1, 2, 3, 5, 6, 7])));
}

#[test]
fn what_failed_is_told_by_name() {
    let mut desk = desk(80, 24);
    let problem = Problem::new(Code::PortInUse, "port 8081 is in use by nginx");
    let result = ActionResult {
        id: ForwardId(2),
        label: "cart".into(),
        outcome: ActionOutcome::Failed,
        problem: Some(problem),
    };
    desk.done(Outcome::Acted(Deed::Start, Ok(ActionReport { results: vec![result], unmatched: Vec::new() })));
    let screen = desk.screen(false);
    for part in ["Not started", "cart", "port 8081 is in use by nginx", "choose another local port"] {
        assert!(screen.contains(part), "{part}\n{screen}");
    }
    desk.press("<esc>");
    assert!(matches!(desk.model.mode(), Mode::List));
}

#[test]
fn search_narrows_and_clears() {
    let mut desk = desk(80, 24);
    desk.press("/pay bill");
    assert_eq!(desk.model.list.shown(), ids(&[6]));
    desk.press("<enter>");
    assert!(matches!(desk.model.mode(), Mode::List));
    assert!(desk.screen(false).contains("1 of 7"));
    desk.press("<esc>/needs you<enter>");
    assert_eq!(desk.model.list.shown(), ids(&[3]), "states are found as well");
    desk.press("<esc>");
    assert_eq!(desk.model.list.shown().len(), 7);
    desk.press("/日本<enter>");
    assert_eq!(desk.model.list.shown(), ids(&[5]));
    desk.press("/zzz<enter>");
    assert!(desk.screen(false).contains("Nothing is found."));
}

#[test]
fn the_view_is_kept_with_the_host() {
    let mut desk = desk(80, 24);
    // Group by namespace instead of context, and only one state.
    desk.press("v<down><down><enter><esc>");
    let Effect::Settings(patch) = desk.last_wish().clone() else { panic!("{:?}", desk.wishes) };
    let stored = patch.other.get("config_view").cloned().flatten().expect("stored");
    assert_eq!(stored, r#"{"group_by":"namespace","filters":[]}"#);
    let titles: Vec<_> = desk.model.list.groups.iter().map(|group| group.title.as_str()).collect();
    assert_eq!(titles, ["default", "pay", "shop"]);
    // What another window chooses is shown here.
    desk.say(|snapshot| {
        let other = r#"{"group_by":null,"filters":[{"field":"namespace","values":["pay"]}]}"#;
        Arc::make_mut(&mut snapshot.settings).other.insert("config_view".into(), other.into());
    });
    assert!(desk.model.list.groups.is_empty());
    assert_eq!(desk.model.list.shown(), ids(&[7, 6]));
    desk.press("vc<esc>");
    assert_eq!(desk.model.list.shown().len(), 7);
}

#[test]
fn a_forward_is_changed() {
    let mut desk = desk(80, 24);
    desk.press("/front<enter><down>c");
    // To the local port.
    desk.press("<down><down><ctrl+u>9999<ctrl+s>");
    let save = saved(&desk).clone();
    assert_eq!((save.form, save.then), (true, Then::Start));
    let (id, put) = &save.puts[0];
    assert_eq!((*id, put.revision), (Some(ForwardId(1)), Some(1)));
    assert_eq!(put.spec.get("local_port"), Some(&json!(9999)));
    assert_eq!(put.spec.get("context"), Some(&json!("prod-eu")));
    // Somebody else was quicker.
    let mut present = (*config(1, Some("prod-eu"), "shop", "front", 7777)).clone();
    present.revision = 2;
    let error = Error::new(Code::Conflict, "the config was changed").with_details(json!(present));
    desk.done(Outcome::Saved { save, results: vec![Err(error)], started: None });
    assert!(desk.screen(false).contains("changed elsewhere"));
    desk.press("<enter>");
    assert_eq!(saved(&desk).puts[0].1.revision, Some(2), "a second Enter overwrites");
    desk.press("<esc>");
    assert!(matches!(desk.model.mode(), Mode::Ask(_)), "what was typed is not lost by one key");
    desk.press("y");
    assert!(matches!(desk.model.mode(), Mode::List));
}

#[test]
fn a_faulty_form_is_not_sent() {
    let mut desk = desk(80, 24);
    desk.press("n<enter>");
    assert!(!desk.wishes.iter().any(|wish| matches!(wish, Effect::Save(_))));
    let screen = desk.screen(false);
    assert!(screen.contains("It is needed. Name of the Service"), "{screen}");
    desk.press("web<down>http<enter>");
    let put = saved(&desk).puts[0].1.clone();
    assert_eq!(put.spec.get("remote_port"), Some(&json!("http")));
}

#[test]
fn deleted_is_put_back() {
    let mut desk = desk(80, 24);
    desk.press("/cart<enter><down>d");
    assert!(desk.screen(false).contains("1 runs and is stopped."));
    desk.press("y");
    assert_eq!(*desk.last_wish(), Effect::Delete(ids(&[2])));
    desk.done(Outcome::Deleted(vec![(ForwardId(2), Ok(()))]));
    desk.say(|snapshot| {
        snapshot.configs.retain(|config| config.id != ForwardId(2));
        snapshot.forwards.retain(|forward| forward.id != ForwardId(2));
    });
    desk.press("u");
    let (None, put) = &saved(&desk).puts[0] else { panic!("a new one") };
    assert_eq!(put.spec.get("alias"), Some(&json!("cart")));
}

#[test]
fn tags_of_one_and_of_several() {
    let mut desk = desk(80, 24);
    desk.press("/front<enter><down>tteam=blue, x<tab>morning<enter>");
    let (Some(ForwardId(1)), put) = &saved(&desk).puts[0] else { panic!("the same one") };
    assert_eq!(put.spec.get("tags"), Some(&json!({"team": "blue", "x": ""})));
    assert_eq!(put.group.as_deref(), Some("morning"));
    desk.press("<esc>atnot a tag<enter>");
    assert!(matches!(desk.model.mode(), Mode::Prompt(_)), "a fault keeps the window open");
    desk.press("<ctrl+u>a=1<enter>");
    assert_eq!(saved(&desk).puts.len(), 7);
    assert!(saved(&desk).puts.iter().all(|(_, put)| put.group.is_none()), "groups stay");
}

#[test]
fn a_busy_port_is_left_for_a_free_one() {
    let mut desk = desk(80, 24);
    desk.press("/postgres<enter><down>p");
    assert_eq!(
        *desk.last_wish(),
        Effect::FreePort { id: ForwardId(3), host: "localhost".into(), above: 5432 }
    );
    desk.done(Outcome::FreePort { id: ForwardId(3), port: Some(5433) });
    let save = saved(&desk);
    assert_eq!(save.then, Then::Restart);
    assert_eq!(save.puts[0].1.spec.get("local_port"), Some(&json!(5433)));
}

#[test]
fn an_import_is_shown_before_it_happens() {
    let mut desk = desk(80, 24);
    desk.press("i<ctrl+u>/tmp/team.json<enter>");
    let Effect::Import(request) = desk.last_wish().clone() else { panic!("{:?}", desk.wishes) };
    assert!(request.dry_run);
    assert_eq!(request.path.as_deref(), Some("/tmp/team.json"));
    let entry = ImportedEntry { id: None, label: "reports".into(), details: Vec::new() };
    let report = ImportReport { dry_run: true, added: vec![entry], ..ImportReport::default() };
    desk.done(Outcome::Imported(request, Ok(report)));
    assert!(desk.screen(false).contains("reports"));
    desk.press("<enter>");
    let Effect::Import(request) = desk.last_wish() else { panic!("{:?}", desk.wishes) };
    assert!(!request.dry_run);
    // What is pasted into the list is configs.
    desk.send(Message::Paste("[{\"service\": \"x\"}]".into()));
    let Effect::Import(request) = desk.last_wish() else { panic!("{:?}", desk.wishes) };
    assert!(request.dry_run && request.text.contains("service"));
}

#[test]
fn an_export_never_overwrites_unasked() {
    let mut desk = desk(80, 24);
    desk.press("e<enter>");
    let path = PathBuf::from("/home/me/kftray.json");
    assert_eq!(*desk.last_wish(), Effect::Export { path: path.clone(), ids: Vec::new(), replace: false });
    desk.done(Outcome::Exported { path: path.clone(), result: Err(ExportFault::Exists) });
    assert!(desk.screen(false).contains("Replace the file?"));
    desk.press("y");
    assert_eq!(*desk.last_wish(), Effect::Export { path: path.clone(), ids: Vec::new(), replace: true });
    desk.done(Outcome::Exported { path, result: Ok(Exported { count: 7, remarks: Vec::new() }) });
    assert!(matches!(desk.model.mode(), Mode::List));
    assert!(desk.screen(false).contains("exported 7 forwards to /home/me/kftray.json"));
}

#[test]
fn the_palette_does_what_keys_do() {
    let mut desk = desk(80, 24);
    desk.press(":settings<enter>");
    assert!(matches!(desk.model.mode(), Mode::Settings(_)));
    desk.press("<esc>:billing<enter>");
    assert_eq!(desk.on(), Some("billing"));
    // Also where it is hidden.
    desk.press("/front<enter>:billing<enter>");
    assert_eq!(desk.on(), Some("billing"));
}

#[test]
fn the_mouse_does_what_keys_do() {
    let mut desk = desk(80, 24);
    let (_, hits) = desk.draw();
    let group = hits.at(10, 2);
    assert_eq!(group, Some(Target::Row(0)));
    desk.send(Message::Mouse(Gesture::Click, group));
    assert!(desk.model.list.groups[0].folded);
    let before = desk.model.list.cursor;
    desk.send(Message::Mouse(Gesture::Down, None));
    assert_eq!(desk.model.list.cursor, before + 3);
    let (_, hits) = desk.draw();
    let Some(legend) = (0..80).find_map(|x| hits.at(x, 23)) else { panic!("no legend") };
    let Target::Legend(_) = legend else { panic!("{legend:?}") };
    desk.send(Message::Mouse(Gesture::Click, Some(legend)));
    assert!(matches!(desk.last_wish(), Effect::Act(..)));
}

#[test]
fn the_history_is_asked_for_once_the_cursor_rests() {
    let mut desk = desk(80, 24);
    desk.wishes.clear();
    desk.press("<home><down><down><down>");
    assert_eq!(desk.wishes, []);
    desk.wait(std::time::Duration::from_millis(300));
    assert_eq!(desk.wishes, [Effect::History(ForwardId(2))]);
    desk.wait(std::time::Duration::from_secs(20));
    assert_eq!(desk.wishes.len(), 1, "once");
    desk.say(|snapshot| Arc::make_mut(&mut snapshot.forwards[1]).since += 1);
    desk.wait(std::time::Duration::from_millis(300));
    assert_eq!(desk.wishes.len(), 2, "again when its state is another");
    desk.done(Outcome::History(ForwardId(2), Ok(history())));
    desk.press("<enter>");
    assert!(desk.screen(false).contains("front-5c8b77-q7w2e is gone"));
}

#[test]
fn with_nothing_to_come_nothing_wakes_it() {
    let mut desk = desk(80, 24);
    // A countdown is on the screen; without it and after the traffic has ended, there is nothing.
    desk.say(|snapshot| snapshot.forwards.retain(|forward| forward.id != ForwardId(2)));
    desk.wait(std::time::Duration::from_secs(60));
    assert_eq!(desk.model.deadline(), None);
}

#[test]
fn closing_asks_only_where_something_ends() {
    let mut desk = desk(80, 24);
    desk.press("q");
    assert_eq!(*desk.last_wish(), Effect::Quit);
    desk.wishes.clear();
    let reason = Problem::new(Code::HostUnreachable, "the host did not start: no space left on device");
    desk.hear(Link::Connecting);
    desk.send(Message::Embedded(reason));
    assert!(desk.screen(false).contains("Forwards end with this window"));
    desk.press("<esc>q");
    assert!(matches!(desk.model.mode(), Mode::Ask(_)));
    desk.press("y");
    assert_eq!(*desk.last_wish(), Effect::Quit);
    desk.wishes.clear();
    desk.press("<ctrl+c>");
    assert_eq!(desk.wishes, [Effect::Quit]);
}

#[test]
fn the_cursor_stays_on_its_forward() {
    let mut desk = desk(80, 24);
    desk.press("/cart<enter><down><esc>");
    assert_eq!(desk.on(), Some("cart"));
    for number in 100..140 {
        desk.say(|snapshot| {
            snapshot.configs.push(config(number, Some("aaa"), "x", &format!("svc-{number}"), 1));
        });
        assert_eq!(desk.on(), Some("cart"));
        let height = usize::from(desk.model.areas().list.height);
        assert!((desk.model.list.top..desk.model.list.top + height).contains(&desk.model.list.cursor));
    }
}

#[test]
fn every_scope_can_be_left() {
    let ways = [
        ("", Scope::List),
        ("/", Scope::Search),
        ("b", Scope::Picker),
        ("n", Scope::Form),
        ("i", Scope::Prompt),
        ("v", Scope::Arrange),
        ("s", Scope::Settings),
        (":", Scope::Palette),
        ("h", Scope::Help),
        ("X", Scope::Confirm),
        ("<home><down><enter>", Scope::Details),
    ];
    for (way, scope) in ways {
        let mut desk = desk(80, 24);
        desk.press(way);
        assert_eq!(desk.model.mode().scope(), scope, "{way}");
        desk.press("<esc>");
        assert_eq!(desk.model.mode().scope(), Scope::List, "{way}");
    }
}
