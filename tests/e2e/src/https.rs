//! Callers from the internet: HTTPS to the Ingress controller, whose certificate must be the one that the test's authority
//! has issued for the host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::WantsServerCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::program::Body;

/// A server's configuration up to its certificate.
///
/// # Errors
/// When the provider of cryptography lacks what is needed.
pub fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsServerCert>> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_no_client_auth())
}

/// Calls one host at one address.
#[derive(Clone)]
pub struct Caller {
    address: SocketAddr,
    /// The host that is called.
    pub host: String,
    config: Arc<ClientConfig>,
}

impl Caller {
    /// Trusts this authority only.
    ///
    /// # Errors
    /// When its certificate is unusable.
    pub fn new(address: SocketAddr, host: &str, authority: &CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, host: host.to_owned(), config: Arc::new(config) })
    }

    /// A TLS connection that speaks this protocol (ALPN).
    ///
    /// # Errors
    /// When the certificate is not the host's, or another protocol is offered.
    pub async fn connect(&self, protocol: &str) -> Result<TlsStream<TcpStream>> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let socket = TcpStream::connect(self.address).await.context("connect to the Ingress controller")?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await.context("TLS")?;
        ensure!(tls.get_ref().1.alpn_protocol() == Some(protocol.as_bytes()), "{protocol} is not spoken");
        Ok(tls)
    }

    /// A connection for requests of HTTP/1.1.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn open(&self) -> Result<Connection> {
        let tls = self.connect("http/1.1").await?;
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { driver.await.ok() });
        Ok(Connection { sender, host: self.host.clone(), _driver: tasks })
    }

    /// One GET on a connection of its own: status and body.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.open().await?.text(self.request("GET", path).body(Body::default())?).await
    }

    /// Waits until the host is served with a certificate that is trusted, and a GET of `/` is answered with this status.
    ///
    /// # Errors
    /// With what came last, after `limit`.
    pub async fn until_answered(&self, status: u16, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let got = self.get("/").await;
            if matches!(got, Ok((found, _)) if found == status) {
                return Ok(());
            }
            ensure!(begin.elapsed() < limit, "{}: no {status} within {limit:?}: {got:?}", self.host);
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// The beginning of a request.
    #[must_use]
    pub fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(path).header("Host", &self.host)
    }
}

/// A connection that is kept.
pub struct Connection {
    sender: SendRequest<Body>,
    host: String,
    _driver: JoinSet<Option<()>>,
}

impl Connection {
    /// Sends a request; returns as soon as the answer's head is there.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await.with_context(|| self.host.clone())
    }

    /// Status and text of an answer.
    ///
    /// # Errors
    /// When the answer is cut.
    pub async fn text(&mut self, request: Request<Body>) -> Result<(u16, String)> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body: Bytes = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// What the program reports of the request that reached it.
    ///
    /// # Errors
    /// When the answer is anything but its report.
    pub async fn report(&mut self, request: Request<Body>) -> Result<Value> {
        let (status, text) = self.text(request).await?;
        ensure!(status == 200, "{status}: {text}");
        serde_json::from_str(&text).with_context(|| text.clone())
    }
}
