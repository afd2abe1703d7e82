//! Certificates: one authority that kubeconfigs trust, one that they do not, and certificates with every usual defect.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

/// The name in the server's certificate that no address resolves to: for `tls-server-name`.
pub const SERVER_NAME: &str = "api.fake-cluster.internal";

/// Which certificate the API server shows to new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerCertificate {
    /// Good for `localhost`, `127.0.0.1`, `::1` and [`SERVER_NAME`].
    #[default]
    Good,
    /// Signed by an authority that no kubeconfig names.
    UnknownAuthority,
    /// Expired in 2001.
    Expired,
    /// Good for [`SERVER_NAME`] only: needs `tls-server-name`.
    OtherName,
}

/// A certificate with its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The cluster's authorities and server certificates.
pub(crate) struct Pki {
    authority: Authority,
    good: Arc<ServerConfig>,
    unknown_authority: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
    other_name: Arc<ServerConfig>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    fn sign(&self, mut params: CertificateParams, expired: bool) -> Result<Identity, rcgen::Error> {
        if expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            der: certificate.der().clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    fn server(&self, names: &[&str], expired: bool) -> Result<Arc<ServerConfig>, PkiError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let identity = self.sign(params, expired)?;
        let provider = Arc::new(ring::default_provider());
        let verifier = AnyClientCertificate::new(&provider);
        let key = KeyPair::from_pem(&identity.key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(vec![identity.der], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Creating a key or certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Setting TLS up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Pki {
    pub(crate) fn new() -> Result<Self, PkiError> {
        let authority = Authority::new("fake-cluster-ca")?;
        let unknown = Authority::new("some-other-ca")?;
        let names = ["localhost", "127.0.0.1", "::1", SERVER_NAME];
        Ok(Self {
            good: authority.server(&names, false)?,
            unknown_authority: unknown.server(&names, false)?,
            expired: authority.server(&names, true)?,
            other_name: authority.server(&[SERVER_NAME], false)?,
            authority,
        })
    }

    /// The authority's certificate, PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority.pem
    }

    pub(crate) fn server(&self, which: ServerCertificate) -> Arc<ServerConfig> {
        Arc::clone(match which {
            ServerCertificate::Good => &self.good,
            ServerCertificate::UnknownAuthority => &self.unknown_authority,
            ServerCertificate::Expired => &self.expired,
            ServerCertificate::OtherName => &self.other_name,
        })
    }

    /// A client certificate for `user`.
    pub(crate) fn client(&self, user: &str, expired: bool) -> Result<Identity, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.authority.sign(params, expired)
    }
}

/// Takes any client certificate and leaves the verdict to authentication, as the API server does: a bad certificate is
/// answered with 401, not with a TLS alert. The possession of the key is checked.
#[derive(Debug)]
struct AnyClientCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyClientCertificate {
    fn new(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// An authority that has signed nothing, PEM.
pub(crate) fn foreign_authority() -> Result<String, rcgen::Error> {
    Ok(Authority::new("foreign-ca")?.pem)
}
