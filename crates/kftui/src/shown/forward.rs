//! A forward as commands show it: what is written down and how it stands, as one.

use std::collections::BTreeMap;

use kftray_commons::api::{Config, ForwardState, Snapshot};
use kftray_commons::tags::Tags;
use kftray_commons::{ForwardId, Problem};
use serde::{Serialize, Serializer};

use super::table::{Cell, Tone};

/// Tags of ours begin so; people have no use for them.
const OURS: &str = "kftray/";

/// One forward. The form of `--output json`: fields are added, never renamed or removed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Forward {
    /// Its number.
    pub(crate) id: ForwardId,
    /// Alias, else target and port.
    pub(crate) name: String,
    /// `stopped`, `binding`, `resolving`, `ready`, `recovering`, `needs_user`, `stopping`.
    pub(crate) state: &'static str,
    /// Every `address:port` it listens on.
    pub(crate) addresses: Vec<String>,
    /// What it goes to.
    pub(crate) target: String,
    pub(crate) namespace: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// Whether it is written down, or only runs.
    pub(crate) stored: bool,
    /// What stands in its way now.
    pub(crate) problem: Option<Problem>,
    /// As it is written down, secrets aside.
    #[serde(serialize_with = "without_secrets")]
    pub(crate) config: Option<Config>,
    /// As it runs.
    pub(crate) forward: Option<ForwardState>,
}

/// Fields of an entry that are shown to nobody; `kftui export` and `kftui edit` have them.
const SECRETS: [&str; 2] = ["exposure_basic_auth", "exposure_bearer_token"];

fn without_secrets<S: Serializer>(config: &Option<Config>, to: S) -> Result<S::Ok, S::Error> {
    let mut config = config.clone();
    for name in SECRETS {
        if let Some(value) = config.as_mut().and_then(|config| config.spec.get_mut(name)) {
            *value = "***".into();
        }
    }
    config.serialize(to)
}

/// The state in one word; one that has ended is stopped, whatever it was.
fn state_word(state: Option<&ForwardState>) -> &'static str {
    match state {
        Some(state) if state.is_active() => state.status.name(),
        Some(_) | None => "stopped",
    }
}

impl Forward {
    /// Every forward of a host, written down or running, by number.
    pub(crate) fn all(snapshot: &Snapshot) -> Vec<Self> {
        let stored =
            snapshot.configs.iter().map(|config| Self::of(Some(config), snapshot.forward(config.id)));
        let others = snapshot.forwards.iter().filter(|forward| {
            // An ad-hoc one that has ended is history.
            snapshot.config(forward.id).is_none() && forward.is_active()
        });
        stored.chain(others.map(|forward| Self::of(None, Some(forward)))).flatten().collect()
    }

    fn of(
        config: Option<&std::sync::Arc<Config>>,
        state: Option<&std::sync::Arc<ForwardState>>,
    ) -> Option<Self> {
        let config = config.map(|config| Config::clone(config));
        let forward = state.map(|state| ForwardState::clone(state));
        let summary = config.as_ref().map(|config| config.summary.clone()).unwrap_or_default();
        let active = forward.as_ref().filter(|forward| forward.is_active());
        let label = config.as_ref().map(|_| summary.label.clone());
        let target = config.as_ref().map(|_| summary.target.clone());
        Some(Self {
            id: config.as_ref().map(|config| config.id).or(forward.as_ref().map(|forward| forward.id))?,
            name: label.or_else(|| forward.as_ref().map(|forward| forward.label.clone())).unwrap_or_default(),
            state: state_word(forward.as_ref()),
            addresses: active.map(|forward| forward.addresses.clone()).unwrap_or_default(),
            target: target
                .or_else(|| forward.as_ref().map(|forward| forward.target.clone()))
                .unwrap_or_default(),
            namespace: summary.namespace,
            context: summary.context,
            group: summary.group,
            tags: summary.tags,
            stored: config.is_some(),
            problem: active.and_then(|forward| forward.status.problem().cloned()),
            config,
            forward,
        })
    }

    /// The state for a table.
    pub(crate) fn state_cell(&self) -> Cell {
        let tone = match self.state {
            "ready" => Tone::Good,
            "stopped" => Tone::Dim,
            "needs_user" => Tone::Bad,
            _ => Tone::Busy,
        };
        // As the other screens say it.
        let word = if self.state == "needs_user" { "needs you" } else { self.state };
        Cell::toned(word, tone)
    }

    /// Where it listens, or would.
    pub(crate) fn local(&self) -> String {
        if let Some(first) = self.addresses.first() {
            // `localhost` is two addresses with one port.
            let both = ["127.0.0.1:", "[::1]:"]
                .map(|host| self.addresses.iter().find_map(|one| one.strip_prefix(host)));
            return match (both, self.addresses.len()) {
                ([Some(four), Some(six)], 2) if four == six => format!("localhost:{four}"),
                (_, 1) => first.clone(),
                (_, count) => format!("{first} +{}", count - 1),
            };
        }
        let Some(config) = &self.config else { return String::new() };
        let port = match config.summary.local_port {
            0 => "any".to_owned(),
            port => port.to_string(),
        };
        match config.summary.local_hosts.first() {
            Some(host) => format!("{host}:{port}"),
            None => String::new(),
        }
    }

    /// Tags as they are written in editors.
    pub(crate) fn tags_text(&self) -> String {
        let one = |(key, value): (&String, &String)| {
            if value.is_empty() { key.clone() } else { format!("{key}={value}") }
        };
        // The group has a column of its own; what other programs mark is theirs.
        let shown = self.tags.iter().filter(|(key, _)| *key != Tags::GROUP && !key.starts_with(OURS));
        shown.map(one).collect::<Vec<_>>().join(",")
    }
}
