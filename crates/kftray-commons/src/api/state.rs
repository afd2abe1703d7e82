//! The state that every face shows, and how it changes.
//!
//! `GET /v1/events` is a stream of server-sent events: first `snapshot`, then `delta`s with growing `seq`; comments keep it
//! alive. The event id is `INSTANCE.SEQ`; a client that comes back with it in `Last-Event-ID` gets the deltas it missed, or
//! a new snapshot where they are no longer known.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Calls, Config, ForwardState, Settings, Tally};
use crate::spec::ForwardId;

/// Everything at one moment. Cheap to clone: what did not change is shared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Snapshot {
    /// The last change that is in it.
    pub seq: u64,
    /// In order of their ids.
    pub configs: Vec<Arc<Config>>,
    /// In order of their ids.
    pub forwards: Vec<Arc<ForwardState>>,
    /// The settings.
    pub settings: Arc<Settings>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Delta {
    /// Its number, one more than that of the change before.
    pub seq: u64,
    /// What changed.
    pub change: Change,
}

/// What changed, as whole objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Change {
    /// A config is new or another.
    ConfigPut {
        /// It.
        config: Arc<Config>,
    },
    /// A config is gone.
    ConfigGone {
        /// Which.
        id: ForwardId,
    },
    /// A forward is new or its state another.
    ForwardPut {
        /// It.
        forward: Arc<ForwardState>,
    },
    /// A forward is gone.
    ForwardGone {
        /// Which.
        id: ForwardId,
    },
    /// Traffic was counted: at most every half second, only of forwards that had any.
    CountersPut {
        /// Theirs.
        tallies: Vec<Tally>,
    },
    /// Exposes were called: at most every half second, only of exposes with callers.
    CallsPut {
        /// Which.
        id: ForwardId,
        /// Its calls.
        calls: Calls,
    },
    /// The settings are others.
    SettingsPut {
        /// All of them.
        settings: Arc<Settings>,
    },
    /// The host ends; the stream ends after this.
    HostEnding {
        /// Whether another one takes over, so that it is worth to come back at once.
        successor: bool,
    },
    /// A change that this build does not know.
    #[serde(other)]
    Other,
}

impl Snapshot {
    /// Applies a change. Applying it again changes nothing.
    pub fn apply(&mut self, delta: &Delta) {
        match &delta.change {
            Change::ConfigPut { config } => {
                let place = self.configs.binary_search_by_key(&config.id, |known| known.id);
                put(&mut self.configs, place, Arc::clone(config));
            }
            Change::ConfigGone { id } => self.configs.retain(|config| config.id != *id),
            Change::ForwardPut { forward } => {
                let place = self.forwards.binary_search_by_key(&forward.id, |known| known.id);
                put(&mut self.forwards, place, Arc::clone(forward));
            }
            Change::ForwardGone { id } => self.forwards.retain(|forward| forward.id != *id),
            Change::CountersPut { tallies } => {
                for tally in tallies {
                    if let Some(forward) = self.forward_mut(tally.id) {
                        let forward = Arc::make_mut(forward);
                        forward.counters = tally.counters;
                        forward.idle_limit_at = tally.idle_limit_at;
                    }
                }
            }
            Change::CallsPut { id, calls } => {
                if let Some(exposed) =
                    self.forward_mut(*id).and_then(|forward| Arc::make_mut(forward).exposed.as_mut())
                {
                    exposed.calls = calls.clone();
                }
            }
            Change::SettingsPut { settings } => self.settings = Arc::clone(settings),
            Change::HostEnding { .. } | Change::Other => {}
        }
        self.seq = delta.seq;
    }

    /// The config of that id.
    #[must_use]
    pub fn config(&self, id: ForwardId) -> Option<&Arc<Config>> {
        self.configs.binary_search_by_key(&id, |config| config.id).ok().map(|place| &self.configs[place])
    }

    /// The forward of that id.
    #[must_use]
    pub fn forward(&self, id: ForwardId) -> Option<&Arc<ForwardState>> {
        self.forwards.binary_search_by_key(&id, |forward| forward.id).ok().map(|place| &self.forwards[place])
    }

    fn forward_mut(&mut self, id: ForwardId) -> Option<&mut Arc<ForwardState>> {
        let place = self.forwards.binary_search_by_key(&id, |forward| forward.id).ok()?;
        self.forwards.get_mut(place)
    }
}

/// Puts a value in its place in a sorted list.
fn put<T>(list: &mut Vec<T>, place: Result<usize, usize>, value: T) {
    match place {
        Ok(known) => list[known] = value,
        Err(free) => list.insert(free, value),
    }
}
