//! The names that Kubernetes accepts, checked before a request is made, so that a typing error is answered with the
//! letter that is wrong instead of with a "not found" from the cluster.
//!
//! Rules: RFC 1123 labels and subdomains as Kubernetes narrows them (lower case only), and port names after RFC 6335
//! (`IANA_SVC_NAME` in the Kubernetes API documents).

/// Longest DNS label, RFC 1035 section 2.3.4.
pub const LABEL_MAX: usize = 63;
/// Longest DNS name in text form without the final dot, RFC 1035 section 2.3.4 as Kubernetes applies it.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest service name of RFC 6335 section 5.1.
pub const PORT_NAME_MAX: usize = 15;

/// What is wrong with a name. The text form is a clause that follows the name: "`Web` has the capital letter `W`".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// Nothing, or only blanks.
    #[error("is empty")]
    Empty,
    /// More letters than the kind of name may have.
    #[error("is longer than {max} characters")]
    TooLong {
        /// The limit, in characters.
        max: usize,
    },
    /// A capital letter: the most common one, and easy to cure.
    #[error("has the capital letter `{letter}`; names in Kubernetes are lower-case")]
    Capital {
        /// The first one found.
        letter: char,
    },
    /// A letter that such a name may not have.
    #[error("has {}, which is not allowed there", shown(*letter))]
    Letter {
        /// The first one found.
        letter: char,
    },
    /// A part begins or ends with something else than a letter or digit.
    #[error("must begin and end with a letter or digit, and so must each part between dots")]
    Edge,
    /// A port name without any letter.
    #[error("must have at least one letter")]
    NoLetter,
    /// A port name with two hyphens in a row.
    #[error("has two hyphens in a row")]
    DoubleHyphen,
}

fn shown(letter: char) -> String {
    if letter == ' ' {
        "a blank".to_owned()
    } else if letter.is_control() {
        format!("the control character U+{:04X}", u32::from(letter))
    } else {
        format!("`{letter}`")
    }
}

/// A DNS label: namespaces, Services.
///
/// # Errors
/// What is wrong with it.
pub fn label(text: &str) -> Result<(), NameFault> {
    letters(text, LABEL_MAX, |c| c == '-')?;
    edges(text)
}

/// A DNS subdomain: pods, Deployments and most other objects; host names of an Ingress.
///
/// # Errors
/// What is wrong with it.
pub fn subdomain(text: &str) -> Result<(), NameFault> {
    letters(text, SUBDOMAIN_MAX, |c| c == '-' || c == '.')?;
    text.split('.').try_for_each(edges)
}

/// The name of a port of a Service or container.
///
/// # Errors
/// What is wrong with it.
pub fn port_name(text: &str) -> Result<(), NameFault> {
    letters(text, PORT_NAME_MAX, |c| c == '-')?;
    edges(text)?;
    if text.contains("--") {
        return Err(NameFault::DoubleHyphen);
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) { Ok(()) } else { Err(NameFault::NoLetter) }
}

/// A host that some resolver shall look up, or an IP address: more is allowed than in a Kubernetes name (capitals,
/// underscores), since the resolver decides.
///
/// # Errors
/// What is wrong with it.
pub fn host(text: &str) -> Result<(), NameFault> {
    if text.is_empty() {
        return Err(NameFault::Empty);
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if text.len() > SUBDOMAIN_MAX + 1 {
        return Err(NameFault::TooLong { max: SUBDOMAIN_MAX });
    }
    // One final dot marks a fully qualified name.
    let name = text.strip_suffix('.').unwrap_or(text);
    for part in name.split('.') {
        if let Some(letter) = part.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
            return Err(NameFault::Letter { letter });
        }
        if part.is_empty() || part.starts_with('-') || part.ends_with('-') {
            return Err(NameFault::Edge);
        }
        if part.len() > LABEL_MAX {
            return Err(NameFault::TooLong { max: LABEL_MAX });
        }
    }
    Ok(())
}

fn letters(text: &str, max: usize, also: impl Fn(char) -> bool) -> Result<(), NameFault> {
    if text.trim().is_empty() {
        return Err(NameFault::Empty);
    }
    for letter in text.chars() {
        if letter.is_ascii_uppercase() {
            return Err(NameFault::Capital { letter });
        }
        if !(letter.is_ascii_lowercase() || letter.is_ascii_digit() || also(letter)) {
            return Err(NameFault::Letter { letter });
        }
    }
    if text.len() > max { Err(NameFault::TooLong { max }) } else { Ok(()) }
}

fn edges(part: &str) -> Result<(), NameFault> {
    let inner = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if inner(part.chars().next()) && inner(part.chars().next_back()) { Ok(()) } else { Err(NameFault::Edge) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["web", "a", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(label(good), Ok(()), "{good}");
        }
        assert_eq!(label(""), Err(NameFault::Empty));
        assert_eq!(label("Web"), Err(NameFault::Capital { letter: 'W' }));
        assert_eq!(label("we_b"), Err(NameFault::Letter { letter: '_' }));
        assert_eq!(label("a.b"), Err(NameFault::Letter { letter: '.' }));
        assert_eq!(label("-web"), Err(NameFault::Edge));
        assert_eq!(label("web-"), Err(NameFault::Edge));
        assert_eq!(label(&"x".repeat(64)), Err(NameFault::TooLong { max: 63 }));
        assert_eq!(label("wéb"), Err(NameFault::Letter { letter: 'é' }));
    }

    #[test]
    fn subdomains() {
        for good in ["web", "web-7d9f.x", "a.b.c", &"x".repeat(100)] {
            assert_eq!(subdomain(good), Ok(()), "{good}");
        }
        assert_eq!(subdomain("a..b"), Err(NameFault::Edge));
        assert_eq!(subdomain("a.-b"), Err(NameFault::Edge));
        assert_eq!(subdomain(&"x".repeat(254)), Err(NameFault::TooLong { max: 253 }));
    }

    #[test]
    fn port_names() {
        for good in ["http", "a", "http-2", "0a"] {
            assert_eq!(port_name(good), Ok(()), "{good}");
        }
        assert_eq!(port_name("80"), Err(NameFault::NoLetter));
        assert_eq!(port_name("a--b"), Err(NameFault::DoubleHyphen));
        assert_eq!(port_name("sixteen-letters-"), Err(NameFault::TooLong { max: 15 }));
        assert_eq!(port_name("HTTP"), Err(NameFault::Capital { letter: 'H' }));
    }

    #[test]
    fn hosts() {
        for good in ["localhost", "127.0.0.1", "::1", "Auth.Internal.example.com", "a_b.c", "example.com."] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        assert_eq!(host("a b"), Err(NameFault::Letter { letter: ' ' }));
        assert_eq!(host("a:80"), Err(NameFault::Letter { letter: ':' }));
        assert_eq!(host("a..b"), Err(NameFault::Edge));
        assert_eq!(host("-a"), Err(NameFault::Edge));
        assert_eq!(host(""), Err(NameFault::Empty));
    }
}
