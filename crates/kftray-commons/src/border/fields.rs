//! The fields of one entry: found by name, turned into what they mean, each fault with its place.

use std::num::NonZeroU16;

use super::json::{Lines, Member, Node, Value, shorten};
use super::{Fault, Warning};

/// Every field of the reference's config object, and ours.
const KNOWN: &[&str] = &[
    "id",
    "service",
    "namespace",
    "local_port",
    "remote_port",
    "context",
    "workload_type",
    "protocol",
    "remote_address",
    "local_address",
    "bind_address",
    "auto_loopback_address",
    "alias",
    "domain_enabled",
    "kubeconfig",
    "target",
    "http_logs_enabled",
    "http_logs_max_file_size",
    "http_logs_retention_days",
    "http_logs_auto_cleanup",
    "exposure_type",
    "exposure_protocol",
    "exposure_basic_auth",
    "exposure_bearer_token",
    "exposure_allow",
    "exposure_expires_after",
    "via",
    "cert_manager_enabled",
    "cert_issuer",
    "cert_issuer_kind",
    "ingress_class",
    "ingress_annotations",
    "tags",
];

/// Fields of an entry that say how long it runs, which is the host's business: kept with the entry, and no surprise.
const BESIDE: &[&str] = &["idle_minutes", "ttl_minutes"];

/// Names that other tools use for the same thing.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("host", "local_address"),
    ("listen_address", "local_address"),
    ("name", "alias"),
    ("ns", "namespace"),
    ("pod", "target"),
    ("selector", "target"),
    ("port", "remote_port"),
    ("source_port", "remote_port"),
    ("target_port", "remote_port"),
    ("svc", "service"),
    ("type", "workload_type"),
    ("kind", "workload_type"),
    ("cluster", "context"),
];

/// Values that the reference writes into stored rows for "nothing": they are no names of anything.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("service", "default-service"),
    ("namespace", "default-namespace"),
    ("target", "default-target"),
    ("remote_address", "default-remote-address"),
    ("alias", "default-alias"),
    ("workload_type", "default-workload"),
    ("context", "current-context"),
    ("context", "@current"),
    ("protocol", "protocol"),
    ("kubeconfig", "default"),
];

/// A port as written: a number, 0 for "any", or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    Any,
    Number(NonZeroU16),
    Name(String),
}

/// Reads the fields of one entry and collects what is wrong.
pub(super) struct Fields<'a> {
    members: &'a [Member],
    at: usize,
    lines: &'a Lines<'a>,
    faults: Vec<Fault>,
    warnings: Vec<Warning>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(members: &'a [Member], at: usize, lines: &'a Lines<'a>) -> Self {
        let mut fields = Self { members, at, lines, faults: Vec::new(), warnings: Vec::new() };
        fields.strange_names();
        fields
    }

    /// Faults and warnings in the order of the text.
    pub(super) fn finish(mut self) -> (Vec<Fault>, Vec<Warning>) {
        self.faults.sort_by_key(|fault| fault.place);
        self.warnings.sort_by_key(|warning| warning.place);
        (self.faults, self.warnings)
    }

    fn strange_names(&mut self) {
        for (number, member) in self.members.iter().enumerate() {
            let message = if BESIDE.contains(&member.key.as_str()) {
                continue;
            } else if !KNOWN.contains(&member.key.as_str()) {
                let meant = meant(&member.key).map(|name| format!("; did you mean `{name}`?"));
                format!("unknown field `{}` is ignored{}", shorten(&member.key), meant.unwrap_or_default())
            } else if self.members.iter().skip(number + 1).any(|later| later.key == member.key) {
                format!("`{}` is there twice; the last one counts", member.key)
            } else {
                continue;
            };
            self.warnings.push(Warning { place: self.lines.place(member.key_at), message });
        }
    }

    /// The last value of a field, if it says anything: not null, not empty, no placeholder.
    pub(super) fn node(&self, name: &str) -> Option<&'a Node> {
        let member = self.members.iter().rev().find(|member| member.key == name)?;
        let says_nothing = match &member.node.value {
            Value::Null => true,
            Value::Text(text) => {
                let text = text.trim();
                text.is_empty() || PLACEHOLDERS.iter().any(|(field, value)| *field == name && *value == text)
            }
            Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Object(_) => false,
        };
        (!says_nothing).then_some(&member.node)
    }

    /// Whether a field is there with exactly this text, placeholder or not.
    pub(super) fn says(&self, name: &str, text: &str) -> bool {
        let member = self.members.iter().rev().find(|member| member.key == name);
        member.is_some_and(|member| matches!(&member.node.value, Value::Text(found) if found.trim() == text))
    }

    /// The first of several names of one field that says anything, with that name.
    pub(super) fn first_of(&self, names: &[&'static str]) -> Option<(&'static str, &'a Node)> {
        names.iter().find_map(|name| self.node(name).map(|node| (*name, node)))
    }

    /// A fault of a field; without the field in the entry it stands where the entry begins.
    pub(super) fn fault(&mut self, field: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let value = self.members.iter().rev().find(|member| member.key == field);
        let at = value.map_or(self.at, |member| member.node.at);
        self.faults.push(Fault {
            place: self.lines.place(at),
            field: Some(field.to_owned()),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn warn(&mut self, field: &str, message: impl Into<String>) {
        let value = self.members.iter().rev().find(|member| member.key == field);
        let at = value.map_or(self.at, |member| member.key_at);
        self.warnings.push(Warning { place: self.lines.place(at), message: message.into() });
    }

    /// A text without blanks around it. Numbers are texts too: aliases and contexts are sometimes written bare.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        let node = self.node(name)?;
        match &node.value {
            Value::Text(text) => Some(text.trim().to_owned()),
            Value::Number(number) => Some(number.clone()),
            other @ (Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_)) => {
                let message = format!("expected a text, found {}", other.kind());
                self.fault(name, message, "Write it in double quotes.");
                None
            }
        }
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        let node = self.node(name)?;
        let found = match &node.value {
            Value::Bool(flag) => return Some(*flag),
            Value::Text(text) | Value::Number(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => return Some(true),
                "false" | "0" => return Some(false),
                _ => format!("`{}`", shorten(text)),
            },
            other @ (Value::Null | Value::List(_) | Value::Object(_)) => other.kind().to_owned(),
        };
        self.fault(
            name,
            format!("expected true or false, found {found}"),
            "Write true or false without quotes.",
        );
        None
    }

    /// A port; `None` also after a fault.
    pub(super) fn port(&mut self, name: &'static str, names_allowed: bool) -> Option<Port> {
        let node = self.node(name)?;
        let found = match &node.value {
            Value::Text(text) | Value::Number(text) => {
                let text = text.trim();
                if let Some(number) = whole(text) {
                    return match u16::try_from(number) {
                        Ok(number) => Some(NonZeroU16::new(number).map_or(Port::Any, Port::Number)),
                        Err(_) => {
                            self.fault(name, format!("{text} is not a port"), "Ports go from 1 to 65535.");
                            None
                        }
                    };
                }
                if names_allowed && matches!(node.value, Value::Text(_)) {
                    return Some(Port::Name(text.to_owned()));
                }
                format!("`{}`", shorten(text))
            }
            other @ (Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_)) => {
                other.kind().to_owned()
            }
        };
        self.fault(name, format!("expected a port, found {found}"), "Write a number from 1 to 65535.");
        None
    }

    /// A whole number of at least 0.
    pub(super) fn count(&mut self, name: &'static str) -> Option<u64> {
        let node = self.node(name)?;
        let found = match &node.value {
            Value::Text(text) | Value::Number(text) => match whole(text.trim()) {
                Some(number) => return Some(number),
                None => format!("`{}`", shorten(text)),
            },
            other @ (Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_)) => {
                other.kind().to_owned()
            }
        };
        self.fault(name, format!("expected a whole number, found {found}"), "Write digits only.");
        None
    }

    /// One of a few words, in any case.
    pub(super) fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text));
        if let Some((_, value)) = found {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let near = known.iter().find(|word| distance(word, &text.to_ascii_lowercase()) <= 2);
        let remedy = match near {
            Some(word) => format!("Did you mean \"{word}\"?"),
            None => format!("Write one of: {}.", known.join(", ")),
        };
        self.fault(name, format!("`{}` is not known", shorten(&text)), remedy);
        None
    }
}

/// Whether this version knows a field of that name.
pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// Digits only, or a number such as `8080.0` or `8e3` that is whole all the same.
fn whole(text: &str) -> Option<u64> {
    /// 2^53: above it a double no longer tells neighbours apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Ok(number) = text.parse::<u64>() {
        return (!text.starts_with('+')).then_some(number);
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number = text.parse::<f64>().ok()?;
    // In range and whole, so the conversion is exact.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just before")]
    ((0.0..EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// The field that an unknown one was probably meant to be.
fn meant(key: &str) -> Option<&'static str> {
    let plain = |text: &str| text.replace(['_', '-', ' '], "").to_ascii_lowercase();
    let key = plain(key);
    if let Some(name) = KNOWN.iter().find(|name| plain(name) == key) {
        return Some(name);
    }
    if let Some((_, name)) = OTHER_NAMES.iter().find(|(other, _)| plain(other) == key) {
        return Some(name);
    }
    // Two slips of the finger in a long name, one in a short one.
    let allowed = if key.len() > 5 { 2 } else { 1 };
    let nearest = KNOWN.iter().map(|name| (distance(&plain(name), &key), *name)).min()?;
    (nearest.0 <= allowed).then_some(nearest.1)
}

/// Insertions, deletions and replacements between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    /// No field is longer; what is, is near to none.
    const LONGEST: usize = 64;
    let b: Vec<char> = b.chars().take(LONGEST).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(LONGEST).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(from != *to)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, cost);
            left = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("port", "port"), 0);
    }

    #[test]
    fn guesses() {
        assert_eq!(meant("localPort"), Some("local_port"));
        assert_eq!(meant("remote-port"), Some("remote_port"));
        assert_eq!(meant("namespce"), Some("namespace"));
        assert_eq!(meant("selector"), Some("target"));
        assert_eq!(meant("colour"), None);
        assert_eq!(meant(""), None);
    }

    #[test]
    fn whole_numbers() {
        assert_eq!(whole("8080"), Some(8080));
        assert_eq!(whole("8080.0"), Some(8080));
        assert_eq!(whole("8e3"), Some(8000));
        for bad in ["", "-1", "+1", "1.5", "http", "1e300", "inf", "NaN"] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}
