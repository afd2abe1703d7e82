//! Settings: texts by name, as the reference keeps them, so that its names mean the same here.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde_json::{Map, Value};

use super::Store;
use super::file::Durability;
use crate::problem::{Code, Problem};
use crate::relay::RelaySettings;

/// Longest name, in bytes. Ours have 30; the reference's bookkeeping has up to 80.
const NAME_MAX: usize = 128;
/// Longest value, in bytes: a view with many filters has some kilobytes.
const VALUE_MAX: usize = 64 * 1024;

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number within limits, both included.
    Count(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
    /// Texts, separated by commas; or a JSON list of them.
    List,
    /// `NAME=VALUE`, separated by commas; or a JSON object of texts.
    Pairs,
    /// A JSON list of objects.
    Objects,
    /// A JSON object.
    Object,
}

/// A setting that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds while it is not set.
    pub default: &'static str,
    /// What it does, one sentence for people.
    pub meaning: &'static str,
}

/// A year in minutes: longer than anybody waits.
const YEAR: u64 = 366 * 24 * 60;

/// Every setting that this version knows. The names that the reference has too are its own.
pub const SETTINGS: &[Known] = &[
    known("restore", Kind::Flag, "true", "Start again what ran when the host ended."),
    known(
        "idle_minutes",
        Kind::Count(0, YEAR),
        "0",
        "Minutes without traffic after which a forward ends; 0: never.",
    ),
    known(
        "ttl_minutes",
        Kind::Count(0, YEAR),
        "0",
        "Minutes after its start at which a forward ends; 0: never.",
    ),
    known(
        "host_idle_minutes",
        Kind::Count(0, YEAR),
        "5",
        "Minutes without forward and client after which a background host ends; 0: never.",
    ),
    known("network_monitor", Kind::Flag, "true", "Watch for changes of the network and wake-ups."),
    known("auto_update_enabled", Kind::Flag, "true", "Look for updates of the desktop application."),
    known("ssl_enabled", Kind::Flag, "false", "Serve aliased forwards with TLS."),
    known(
        "ssl_cert_validity_days",
        Kind::Count(1, 3650),
        "365",
        "Days for which a local certificate is valid.",
    ),
    known("mcp_server_enabled", Kind::Flag, "false", "Serve agents by MCP."),
    known("mcp_server_port", Kind::Count(1, 65535), "3000", "Port of the MCP server."),
    known(
        "window_size_preset",
        Kind::Word(&["xs", "small", "default", "medium", "large", "xl"]),
        "default",
        "Size of the desktop window.",
    ),
    known("log_retention_count", Kind::Count(1, 100), "10", "Log files that are kept."),
    known("log_retention_days", Kind::Count(1, 365), "7", "Days for which log files are kept."),
    known("http_logs_default_enabled", Kind::Flag, "false", "Record HTTP requests of new forwards."),
    known(
        "http_logs_max_file_size",
        Kind::Count(1, 104_857_600),
        "10485760",
        "Largest HTTP log of a forward, in bytes.",
    ),
    known("http_logs_retention_days", Kind::Count(1, 365), "7", "Days for which HTTP logs are kept."),
    known("config_view", Kind::Text, "", "How the list is grouped and filtered, as JSON."),
    known("global_shortcut", Kind::Text, "", "Keys that show and hide the desktop window."),
    known(
        "relay_image",
        Kind::Text,
        "",
        "Image of relays, for example in a mirror; KFTRAY_RELAY_IMAGE wins.",
    ),
    known("relay_digest", Kind::Text, "", "Pins the relays' image to a digest, sha256:..."),
    known(
        "relay_pull_policy",
        Kind::Word(&["", "Always", "IfNotPresent", "Never"]),
        "",
        "When nodes ask the registry for the relays' image; empty: the cluster's rule.",
    ),
    known("relay_pull_secrets", Kind::List, "", "Secrets with the credentials of the image's registry."),
    known("relay_tolerations", Kind::Objects, "", "Tolerations of relays, as in a pod's specification."),
    known("relay_node_selector", Kind::Pairs, "", "Labels that the nodes of relays must have."),
    known("relay_priority_class", Kind::Text, "", "The relays' priorityClassName."),
    known("relay_resources", Kind::Object, "", "Resources of relays, with requests and limits."),
    known("relay_annotations", Kind::Pairs, "", "Annotations of the relays' Jobs and pods."),
    known("relay_env", Kind::Pairs, "", "Further environment variables of relays."),
    known(
        "relay_allow",
        Kind::List,
        "",
        "What relays may reach: host, *.suffix or CIDR; empty: what is not denied.",
    ),
    known("relay_deny", Kind::List, "", "What relays may not reach, beside what they deny by themselves."),
    known(
        "relay_idle_exit",
        Kind::Count(10, 86_400),
        "120",
        "Seconds without a tunnel after which a relay ends.",
    ),
    known(
        "relay_active_deadline",
        Kind::Count(0, YEAR * 60),
        "0",
        "Seconds after which a relay ends in any case; 0: never.",
    ),
    known(
        "relay_patch",
        Kind::Object,
        "",
        "Changes to the relays' manifest: a JSON merge patch, named things by name.",
    ),
    known(
        "relay_system_namespace",
        Kind::Text,
        "kftray-system",
        "Namespace of a relay that is installed for all.",
    ),
    known("relay_use_installed", Kind::Flag, "true", "Use an installed relay where there is one."),
];

/// The names of settings of relays begin so; behind it comes the field of [`RelaySettings`].
pub const RELAY: &str = "relay_";

const fn known(key: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Known {
    Known { key, kind, default, meaning }
}

impl Known {
    /// The setting of that name.
    #[must_use]
    pub fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|known| known.key == key)
    }

    /// Whether it takes this value; if not, what it takes.
    ///
    /// # Errors
    /// What to write instead, a sentence.
    pub fn accepts(&self, value: &str) -> Result<(), String> {
        self.takes(value)?;
        if self.key.starts_with(RELAY) {
            // Whether one is good does not depend on the others.
            let alone = relay_settings(&BTreeMap::from([(self.key.to_owned(), value.to_owned())]));
            alone.resolve().map_err(|problem| format!("{}.", capital(&problem.message)))?;
        }
        Ok(())
    }

    /// The value that a text means; `null` for an empty one.
    ///
    /// # Errors
    /// What to write instead, a sentence.
    pub fn value(&self, text: &str) -> Result<Value, String> {
        self.takes(text)?;
        let text = text.trim();
        let json = || serde_json::from_str(text).unwrap_or_default();
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(match self.kind {
            _ if text.is_empty() => Value::Null,
            Kind::Flag => Value::Bool(text == "true"),
            Kind::Count(..) => text.parse::<u64>().map_or(Value::Null, Value::from),
            Kind::Word(_) | Kind::Text => Value::from(text),
            Kind::List if !text.starts_with('[') => parts().map(Value::from).collect(),
            Kind::Pairs if !text.starts_with('{') => {
                let pair = |part: &str| {
                    part.split_once('=').map(|(name, value)| (name.to_owned(), Value::from(value)))
                };
                Value::Object(parts().filter_map(pair).collect())
            }
            Kind::List | Kind::Pairs | Kind::Objects | Kind::Object => json(),
        })
    }

    /// The text of a value, as [`Self::value`] reads it.
    #[must_use]
    pub fn text(&self, value: &Value) -> String {
        let simple = |value: &Value| value.as_str().filter(|text| !text.contains(',')).map(str::to_owned);
        let short = match (self.kind, value) {
            (Kind::List, Value::Array(items)) => items.iter().map(simple).collect::<Option<Vec<_>>>(),
            (Kind::Pairs, Value::Object(pairs)) => {
                let pair = |(name, value): (&String, &Value)| Some(format!("{name}={}", simple(value)?));
                pairs.iter().map(pair).collect()
            }
            _ => None,
        };
        match (short, value) {
            (Some(parts), _) => parts.join(","),
            (None, Value::Null) => String::new(),
            (None, Value::String(text)) => text.clone(),
            (None, Value::Array(items)) if items.is_empty() => String::new(),
            (None, value) => value.to_string(),
        }
    }

    fn takes(&self, value: &str) -> Result<(), String> {
        let text = value.trim();
        let json = || serde_json::from_str::<Value>(text).unwrap_or_default();
        let said = match self.kind {
            Kind::Flag if matches!(value, "true" | "false") => return Ok(()),
            Kind::Flag => "Write true or false.".to_owned(),
            Kind::Count(low, high) if value.parse::<u64>().is_ok_and(|n| (low..=high).contains(&n)) => {
                return Ok(());
            }
            Kind::Count(low, high) => format!("Write a number from {low} to {high}."),
            Kind::Word(words) if words.contains(&value) => return Ok(()),
            Kind::Word(words) => format!("Write one of: {}.", words.join(", ").trim_start_matches(", ")),
            Kind::Text => return Ok(()),
            Kind::List | Kind::Pairs | Kind::Objects | Kind::Object if text.is_empty() => return Ok(()),
            Kind::List if !text.starts_with('[') => return Ok(()),
            Kind::List if json().as_array().is_some_and(|list| list.iter().all(Value::is_string)) => {
                return Ok(());
            }
            Kind::List => "Write texts with commas between them, or a JSON list of texts.".to_owned(),
            Kind::Pairs if !text.starts_with('{') && text.split(',').all(|pair| pair.contains('=')) => {
                return Ok(());
            }
            Kind::Pairs if json().as_object().is_some_and(|map| map.values().all(Value::is_string)) => {
                return Ok(());
            }
            Kind::Pairs => "Write NAME=VALUE with commas between them, or a JSON object of texts.".to_owned(),
            Kind::Objects if json().as_array().is_some_and(|list| list.iter().all(Value::is_object)) => {
                return Ok(());
            }
            Kind::Objects => "Write a JSON list of objects.".to_owned(),
            Kind::Object if json().is_object() => return Ok(()),
            Kind::Object => "Write a JSON object.".to_owned(),
        };
        Err(said)
    }
}

/// What the settings say about relays. A text that cannot be is passed over: nobody could set it.
#[must_use]
pub fn relay_settings(stored: &BTreeMap<String, String>) -> RelaySettings {
    let mut fields = Map::new();
    for (key, text) in stored {
        let Some(field) = key.strip_prefix(RELAY) else { continue };
        let value = Known::of(key).and_then(|known| known.value(text).ok());
        if let Some(value) = value.filter(|value| !value.is_null()) {
            fields.insert(field.to_owned(), value);
        }
    }
    // 0 is never.
    if fields.get("active_deadline").and_then(Value::as_u64) == Some(0) {
        fields.remove("active_deadline");
    }
    serde_json::from_value(Value::Object(fields)).unwrap_or_default()
}

fn capital(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

impl Store {
    /// Every setting that is set, by name; [`SETTINGS`] says what holds for those that are not.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn settings(&self) -> Result<BTreeMap<String, String>, Problem> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT key, value FROM settings")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Sets a setting, or with `None` takes it back to its default. Names that this version does not know are kept for
    /// whoever does.
    ///
    /// # Errors
    /// [`Code::RequestInvalid`] for a value that the setting does not take; and as with every method of the store.
    pub fn set_setting(&mut self, key: &str, value: Option<&str>) -> Result<(), Problem> {
        let refused =
            |message: String, remedy: &str| Problem::new(Code::RequestInvalid, message).with_remedy(remedy);
        if key.is_empty() || key.len() > NAME_MAX || key.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            return Err(refused(
                format!("`{}` cannot be the name of a setting", key.escape_debug()),
                "Use letters, digits and _.",
            ));
        }
        if let Some(value) = value {
            if value.len() > VALUE_MAX {
                return Err(refused(
                    format!("the value of {key} is longer than {VALUE_MAX} bytes"),
                    "Shorten it.",
                ));
            }
            if let Some(Err(remedy)) = Known::of(key).map(|known| known.accepts(value)) {
                return Err(refused(format!("{key} cannot be `{value}`"), &remedy));
            }
        }
        self.write(Durability::Full, |transaction| {
            match value {
                Some(value) => put(transaction, key, value)?,
                None => {
                    transaction.execute("DELETE FROM settings WHERE key = ?1", [key])?;
                }
            }
            Ok(())
        })
    }
}

pub(super) fn put(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO settings (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = unixepoch() WHERE value <> excluded.value",
    )?;
    statement.execute(params![key, value])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_default_is_accepted_and_no_name_is_there_twice() {
        for (number, known) in SETTINGS.iter().enumerate() {
            assert_eq!(known.accepts(known.default), Ok(()), "{}", known.key);
            assert!(known.meaning.ends_with('.'), "{}", known.key);
            assert!(SETTINGS.iter().skip(number + 1).all(|other| other.key != known.key), "{}", known.key);
        }
    }

    #[test]
    fn wrong_values_are_told() {
        let said = |key: &str, value: &str| Known::of(key).expect("known").accepts(value);
        assert!(said("restore", "yes").is_err());
        assert!(said("mcp_server_port", "0").is_err());
        assert!(said("mcp_server_port", "65535").is_ok());
        assert!(said("window_size_preset", "huge").is_err());
        assert!(said("idle_minutes", "-1").is_err());
        assert!(said("relay_pull_policy", "Sometimes").is_err());
        assert!(said("relay_idle_exit", "5").is_err());
        assert!(said("relay_tolerations", r#"["x"]"#).is_err());
        assert!(said("relay_resources", "5").is_err());
        assert!(said("relay_annotations", "mesh").is_err());
        assert!(said("relay_patch", "{").is_err());
        let digest = said("relay_digest", "sha256:12").expect_err("too short");
        assert!(digest.starts_with("The relay's setting digest"), "{digest}");
    }

    #[test]
    fn texts_mean_values_and_values_texts() {
        let cases = [
            ("relay_pull_secrets", "a, b", json!(["a", "b"]), "a,b"),
            ("relay_pull_secrets", r#"["a,b"]"#, json!(["a,b"]), r#"["a,b"]"#),
            ("relay_annotations", "b=c=d, x.io/a=1", json!({"b": "c=d", "x.io/a": "1"}), "b=c=d,x.io/a=1"),
            ("relay_annotations", r#"{"a":"1,2"}"#, json!({"a": "1,2"}), r#"{"a":"1,2"}"#),
            ("relay_tolerations", r#"[{"key":"x"}]"#, json!([{"key": "x"}]), r#"[{"key":"x"}]"#),
            ("relay_idle_exit", "60", json!(60), "60"),
            ("relay_use_installed", "false", json!(false), "false"),
            ("relay_image", "", Value::Null, ""),
        ];
        for (key, text, value, shown) in cases {
            let known = Known::of(key).expect("known");
            assert_eq!(known.value(text), Ok(value.clone()), "{key}");
            assert_eq!(known.text(&value), shown, "{key}");
            assert_eq!(known.value(shown), Ok(value), "{key}");
        }
    }

    #[test]
    fn relays_get_what_is_stored() {
        let texts = [
            ("relay_image", "mirror:5000/relay:1"),
            ("relay_pull_policy", "Never"),
            ("relay_pull_secrets", "one,two"),
            ("relay_tolerations", r#"[{"operator":"Exists"}]"#),
            ("relay_active_deadline", "0"),
            ("relay_idle_exit", "not a number"),
            ("relay_of_a_later_version", "x"),
            ("restore", "true"),
        ];
        let stored = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        let expected = RelaySettings {
            image: Some("mirror:5000/relay:1".to_owned()),
            pull_policy: Some(crate::relay::PullPolicy::Never),
            pull_secrets: vec!["one".to_owned(), "two".to_owned()],
            tolerations: vec![json!({"operator": "Exists"})],
            ..RelaySettings::default()
        };
        assert_eq!(relay_settings(&stored), expected);
        // Every field of the relays' settings has a name here, and every name a field.
        let fields = serde_json::to_value(RelaySettings::default()).expect("JSON");
        let mut fields: Vec<&String> = fields.as_object().expect("an object").keys().collect();
        fields.sort();
        let mut names: Vec<&str> =
            SETTINGS.iter().filter_map(|known| known.key.strip_prefix(RELAY)).collect();
        names.sort_unstable();
        assert_eq!(names, fields);
    }
}
