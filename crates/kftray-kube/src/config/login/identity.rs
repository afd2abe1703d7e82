//! TLS client certificates, and just enough of X.509 to tell people what a certificate says.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate chain with its key, checked to belong together.
pub(crate) struct ClientCertificate {
    /// What TLS signs with.
    pub(crate) key: Arc<CertifiedKey>,
    summary: Option<der::Summary>,
}

impl ClientCertificate {
    /// Reads PEM: PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`) keys; other PEM sections are passed over.
    ///
    /// # Errors
    /// A sentence for people, without the file's name and without secrets.
    pub(crate) fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| "the client certificate is no valid PEM".to_owned())?;
        let Some(first) = chain.first() else {
            return Err("the client certificate holds no CERTIFICATE section".to_owned());
        };
        let summary = der::Summary::of(first);
        if key.windows(21).any(|window| window == b"ENCRYPTED PRIVATE KEY")
            || key.windows(18).any(|window| window == b"Proc-Type: 4,ENCRY")
        {
            return Err("the client key is protected by a passphrase, which is not supported".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| "the client key holds no private key of a known form".to_owned())?;
        let signer = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| {
            "the client key's algorithm is not supported (use RSA, ECDSA P-256/P-384 or Ed25519)".to_owned()
        })?;
        let certified = CertifiedKey::new(chain, signer);
        if matches!(
            certified.keys_match(),
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch))
        ) {
            return Err("the client key does not belong to the client certificate".to_owned());
        }
        Ok(Self { key: Arc::new(certified), summary })
    }

    /// When it ends, where it can be read.
    pub(crate) fn not_after(&self) -> Option<Timestamp> {
        self.summary.as_ref()?.not_after
    }

    /// For messages: whose it is, and whether it has expired.
    pub(crate) fn describe(&self, now: Timestamp) -> String {
        let Some(summary) = &self.summary else { return "client certificate".to_owned() };
        match summary.not_after {
            Some(end) if end < now => {
                format!("client certificate of {}, which expired on {}", summary.subject, der::day(end))
            }
            _ => format!("client certificate of {}", summary.subject),
        }
    }
}

pub(crate) mod der {
    //! A reader for the few fields of a certificate that messages quote (RFC 5280, section 4.1). Trusts nothing: every
    //! length is checked, anything unexpected ends in `None`.

    use jiff::Timestamp;
    use jiff::civil;

    /// Who a certificate is for, who issued it, and until when it holds.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Summary {
        /// Common name, else organisation, else `(no name)`.
        pub(crate) subject: String,
        /// The same of the issuer.
        pub(crate) issuer: String,
        /// End of validity.
        pub(crate) not_after: Option<Timestamp>,
        /// Begin of validity.
        pub(crate) not_before: Option<Timestamp>,
    }

    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const OID: u8 = 0x06;
    const VERSION: u8 = 0xa0;
    const UTC_TIME: u8 = 0x17;
    /// `id-at-commonName` and `id-at-organizationName`.
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

    impl Summary {
        /// Reads it from a certificate's DER.
        pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
            let (_, certificate, _) = element(certificate)?;
            let (_, mut rest, _) = element(certificate)?;
            if rest.first() == Some(&VERSION) {
                rest = element(rest)?.2;
            }
            let rest = element(rest)?.2; // serial number
            let rest = element(rest)?.2; // signature algorithm
            let (_, issuer, rest) = element(rest)?;
            let (_, validity, rest) = element(rest)?;
            let (_, subject, _) = element(rest)?;
            let (tag, from, validity) = element(validity)?;
            let not_before = time(tag, from);
            let (tag, until, _) = element(validity)?;
            Some(Self {
                subject: name(subject),
                issuer: name(issuer),
                not_after: time(tag, until),
                not_before,
            })
        }
    }

    /// The first element: tag, content, what follows.
    fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
        let (&tag, rest) = bytes.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (length, rest) = if short < 0x80 {
            (usize::from(short), rest)
        } else {
            let count = usize::from(short & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(count)?;
            (digits.iter().fold(0, |sum, digit| (sum << 8) | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((tag, content, rest))
    }

    fn name(mut sets: &[u8]) -> String {
        let mut organization = None;
        while let Some((SET, mut set, rest)) = element(sets) {
            sets = rest;
            while let Some((SEQUENCE, attribute, next)) = element(set) {
                set = next;
                let Some((OID, oid, value)) = element(attribute) else { continue };
                let Some((_, text, _)) = element(value) else { continue };
                let text: String =
                    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
                if oid == COMMON_NAME {
                    return text;
                }
                if oid == ORGANIZATION {
                    organization = Some(text);
                }
            }
        }
        organization.unwrap_or_else(|| "(no name)".to_owned())
    }

    /// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, the only forms RFC 5280 allows.
    fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
        let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
        let text = if tag == UTC_TIME {
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            format!("{century}{text}")
        } else {
            text.to_owned()
        };
        let time = civil::DateTime::strptime("%Y%m%d%H%M%S", &text).ok()?;
        time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    }

    /// A day as people write it.
    pub(crate) fn day(time: Timestamp) -> String {
        time.strftime("%Y-%m-%d %H:%M UTC").to_string()
    }
}
