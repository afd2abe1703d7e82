//! Names as the cluster sees them: the pod's `resolv.conf`, asked anew for every open.
//!
//! Nothing is remembered between opens: a Service that is made anew, or a record that moves, is followed by the next
//! connection.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Resolver, TokioResolver};
use kftray_relay_proto::open::Family;
use kftray_relay_proto::reason::{Refusal, RefusalKind};

/// The resolver.
pub struct Names {
    resolver: TokioResolver,
}

/// A target's addresses, and the name under which they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name that the DNS answered for, after the search domains; the target itself if it is an address.
    pub name: String,
    /// In the order of the answer, IPv6 first where both families have some (RFC 6724).
    pub addresses: Vec<IpAddr>,
}

/// One server gets this long for an answer at most; the pod's `resolv.conf` usually says 5 s, after which the caller has
/// given up.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

impl Names {
    /// As `resolv.conf` says: servers, search domains, `ndots`.
    ///
    /// # Errors
    /// When the file cannot be read or names no server.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (config, options) =
            parse_resolv_conf(text).with_context(|| format!("cannot use {}", path.display()))?;
        Self::new(config, options)
    }

    /// With a given configuration.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn new(config: ResolverConfig, mut options: ResolverOpts) -> anyhow::Result<Self> {
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = options.timeout.min(SERVER_TIMEOUT);
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build().context("cannot set up the resolver")?;
        Ok(Self { resolver })
    }

    /// Looks a target up; an address is its own answer.
    ///
    /// # Errors
    /// `name_not_found`, or `timed_out`/`unreachable` for a DNS that does not work.
    pub async fn look_up(&self, host: &str, family: Option<Family>) -> Result<Found, Refusal> {
        let wanted = |address: &IpAddr| match family {
            None => true,
            Some(Family::V4) => address.is_ipv4(),
            Some(Family::V6) => address.is_ipv6(),
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Found { name: host.to_owned(), addresses: vec![address] });
        }
        let answer = self.resolver.lookup_ip(host).await.map_err(|error| refusal(host, &error))?;
        let name = answer.query().name().to_string();
        let mut addresses: Vec<IpAddr> = answer.iter().filter(wanted).collect();
        if addresses.is_empty() {
            let message = format!("{host} has no address of the family asked for");
            return Err(Refusal::new(RefusalKind::NameNotFound, message));
        }
        addresses.sort_by_key(IpAddr::is_ipv4);
        Ok(Found { name, addresses })
    }
}

fn refusal(host: &str, error: &NetError) -> Refusal {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list is open; the rest is told in its own words")]
    match error {
        NetError::Dns(DnsError::NoRecordsFound(_)) => {
            Refusal::new(RefusalKind::NameNotFound, format!("the cluster's DNS knows no name {host}"))
        }
        NetError::Timeout => {
            Refusal::new(RefusalKind::TimedOut, format!("the cluster's DNS did not answer for {host}"))
        }
        NetError::Proto(error) => Refusal::new(
            RefusalKind::NameNotFound,
            format!("{host} is no name that the DNS could know: {error}"),
        ),
        other => Refusal::new(
            RefusalKind::Unreachable,
            format!("the cluster's DNS could not be asked for {host}: {other}"),
        ),
    }
}
