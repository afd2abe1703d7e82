//! TLS towards API servers and proxies: trust as the kubeconfig says it, and words for what is wrong with a certificate.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use kftray_commons::{Code, Problem};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::login::{ClientCertificate, der};

/// What is offered to be spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// HTTP/1.1 only: an upgrade does not exist in HTTP/2, and a server that could choose would choose that.
    Upgrade,
    /// HTTP/2, else HTTP/1.1.
    Rest,
    /// Nothing: a proxy.
    None,
}

/// Whom to trust.
pub(crate) enum Trust<'a> {
    /// The certificate authorities of the kubeconfig, PEM.
    Authorities(&'a [u8]),
    /// The system's.
    System,
    /// Anybody (`insecure-skip-tls-verify`).
    Anybody,
}

/// The TLS side of one server. Sessions are resumed between connections with the same client certificate.
pub(crate) struct Tls {
    name: ServerName<'static>,
    verifier: Arc<Verifier>,
    configs: Mutex<Option<Configs>>,
}

struct Configs {
    certificate: Option<Arc<ClientCertificate>>,
    upgrade: Arc<ClientConfig>,
    rest: Arc<ClientConfig>,
    none: Arc<ClientConfig>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Tls {
    /// `name` is what the certificate must be valid for: `tls-server-name`, else the host. Blocks on the disk for
    /// [`Trust::System`].
    ///
    /// # Errors
    /// [`Code::KubeconfigInvalid`] for a name or authorities that are none, [`Code::CertificateUntrusted`] if the system
    /// trusts nobody.
    pub(crate) fn new(name: &str, trust: &Trust<'_>) -> Result<Self, Problem> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            Problem::new(Code::KubeconfigInvalid, format!("{name:?} is neither a host name nor an address"))
        })?;
        Ok(Self { name, verifier: Arc::new(Verifier::new(trust)?), configs: Mutex::default() })
    }

    /// The same trust, for a proxy in front of the server; authorities of the system count as well.
    pub(crate) fn for_proxy(host: &str, trust: &Trust<'_>) -> Result<Self, Problem> {
        let mut tls = Self::new(host, trust)?;
        if let Trust::Authorities(_) = trust
            && let Some(verifier) = Arc::get_mut(&mut tls.verifier)
        {
            // client-go asks the cluster's authorities only, which no public proxy satisfies.
            verifier.also = Inner::system().ok();
        }
        Ok(tls)
    }

    /// The name the certificate must be valid for.
    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// A configuration that shows this client certificate.
    pub(crate) fn config(
        &self,
        certificate: Option<&Arc<ClientCertificate>>,
        alpn: Alpn,
    ) -> Result<Arc<ClientConfig>, Problem> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |kept: &Configs| match (&kept.certificate, certificate) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, Some(_)) | (Some(_), None) => false,
        };
        let configs = match configs.as_mut().filter(|kept| same(kept)) {
            Some(kept) => kept,
            None => configs.insert(self.build(certificate)?),
        };
        Ok(Arc::clone(match alpn {
            Alpn::Upgrade => &configs.upgrade,
            Alpn::Rest => &configs.rest,
            Alpn::None => &configs.none,
        }))
    }

    fn build(&self, certificate: Option<&Arc<ClientCertificate>>) -> Result<Configs, Problem> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Problem::new(Code::Internal, format!("TLS cannot be set up: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as Arc<dyn ServerCertVerifier>);
        let none = match certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let resolver: Arc<dyn ResolvesClientCert> =
                    Arc::new(SingleCertAndKey::from(Arc::clone(&certificate.key)));
                builder.with_client_cert_resolver(resolver)
            }
        };
        let with = |protocols: &[&[u8]]| {
            let mut config = none.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Configs {
            certificate: certificate.cloned(),
            upgrade: with(&[b"http/1.1"]),
            rest: with(&[b"h2", b"http/1.1"]),
            none: Arc::new(none),
        })
    }

    /// Words for a failed handshake, or for a later read that failed because of TLS. `None`: TLS is not the reason.
    pub(crate) fn explain(&self, error: &io::Error, server: &str) -> Option<Problem> {
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are told by their own text")]
        Some(match error {
            rustls::Error::InvalidCertificate(reason) => self.untrusted(reason, server),
            rustls::Error::AlertReceived(alert) => rejected(*alert, server),
            rustls::Error::InvalidMessage(_) => Problem::new(
                Code::ClusterUnreachable,
                format!("{server} answers, but does not speak TLS"),
            )
            .with_remedy(
                "Check scheme and port of the server in the kubeconfig, and whether a proxy is needed.",
            ),
            other => Problem::new(Code::ClusterUnreachable, format!("TLS with {server} failed: {other}")),
        })
    }

    fn untrusted(&self, reason: &CertificateError, server: &str) -> Problem {
        let shown = self.verifier.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let summary = shown.as_deref().and_then(der::Summary::of);
        let whose = summary.as_ref().map_or_else(String::new, |summary| {
            format!("; it is for {} and was issued by {}", summary.subject, summary.issuer)
        });
        let day = |time: Option<Timestamp>| time.map_or_else(|| "an unknown day".to_owned(), der::day);
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are told by their own text")]
        let (text, remedy) = match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                format!("expired on {}", day(summary.as_ref().and_then(|it| it.not_after))),
                "Have the server's certificate renewed, or set this computer's clock.",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                format!("is not valid before {}", day(summary.as_ref().and_then(|it| it.not_before))),
                "Set this computer's clock, or wait.",
            ),
            CertificateError::NotValidForNameContext { presented, .. } => {
                const SHOWN: usize = 12;
                let mut names =
                    presented.iter().take(SHOWN).map(|name| plain_name(name)).collect::<Vec<_>>().join(", ");
                if presented.len() > SHOWN {
                    names.push_str(", ...");
                }
                (
                    format!("is not valid for {}, only for {names}", self.name.to_str()),
                    "Use one of these names in server or tls-server-name of the kubeconfig.",
                )
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "was not issued by an authority that is trusted here".to_owned(),
                "Check certificate-authority in the kubeconfig; a proxy that inspects TLS shows its own certificate.",
            ),
            other => (format!("is not accepted: {other}"), Code::CertificateUntrusted.remedy()),
        };
        Problem::new(Code::CertificateUntrusted, format!("the certificate of {server} {text}{whose}"))
            .with_remedy(remedy)
    }
}

/// rustls writes names as `DnsName("x")` and `IpAddress(1.2.3.4)`.
fn plain_name(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

fn rejected(alert: rustls::AlertDescription, server: &str) -> Problem {
    use rustls::AlertDescription as Alert;
    #[expect(clippy::wildcard_enum_match_arm, reason = "the open list of an external protocol")]
    let code = match alert {
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::CertificateRequired => Code::ClientCertificateInvalid,
        _ => Code::ClusterUnreachable,
    };
    let what =
        if code == Code::ClientCertificateInvalid { "the client certificate" } else { "the TLS handshake" };
    Problem::new(code, format!("{server} refuses {what} ({alert:?})"))
}

/// Verifies, and keeps what it rejected for [`Tls::explain`].
#[derive(Debug)]
struct Verifier {
    inner: Inner,
    also: Option<Inner>,
    provider: Arc<CryptoProvider>,
    /// The last rejected certificate. Connections to one server see the same one, so a mix-up would not show.
    rejected: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug)]
enum Inner {
    Authorities { verifier: Arc<WebPkiServerVerifier>, certificates: Vec<CertificateDer<'static>> },
    System(rustls_platform_verifier::Verifier),
    Anybody,
}

impl Inner {
    fn system() -> Result<Self, Problem> {
        rustls_platform_verifier::Verifier::new(provider()).map(Self::System).map_err(|error| {
            Problem::new(
                Code::CertificateUntrusted,
                format!(
                    "the kubeconfig names no certificate-authority, and this system trusts none: {error}"
                ),
            )
            .with_remedy(
                "Install the ca-certificates package, or set certificate-authority in the kubeconfig.",
            )
        })
    }

    fn authorities(pem: &[u8]) -> Result<Self, Problem> {
        let invalid =
            |text: &str| Problem::new(Code::KubeconfigInvalid, format!("certificate-authority {text}"));
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|_| invalid("is no valid PEM"))?;
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if usable == 0 {
            return Err(invalid("holds no usable certificate"));
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| invalid(&format!("is unusable: {error}")))?;
        Ok(Self::Authorities { verifier, certificates })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self {
            Self::Anybody => Ok(ServerCertVerified::assertion()),
            Self::System(verifier) => {
                verifier.verify_server_cert(certificate, intermediates, name, ocsp, now)
            }
            Self::Authorities { verifier, certificates } => {
                let verdict = verifier.verify_server_cert(certificate, intermediates, name, ocsp, now);
                // A self-signed server certificate that the kubeconfig trusts literally: Go accepts it, webpki wants an
                // authority and a leaf to be two.
                if verdict.is_err() && certificates.contains(certificate) {
                    trusted_itself(certificate, name, now)?;
                    return Ok(ServerCertVerified::assertion());
                }
                verdict
            }
        }
    }
}

fn trusted_itself(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    let summary = der::Summary::of(certificate).ok_or(CertificateError::BadEncoding)?;
    let (Some(from), Some(until)) = (summary.not_before, summary.not_after) else {
        return Err(CertificateError::BadEncoding.into());
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < from.as_second() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > until.as_second() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

impl Verifier {
    fn new(trust: &Trust<'_>) -> Result<Self, Problem> {
        let inner = match trust {
            Trust::Authorities(pem) => Inner::authorities(pem)?,
            Trust::System => Inner::system()?,
            Trust::Anybody => Inner::Anybody,
        };
        Ok(Self { inner, also: None, provider: provider(), rejected: Mutex::default() })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.inner.verify(end_entity, intermediates, server_name, ocsp_response, now).or_else(|error| {
                let also = self.also.as_ref().ok_or_else(|| error.clone())?;
                also.verify(end_entity, intermediates, server_name, ocsp_response, now).map_err(|_| error)
            });
        if verdict.is_err() {
            *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.to_vec());
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
