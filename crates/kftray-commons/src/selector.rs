//! Label selectors as `kubectl -l` takes them, checked here so that a slip is answered with its place in the text.
//!
//! Grammar: requirements joined by commas; each is `key`, `!key`, `key=value`, `key==value`, `key!=value`,
//! `key in (a,b)`, `key notin (a,b)`, `key>number`, `key<number` (Kubernetes API documents, "Labels and Selectors").
//! The text itself is what the cluster gets; nothing is evaluated here.

use crate::names::{self, NameFault};

/// What is wrong with a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorFault {
    /// Nothing between two commas, or nothing at all: it would match every pod.
    #[error("a requirement is empty; write key=value")]
    Empty,
    /// A key that no label can have.
    #[error("the key `{key}` {fault}")]
    Key {
        /// The key as written.
        key: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// A value that no label can have.
    #[error("the value `{value}` {fault}")]
    Value {
        /// The value as written.
        value: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// A parenthesis without its partner, or with text after it.
    #[error("the parentheses in `{requirement}` do not match; write key in (a,b)")]
    Parentheses {
        /// The requirement as written.
        requirement: String,
    },
    /// `<` or `>` with something that is no number.
    #[error("`{value}` is not a number")]
    NotANumber {
        /// The value as written.
        value: String,
    },
}

/// Whether a text can only be meant as a selector, not as an object's name.
#[must_use]
pub fn looks_like(text: &str) -> bool {
    text.contains(['=', '!', ',', '(', '<', '>']) || text.contains(" in ") || text.contains(" notin ")
}

/// Checks a selector.
///
/// # Errors
/// The first fault.
pub fn check(text: &str) -> Result<(), SelectorFault> {
    requirements(text)?.into_iter().try_for_each(requirement)
}

/// Splits at the commas that are not inside parentheses.
fn requirements(text: &str) -> Result<Vec<&str>, SelectorFault> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut inside = false;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | ')' if inside == (letter == '(') => {
                return Err(SelectorFault::Parentheses { requirement: text[start..].trim().to_owned() });
            }
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(SelectorFault::Parentheses { requirement: text[start..].trim().to_owned() });
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn requirement(text: &str) -> Result<(), SelectorFault> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SelectorFault::Empty);
    }
    if let Some((head, rest)) = text.split_once('(') {
        return set(text, head, rest);
    }
    if let Some(key) = text.strip_prefix('!') {
        return check_key(key.trim());
    }
    for operator in ["!=", "==", "="] {
        if let Some((key, value)) = text.split_once(operator) {
            check_key(key.trim())?;
            return check_value(value.trim());
        }
    }
    for operator in ['<', '>'] {
        if let Some((key, value)) = text.split_once(operator) {
            check_key(key.trim())?;
            let value = value.trim();
            let number = value.parse::<i64>();
            return number.map(drop).map_err(|_| SelectorFault::NotANumber { value: value.to_owned() });
        }
    }
    check_key(text)
}

fn set(whole: &str, head: &str, rest: &str) -> Result<(), SelectorFault> {
    let fault = || SelectorFault::Parentheses { requirement: whole.to_owned() };
    let values = rest.strip_suffix(')').ok_or_else(fault)?;
    let (key, operator) = head.trim_end().rsplit_once(char::is_whitespace).ok_or_else(fault)?;
    if !matches!(operator, "in" | "notin") {
        return Err(fault());
    }
    check_key(key.trim())?;
    values.split(',').try_for_each(|value| check_value(value.trim()))
}

fn check_key(key: &str) -> Result<(), SelectorFault> {
    let fault = |fault| SelectorFault::Key { key: key.to_owned(), fault };
    let name = match key.rsplit_once('/') {
        Some((prefix, name)) => {
            names::subdomain(prefix).map_err(fault)?;
            name
        }
        None => key,
    };
    label_text(name).map_err(fault)
}

fn check_value(value: &str) -> Result<(), SelectorFault> {
    if value.is_empty() {
        return Ok(());
    }
    label_text(value).map_err(|fault| SelectorFault::Value { value: value.to_owned(), fault })
}

/// A label's name part or value: letters of either case, digits, `-`, `_`, `.`.
fn label_text(text: &str) -> Result<(), NameFault> {
    if text.is_empty() {
        return Err(NameFault::Empty);
    }
    if let Some(letter) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
    {
        return Err(NameFault::Letter { letter });
    }
    if text.len() > names::LABEL_MAX {
        return Err(NameFault::TooLong { max: names::LABEL_MAX });
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if edge(text.chars().next()) && edge(text.chars().next_back()) { Ok(()) } else { Err(NameFault::Edge) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        for good in [
            "app=web",
            "app==web",
            "app!=web",
            "app",
            "!canary",
            "app=web,tier=front",
            "app in (web, api)",
            "app notin (web)",
            "app.kubernetes.io/name=web",
            "statefulset.kubernetes.io/pod-name=db-0",
            "app=",
            "size>5",
            "a=b, c in (d,e),!f",
            "Team=Blue_1",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn refused() {
        for bad in [
            "",
            ",",
            "app=web,",
            "=web",
            "app=we b",
            "app in (web",
            "app in web)",
            "app within (web)",
            "in (a)",
            "a=(b)",
            "size>big",
            "a/b/c=d",
            "app=-x",
            "((a",
            "app in (a) b",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_does_not_look_like_a_selector() {
        assert!(!looks_like("web-7d9f"));
        assert!(looks_like("app=web"));
        assert!(looks_like("!x"));
        assert!(looks_like("app in (a)"));
    }
}
