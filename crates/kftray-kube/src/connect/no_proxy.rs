//! Which hosts are reached without a proxy, by the rules client-go inherits from `golang.org/x/net/http/httpproxy`.

use std::net::IpAddr;

/// A parsed `NO_PROXY`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NoProxy {
    everything: bool,
    networks: Vec<(IpAddr, u8)>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    domains: Vec<Domain>,
}

/// `foo.com` is `.foo.com` and `foo.com` itself; `.foo.com` and `*.foo.com` only what is below.
#[derive(Debug, PartialEq, Eq)]
struct Domain {
    suffix: String,
    itself: bool,
    port: Option<u16>,
}

impl NoProxy {
    /// Parses a comma-separated list; what makes no sense is passed over, as in Go.
    pub(crate) fn parse(list: &str) -> Self {
        let mut parsed = Self::default();
        for item in list.split(',') {
            let item = item.trim().to_ascii_lowercase();
            if item == "*" {
                return Self { everything: true, ..Self::default() };
            }
            if let Some(network) = network(&item) {
                parsed.networks.push(network);
                continue;
            }
            let Some((host, port)) = split_port(&item) else { continue };
            if let Ok(address) = host.parse::<IpAddr>() {
                parsed.addresses.push((address.to_canonical(), port));
                continue;
            }
            let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
            if host.is_empty() {
                continue;
            }
            let itself = !host.starts_with('.');
            let suffix = if itself { format!(".{host}") } else { host.to_owned() };
            let suffix = idna(&suffix);
            parsed.domains.push(Domain { suffix, itself, port });
        }
        parsed
    }

    /// Whether `host` (no brackets) is reached directly. `localhost` and loopback addresses always are.
    pub(crate) fn covers(&self, host: &str, port: u16) -> bool {
        if host == "localhost" {
            return true;
        }
        let host = host.trim().to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if address.is_some_and(|address| address.is_loopback()) || self.everything {
            return true;
        }
        if let Some(address) = address {
            let in_network = self.networks.iter().any(|(network, bits)| contains(*network, *bits, address));
            if in_network
                || self.addresses.iter().any(|(it, on)| *it == address && on.is_none_or(|on| on == port))
            {
                return true;
            }
        }
        self.domains.iter().any(|domain| {
            (host.ends_with(&domain.suffix)
                || (domain.itself && domain.suffix.get(1..) == Some(host.as_str())))
                && domain.port.is_none_or(|on| on == port)
        })
    }
}

fn network(item: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = item.split_once('/')?;
    let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
    let width = if address.is_ipv4() { 32 } else { 128 };
    (bits <= width).then_some((address, bits))
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let same = |width: u32, a: u128, b: u128| {
        let drop = width - u32::from(bits);
        drop >= width || (a >> drop) == (b >> drop)
    };
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(32, a.to_bits().into(), b.to_bits().into()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(128, a.to_bits(), b.to_bits()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Go's `net.SplitHostPort`, and the item itself where that fails (no port, or a bare IPv6 address). `None`: a port without a
/// host. A port that is no number never matches, which `0` stands for.
fn split_port(item: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match item.rsplit_once(':') {
        Some((host, port)) if host.starts_with('[') && host.ends_with(']') => {
            (&host[1..host.len() - 1], Some(port))
        }
        Some((host, port)) if !host.contains([':', '[', ']']) => (host, Some(port)),
        _ => (item, None),
    };
    if host.is_empty() {
        return None;
    }
    // "host:" splits into an empty port, which matches each one.
    Some((host, port.filter(|port| !port.is_empty()).map(|port| port.parse().unwrap_or(0))))
}

fn idna(name: &str) -> String {
    if name.is_ascii() {
        return name.to_owned();
    }
    // A URL's host is converted the same way; a leading dot is not a valid first label, so it is set aside.
    let bare = name.strip_prefix('.').unwrap_or(name);
    match url::Host::parse(bare) {
        Ok(host) => format!(".{host}"),
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules as documented in `httpproxy.Config.NoProxy`, and the corners of its `useProxy`.
    #[test]
    fn documented_semantics() {
        let table: &[(&str, &str, u16, bool)] = &[
            // (NO_PROXY, host, port, reached directly)
            ("", "example.com", 443, false),
            // never proxied, whatever the list says
            ("", "localhost", 443, true),
            ("", "127.0.0.1", 6443, true),
            ("", "127.1.2.3", 6443, true),
            ("", "::1", 6443, true),
            ("", "::ffff:127.0.0.1", 6443, true),
            ("", "localhost.localdomain", 443, false),
            ("", "LOCALHOST", 443, false),
            // a domain matches itself and everything below
            ("foo.com", "foo.com", 443, true),
            ("foo.com", "bar.foo.com", 443, true),
            ("foo.com", "a.b.foo.com", 443, true),
            ("foo.com", "barfoo.com", 443, false),
            ("foo.com", "foo.com.evil.org", 443, false),
            ("FOO.com", "Bar.foo.COM", 443, true),
            // a leading dot, or *., matches only what is below
            (".foo.com", "bar.foo.com", 443, true),
            (".foo.com", "foo.com", 443, false),
            ("*.foo.com", "bar.foo.com", 443, true),
            ("*.foo.com", "foo.com", 443, false),
            ("*foo.com", "barfoo.com", 443, false),
            // ports
            ("foo.com:6443", "foo.com", 6443, true),
            ("foo.com:6443", "foo.com", 443, false),
            ("*.foo.com:80", "bar.foo.com", 80, true),
            ("foo.com:", "foo.com", 443, true),
            ("foo.com:https", "foo.com", 443, false),
            (":443", "foo.com", 443, false),
            // addresses
            ("1.2.3.4", "1.2.3.4", 443, true),
            ("1.2.3.4", "1.2.3.5", 443, false),
            ("1.2.3.4:80", "1.2.3.4", 80, true),
            ("1.2.3.4:80", "1.2.3.4", 443, false),
            ("::2", "::2", 443, true),
            ("[::2]:80", "::2", 80, true),
            ("[::2]:80", "::2", 443, false),
            ("1.2.3.4", "::ffff:1.2.3.4", 443, true),
            // networks
            ("10.0.0.0/8", "10.200.3.4", 6443, true),
            ("10.0.0.0/8", "11.0.0.1", 6443, false),
            ("10.1.2.3/8", "10.9.9.9", 6443, true),
            ("0.0.0.0/0", "8.8.8.8", 443, true),
            ("0.0.0.0/0", "2001:db8::1", 443, false),
            ("2001:db8::/32", "2001:db8:1::1", 443, true),
            ("2001:db8::/32", "2001:db9::1", 443, false),
            ("10.0.0.0/33", "10.0.0.1", 443, false),
            // a name is not looked up
            ("10.0.0.0/8", "ten.example.com", 443, false),
            // lists
            ("a.com, b.com ,c.com", "b.com", 443, true),
            ("a.com,,c.com", "c.com", 443, true),
            ("a.com;b.com", "b.com", 443, false),
            ("*", "anything.at.all", 443, true),
            ("a.com,*", "8.8.8.8", 443, true),
            ("a.com,*.b.com,*", "c.org", 443, true),
            ("bücher.example", "shop.xn--bcher-kva.example", 443, true),
        ];
        for (list, host, port, direct) in table {
            assert_eq!(NoProxy::parse(list).covers(host, *port), *direct, "NO_PROXY={list:?} {host}:{port}");
        }
    }
}
