//! The command line as a newcomer and a script meet it, through the built program and without any cluster.

mod common;

use std::io::Write as _;
use std::net::TcpListener;
use std::process::Stdio;

use common::{Run, kftui};
use serde_json::Value;

/// The JSON objects of the lines.
fn events(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

fn shown(run: &Run) -> String {
    format!("exit {}\n--- stdout\n{}--- stderr\n{}", run.code, run.stdout, run.stderr)
}

#[test]
fn help_of_every_command() {
    for (name, words) in [
        ("help", vec!["--help"]),
        ("help_short", vec!["-h"]),
        ("help_forward", vec!["forward", "--help"]),
        ("help_run", vec!["run", "--help"]),
        ("help_demo", vec!["demo", "--help"]),
        ("help_completion", vec!["completion", "--help"]),
        ("help_man", vec!["man", "--help"]),
    ] {
        let run = kftui(&words).run();
        assert_eq!(run.code, 0, "{words:?}");
        insta::assert_snapshot!(name, run.stdout);
    }
}

#[test]
fn mistakes_are_told_with_an_example() {
    let cases: &[&[&str]] = &[
        &["forward"],
        &["forward", "svc/web"],
        &["forward", "8080:80"],
        &["forward", "svc/web", "http"],
        &["forward", "svc/Web", "80"],
        &["forward", "svc/web", "80", "-n", "No"],
        &["forward", "svc/web", "80", "--address", "a b"],
        &["forward", "svc/web", "80", "--hold", "x"],
        &["forward", "svc/web", "80", "--output", "yaml"],
        &["forward", "svc/web", "80", "--transport", "quic"],
        &["forwrad", "svc/web", "80"],
        &["run"],
        &["demo", "--rate", "0"],
        &["man", "nothing"],
        &[],
    ];
    let all: Vec<String> = cases
        .iter()
        .map(|words| {
            let run = kftui(words).run();
            assert_eq!(run.code, 2, "{words:?}: {run:?}");
            assert_eq!(run.stdout, "", "{words:?}");
            format!("$ kftui {}\n{}", words.join(" "), run.stderr)
        })
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn completions_and_manual() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = kftui(&["completion", shell]).run();
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("kftui") && run.stdout.contains("_KFTUI_COMPLETE"), "{shell}: {run:?}");
    }
    let page = kftui(&["man"]).run();
    assert!(page.stdout.contains(".TH kftui 1") && page.stdout.contains("Exit codes"), "{}", page.stdout);
    let page = kftui(&["man", "forward"]).run();
    assert!(page.stdout.contains(".TH kftui-forward 1"), "{}", page.stdout);
    assert!(page.stdout.contains("Examples") && page.stdout.contains("svc/db 5432"), "{}", page.stdout);
}

#[test]
fn a_file_with_nothing_to_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("team.json");
    let text = r#"[
  {"alias": "bad", "service": "web", "remote_port": "80a b", "nmespace": "x"},
  {"alias": "torn", "service": "web" "remote_port": 80},
  {"alias": "api", "workload_type": "proxy", "remote_address": "http:///"}
]"#;
    std::fs::write(&path, text).expect("written");
    let words = ["run", path.to_str().expect("UTF-8")];
    let run = kftui(&words).run();
    assert_eq!(run.code, 3, "{run:?}");
    let name = path.to_str().expect("UTF-8");
    insta::assert_snapshot!(shown(&run).replace(name, "team.json"));

    let run = kftui(&[words[0], words[1], "--output", "json"]).run();
    assert_eq!(run.code, 3, "{run:?}");
    let told = events(&run.stdout);
    let codes: Vec<_> = told
        .iter()
        .filter(|event| event["event"] == "invalid_entry")
        .map(|event| format!("{} {} {}", event["entry"], event["alias"], event["problem"]["code"]))
        .collect();
    assert_eq!(codes, [r#"1 "bad" "spec_invalid""#, r#"2 null "spec_invalid""#, r#"3 "api" "spec_invalid""#]);
    assert!(told.iter().any(|event| event["event"] == "warning"
        && event["message"].as_str().is_some_and(|text| text.contains("did you mean `namespace`?"))));
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().join("empty.json");
    std::fs::write(&empty, "\n").expect("written");
    let latin = directory.path().join("latin.json");
    std::fs::write(&latin, b"{\n\"a\": \"\xe9\"}").expect("written");
    for (path, expected) in [
        (directory.path().join("missing.json"), "cannot be read"),
        (directory.path().to_owned(), "cannot be read"),
        (empty, "there is no entry in it"),
        (latin, "line 2: not UTF-8"),
    ] {
        let run = kftui(&["run", path.to_str().expect("UTF-8")]).run();
        assert_eq!(run.code, 3, "{run:?}");
        assert!(run.stderr.contains(expected), "{run:?}");
    }
}

#[test]
fn standard_input() {
    let mut command = kftui(&["run", "-", "--output", "json"]).command;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(br#"{"service":"web","remote_port":"8 0"}"#).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(3));
    let told = events(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(told[0]["source"], "-");
    assert_eq!(told[0]["problem"]["code"], "spec_invalid");
}

/// A busy port ends it with code 4 and names the owner, before and without any cluster.
#[test]
fn a_busy_port() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = busy.local_addr().expect("an address").port();
    let ports = format!("{port}:80");
    let run = kftui(&["forward", "svc/web", &ports, "--output", "json"]).run();
    assert_eq!(run.code, 4, "{run:?}");
    let told = events(&run.stdout);
    let needs = told.iter().find(|event| event["status"]["phase"] == "needs_user").expect("told");
    assert_eq!(needs["status"]["cause"]["code"], "port_in_use");
    let message = needs["status"]["cause"]["message"].as_str().expect("a text");
    assert!(message.contains(&port.to_string()), "{message}");
    assert!(told.iter().any(|event| event["event"] == "stopped"), "{told:?}");
    // For people: the same in words, with a remedy.
    let run = kftui(&["forward", "svc/web", &ports]).run();
    assert_eq!(run.code, 4, "{run:?}");
    assert!(run.stdout.contains("needs you") && run.stdout.contains("another local port"), "{run:?}");
}

/// A kubeconfig that is not there ends it with code 4; a script does not hang.
#[test]
fn a_missing_kubeconfig() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("none");
    let words =
        ["forward", "svc/web", ":80", "--kubeconfig", path.to_str().expect("UTF-8"), "--output", "json"];
    let run = kftui(&words).run();
    assert_eq!(run.code, 4, "{run:?}");
    let told = events(&run.stdout);
    let needs = told.iter().find(|event| event["status"]["phase"] == "needs_user").expect("told");
    assert_eq!(needs["status"]["cause"]["code"], "kubeconfig_missing");
    assert!(needs["status"]["cause"]["message"].as_str().is_some_and(|text| text.contains("none")));

    // With --keep-trying it stays, until the time that was given is over.
    let run = kftui(&[&words[..], &["--keep-trying", "--ready-timeout", "0.3"]].concat()).run();
    assert_eq!(run.code, 5, "{run:?}");
}
