//! What cert-manager does for an Ingress, as far as an expose needs it: a certificate for its host from an authority of the
//! test's own, stored as the Secret that the Ingress names, as soon as the annotations ask for it.

use std::collections::HashSet;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer as Authority, KeyPair};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::ground::Ground;

/// An authority that issues to whoever asks for its name, until it is dropped.
pub struct Issuer {
    /// What callers have to trust.
    pub certificate: CertificateDer<'static>,
    _task: JoinSet<()>,
}

/// What is looked at, one line for each change of an Ingress: namespace, asked issuer, host, Secret.
const COLUMNS: &str = r#"jsonpath={.metadata.namespace}{"|"}{.metadata.annotations.cert-manager\.io/cluster-issuer}{.metadata.annotations.cert-manager\.io/issuer}{"|"}{.spec.tls[0].hosts[0]}{"|"}{.spec.tls[0].secretName}{"\n"}"#;

impl Issuer {
    /// Begins to issue certificates to all Ingresses that name this issuer, those that are there and those to come.
    ///
    /// # Errors
    /// When the authority cannot be made or the Ingresses cannot be watched.
    pub fn start(ground: &Ground, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "end-to-end tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?.der().clone();
        let authority = Authority::new(params, key);

        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&ground.kubeconfig);
        command.args(["get", "ingresses", "--all-namespaces", "--watch", "-o", COLUMNS]);
        let mut watch = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(watch.stdout.take().context("standard output is piped")?).lines();
        let (ground, name) = (ground.clone(), name.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _watch = watch;
            let mut issued = HashSet::new();
            while let Ok(Some(line)) = lines.next_line().await {
                let fields: Vec<&str> = line.split('|').collect();
                let [namespace, issuer, host, secret] = fields[..] else { continue };
                if issuer != name || secret.is_empty() || issued.contains(&line) {
                    continue;
                }
                let stored = match signed(&authority, namespace, host, secret) {
                    Ok(manifest) => ground.apply(&manifest).await,
                    Err(error) => Err(error),
                };
                match stored {
                    Ok(()) => {
                        issued.insert(line);
                    }
                    // Its next change is another chance.
                    #[expect(clippy::print_stdout, reason = "for whoever wonders why a test has failed")]
                    Err(error) => println!("no certificate for {host}: {error:#}"),
                }
            }
        });
        Ok(Self { certificate, _task: task })
    }
}

fn signed(authority: &Authority<'_, KeyPair>, namespace: &str, host: &str, secret: &str) -> Result<String> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, authority)?;
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": secret, "namespace": namespace },
        "stringData": { "tls.crt": certificate.pem(), "tls.key": key.serialize_pem() },
    });
    Ok(manifest.to_string())
}
