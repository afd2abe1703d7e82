//! What the cluster has seen, for assertions: "one exec plugin run", "no request but watches", "no stream left open".

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::portforward::Protocol;
use crate::sync::lock;

/// A value that goes up and down, and its highest value so far.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
    total: AtomicU64,
}

impl Gauge {
    /// How many there are now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// The most there have been at the same time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::SeqCst)
    }

    /// How many there have been altogether.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::SeqCst)
    }

    /// Counts one until the guard is dropped.
    pub(crate) fn enter(self: &std::sync::Arc<Self>) -> Entered {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.total.fetch_add(1, Ordering::SeqCst);
        self.peak.fetch_max(now, Ordering::SeqCst);
        Entered { gauge: std::sync::Arc::clone(self) }
    }
}

/// Counts down when dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    gauge: std::sync::Arc<Gauge>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.gauge.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A value that only goes up.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::SeqCst);
    }
}

/// Everything that is counted. Read it at any time; nothing resets.
#[derive(Debug, Default)]
pub struct Counters {
    /// TCP connections to the API server.
    pub connections: std::sync::Arc<Gauge>,
    /// TLS handshakes that succeeded.
    pub tls_handshakes: Tally,
    /// TLS handshakes that failed (wrong CA, expired certificate, cut off).
    pub tls_failures: Tally,
    /// Watches.
    pub watches: std::sync::Arc<Gauge>,
    /// Requests answered with 401.
    pub unauthorized: Tally,
    /// Requests answered with 403 by the authorizer.
    pub forbidden: Tally,
    /// Port-forward sessions (upgraded connections).
    pub sessions: std::sync::Arc<Gauge>,
    /// SPDY streams, two per forwarded connection; counted until both sides have ended them or the session is gone.
    pub streams: std::sync::Arc<Gauge>,
    /// Connections the container runtime holds into pods, the lingering second included: each is an OS thread of
    /// containerd in reality.
    pub pod_connections: std::sync::Arc<Gauge>,
    /// PING frames received by sessions.
    pub pings: Tally,
    /// RST_STREAM frames received by sessions.
    pub resets: Tally,
    /// Bytes received on upgraded connections, envelopes included.
    pub carrier_bytes_in: Tally,
    /// Bytes from clients into pods.
    pub bytes_in: Tally,
    /// Bytes from pods to clients.
    pub bytes_out: Tally,
    requests: Mutex<BTreeMap<(String, String), u64>>,
    upgrades: Mutex<BTreeMap<Protocol, u64>>,
}

impl Counters {
    /// Requests with this verb (`get`, `list`, `watch`, `create`, ...) and resource (`pods`, `pods/portforward`, or a
    /// path such as `/version`). `*` stands for any.
    #[must_use]
    pub fn requests(&self, verb: &str, resource: &str) -> u64 {
        lock(&self.requests)
            .iter()
            .filter(|((v, r), _)| (verb == "*" || v == verb) && (resource == "*" || r == resource))
            .map(|(_, count)| count)
            .sum()
    }

    /// All requests by verb and resource, for a failing test's message.
    #[must_use]
    pub fn all_requests(&self) -> BTreeMap<(String, String), u64> {
        lock(&self.requests).clone()
    }

    /// Successful upgrades to a protocol.
    #[must_use]
    pub fn upgrades(&self, protocol: Protocol) -> u64 {
        lock(&self.upgrades).get(&protocol).copied().unwrap_or_default()
    }

    pub(crate) fn count_request(&self, verb: &str, resource: &str) {
        *lock(&self.requests).entry((verb.to_owned(), resource.to_owned())).or_default() += 1;
    }

    pub(crate) fn count_upgrade(&self, protocol: Protocol) {
        *lock(&self.upgrades).entry(protocol).or_default() += 1;
    }
}
