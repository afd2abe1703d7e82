//! What the relay was created with: its environment, read once at the start.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `KFTRAY_TOKEN_SHA256` | SHA-256 (hex) of each token that is let in, comma-separated; `any` lets in whoever reaches the port | required |
//! | `KFTRAY_ALLOW` | what may be reached: names, `*.suffix`, addresses, CIDRs, each with `:port` or `:low-high` if wanted | everything not denied |
//! | `KFTRAY_DENY` | what may not, in the same form; the API server is added by itself | |
//! | `KFTRAY_TUNNEL_PORT` | port on 127.0.0.1 for tunnels | 9999 |
//! | `KFTRAY_HEALTH_PORT` | port for `/healthz`, `/readyz`, `/metrics` | 9998 |
//! | `KFTRAY_EXPOSE_PORTS` | ports (`8080`, `8080-8089`, comma-separated) that listeners may use | none |
//! | `KFTRAY_EXPOSE_HOLD` | hold callers so many seconds after a listener's tunnel was lost | 10 |
//! | `KFTRAY_IDLE_EXIT` | leave after so many seconds without a tunnel; 0 = never | 120 |
//! | `KFTRAY_DRAIN` | after SIGTERM wait so many seconds for connections to end | 20 |
//! | `KFTRAY_LIMITS_CARRIERS`, `_STREAMS`, `_FLOWS` | most tunnels, most streams per tunnel, most UDP flows (three quarters of them for one user) | 64, 4096, 4096 |
//! | `KFTRAY_LIMITS_MEMORY` | MiB of memory beyond which opens are refused; 0 = never | 3/4 of the container's limit |
//! | `KFTRAY_LOG`, else `RUST_LOG` | log filter | `info` |
//!
//! Without any `KFTRAY_` variable but with `REMOTE_ADDRESS`, `PROXY_TYPE` and `LOCAL_PORT` it is the one-target relay of
//! [`crate::legacy`].

use std::ops::RangeInclusive;
use std::time::Duration;

use kftray_relay_proto::token::TokenHash;

use crate::reach::{Reach, RuleError};

/// Everything of the environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who is let in; `None` = everybody who reaches the tunnel port.
    pub tokens: Option<Vec<TokenHash>>,
    /// What may be reached.
    pub reach: Reach,
    /// Port on 127.0.0.1 for tunnels; 0 = any (tests).
    pub tunnel_port: u16,
    /// Port for health and metrics; 0 = any (tests).
    pub health_port: u16,
    /// Ports that listeners may use.
    pub expose_ports: Vec<RangeInclusive<u16>>,
    /// How long callers are held after the owner's tunnel was lost: a client that redials is back within a second or two,
    /// a laptop that wakes up within ten.
    pub expose_hold: Duration,
    /// Leave after this long without a tunnel.
    pub idle_exit: Option<Duration>,
    /// After SIGTERM wait this long for connections to end.
    pub drain: Duration,
    /// What bounds a client.
    pub limits: Limits,
}

/// What bounds a client: beyond, opens are refused with `busy`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most carriers (tunnels) at a time.
    pub carriers: usize,
    /// Most streams of one carrier.
    pub streams: usize,
    /// Most UDP flows, all carriers together.
    pub flows: usize,
    /// Bytes of resident memory.
    pub memory: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        // A client has 3 carriers; 64 is room for a score of clients of an installed relay. 4,096 streams cost 30 MiB at
        // most while nothing is stuck, and the memory limit looks after the rest. A UDP flow is a socket.
        Self { carriers: 64, streams: 4096, flows: 4096, memory: None }
    }
}

/// Why the relay does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Neither mode's variables are there.
    #[error(
        "KFTRAY_TOKEN_SHA256 is not set; a relay is created by kftray (`kftui relay manifest` shows how), or serves one target with PROXY_TYPE, REMOTE_ADDRESS, REMOTE_PORT and LOCAL_PORT"
    )]
    NoToken,
    /// A value cannot be read.
    #[error("{name}={value:?}: {why}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        why: String,
    },
}

impl Settings {
    /// Reads the settings from variables.
    ///
    /// # Errors
    /// When a variable is missing or cannot be read.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let text = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let number = |name: &'static str, default: u64| match text(name) {
            None => Ok(default),
            Some(value) => value.trim().parse().map_err(|_| invalid(name, &value, "is not a whole number")),
        };
        let port = |name: &'static str, default: u16| {
            let value = number(name, default.into())?;
            u16::try_from(value).map_err(|_| invalid(name, &value.to_string(), "is no port"))
        };
        let limit = |name, default: usize| {
            number(name, default as u64).map(|value| usize::try_from(value).unwrap_or(usize::MAX))
        };
        let seconds = |name, default| number(name, default).map(Duration::from_secs);
        let rules = |name: &'static str| {
            let value = text(name).unwrap_or_default();
            Ok((items(&value).map(str::to_owned).collect::<Vec<_>>(), name, value))
        };
        let (allow, ..) = rules("KFTRAY_ALLOW")?;
        let (mut deny, ..) = rules("KFTRAY_DENY")?;
        // The API server trusts addresses of the cluster more than it should; and a relay has no business there.
        deny.extend(text("KUBERNETES_SERVICE_HOST"));
        let defaults = Limits::default();
        let idle = seconds("KFTRAY_IDLE_EXIT", 120)?;
        let memory = match text("KFTRAY_LIMITS_MEMORY") {
            Some(_) => Some(number("KFTRAY_LIMITS_MEMORY", 0)? * 1024 * 1024).filter(|&bytes| bytes > 0),
            None => None,
        };
        Ok(Self {
            tokens: tokens(&text("KFTRAY_TOKEN_SHA256").ok_or(SettingsError::NoToken)?)?,
            reach: Reach::new(&allow, &deny)
                .map_err(|RuleError { list, rule, why }| invalid(list, &rule, why))?,
            tunnel_port: port("KFTRAY_TUNNEL_PORT", 9999)?,
            health_port: port("KFTRAY_HEALTH_PORT", 9998)?,
            expose_ports: ports(&text("KFTRAY_EXPOSE_PORTS").unwrap_or_default())?,
            expose_hold: seconds("KFTRAY_EXPOSE_HOLD", 10)?,
            idle_exit: (!idle.is_zero()).then_some(idle),
            drain: seconds("KFTRAY_DRAIN", 20)?,
            limits: Limits {
                carriers: limit("KFTRAY_LIMITS_CARRIERS", defaults.carriers)?,
                streams: limit("KFTRAY_LIMITS_STREAMS", defaults.streams)?,
                flows: limit("KFTRAY_LIMITS_FLOWS", defaults.flows)?,
                memory,
            },
        })
    }
}

fn invalid(name: &'static str, value: &str, why: impl Into<String>) -> SettingsError {
    SettingsError::Invalid { name, value: value.to_owned(), why: why.into() }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn tokens(value: &str) -> Result<Option<Vec<TokenHash>>, SettingsError> {
    if value.trim() == "any" {
        return Ok(None);
    }
    let hash = |item: &str| {
        // Not the value itself: somebody may have put the token there.
        item.parse().map_err(|error: kftray_relay_proto::token::TokenError| {
            invalid("KFTRAY_TOKEN_SHA256", "...", error.to_string())
        })
    };
    items(value).map(hash).collect::<Result<_, _>>().map(Some)
}

fn ports(value: &str) -> Result<Vec<RangeInclusive<u16>>, SettingsError> {
    let range = |item: &str| {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        match (low.trim().parse::<u16>(), high.trim().parse::<u16>()) {
            (Ok(low), Ok(high)) if low <= high => Ok(low..=high),
            _ => Err(invalid("KFTRAY_EXPOSE_PORTS", item, "is neither a port nor a range of ports")),
        }
    };
    items(value).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let hash = "ab".repeat(32);
        let mut all = vec![("KFTRAY_TOKEN_SHA256", hash.as_str())];
        all.extend_from_slice(variables);
        let find = |name: &str| {
            all.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&find)
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.tunnel_port, settings.health_port), (9999, 9998));
        assert_eq!(settings.idle_exit, Some(Duration::from_secs(120)));
        assert_eq!(settings.drain, Duration::from_secs(20));
        assert_eq!(settings.expose_hold, Duration::from_secs(10));
        assert_eq!(
            (settings.limits.carriers, settings.limits.streams, settings.limits.flows),
            (64, 4096, 4096)
        );
        assert!(settings.expose_ports.is_empty());
        assert_eq!(settings.tokens.map(|tokens| tokens.len()), Some(1));
    }

    #[test]
    fn values_are_read() {
        let settings = read(&[
            ("KFTRAY_TOKEN_SHA256", "any"),
            ("KFTRAY_EXPOSE_PORTS", "8080, 9000-9002"),
            ("KFTRAY_IDLE_EXIT", "0"),
            ("KFTRAY_LIMITS_MEMORY", "64"),
        ])
        .unwrap();
        assert!(settings.tokens.is_none() && settings.idle_exit.is_none());
        assert_eq!(settings.expose_ports, [8080..=8080, 9000..=9002]);
        assert_eq!(settings.limits.memory, Some(64 << 20));
    }

    #[test]
    fn mistakes_name_the_variable() {
        for (name, value) in [
            ("KFTRAY_TOKEN_SHA256", "secret"),
            ("KFTRAY_TUNNEL_PORT", "70000"),
            ("KFTRAY_EXPOSE_PORTS", "9-8"),
            ("KFTRAY_IDLE_EXIT", "soon"),
            ("KFTRAY_ALLOW", "10.0.0.0/33"),
            ("KFTRAY_DENY", "host:0x1"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(!error.to_string().contains("secret"), "a token is not shown");
        }
        assert_eq!(Settings::read(&|_| None).unwrap_err(), SettingsError::NoToken);
    }
}
