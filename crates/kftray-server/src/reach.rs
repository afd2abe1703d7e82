//! What the relay may reach: two lists fixed at its creation, and addresses that nobody reaches unless they are named.
//!
//! Names are looked up first; the lists judge the very address that is then dialled, so a DNS answer that changes in
//! between changes nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// The lists.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Empty = everything.
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    who: Who,
    ports: RangeInclusive<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    /// Lower case, without a trailing dot.
    Name(String),
    /// `*.example.com`: the part from the dot on.
    Suffix(String),
    Net(IpNet),
}

/// An entry cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{list}: {rule:?} {why}")]
pub struct RuleError {
    /// The variable it stands in.
    pub list: &'static str,
    /// The entry.
    pub rule: String,
    /// What is wrong.
    pub why: &'static str,
}

/// Why an address is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// It is the machine's or cluster's own, and not named.
    Special(&'static str),
    /// `KFTRAY_DENY` has it.
    Listed,
    /// `KFTRAY_ALLOW` does not have it.
    NotListed,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Special(what) => {
                write!(f, "is {what}, which this relay does not reach unless KFTRAY_ALLOW names the address")
            }
            Self::Listed => f.write_str("is on the relay's list of denied targets (KFTRAY_DENY)"),
            Self::NotListed => f.write_str("is not on the relay's list of allowed targets (KFTRAY_ALLOW)"),
        }
    }
}

impl Reach {
    /// Reads both lists.
    ///
    /// # Errors
    /// At the first entry that is no name, `*.suffix`, address or CIDR with an optional port or range of ports.
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, RuleError> {
        let parse = |list: &'static str, rules: &[String]| {
            rules
                .iter()
                .map(|rule| Rule::parse(rule).map_err(|why| RuleError { list, rule: rule.clone(), why }))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { allow: parse("KFTRAY_ALLOW", allow)?, deny: parse("KFTRAY_DENY", deny)? })
    }

    /// Judges an address that is about to be dialled for a target the client called `names` (as asked for, and as the
    /// search domains completed it).
    ///
    /// # Errors
    /// When it must not be dialled.
    pub fn check(&self, names: &[&str], address: IpAddr, port: u16) -> Result<(), Denial> {
        let address = address.to_canonical();
        let by_address = |rule: &&Rule| rule.has_address(address, port);
        let special = special(address);
        if let Some(Special { what, net }) = special {
            // Only an address or network within the special one is a naming: 0.0.0.0/0 does not mean the metadata service.
            let named = |rule: &Rule| matches!(&rule.who, Who::Net(named) if net.contains(named));
            if !self.allow.iter().filter(by_address).any(named) {
                return Err(Denial::Special(what));
            }
        }
        // A name never lifts a denial, since its owner decides where it leads; a single address does.
        let single =
            |rule: &Rule| matches!(&rule.who, Who::Net(net) if net.prefix_len() == net.max_prefix_len());
        let leads_to = nat64(address).map_or(address, IpAddr::V4);
        let denied = self.deny.iter().any(|rule| {
            rule.has_address(address, port) || rule.has_address(leads_to, port) || rule.has_name(names, port)
        });
        if denied && !self.allow.iter().filter(by_address).any(single) {
            return Err(Denial::Listed);
        }
        let allowed = |rule: &Rule| rule.has_address(address, port) || rule.has_name(names, port);
        if self.allow.is_empty() || self.allow.iter().any(allowed) { Ok(()) } else { Err(Denial::NotListed) }
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (who, ports) = split_ports(text)?;
        let who = who.strip_prefix('[').and_then(|who| who.strip_suffix(']')).unwrap_or(who);
        let who = if let Ok(address) = who.parse::<IpAddr>() {
            Who::Net(address.to_canonical().into())
        } else if who.contains('/') {
            Who::Net(who.parse::<IpNet>().map_err(|_| "is no CIDR")?.trunc())
        } else {
            let name = who.trim_end_matches('.').to_ascii_lowercase();
            let (suffix, plain) = match name.strip_prefix('*') {
                Some(suffix) if suffix.starts_with('.') => (true, suffix),
                Some(_) => return Err("has a star that is not followed by a dot"),
                None => (false, name.as_str()),
            };
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if plain.trim_matches('.').is_empty() || !plain.bytes().all(letter) {
                return Err("is neither a name, *.suffix, address nor CIDR");
            }
            if suffix { Who::Suffix(plain.to_owned()) } else { Who::Name(name) }
        };
        Ok(Self { who, ports })
    }

    fn has_address(&self, address: IpAddr, port: u16) -> bool {
        matches!(&self.who, Who::Net(net) if net.contains(&address)) && self.ports.contains(&port)
    }

    fn has_name(&self, names: &[&str], port: u16) -> bool {
        let fits = |name: &&str| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            match &self.who {
                Who::Name(own) => name == *own,
                Who::Suffix(suffix) => name.ends_with(suffix),
                Who::Net(_) => false,
            }
        };
        self.ports.contains(&port) && names.iter().any(fits)
    }
}

/// Takes `:port` or `:low-high` off the end. An IPv6 address needs brackets for that.
fn split_ports(text: &str) -> Result<(&str, RangeInclusive<u16>), &'static str> {
    let all = 0..=u16::MAX;
    let bare_v6 = text.matches(':').count() > 1 && !text.starts_with('[');
    let Some((who, ports)) = text.rsplit_once(':').filter(|(who, _)| !bare_v6 && balanced(who)) else {
        return Ok((text, all));
    };
    let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high => Ok((who, low..=high)),
        _ => Err("has something behind the colon that is neither a port nor a range of ports"),
    }
}

/// Not within brackets.
fn balanced(who: &str) -> bool {
    who.contains('[') == who.contains(']')
}

/// A network nobody means by accident.
struct Special {
    what: &'static str,
    net: IpNet,
}

fn special(address: IpAddr) -> Option<Special> {
    let (what, net) = match address {
        IpAddr::V4(v4) => special_v4(v4)?,
        IpAddr::V6(v6) => special_v6(v6)?,
    };
    net.map(|net| Special { what, net })
}

/// The kind and the network; the address alone where the network is not special as a whole.
fn special_v4(address: Ipv4Addr) -> Option<(&'static str, Option<IpNet>)> {
    let net = |text: &str| text.parse().ok();
    Some(match address.octets() {
        [127, ..] => ("the relay's own loopback", net("127.0.0.0/8")),
        [0, ..] => ("the relay itself", net("0.0.0.0/8")),
        [169, 254, ..] => ("a link-local address (cloud metadata)", net("169.254.0.0/16")),
        // Alibaba Cloud, Azure and Oracle Cloud have theirs elsewhere.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => {
            ("a cloud's metadata address", Some(IpAddr::V4(address).into()))
        }
        [224..=239, ..] => ("a multicast address", net("224.0.0.0/4")),
        [255, 255, 255, 255] => ("the broadcast address", net("255.255.255.255/32")),
        _ => return None,
    })
}

fn special_v6(address: Ipv6Addr) -> Option<(&'static str, Option<IpNet>)> {
    let net = |text: &str| text.parse().ok();
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => ("the relay's own loopback", net("::1/128")),
        [0, 0, 0, 0, 0, 0, 0, 0] => ("the relay itself", net("::/128")),
        [0xFE80..=0xFEBF, ..] => ("a link-local address", net("fe80::/10")),
        [0xFD00, 0x0EC2, 0, 0, 0, 0, 0, 0x0254] => {
            ("a cloud's metadata address", Some(IpAddr::V6(address).into()))
        }
        [0xFF00..=0xFFFF, ..] => ("a multicast address", net("ff00::/8")),
        // The network named must be this very address.
        _ => (special_v4(nat64(address.into())?)?.0, Some(IpAddr::V6(address).into())),
    })
}

/// The IPv4 address that a NAT64 address leads to, in its last 32 bits (RFC 6052).
fn nat64(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let [0x64, 0xFF9B, 0, 0, 0, 0, high, low] = v6.segments() else { return None };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(allow: &[&str], deny: &[&str]) -> Reach {
        let list = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>();
        Reach::new(&list(allow), &list(deny)).unwrap()
    }

    fn check(reach: &Reach, name: &str, address: &str, port: u16) -> Result<(), Denial> {
        let Ok(address) = address.parse() else { panic!("{address} is no address") };
        reach.check(&[name], address, port)
    }

    #[test]
    fn without_lists_everything_but_the_special() {
        let open = Reach::default();
        for address in ["10.0.0.1", "8.8.8.8", "2001:db8::1", "64:ff9b::808:808"] {
            assert_eq!(check(&open, "x", address, 80), Ok(()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
        ] {
            assert!(matches!(check(&open, "x", address, 80), Err(Denial::Special(_))), "{address}");
        }
    }

    #[test]
    fn the_special_must_be_named_by_address() {
        let wide = reach(&["0.0.0.0/0", "::/0", "metadata.internal", "*.internal"], &[]);
        assert!(check(&wide, "metadata.internal", "169.254.169.254", 80).is_err());
        assert!(check(&wide, "metadata.internal", "127.0.0.1", 80).is_err());
        let named = reach(&["169.254.169.254:80", "127.0.0.0/8"], &[]);
        assert_eq!(check(&named, "x", "169.254.169.254", 80), Ok(()));
        assert!(check(&named, "x", "169.254.169.254", 81).is_err());
        assert!(check(&named, "x", "169.254.169.253", 80).is_err());
        assert_eq!(check(&named, "x", "127.0.0.1", 5432), Ok(()));
    }

    #[test]
    fn denied_unless_the_very_address_is_allowed() {
        let api = reach(&[], &["10.96.0.1", "*.corp.example:1-1024"]);
        assert_eq!(check(&api, "kubernetes.default", "10.96.0.1", 443), Err(Denial::Listed));
        for same in ["::ffff:10.96.0.1", "64:ff9b::10.96.0.1"] {
            assert_eq!(check(&api, "x", same, 443), Err(Denial::Listed), "{same}");
        }
        assert_eq!(check(&api, "x", "10.96.0.2", 443), Ok(()));
        assert_eq!(check(&api, "x", "64:ff9b::10.96.0.2", 443), Ok(()));
        assert_eq!(check(&api, "db.CORP.example.", "10.0.0.9", 1000), Err(Denial::Listed));
        assert_eq!(check(&api, "db.corp.example", "10.0.0.9", 5432), Ok(()));
        let named = reach(&["10.96.0.1:443", "10.0.0.0/8"], &["10.96.0.1"]);
        assert_eq!(check(&named, "x", "10.96.0.1", 443), Ok(()));
        assert_eq!(check(&named, "x", "10.96.0.1", 80), Err(Denial::Listed));
        let by_name = reach(&["kubernetes.default"], &["10.96.0.1"]);
        assert_eq!(check(&by_name, "kubernetes.default", "10.96.0.1", 443), Err(Denial::Listed));
    }

    #[test]
    fn allowed_by_name_suffix_net_and_port() {
        let some =
            reach(&["db.prod:5432", "*.svc.cluster.local", "10.1.0.0/16:8000-8999", "[2001:db8::5]:53"], &[]);
        assert_eq!(check(&some, "DB.prod", "10.9.9.9", 5432), Ok(()));
        assert_eq!(check(&some, "db.prod", "10.9.9.9", 5433), Err(Denial::NotListed));
        assert_eq!(check(&some, "a.b.svc.cluster.local.", "10.9.9.9", 1), Ok(()));
        assert_eq!(check(&some, "svc.cluster.local", "10.9.9.9", 1), Err(Denial::NotListed));
        assert_eq!(check(&some, "evilsvc.cluster.local", "10.9.9.9", 1), Err(Denial::NotListed));
        assert_eq!(check(&some, "x", "10.1.2.3", 8500), Ok(()));
        assert_eq!(check(&some, "x", "::ffff:10.1.2.3", 8500), Ok(()));
        assert_eq!(check(&some, "x", "10.1.2.3", 80), Err(Denial::NotListed));
        assert_eq!(check(&some, "x", "2001:db8::5", 53), Ok(()));
        assert_eq!(check(&some, "x", "2001:db8::6", 53), Err(Denial::NotListed));
        let completed = some.check(&["web", "web.shop.svc.cluster.local."], "10.9.9.9".parse().unwrap(), 80);
        assert_eq!(completed, Ok(()));
    }

    #[test]
    fn nonsense_is_no_rule() {
        for rule in ["", "*", "*x", "a b", "10.0.0.0/40", "host:", "host:9-8", "[::1]:x", "..."] {
            assert!(Rule::parse(rule).is_err(), "{rule:?}");
        }
        assert!(
            Rule::parse("::1").is_ok()
                && Rule::parse("fd00::/8").is_ok()
                && Rule::parse("[fd00::/8]:53").is_ok()
        );
    }
}
