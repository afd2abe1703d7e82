//! What a caller says about one forward and about the process: plain values, checked by their types.
//!
//! Faces have a [`ForwardSpec`]; [`Config::of`] says what it means for the engine, the same for all of them.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::spec::{Direction, LocalPort, Protocol};
use kftray_commons::{ForwardSpec, RemotePort, Target, Via};

use crate::ports::{Offer, Wanted};

/// How long a new connection waits for a pod if the caller does not say: the default of the command line, and longer
/// than the readiness delay of most programs.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(30);

/// What [`Engine::start`](crate::Engine::start) runs: one of the two directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// Local listeners, connections into the cluster.
    Forward(ForwardConfig),
    /// A publication in the cluster, connections to a local program.
    Expose(ExposeConfig),
}

impl Config {
    /// What a spec means. `name` is what people see, `hold` how long a connection waits for a pod. The spec has been
    /// checked ([`ForwardSpec::check`]); an expose without alias is published under its name.
    #[must_use]
    pub fn of(spec: &ForwardSpec, name: impl Into<String>, hold: Duration) -> Self {
        let name = name.into();
        let (object, remote_port) = match spec.workload.direction() {
            Direction::ToCluster(object, port) => (object, port),
            Direction::FromCluster(expose) => {
                let offer = Offer {
                    cluster: spec.cluster.clone(),
                    namespace: spec.namespace.clone(),
                    name: spec.alias.clone().unwrap_or_else(|| name.clone()),
                    expose: expose.clone(),
                };
                return Self::Expose(ExposeConfig { name, offer });
            }
        };
        let target = Target { cluster: spec.cluster.clone(), namespace: spec.namespace.clone(), object };
        let addresses = spec.listen.hosts.iter().map(|host| LocalAddress::of(host)).collect();
        let local_port = match spec.listen.port {
            LocalPort::Random => None,
            LocalPort::Fixed(port) => Some(port),
        };
        Self::Forward(ForwardConfig {
            protocol: spec.protocol,
            via: spec.via,
            local_port,
            addresses,
            hold,
            ..ForwardConfig::new(name, target, remote_port)
        })
    }

    /// The name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Forward(config) => &config.name,
            Self::Expose(config) => &config.name,
        }
    }
}

impl From<ForwardConfig> for Config {
    fn from(config: ForwardConfig) -> Self {
        Self::Forward(config)
    }
}

impl From<ExposeConfig> for Config {
    fn from(config: ExposeConfig) -> Self {
        Self::Expose(config)
    }
}

/// One local program to be made reachable, as a caller wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposeConfig {
    /// Name for people, logs and events; need not be unique.
    pub name: String,
    /// What is exposed, where and to whom.
    pub offer: Offer,
}

/// One forward, as a caller wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// Name for people, logs and events; need not be unique.
    pub name: String,
    /// What to forward to.
    pub target: Target,
    /// Port of the target.
    pub remote_port: RemotePort,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which way TCP takes.
    pub via: Via,
    /// Local port; `None` lets the system choose one, the same on every address.
    pub local_port: Option<NonZeroU16>,
    /// Local addresses; empty means [`LocalAddress::Localhost`].
    pub addresses: Vec<LocalAddress>,
    /// How new connections spread over the target's pods.
    pub balance: Balance,
    /// How long a new connection waits for a pod that can serve it. Zero: not at all. Datagrams wait for five seconds at
    /// most.
    pub hold: Duration,
}

impl ForwardConfig {
    /// A forward on `localhost` with the defaults: port chosen by the system, round robin, [`DEFAULT_HOLD`].
    #[must_use]
    pub fn new(name: impl Into<String>, target: Target, remote_port: RemotePort) -> Self {
        Self {
            name: name.into(),
            target,
            remote_port,
            protocol: Protocol::Tcp,
            via: Via::Direct,
            local_port: None,
            addresses: vec![LocalAddress::Localhost],
            balance: Balance::default(),
            hold: DEFAULT_HOLD,
        }
    }

    /// What the resolver is asked for.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            target: self.target.clone(),
            port: self.remote_port.clone(),
            protocol: self.protocol,
            via: self.via,
        }
    }
}

/// Where a forward listens on this machine. Parses from text without failing: what is neither `localhost` nor an IP
/// address is a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalAddress {
    /// `127.0.0.1`, and `::1` where the machine has it.
    Localhost,
    /// Exactly this address. `0.0.0.0` is every IPv4 address, `::` is every address of both families.
    Ip(IpAddr),
    /// Every address this name resolves to.
    Host(String),
}

impl LocalAddress {
    /// What a text means: an address in or without brackets, `localhost`, or a host name.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(ip) => Self::Ip(ip),
            Err(_) if bare.is_empty() || bare.eq_ignore_ascii_case("localhost") => Self::Localhost,
            Err(_) => Self::Host(bare.to_owned()),
        }
    }
}

impl FromStr for LocalAddress {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::of(text))
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost => f.write_str("localhost"),
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(name) => f.write_str(name),
        }
    }
}

/// How new connections spread over ready endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each ready endpoint in turn.
    #[default]
    RoundRobin,
    /// All to one endpoint for as long as it is ready.
    Sticky,
    /// Only to the pod of this name; waits while it is not there.
    Pin(Arc<str>),
}

/// Limits of the process, shared by all forwards of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that may wait for a pod at the same time; one more is refused with `overloaded`.
    pub held: usize,
    /// Connections that may be open at the same time; beyond it new ones wait unaccepted in the system's backlog.
    pub connections: usize,
    /// UDP flows that may be open at the same time; a datagram that would begin one more is dropped and counted.
    pub flows: usize,
}

impl Limits {
    /// A held connection costs a file, a task and at most 64 KiB of what its client has sent: 1,024 of them stay under
    /// 64 MiB, and no developer's machine opens as many at once by design.
    const HELD: usize = 1024;

    /// Files kept back for listeners, sessions, kubeconfigs, plugins and the terminal.
    const RESERVED_FILES: u64 = 128;

    /// Where the system's limit is not known or is infinite: more than ephemeral ports allow to one address anyway.
    const CONNECTIONS: usize = 65_536;

    /// A flow costs no file here, but a task of about 1 KiB and a socket at a relay: four forwards at their own limit.
    const FLOWS: usize = 4 * crate::udp::FLOWS;

    /// Limits for a process that may have `files` open (each connection costs one).
    #[must_use]
    pub fn for_open_files(files: u64) -> Self {
        let spare = files.saturating_sub(Self::RESERVED_FILES).max(files / 2).max(1);
        let connections = usize::try_from(spare).unwrap_or(usize::MAX).min(Self::CONNECTIONS);
        Self { held: Self::HELD.min(connections), connections, flows: Self::FLOWS }
    }

    /// Limits by the system's present limit of open files. Raise that first, if at all.
    #[must_use]
    pub fn detect() -> Self {
        crate::platform::open_files_limit().map_or(Self::for_open_files(u64::MAX), Self::for_open_files)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::detect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_from_every_spelling() {
        let parse = |text: &str| text.parse::<LocalAddress>().expect("never fails");
        assert_eq!(parse("localhost"), LocalAddress::Localhost);
        assert_eq!(parse(" LocalHost "), LocalAddress::Localhost);
        assert_eq!(parse(""), LocalAddress::Localhost);
        assert_eq!(parse("127.0.0.2"), LocalAddress::Ip("127.0.0.2".parse().expect("ip")));
        assert_eq!(parse("[::1]"), LocalAddress::Ip("::1".parse().expect("ip")));
        assert_eq!(parse("::"), LocalAddress::Ip("::".parse().expect("ip")));
        assert_eq!(parse("db.test"), LocalAddress::Host("db.test".to_owned()));
    }

    #[test]
    fn specs_become_what_the_engine_runs() {
        use kftray_commons::spec::{Expose, ExposeProtocol, Exposure, ForwardId};
        use kftray_commons::{Access, TargetObject, Workload};

        let port = |number: u16| NonZeroU16::new(number).expect("port");
        let proxy = Workload::Proxy { host: "db.internal".into(), port: port(53) };
        let mut spec = ForwardSpec::new(ForwardId(1), proxy);
        spec.protocol = Protocol::Udp;
        spec.listen.port = LocalPort::Fixed(port(5353));
        let Config::Forward(config) = Config::of(&spec, "dns", Duration::from_secs(9)) else {
            panic!("no forward")
        };
        assert_eq!((config.name.as_str(), config.local_port), ("dns", Some(port(5353))));
        assert_eq!(config.addresses, [LocalAddress::Localhost]);
        let wanted = config.wanted();
        assert_eq!(wanted.target.object, TargetObject::Host("db.internal".into()));
        assert!(wanted.needs_relay() && wanted.protocol == Protocol::Udp);

        let expose = Expose {
            local_host: "localhost".into(),
            local_port: port(3000),
            local_tls: false,
            exposure: Exposure::Internal { protocol: ExposeProtocol::Http },
            access: Access::default(),
        };
        let mut spec = ForwardSpec::new(ForwardId(1), Workload::Expose(expose.clone()));
        spec.alias = Some("shop".into());
        let Config::Expose(config) = Config::of(&spec, "My shop", DEFAULT_HOLD) else { panic!("no expose") };
        assert_eq!((config.name.as_str(), config.offer.name.as_str()), ("My shop", "shop"));
        assert_eq!(config.offer.expose, expose);

        let web = Workload::Service { name: "web".into(), port: RemotePort::Number(port(80)) };
        let mut spec = ForwardSpec::new(ForwardId(1), web);
        for (via, needs_relay) in [(Via::Direct, false), (Via::Auto, false), (Via::Relay, true)] {
            spec.via = via;
            let Config::Forward(config) = Config::of(&spec, "web", DEFAULT_HOLD) else {
                panic!("no forward")
            };
            assert_eq!((config.wanted().via, config.wanted().needs_relay()), (via, needs_relay));
        }
    }

    #[test]
    fn limits_follow_the_open_files() {
        assert_eq!(Limits::for_open_files(1024).connections, 1024 - 128);
        assert_eq!(Limits::for_open_files(100).connections, 50);
        assert_eq!(Limits::for_open_files(0).connections, 1);
        assert_eq!(Limits::for_open_files(u64::MAX).connections, 65_536);
        assert!(Limits::for_open_files(256).held <= Limits::for_open_files(256).connections);
    }
}
