//! The words that scripts and people rely on: event lines and failure codes.

use std::collections::HashSet;

use kftray_commons::{Code, Counters, Event, Problem, RemotePort, Status};

fn line(event: &Event) -> String {
    let text = serde_json::to_string(event).expect("JSON");
    let again: Event = serde_json::from_str(&text).expect("our own JSON");
    assert_eq!(&again, event);
    assert!(!text.contains('\n'));
    text
}

#[test]
fn event_lines() {
    let forward = || "svc/web:80".to_owned();
    let addresses = || vec!["127.0.0.1:8080".to_owned(), "[::1]:8080".to_owned()];
    let status = |status| Event::Status { forward: forward(), status };
    let gone = || Problem::new(Code::PodGone, "pod web-1 is gone");
    let events = [
        Event::Listening {
            forward: forward(),
            target: "service/web".into(),
            remote_port: RemotePort::Number(80.try_into().expect("not 0")),
            addresses: addresses(),
        },
        Event::Listening {
            forward: "db".into(),
            target: "statefulset/db".into(),
            remote_port: RemotePort::Name("pg".into()),
            addresses: vec!["127.0.0.1:41234".into()],
        },
        status(Status::Binding),
        status(Status::Resolving { waiting_for: None }),
        status(Status::Resolving {
            waiting_for: Some(Problem::new(Code::NoReadyPods, "0 of 2 pods are ready")),
        }),
        status(Status::Ready),
        status(Status::Recovering { attempt: 1, retry_in_ms: Some(900), cause: gone() }),
        status(Status::Recovering { attempt: 2, retry_in_ms: None, cause: gone() }),
        status(Status::NeedsUser {
            cause: Problem::new(Code::PortInUse, "port 8080 is in use by nginx (pid 7)"),
        }),
        status(Status::Stopping),
        status(Status::Stopped),
        Event::Ready {
            forward: forward(),
            addresses: addresses(),
            endpoint: "default/web-1:8080".into(),
            transport: "websocket".into(),
        },
        Event::AllReady,
        Event::ConnectionFailed { forward: forward(), problem: gone() },
        Event::InvalidEntry {
            source: "file.json".into(),
            entry: 3,
            alias: Some("x".into()),
            problem: Problem::new(
                Code::SpecInvalid,
                "line 4, column 12: local_port: expected a port, found `80a`",
            )
            .with_remedy("Write a number from 1 to 65535."),
        },
        Event::InvalidEntry {
            source: "-".into(),
            entry: 1,
            alias: None,
            problem: Problem::new(Code::Unsupported, "udp forwards are not served yet"),
        },
        Event::Warning {
            source: "-".into(),
            message: "line 1, column 2: unknown field `x` is ignored".into(),
        },
        Event::Stopped {
            forward: forward(),
            counters: Counters {
                bytes_up: 1,
                bytes_down: 2,
                connections: 3,
                idle_ms: Some(4),
                ..Counters::default()
            },
        },
    ];
    let lines: Vec<String> = events.iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// Every code says what happened and what to do, and no two say the same.
#[test]
fn codes_are_complete_and_distinct() {
    let mut texts = HashSet::new();
    let mut causes = HashSet::new();
    let mut table = String::new();
    for code in Code::ALL {
        let text = code.as_str();
        assert!(texts.insert(text), "{text} is there twice");
        assert!(causes.insert(code.cause()), "{text}: its cause is another one's too");
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{text}");
        for sentence in [code.cause(), code.remedy()] {
            assert!(sentence.len() > 10 && sentence.ends_with('.'), "{text}: `{sentence}`");
            assert!(sentence.starts_with(|c: char| c.is_uppercase()), "{text}: `{sentence}`");
        }
        assert_eq!(serde_json::to_value(code).expect("JSON"), text);
        assert_eq!(serde_json::from_value::<Code>(text.into()).expect("a code"), *code);
        table.push_str(&format!("{text} ({:?}): {} {}\n", code.cure(), code.cause(), code.remedy()));
    }
    insta::assert_snapshot!(table);
}
