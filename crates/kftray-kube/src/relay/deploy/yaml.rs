//! JSON as YAML that people read and `kubectl apply -f -` takes: block style, everything doubtful in double quotes.
//!
//! Our own few lines, since all that is written is JSON to begin with: no YAML library is needed to write the subset that
//! JSON values need.

use std::fmt::Write as _;

use serde_json::Value;

/// One document, without a leading `---`, with a line break at its end.
pub(super) fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    if has_inside(value) {
        block(&mut out, value, 0);
    } else {
        out.push_str(&scalar(value));
        out.push('\n');
    }
    out
}

fn block(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) => {
            for (index, (key, inner)) in map.iter().enumerate() {
                // The first line of a list's item follows its dash.
                if index > 0 || !out.ends_with("- ") {
                    indent(out, depth);
                }
                let _infallible = write!(out, "{}:", text(key));
                entry(out, inner, depth);
            }
        }
        Value::Array(list) => {
            for inner in list {
                indent(out, depth);
                out.push_str("- ");
                if inner.is_object() && has_inside(inner) {
                    block(out, inner, depth + 1);
                } else {
                    // A list in a list stands on one line, as JSON.
                    let _infallible = writeln!(out, "{}", scalar(inner));
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _infallible = writeln!(out, "{}", scalar(value));
        }
    }
}

fn entry(out: &mut String, value: &Value, depth: usize) {
    if !has_inside(value) {
        let _infallible = writeln!(out, " {}", scalar(value));
        return;
    }
    out.push('\n');
    // Dashes stand under the key, as kubectl prints them.
    block(out, value, if value.is_array() { depth } else { depth + 1 });
}

/// An object or list with something in it.
fn has_inside(value: &Value) -> bool {
    value.as_object().is_some_and(|map| !map.is_empty())
        || value.as_array().is_some_and(|list| !list.is_empty())
}

fn indent(out: &mut String, depth: usize) {
    for _ in 0..depth {
        out.push_str("  ");
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        // `{}`, `[]`, numbers, booleans and null are the same in both.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// Plain where no YAML version reads anything else into it; JSON's double quotes are YAML's.
fn text(string: &str) -> String {
    let first = |letter: char| letter.is_ascii_alphabetic() || letter == '/';
    let rest = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = string.starts_with(first)
        && string.chars().all(rest)
        && !word.contains(&string.to_ascii_lowercase().as_str());
    if plain { string.to_owned() } else { Value::String(string.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn looks_as_kubectl_prints_it() {
        let value = json!({
            "apiVersion": "v1", "kind": "X", "empty": {}, "none": [],
            "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "kftray-server", "n": "1", "on": "true"}},
            "spec": {"list": [{"a": 1, "deep": {"b": null, "items": ["x", "y z"]}}, "plain", ["in", 1]], "text": "a\nb: \"c\" #"},
        });
        insta::assert_snapshot!(to_yaml(&value));
    }

    #[test]
    fn doubtful_words_are_quoted() {
        for doubtful in
            ["", "1", "1e3", "true", "No", "~", "a: b", "a #b", "- a", "*x", "&x", "5m", "=", "a\tb", "@x"]
        {
            assert!(text(doubtful).starts_with('"'), "{doubtful:?} stands unquoted");
        }
        for plain in ["kftray-server", "batch/v1", "/healthz", "app.kubernetes.io/name"] {
            assert_eq!(text(plain), plain);
        }
    }
}
