//! The documents that are made from the code are those that are committed. `UPDATE=1` writes them.

use std::path::Path;

fn check(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, made).expect("written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differ = committed.lines().zip(made.lines()).position(|(a, b)| a != b);
    assert!(
        committed == made,
        "docs/{name} is not what the code says (first difference: line {:?}); run UPDATE=1 cargo test -p kftray-host --test documents",
        differ.map(|line| line + 1)
    );
}

#[test]
fn errors() {
    let document = kftray_host::errors::document();
    for code in kftray_commons::Code::ALL {
        assert!(document.contains(&format!("| `{code}` | ")), "{code} has no line");
    }
    check("errors.md", &document);
}

#[test]
fn openapi() {
    let document = kftray_host::document();
    let value: serde_json::Value = serde_json::from_str(&document).expect("JSON");
    assert!(
        value["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")),
        "{}",
        value["openapi"]
    );
    check("openapi.json", &document);
}
