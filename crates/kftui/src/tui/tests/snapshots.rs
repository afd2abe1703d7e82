//! How it looks, at three sizes.

use kftray_client::Link;
use kftray_commons::api::{
    ContextInfo, ContextList, Error, ImportReport, ImportRequest, ImportedEntry, NamespaceList, PortInfo,
    RefusedEntry, ServiceInfo, ServiceList,
};
use kftray_commons::{Code, ForwardId, Problem};

use super::super::message::{Answer, Effect, Message, Outcome};
use super::super::theme::Surroundings;
use super::script::{Desk, add_public_hook, desk, history, morning};

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (200, 60)];

fn at_every_size(name: &str, play: impl Fn(&mut Desk)) {
    for (width, height) in SIZES {
        let mut desk = desk(width, height);
        play(&mut desk);
        insta::assert_snapshot!(format!("{name}_{width}x{height}"), desk.screen(false));
    }
}

fn on_front(desk: &mut Desk) {
    desk.press("/front<enter><down><esc>");
    desk.wait(std::time::Duration::from_millis(300));
    desk.done(Outcome::History(ForwardId(1), Ok(history())));
    desk.model.clear_notice();
}

#[test]
fn list() {
    at_every_size("list", on_front);
}

#[test]
fn list_with_a_problem() {
    at_every_size("problem", |desk| desk.press("/postgres<enter><down><esc>"));
}

#[test]
fn details() {
    at_every_size("details", |desk| {
        on_front(desk);
        desk.press("<enter>");
    });
}

#[test]
fn exposed() {
    let on_hook = |desk: &mut Desk| {
        desk.say(add_public_hook);
        desk.press("/hook<enter><down><esc>");
    };
    at_every_size("exposed", on_hook);
    at_every_size("exposed_details", |desk| {
        on_hook(desk);
        desk.press("<enter>");
    });
}

#[test]
fn form() {
    at_every_size("form", |desk| {
        on_front(desk);
        desk.press("c<down><down><down>Not A Name<down>");
    });
}

#[test]
fn help() {
    at_every_size("help", |desk| desk.press("h"));
}

#[test]
fn palette() {
    at_every_size("palette", |desk| desk.press(":st"));
}

#[test]
fn error() {
    at_every_size("error", |desk| {
        let error =
            Error::new(Code::Forbidden, "the host may not list Services in namespace pay of context staging");
        desk.done(Outcome::Settings(Err(error)));
    });
}

#[test]
fn away() {
    at_every_size("away", |desk| {
        let problem = Error::new(Code::HostUnreachable, "the host went away");
        desk.hear(Link::Disconnected { problem });
    });
}

#[test]
fn first_use() {
    for (width, height) in SIZES {
        let mut desk = Desk::new(width, height);
        desk.hear(Link::Connected);
        insta::assert_snapshot!(format!("first_use_{width}x{height}"), desk.screen(false));
    }
}

#[test]
fn embedded() {
    let mut desk = Desk::new(80, 24);
    desk.hear(Link::Connecting);
    desk.send(Message::Embedded(Problem::new(
        Code::HostUnreachable,
        "the host did not start: no space left on device",
    )));
    insta::assert_snapshot!(desk.screen(false));
}

#[test]
fn windows() {
    for (name, keys) in [
        ("delete", "<home><down>d"),
        ("view", "v"),
        ("settings", "s<down>"),
        ("tags", "<home><down>t"),
        ("import", "i"),
        ("export", "e"),
        ("search", "/prod sh"),
        ("ticked", "<home> <down><down> "),
        ("folded", "<home><down><down><left>"),
    ] {
        let mut desk = desk(80, 24);
        desk.press(keys);
        insta::assert_snapshot!(format!("window_{name}"), desk.screen(false));
    }
}

#[test]
fn browsing() {
    let mut desk = desk(80, 24);
    desk.press("b");
    let Effect::Contexts(asked) = *desk.last_wish() else { panic!("{:?}", desk.wishes) };
    insta::assert_snapshot!("browse_1_asking", desk.screen(false));
    let context = |name: &str, current| ContextInfo {
        name: name.into(),
        cluster: "eks".into(),
        current,
        namespace: Some("shop".into()),
        ..ContextInfo::default()
    };
    let contexts = vec![context("prod-eu", false), context("staging", true), context("minikube", false)];
    desk.done(Outcome::Listed(
        asked,
        Answer::Contexts(Ok(ContextList { contexts, ..ContextList::default() })),
    ));
    insta::assert_snapshot!("browse_2_contexts", desk.screen(false));
    desk.press("<enter>");
    let Effect::Namespaces(asked, _) = *desk.last_wish() else { panic!("{:?}", desk.wishes) };
    let problem = Problem::new(Code::Forbidden, "you may not list namespaces in staging");
    let namespaces = ["default", "kube-system", "pay", "shop"].map(str::to_owned).to_vec();
    desk.done(Outcome::Listed(
        asked,
        Answer::Namespaces(Ok(NamespaceList { namespaces, problem: Some(problem) })),
    ));
    insta::assert_snapshot!("browse_3_namespaces", desk.screen(false));
    desk.press("<enter>");
    let Effect::Services(asked, _) = *desk.last_wish() else { panic!("{:?}", desk.wishes) };
    let port = |name: &str, port| PortInfo {
        name: Some(name.into()),
        port,
        protocol: "TCP".into(),
        ..PortInfo::default()
    };
    let service = |name: &str, ports: Vec<PortInfo>| ServiceInfo {
        name: name.into(),
        namespace: "shop".into(),
        kind: "ClusterIP".into(),
        ports,
        ..ServiceInfo::default()
    };
    let services = vec![
        service("cart", vec![port("http", 80)]),
        service("front", vec![port("http", 80), port("metrics", 9090)]),
        service("headless", Vec::new()),
    ];
    desk.done(Outcome::Listed(asked, Answer::Services(Ok(ServiceList { services, problem: None }))));
    desk.press("<space>");
    insta::assert_snapshot!("browse_4_services", desk.screen(false));
    desk.press("<up><space><enter>");
    insta::assert_snapshot!("browse_5_ports", desk.screen(false));
}

#[test]
fn an_import() {
    let mut desk = desk(80, 24);
    let entry = |label: &str, details: &[&str]| ImportedEntry {
        id: None,
        label: label.into(),
        details: details.iter().map(|detail| (*detail).to_owned()).collect(),
    };
    let refused = RefusedEntry {
        entry: 4,
        alias: Some("broken".into()),
        problems: vec![
            Problem::new(Code::SpecInvalid, "line 12, column 3: remote_port: 0 is not a port")
                .with_remedy("Write the port of the service or pod, from 1 to 65535."),
        ],
    };
    let report = ImportReport {
        dry_run: true,
        added: vec![entry("reports", &[]), entry("mail", &[])],
        changed: vec![entry("front", &["local port 8080 becomes 9080"])],
        unchanged: vec![entry("cart", &[])],
        faults: vec![refused],
        warnings: vec!["line 3, column 5: `servcie` is not known; was `service` meant?".into()],
        ..ImportReport::default()
    };
    desk.done(Outcome::Imported(ImportRequest::default(), Ok(report)));
    insta::assert_snapshot!(desk.screen(false));
}

#[test]
fn without_colours_everything_is_still_told() {
    let plain = Surroundings::of(Some("1"), Some("xterm"), None);
    let mut desk = Desk::with(80, 24, plain);
    desk.say(|snapshot| *snapshot = morning());
    assert!(!desk.is_coloured());
    insta::assert_snapshot!(desk.screen(true));
}

#[test]
fn light_and_dark_differ() {
    let mut light = Desk::with(80, 24, Surroundings::of(None, Some("xterm"), Some("0;15")));
    light.say(|snapshot| *snapshot = morning());
    let mut dark = Desk::new(80, 24);
    dark.say(|snapshot| *snapshot = morning());
    assert_eq!(light.screen(false), dark.screen(false), "the same words");
    assert_ne!(light.screen(true), dark.screen(true), "in other colours");
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in [(1, 1), (39, 9), (40, 10), (60, 15), (119, 19), (120, 10), (400, 12)] {
        for keys in ["", "h", "n", "b", ":", "s", "v", "t", "i", "X", "<home><down><enter>"] {
            let mut desk = desk(width, height);
            desk.press(keys);
            assert!(!desk.screen(false).is_empty());
        }
    }
}
