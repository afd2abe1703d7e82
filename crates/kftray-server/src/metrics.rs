//! What the relay counts, for Prometheus. No payload, no target names: an administrator sees how much, not what.

use std::sync::atomic::{AtomicU64, Ordering};

use kftray_relay_proto::hello::Purpose;
use kftray_relay_proto::reason::RefusalKind;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Label = Vec<(&'static str, &'static str)>;
type Counters = Family<Label, Counter<u64, AtomicU64>>;
type Gauges = Family<Label, Gauge>;

/// All counters.
pub(crate) struct Metrics {
    registry: Registry,
    carriers: Gauges,
    strangers: Counters,
    /// Streams that are open and that were asked for, by [`Kind`]: looked up once, since they count every connection.
    streams: [(Gauge, Counter<u64, AtomicU64>); Kind::ALL.len()],
    refusals: Counters,
    pub(crate) to_cluster: Counter,
    pub(crate) to_client: Counter,
    pub(crate) datagrams_to_cluster: Counter,
    pub(crate) datagrams_to_client: Counter,
    pub(crate) datagrams_dropped: Counter,
    datagrams_lost: Counter<u64, AtomicU64>,
    expose: Counters,
    memory: Gauge,
}

/// What a stream is, for counting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Listen,
    Incoming,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Listen, Self::Incoming];

    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Listen => "listen",
            Self::Incoming => "incoming",
        }
    }
}

/// Counted as long as it lives.
pub(crate) struct Live(Gauge);

impl Live {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("kftray_server");
        let registry_ = &mut registry;
        macro_rules! registered {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry_.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let (open, opens): (Gauges, Counters) = (
            registered!("streams", "Streams that are open"),
            registered!("opens", "Streams that clients or callers asked for"),
        );
        let streams = Kind::ALL.map(|kind| {
            let label = vec![("kind", kind.as_str())];
            (open.get_or_create(&label).clone(), opens.get_or_create(&label).clone())
        });
        Self {
            carriers: registered!("tunnels", "Tunnels that are up"),
            strangers: registered!("hellos_refused", "Connections to the tunnel port that were turned away"),
            streams,
            refusals: registered!("refusals", "Opens that were refused"),
            to_cluster: registered!("bytes_to_cluster", "Payload bytes from clients"),
            to_client: registered!("bytes_to_client", "Payload bytes to clients"),
            datagrams_to_cluster: registered!("datagrams_to_cluster", "Datagrams sent for clients"),
            datagrams_to_client: registered!("datagrams_to_client", "Datagrams received for clients"),
            datagrams_dropped: registered!("datagrams_dropped", "Datagrams thrown away, both directions"),
            datagrams_lost: registered!(
                "datagrams_lost_by_kernel",
                "Datagrams that did not fit into the sockets of their flows, in the pod's life"
            ),
            expose: registered!("expose_connections", "Connections to listeners by what became of them"),
            memory: registered!("resident_memory_bytes", "Resident memory of the process"),
            registry,
        }
    }

    pub(crate) fn carrier(&self, purpose: Purpose) -> Live {
        Live::new(&self.carriers.get_or_create(&vec![("purpose", purpose.as_str())]))
    }

    pub(crate) fn stream(&self, kind: Kind) -> Live {
        let [tcp, udp, listen, incoming] = &self.streams;
        let (open, opens) = match kind {
            Kind::Tcp => tcp,
            Kind::Udp => udp,
            Kind::Listen => listen,
            Kind::Incoming => incoming,
        };
        opens.inc();
        Live::new(open)
    }

    /// Somebody at the tunnel port was turned away.
    pub(crate) fn stranger(&self, reason: &'static str) {
        self.strangers.get_or_create(&vec![("reason", reason)]).inc();
    }

    pub(crate) fn refusal(&self, kind: RefusalKind) {
        self.refusals.get_or_create(&vec![("reason", kind.as_str())]).inc();
    }

    pub(crate) fn exposed(&self, result: &'static str) {
        self.expose.get_or_create(&vec![("result", result)]).inc();
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        self.memory.set(crate::limits::resident().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0));
        self.datagrams_lost.inner().store(datagrams_lost(), Ordering::Relaxed);
        let mut text = String::new();
        // Writing to a string does not fail.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// Datagrams that the kernel has thrown away because a socket's buffer was full (`RcvbufErrors` of proc(5), `/proc/net/snmp`
/// and `snmp6`). The count is that of the network namespace; in a pod only the relay receives datagrams there.
fn datagrams_lost() -> u64 {
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    receive_buffer_errors(&read("/proc/self/net/snmp"))
        + receive_buffer_errors6(&read("/proc/self/net/snmp6"))
}

/// A line of names, and a line of values in the same order.
fn receive_buffer_errors(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RcvbufErrors");
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A name and a value in each line.
fn receive_buffer_errors6(snmp6: &str) -> u64 {
    let value = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_losses_are_read() {
        let snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors \
                    SndbufErrors\nUdp: 10 1 7 9 7 0\nUdpLite: InDatagrams RcvbufErrors\nUdpLite: 0 3\n";
        assert_eq!(receive_buffer_errors(snmp), 7);
        assert_eq!(receive_buffer_errors(""), 0);
        assert_eq!(receive_buffer_errors6("Udp6InErrors\t4\nUdp6RcvbufErrors                \t3\n"), 3);
        assert_eq!(receive_buffer_errors6(""), 0);
        // The true one grows when a socket is not read.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = datagrams_lost();
        for _ in 0..2_000 {
            peer.send_to(&[0; 60_000], socket.local_addr().unwrap()).unwrap();
        }
        assert!(datagrams_lost() > before);
    }
}
