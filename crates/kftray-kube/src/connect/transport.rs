//! Which protocol a cluster is spoken to with: asked for, learned, or the default.
//!
//! Every protocol is needed: the tunnel is the only one some gateways let through, direct SPDY the only one with old API
//! servers, with roles that have `create` but not `get`, and with gateways that break WebSockets. What was learned counts for
//! a server and the proxy in front of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::carrier::Protocol;

/// The user's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportChoice {
    /// Try, fall back, remember.
    #[default]
    Auto,
    /// This one or none.
    Only(Protocol),
}

impl FromStr for TransportChoice {
    type Err = String;

    /// `auto`, `websocket`, `spdy` or `legacy`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .map(Self::Only)
            .ok_or_else(|| format!("{text:?} is none of auto, websocket, spdy, legacy"))
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(protocol) => protocol.fmt(f),
        }
    }
}

/// A protocol, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// The protocol.
    pub protocol: Protocol,
    /// For people: `default`, `asked for`, or what was refused.
    pub reason: String,
}

/// What was learned, by server and proxy. Lives as long as the process; can be stored and handed back.
#[derive(Debug, Default)]
pub struct TransportMemory {
    learned: Mutex<BTreeMap<String, Transport>>,
    /// How often in a row a protocol failed in a way that may be the weather.
    doubts: Mutex<BTreeMap<(String, Protocol), u32>>,
    /// When a cluster was last seen to have only the legacy protocol. Not stored.
    legacy_at: Mutex<BTreeMap<String, Instant>>,
}

/// How long that is believed. A gateway that is being reloaded refuses every better protocol, too, and the legacy one proves
/// nothing when it is *ready*; a cluster that really is that old refuses two upgrades in this time.
const LEGACY_BELIEVED: Duration = Duration::from_secs(300);

/// So many failures in a row that may be the weather, with another protocol working right after, are not the weather.
const DOUBTS: u32 = 2;

impl TransportMemory {
    /// Begins with what an earlier process had learned.
    #[must_use]
    pub fn new(learned: BTreeMap<String, Transport>) -> Self {
        Self { learned: Mutex::new(learned), ..Self::default() }
    }

    /// What is known now, to be stored.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, Transport> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known about one cluster.
    pub(crate) fn get(&self, key: &str) -> Option<Transport> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The protocol to begin a session with, if one is known.
    pub(crate) fn for_session(&self, key: &str, now: Instant) -> Option<Protocol> {
        let protocol = self.get(key)?.protocol;
        let seen = self.legacy_at.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let is_believed = protocol != Protocol::Legacy || seen.is_some_and(|at| now < at + LEGACY_BELIEVED);
        is_believed.then_some(protocol)
    }

    /// None of the better protocols was understood.
    pub(crate) fn learn_legacy(&self, key: &str, reason: String, now: Instant) {
        self.legacy_at.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), now);
        self.learn(key, Transport { protocol: Protocol::Legacy, reason });
    }

    pub(crate) fn learn(&self, key: &str, transport: Transport) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if learned.get(key).is_none_or(|known| known.protocol != transport.protocol) {
            tracing::info!(cluster = key, protocol = %transport.protocol, reason = transport.reason, "transport chosen");
            learned.insert(key.to_owned(), transport);
        }
    }

    pub(crate) fn forget(&self, key: &str) {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Counts a failure of a protocol that may be the weather, seen while another one works. `true`: it is not the weather.
    pub(crate) fn doubt(&self, key: &str, protocol: Protocol) -> bool {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = doubts.entry((key.to_owned(), protocol)).or_default();
        *count += 1;
        *count >= DOUBTS
    }

    pub(crate) fn trust(&self, key: &str, protocol: Protocol) {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner).remove(&(key.to_owned(), protocol));
    }
}

/// The protocols of a multiplexed session to try, best first. Empty: only the legacy protocol is known to work.
pub(crate) fn session_order(choice: TransportChoice, learned: Option<Protocol>) -> Vec<Protocol> {
    match (choice, learned) {
        (TransportChoice::Only(Protocol::Legacy), _) | (TransportChoice::Auto, Some(Protocol::Legacy)) => {
            Vec::new()
        }
        (TransportChoice::Only(protocol), _) => vec![protocol],
        (TransportChoice::Auto, Some(Protocol::Spdy)) => vec![Protocol::Spdy, Protocol::WebSocketTunnel],
        (TransportChoice::Auto, _) => vec![Protocol::WebSocketTunnel, Protocol::Spdy],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_is_read_and_written() {
        for text in ["auto", "websocket", "spdy", "legacy"] {
            assert_eq!(text.parse::<TransportChoice>().unwrap().to_string(), text);
        }
        assert!("http3".parse::<TransportChoice>().is_err());
    }

    #[test]
    fn order() {
        use Protocol::{Legacy, Spdy, WebSocketTunnel};
        assert_eq!(session_order(TransportChoice::Auto, None), [WebSocketTunnel, Spdy]);
        assert_eq!(session_order(TransportChoice::Auto, Some(Spdy)), [Spdy, WebSocketTunnel]);
        assert_eq!(session_order(TransportChoice::Auto, Some(Legacy)), []);
        assert_eq!(session_order(TransportChoice::Only(Spdy), Some(Legacy)), [Spdy]);
        assert_eq!(session_order(TransportChoice::Only(Legacy), None), []);
    }

    #[test]
    fn memory_survives_the_process() {
        let memory = TransportMemory::default();
        memory.learn("k", Transport { protocol: Protocol::Spdy, reason: "403".to_owned() });
        let json = serde_json::to_string(&memory.snapshot()).unwrap();
        let again = TransportMemory::new(serde_json::from_str(&json).unwrap());
        assert_eq!(again.get("k").unwrap().protocol, Protocol::Spdy);
        again.forget("k");
        assert_eq!(again.get("k"), None);
    }

    #[test]
    fn the_legacy_protocol_alone_is_believed_for_a_while_and_not_from_another_process() {
        let (memory, now) = (TransportMemory::default(), Instant::now());
        assert_eq!(memory.for_session("k", now), None);
        memory.learn_legacy("k", "404".to_owned(), now);
        assert_eq!(memory.for_session("k", now + LEGACY_BELIEVED / 2), Some(Protocol::Legacy));
        assert_eq!(memory.for_session("k", now + LEGACY_BELIEVED), None);
        memory.learn_legacy("k", "404".to_owned(), now + LEGACY_BELIEVED);
        assert_eq!(memory.for_session("k", now + LEGACY_BELIEVED), Some(Protocol::Legacy));
        let next = TransportMemory::new(memory.snapshot());
        assert_eq!(next.for_session("k", now), None);
        memory.learn("k", Transport { protocol: Protocol::Spdy, reason: "403".to_owned() });
        assert_eq!(memory.for_session("k", now + LEGACY_BELIEVED * 9), Some(Protocol::Spdy));
    }

    #[test]
    fn one_failure_may_be_the_weather() {
        let memory = TransportMemory::default();
        assert!(!memory.doubt("k", Protocol::WebSocketTunnel));
        memory.trust("k", Protocol::WebSocketTunnel);
        assert!(!memory.doubt("k", Protocol::WebSocketTunnel));
        assert!(memory.doubt("k", Protocol::WebSocketTunnel));
    }
}
