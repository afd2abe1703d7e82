//! Tables in the documents that name tests: each test must be there, each code known.

use std::path::{Path, PathBuf};

use kftray_commons::Code;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of all tables of a document, cells without blanks around them.
fn rows(document: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join(document)).expect("readable");
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    // A bar inside of a code span is written `\|`.
    let cells = |line: &str| {
        let line = line.replace("\\|", "\u{1}");
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    rows.map(cells).collect()
}

/// The code spans of a cell.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// `path` `test` `test` ...: every test must be a function of the file before it.
fn check_tests(cell: &str) {
    let mut file = String::new();
    let mut path = "";
    for span in spans(cell) {
        if span.ends_with(".rs") {
            path = span;
            file =
                std::fs::read_to_string(root().join(span)).unwrap_or_else(|error| panic!("{span}: {error}"));
        } else {
            assert!(
                file.contains(&format!("fn {span}(")) || file.contains(&format!("\"{span}\"")),
                "no `{span}` in {path}"
            );
        }
    }
}

#[test]
fn every_example_of_the_reference_has_its_test() {
    let rows = rows("docs/reference-users.md");
    assert!(rows.len() > 15);
    for row in rows.iter().skip(1) {
        let [_, _, test] = &row[..] else { panic!("three cells: {row:?}") };
        assert_eq!(spans(test).len(), 2, "{row:?}");
        check_tests(test);
    }
}

#[test]
fn every_failure_has_code_message_remedy_and_test() {
    let rows = rows("docs/failures.md");
    assert!(rows.len() > 60);
    for row in rows {
        let [entry, codes, message, remedy, test] = &row[..] else { panic!("five cells: {row:?}") };
        if entry == "entry" {
            continue;
        }
        for code in spans(codes) {
            assert!(Code::ALL.iter().any(|known| known.as_str() == code), "no code `{code}`: {entry}");
        }
        let untested = test.starts_with("not ") || test.starts_with("later");
        assert!(!message.is_empty() && (!remedy.is_empty() || untested), "{row:?}");
        assert!(untested || !spans(test).is_empty(), "{entry} has neither a test nor a reason why not");
        if !untested {
            check_tests(test);
        }
    }
}
