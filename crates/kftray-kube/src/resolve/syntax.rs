//! Names and label selectors as the API server accepts them, checked before they get into a URL.
//!
//! A selector is parsed by the grammar of `k8s.io/apimachinery/pkg/labels` (what `kubectl -l` takes) and written back in
//! one spelling, so that `a=b, c` and `c,a==b` share a watch.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::object::LabelSelector;

/// Longest name of an object (DNS-1123 subdomain, RFC 1123).
const NAME_MAX: usize = 253;
/// Longest label value and name part of a label key (apimachinery `validation.LabelValueMaxLength`).
const LABEL_MAX: usize = 63;

/// Whether an object can have this name: lower-case letters, digits, `-` and `.`, a letter or digit at both ends.
pub(super) fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= NAME_MAX && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}

fn is_label_part(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = part.as_bytes();
    bytes.len() <= LABEL_MAX && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_name(prefix) && is_label_part(name),
        None => is_label_part(key),
    }
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_label_part(value)
}

/// The selector of a Service, in the spelling of [`canonical`]; `None` if it selects nothing by itself.
pub(super) fn of_map(labels: &BTreeMap<String, String>) -> Option<String> {
    if labels.is_empty() {
        return None;
    }
    Some(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

/// The selector of a workload; `None` if it is empty, which for a workload is not "everything" but a mistake.
pub(super) fn of_workload(selector: &LabelSelector) -> Option<String> {
    let mut parts: Vec<String> =
        selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    for requirement in &selector.match_expressions {
        let key = &requirement.key;
        let values = requirement.values.join(",");
        parts.push(match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    if parts.is_empty() { None } else { Some(parts.join(",")) }
}

/// Checks a selector in `kubectl -l` syntax and writes it in one spelling.
///
/// # Errors
/// A plain sentence that says what is wrong and where.
pub(super) fn canonical(selector: &str) -> Result<String, String> {
    let mut parts = Vec::new();
    for term in terms(selector)? {
        parts.push(requirement(term)?);
    }
    parts.sort();
    parts.dedup();
    Ok(parts.join(","))
}

/// Splits at commas outside of parentheses.
fn terms(selector: &str) -> Result<Vec<&str>, String> {
    let (mut depth, mut start, mut terms) = (0_u32, 0, Vec::new());
    for (at, c) in selector.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or("a closing parenthesis without an opening one")?,
            ',' if depth == 0 => {
                terms.push(selector[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err("an opening parenthesis is not closed".to_owned());
    }
    terms.push(selector[start..].trim());
    if terms.iter().any(|term| term.is_empty()) {
        return Err("it is empty, or has an empty part between commas".to_owned());
    }
    Ok(terms)
}

fn requirement(term: &str) -> Result<String, String> {
    if let Some(key) = term.strip_prefix('!') {
        return Ok(format!("!{}", checked_key(key.trim())?));
    }
    if let Some(open) = term.find('(') {
        return set_requirement(term, open);
    }
    for (operator, written) in [("!=", "!="), ("==", "="), ("=", "="), (">", ">"), ("<", "<")] {
        if let Some((key, value)) = term.split_once(operator) {
            let (key, value) = (checked_key(key.trim())?, value.trim());
            if matches!(written, ">" | "<") {
                value
                    .parse::<i64>()
                    .map_err(|_| format!("`{value}` after `{written}` is no whole number"))?;
            }
            return Ok(format!("{key}{written}{}", checked_value(value)?));
        }
    }
    checked_key(term).map(str::to_owned)
}

fn set_requirement(term: &str, open: usize) -> Result<String, String> {
    let (head, list) = term.split_at(open);
    let list = list[1..].strip_suffix(')').ok_or_else(|| format!("`{term}` goes on after its list"))?;
    let mut words = head.split_whitespace();
    let (Some(key), Some(operator @ ("in" | "notin")), None) = (words.next(), words.next(), words.next())
    else {
        return Err(format!("`{term}` should read `key in (a,b)` or `key notin (a,b)`"));
    };
    let mut values = Vec::new();
    for value in list.split(',') {
        values.push(checked_value(value.trim())?);
    }
    values.sort_unstable();
    let mut text = format!("{} {operator} (", checked_key(key)?);
    // Writing to a String cannot fail.
    let _infallible = write!(text, "{})", values.join(","));
    Ok(text)
}

fn checked_key(key: &str) -> Result<&str, String> {
    if is_label_key(key) { Ok(key) } else { Err(format!("`{key}` is no label key")) }
}

fn checked_value(value: &str) -> Result<&str, String> {
    if is_label_value(value) { Ok(value) } else { Err(format!("`{value}` is no label value")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_what_kubectl_takes() {
        for (given, expected) in [
            ("app=web", "app=web"),
            (" app == web , tier!=db", "app=web,tier!=db"),
            ("tier,app=web", "app=web,tier"),
            ("!canary", "!canary"),
            ("! canary", "!canary"),
            ("env in (qa, prod),app=web", "app=web,env in (prod,qa)"),
            ("env notin (a,)", "env notin (,a)"),
            ("app.kubernetes.io/name=web", "app.kubernetes.io/name=web"),
            ("app=", "app="),
            ("gen>3", "gen>3"),
            ("a=b,a=b", "a=b"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn refuses_what_the_server_would_refuse() {
        for bad in [
            "",
            ",",
            "a=b,",
            "a b",
            "a=b c",
            "env in qa",
            "env in (qa",
            "env (qa)",
            "a)",
            "=b",
            "-a=b",
            "a=-b",
            "A/b/c=d",
            "UP/x=y",
            "gen>x",
            "env in (a) b",
            "a=ü",
            "a&b=c",
            "a=b#c",
        ] {
            assert!(canonical(bad).is_err(), "{bad:?} was taken as {:?}", canonical(bad));
        }
        assert!(canonical(&format!("a={}", "x".repeat(64))).is_err());
    }

    #[test]
    fn names_cannot_leave_the_path() {
        for good in ["web", "web-0", "a.b", "1a"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "../x", "a/b", "Web", "a?b", "a b", "-a", "a-", "a%2f", ".", ".."] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn workload_selectors_become_one_string() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "env", "operator": "In", "values": ["qa", "prod"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "tier", "operator": "Exists", "values": null},
            ],
        }))
        .unwrap();
        assert_eq!(of_workload(&selector).as_deref(), Some("app=web,env in (qa,prod),!old,tier"));
        assert_eq!(of_workload(&LabelSelector::default()), None);
    }
}
