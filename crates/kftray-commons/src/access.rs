//! Who may call an exposed program: credentials, addresses, a time limit. All of it is optional.
//!
//! The reference has nothing of the kind; the JSON fields are ours: `exposure_basic_auth`, `exposure_bearer_token`,
//! `exposure_allow`, `exposure_expires_after`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What callers of an exposed program must bring along. The default asks for nothing. Where basic and bearer are both
/// set, either will do; the address list comes on top.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Access {
    /// HTTP basic authentication, as `user:password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<Secret>,
    /// A bearer token, sent as `Authorization: Bearer TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Secret>,
    /// Addresses that may call; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// Seconds from the start after which it is closed, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<u64>,
}

impl Access {
    /// Longest [`Self::expires_after`], a year: what is to be open for longer is no loan of a developer's machine.
    pub const EXPIRES_MAX: u64 = 365 * 24 * 60 * 60;

    /// Whether a caller must show credentials.
    #[must_use]
    pub fn wants_credentials(&self) -> bool {
        self.basic.is_some() || self.bearer.is_some()
    }

    /// Whether every caller is let in while it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.wants_credentials() && self.allow.is_empty()
    }

    /// Whether a caller's address may call.
    #[must_use]
    pub fn allows(&self, caller: IpAddr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|network| network.contains(caller))
    }
}

/// A text that logs and error messages must not show. Its JSON form is the text itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// An address or a range of them in CIDR form: `10.0.0.0/8`, `2001:db8::/32`, `203.0.113.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    /// Leading bits that count, 0-32 or 0-128.
    prefix: u8,
}

/// Why a text is no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no address such as 203.0.113.7 or 10.0.0.0/8")]
pub struct NetworkFault;

impl Network {
    /// Whether an address lies in it. An IPv4 address in IPv6 form (`::ffff:10.0.0.1`) counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                let differ = |a: Ipv6Addr, b: Ipv6Addr| a.to_bits() ^ b.to_bits();
                differ(network, address).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkFault;

    fn from_str(text: &str) -> Result<Self, NetworkFault> {
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkFault)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                prefix.parse().map_err(|_| NetworkFault)?
            }
            Some(_) => return Err(NetworkFault),
            None => longest,
        };
        if prefix > longest {
            return Err(NetworkFault);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkFault;

    fn try_from(text: String) -> Result<Self, NetworkFault> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// A length of time as people write it: `90s`, `30m`, `8h`, `2d`, or parts after one another (`1h30m`); a bare number is
/// seconds. `None` for anything else, for zero and for what does not fit.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let mut seconds = 0_u64;
    let mut number = String::new();
    for character in text.chars() {
        let unit = match character {
            '0'..='9' => {
                number.push(character);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 60 * 60,
            'd' => 24 * 60 * 60,
            _ => return None,
        };
        let count: u64 = std::mem::take(&mut number).parse().ok()?;
        seconds = seconds.checked_add(count.checked_mul(unit)?)?;
    }
    if !number.is_empty() {
        // A number without a unit can only stand alone.
        if number.len() != text.len() {
            return None;
        }
        seconds = number.parse().ok()?;
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().expect(network).contains(address.parse().expect(address))
    }

    #[test]
    fn networks() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("203.0.113.7", "203.0.113.7"));
        assert!(!contains("203.0.113.7", "203.0.113.6"));
        assert!(contains("0.0.0.0/0", "192.0.2.1"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"), "a mapped address is what it maps");
        for bad in ["", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "::/129", "web", "10.0.0.0/8/8"] {
            assert_eq!(bad.parse::<Network>(), Err(NetworkFault), "{bad}");
        }
    }

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|found| found.as_secs());
        assert_eq!(seconds("90"), Some(90));
        assert_eq!(seconds(" 8h "), Some(8 * 3600));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("2d"), Some(172_800));
        for bad in ["", "0", "0s", "h", "1h30", "-1s", "1 h", "1w", "99999999999999999999s"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let access = Access { basic: Some(Secret::new("user:hunter2")), ..Access::default() };
        assert!(!format!("{access:?}").contains("hunter2"));
        let json = serde_json::to_string(&access).expect("JSON");
        assert_eq!(json, r#"{"basic":"user:hunter2"}"#);
        assert_eq!(serde_json::from_str::<Access>(&json).expect("our own JSON"), access);
    }
}
