//! From what is written down to what the engine runs.

use std::time::Duration;

use kftray_commons::{ForwardSpec, Workload};
use kftray_portforward::{Config, DEFAULT_HOLD};

/// What the engine shall run, under a name for people.
pub(crate) fn plan(spec: &ForwardSpec, name: &str) -> Config {
    Config::of(spec, name, DEFAULT_HOLD)
}

/// What is left out of a forward although it runs.
pub(crate) fn left_out(spec: &ForwardSpec) -> Vec<String> {
    // An expose has its name in the cluster, not here.
    let is_forward = !matches!(spec.workload, Workload::Expose(_));
    let wishes = [
        (spec.domain_enabled && is_forward, "domain_enabled is not served yet: use localhost"),
        (
            spec.listen.auto_loopback,
            "auto_loopback_address is not served yet: it listens where local_address says",
        ),
        (spec.http_logs.enabled, "http_logs_enabled is not served yet: nothing is recorded"),
    ];
    wishes.into_iter().filter(|(wanted, _)| *wanted).map(|(_, message)| message.to_owned()).collect()
}

/// When a forward ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lifetime {
    /// After so long without traffic.
    pub(crate) idle: Option<Duration>,
    /// So long after its start.
    pub(crate) ttl: Option<Duration>,
}

impl Lifetime {
    /// What is left of it after a forward has run so long.
    pub(crate) fn after(self, ran: Duration) -> Self {
        Self { ttl: self.ttl.map(|ttl| ttl.saturating_sub(ran)), ..self }
    }
}
