//! `remote_address` as people write it: a host, a host with a port, an IPv6 address, a URL.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;

/// A host and, where one was written, its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAddress {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// The port that was written out.
    pub port: Option<NonZeroU16>,
    /// The port that the URL's scheme stands for, if it was a URL of a known one.
    pub scheme_port: Option<NonZeroU16>,
}

/// Splits a remote address. The host is not judged here.
///
/// # Errors
/// What is wrong, as a clause that does not repeat the text.
pub fn remote_address(text: &str) -> Result<RemoteAddress, String> {
    let text = text.trim();
    let (scheme_port, authority) = match text.split_once("://") {
        None => (None, text),
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let authority = rest.get(..end).unwrap_or(rest);
            // Credentials in a URL are the application's business, not ours.
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            (scheme_port(scheme), authority)
        }
    };
    let (host, port) = split(authority)?;
    if host.is_empty() {
        return Err("has no host".to_owned());
    }
    Ok(RemoteAddress { host: host.to_owned(), port, scheme_port })
}

fn scheme_port(scheme: &str) -> Option<NonZeroU16> {
    let number = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => 80,
        "https" | "wss" => 443,
        _ => 0,
    };
    NonZeroU16::new(number)
}

fn split(authority: &str) -> Result<(&str, Option<NonZeroU16>), String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has no closing bracket")?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err("has brackets around something that is no IPv6 address".to_owned());
        }
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(number(port)?))),
            None if after.is_empty() => Ok((host, None)),
            None => Err("has text after the bracket".to_owned()),
        };
    }
    // An IPv6 address without brackets has no room for a port.
    if authority.parse::<IpAddr>().is_ok() {
        return Ok((authority, None));
    }
    match authority.rsplit_once(':') {
        None => Ok((authority, None)),
        Some((host, _)) if host.contains(':') => {
            Err("has more than one colon; write an IPv6 address in brackets".to_owned())
        }
        Some((host, port)) => Ok((host, Some(number(port)?))),
    }
}

fn number(text: &str) -> Result<NonZeroU16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.ok_or_else(|| format!("has the port `{text}`, which is not a number from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            ("internal-api.company.com:443", "internal-api.company.com", Some(443), None),
            ("db.example.com", "db.example.com", None, None),
            (" 10.0.0.1:5432 ", "10.0.0.1", Some(5432), None),
            ("10.0.0.1", "10.0.0.1", None, None),
            ("[fd00::1]:443", "fd00::1", Some(443), None),
            ("[fd00::1]", "fd00::1", None, None),
            ("fd00::1", "fd00::1", None, None),
            ("https://api.example.com/v1?x=1", "api.example.com", None, Some(443)),
            ("http://user:secret@api.example.com:8080/", "api.example.com", Some(8080), Some(80)),
            ("postgres://db.example.com", "db.example.com", None, None),
        ];
        for (text, host, port, scheme) in cases {
            let found = remote_address(text).expect(text);
            assert_eq!(found.host, host, "{text}");
            assert_eq!(found.port.map(NonZeroU16::get), port, "{text}");
            assert_eq!(found.scheme_port.map(NonZeroU16::get), scheme, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in
            ["", ":80", "host:", "host:0", "host:70000", "host:http", "a:b:80", "[::1", "[host]:80", "[::1]x"]
        {
            assert!(remote_address(text).is_err(), "{text}");
        }
    }
}
