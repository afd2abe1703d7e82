//! The floor of the benchmarks: no Kubernetes, no multiplexing, only TLS to the node and plain TCP from there to the pod.
//!
//! `floor far CERTIFICATE PORT=TARGET...` runs on the node and writes its certificate; `floor near CERTIFICATE PORT=TARGET...` listens on 127.0.0.1 and
//! trusts just that certificate. With `-` for a certificate both ends do without TLS: what two forwarders cost that do nothing but copy.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Name in the certificate.
const NAME: &str = "floor";
/// Copy buffer per direction.
const BUFFER: usize = 64 << 10;

#[derive(Clone)]
enum Side {
    Near(TlsConnector),
    Far(TlsAcceptor),
    Plain,
}

#[tokio::main]
async fn main() -> Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok()
        .context("a TLS provider is there already")?;
    let mut arguments = std::env::args().skip(1);
    let (side, certificate) =
        (arguments.next().context("near or far")?, arguments.next().context("CERTIFICATE")?);
    let (side, listen_on) = match side.as_str() {
        "near" if certificate == "-" => (Side::Plain, "127.0.0.1"),
        "far" if certificate == "-" => (Side::Plain, "0.0.0.0"),
        "near" => (Side::Near(near(Path::new(&certificate))?), "127.0.0.1"),
        "far" => (Side::Far(far(Path::new(&certificate))?), "0.0.0.0"),
        other => bail!("near or far, not {other}"),
    };
    let mut listeners = JoinSet::new();
    for pair in arguments {
        let (port, target) = pair.split_once('=').context("PORT=TARGET")?;
        let listener = TcpListener::bind((listen_on, port.parse()?)).await?;
        listeners.spawn(serve(listener, side.clone(), target.to_owned()));
    }
    while let Some(ended) = listeners.join_next().await {
        ended??;
    }
    Ok(())
}

fn far(certificate: &Path) -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    std::fs::write(certificate, made.cert.der())?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn near(certificate: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(certificate)?))?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, side: Side, target: String) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                connections.spawn(forward(client, side.clone(), target.clone()));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, side: Side, target: String) -> Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(&target).await?;
    server.set_nodelay(true)?;
    match side {
        Side::Near(connector) => {
            let mut tls = connector.connect(ServerName::try_from(NAME)?, server).await?;
            copy_bidirectional_with_sizes(&mut client, &mut tls, BUFFER, BUFFER).await?;
        }
        Side::Far(acceptor) => {
            let mut tls = acceptor.accept(client).await?;
            copy_bidirectional_with_sizes(&mut tls, &mut server, BUFFER, BUFFER).await?;
        }
        Side::Plain => {
            copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await?;
        }
    }
    Ok(())
}
