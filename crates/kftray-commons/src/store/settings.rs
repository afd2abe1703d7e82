//! Settings: texts by name, as the reference keeps them, so that its names mean the same here.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::Store;
use super::file::Durability;
use crate::problem::{Code, Problem};

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
];

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
        match self.kind {
            Kind::Flag if matches!(value, "true" | "false") => Ok(()),
            Kind::Flag => Err("Write true or false.".to_owned()),
            Kind::Count(low, high) if value.parse::<u64>().is_ok_and(|n| (low..=high).contains(&n)) => Ok(()),
            Kind::Count(low, high) => Err(format!("Write a number from {low} to {high}.")),
            Kind::Word(words) if words.contains(&value) => Ok(()),
            Kind::Word(words) => Err(format!("Write one of: {}.", words.join(", "))),
            Kind::Text => Ok(()),
        }
    }
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
    }
}
