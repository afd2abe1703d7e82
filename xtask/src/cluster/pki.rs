//! The cluster's own certificate authority, its certificates, and the kubeconfigs made of them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// Years of validity on both sides of today: no clock is asked, and no cluster lives as long.
const VALID_FROM: (i32, u8, u8) = (2020, 1, 1);
const VALID_TO: (i32, u8, u8) = (2040, 1, 1);

/// The last day of certificates that are to be refused.
const EXPIRED: (i32, u8, u8) = (2021, 1, 1);

/// The directory of one cluster's keys and certificates.
pub(crate) struct Pki {
    directory: PathBuf,
}

/// Who a certificate is for. Kubernetes takes the user's name from CN and the groups from O.
pub(crate) struct Subject<'a> {
    pub(crate) user: &'a str,
    pub(crate) groups: &'a [&'a str],
    /// Addresses and DNS names, for servers.
    pub(crate) names: &'a [&'a str],
    /// Not valid any more.
    pub(crate) expired: bool,
}

impl Pki {
    /// Keys in this directory, which `create` makes.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Makes the authority and the key that signs service-account tokens.
    pub(crate) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let key = KeyPair::generate()?;
        self.write("ca.crt", &authority()?.self_signed(&key)?.pem())?;
        self.write("ca.key", &key.serialize_pem())?;
        let tokens = KeyPair::generate()?;
        self.write("sa.pub", &tokens.public_key_pem())?;
        self.write("sa.key", &tokens.serialize_pem())
    }

    /// A file of this name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The authority's certificate, PEM.
    pub(crate) fn authority(&self) -> Result<String> {
        self.read("ca.crt")
    }

    /// Issues `<file>.crt` and `<file>.key`.
    pub(crate) fn issue(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        let key = KeyPair::from_pem(&self.read("ca.key")?)?;
        self.issue_by(&Issuer::new(authority()?, key), file, subject)
    }

    /// The same by an authority that nobody knows: it has the name of the cluster's own, and another key.
    pub(crate) fn issue_foreign(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        self.issue_by(&Issuer::new(authority()?, KeyPair::generate()?), file, subject)
    }

    fn issue_by(&self, issuer: &Issuer<'_, KeyPair>, file: &str, subject: &Subject<'_>) -> Result<()> {
        let names: Vec<String> = subject.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(subject.user.to_owned()));
        // rcgen keeps one value per attribute type; none of our subjects is in two groups.
        for group in subject.groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, DnValue::Utf8String((*group).to_owned()));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, if subject.expired { EXPIRED } else { VALID_TO });
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        self.write(&format!("{file}.crt"), &certificate.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    /// A kubeconfig that logs in with the certificate `<file>.crt`. JSON, which is YAML.
    pub(crate) fn kubeconfig(
        &self,
        context: &str,
        server: &str,
        file: &str,
        namespace: &str,
    ) -> Result<String> {
        let user = json!({
            "client-certificate-data": BASE64.encode(self.read(&format!("{file}.crt"))?),
            "client-key-data": BASE64.encode(self.read(&format!("{file}.key"))?),
        });
        self.kubeconfig_with(context, server, file, &user, namespace)
    }

    /// A kubeconfig with the given `user` entry.
    pub(crate) fn kubeconfig_with(
        &self,
        context: &str,
        server: &str,
        user: &str,
        login: &serde_json::Value,
        namespace: &str,
    ) -> Result<String> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": context, "cluster": {
                "server": server,
                "certificate-authority-data": BASE64.encode(self.authority()?),
            }}],
            "users": [{ "name": user, "user": login }],
            "contexts": [{ "name": context, "context": { "cluster": context, "user": user, "namespace": namespace } }],
            "current-context": context,
        });
        Ok(serde_json::to_string_pretty(&config)? + "\n")
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn write(&self, name: &str, contents: &str) -> Result<()> {
        write_private(&self.path(name), contents)
    }
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, contents: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(contents.as_bytes())?;
    Ok(())
}

/// The authority's parameters: always the same, so that with its key it can be had again without parsing its certificate.
fn authority() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kftray test cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, VALID_TO);
    Ok(params)
}

fn validity(params: &mut CertificateParams, last: (i32, u8, u8)) {
    let (year, month, day) = VALID_FROM;
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = last;
    params.not_after = rcgen::date_time_ymd(year, month, day);
}
