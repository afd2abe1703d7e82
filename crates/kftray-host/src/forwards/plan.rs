//! From what is written down to what the engine runs.

use std::time::Duration;

use kftray_commons::spec::{LocalPort, Protocol};
use kftray_commons::{Code, ForwardSpec, Problem, Workload};
use kftray_portforward::{ForwardConfig, LocalAddress};

/// What the engine shall run.
///
/// # Errors
/// `unsupported` with the kind that this build does not serve.
pub(crate) fn plan(spec: &ForwardSpec) -> Result<ForwardConfig, Problem> {
    if let Some(what) = unsupported(spec) {
        return Err(Problem::new(Code::Unsupported, format!("{what} forwards are not served yet")));
    }
    let Some((target, remote_port)) = spec.target() else {
        return Err(Problem::new(Code::Internal, format!("{} has no target", spec.label())));
    };
    let mut config = ForwardConfig::new(spec.label(), target, remote_port);
    // Parsing an address never fails: what is no address is a host name.
    let addresses = spec.listen.hosts.iter().map(|host| match host.parse::<LocalAddress>() {
        Ok(address) => address,
        Err(never) => match never {},
    });
    config.addresses = addresses.collect();
    config.local_port = match spec.listen.port {
        LocalPort::Random => None,
        LocalPort::Fixed(port) => Some(port),
    };
    Ok(config)
}

/// The kind of forward that this build does not serve, if it is one.
pub(crate) fn unsupported(spec: &ForwardSpec) -> Option<&'static str> {
    match (&spec.workload, spec.protocol) {
        (Workload::Proxy { .. }, _) => Some("proxy"),
        (Workload::Expose(_), _) => Some("expose"),
        (Workload::Service { .. } | Workload::Pod { .. } | Workload::Owner { .. }, Protocol::Udp) => {
            Some("udp")
        }
        (Workload::Service { .. } | Workload::Pod { .. } | Workload::Owner { .. }, Protocol::Tcp) => None,
    }
}

/// What is left out of a forward although it runs.
pub(crate) fn left_out(spec: &ForwardSpec) -> Vec<String> {
    let wishes = [
        (spec.domain_enabled, "domain_enabled is not served yet: use localhost"),
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
