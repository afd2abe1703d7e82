//! From an API server's address to a connected, authenticated stream: route, TCP, proxy, TLS.

use std::io;
use std::time::Duration;

use kftray_commons::{Code, Problem};
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;

use super::carrier::CarrierIo;
use super::origin::Origin;
use super::route::{Proxy, ProxyKind, Route};
use super::tls::{Alpn, Tls};
use super::{tcp, tunnel};
use crate::config::login::Login;

/// A proxy's answer and a TLS handshake are a few round trips each, after TCP has worked.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// rustls asks its socket for 4 KiB at a time; this turns sixteen system calls into one on a busy download.
const READ_AHEAD: usize = 64 * 1024;
/// A session writes up to 256 KiB at once; rustls' own limit of 64 KiB would cut that into four writes.
const WRITE_LIMIT: usize = 512 * 1024;

/// The way to one API server.
pub(crate) struct Dialer {
    /// The server.
    pub(crate) origin: Origin,
    /// How it is reached.
    pub(crate) route: Route,
    /// `None`: plain HTTP.
    pub(crate) tls: Option<Tls>,
    /// `None`: the proxy, if any, is spoken to without TLS.
    pub(crate) proxy_tls: Option<Tls>,
}

/// A connection that is ready for HTTP.
pub(crate) struct Dialled {
    /// The bytes.
    pub(crate) io: Box<dyn CarrierIo>,
    /// The server chose HTTP/2.
    pub(crate) http2: bool,
}

impl Dialer {
    /// Opens a connection. `stall`: see [`tcp::connect`].
    ///
    /// # Errors
    /// [`Code::ClusterUnreachable`] naming host and proxy, [`Code::ProxyRefused`], [`Code::CertificateUntrusted`],
    /// [`Code::ClientCertificateInvalid`], [`Code::TooManyFiles`].
    pub(crate) async fn dial(&self, login: &Login, alpn: Alpn, stall: Duration) -> Result<Dialled, Problem> {
        let io = match &self.route {
            Route::Direct => self.tcp(&self.origin.host, self.origin.port, stall).await?,
            Route::Proxy(proxy) => self.proxied(proxy, stall).await?,
        };
        let Some(tls) = &self.tls else { return Ok(Dialled { io, http2: false }) };
        let config = tls.config(login.certificate.as_ref(), alpn)?;
        let server = self.origin.target();
        let io = BufReader::with_capacity(READ_AHEAD, io);
        let handshake = TlsConnector::from(config).connect(tls.name(), io);
        let mut stream = within(handshake).await.map_err(|error| {
            tls.explain(&error, &server)
                .unwrap_or_else(|| self.unreachable(&format!("the TLS handshake failed: {error}")))
        })?;
        let connection = stream.get_mut().1;
        connection.set_buffer_limit(Some(WRITE_LIMIT));
        let http2 = connection.alpn_protocol() == Some(b"h2");
        Ok(Dialled { io: Box::new(stream), http2 })
    }

    async fn tcp(&self, host: &str, port: u16, stall: Duration) -> Result<Box<dyn CarrierIo>, Problem> {
        match tcp::connect(host, port, stall).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if is_out_of_files(&error) => {
                Err(Problem::new(Code::TooManyFiles, format!("no connection to {host}: {error}")))
            }
            Err(error) => Err(self.unreachable(&error.to_string())),
        }
    }

    async fn proxied(&self, proxy: &Proxy, stall: Duration) -> Result<Box<dyn CarrierIo>, Problem> {
        let mut io = self.tcp(&proxy.host, proxy.port, stall).await?;
        if let (ProxyKind::Http { tls: true, .. }, Some(tls)) = (&proxy.kind, &self.proxy_tls) {
            let connector = TlsConnector::from(tls.config(None, Alpn::None)?);
            let stream = within(connector.connect(tls.name(), io)).await.map_err(|error| {
                let who = proxy.describe();
                tls.explain(&error, &who).unwrap_or_else(|| {
                    Problem::new(
                        Code::ClusterUnreachable,
                        format!("{who} failed in the TLS handshake: {error}"),
                    )
                })
            })?;
            io = Box::new(stream);
        }
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, tunnel::open(io, proxy, &self.origin)).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable("the proxy has not answered within 10 s")),
        }
    }

    /// A failure to get there, with everything that was on the way.
    pub(crate) fn unreachable(&self, why: &str) -> Problem {
        let way = match &self.route {
            Route::Direct => String::new(),
            Route::Proxy(proxy) => format!(" through {}", proxy.describe()),
        };
        Problem::new(
            Code::ClusterUnreachable,
            format!("{} cannot be reached{way}: {why}", self.origin.target()),
        )
    }
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")))
}

#[cfg(unix)]
fn is_out_of_files(error: &io::Error) -> bool {
    let full = [nix::errno::Errno::EMFILE, nix::errno::Errno::ENFILE];
    error.raw_os_error().is_some_and(|code| full.iter().any(|errno| *errno as i32 == code))
}

#[cfg(not(unix))]
fn is_out_of_files(error: &io::Error) -> bool {
    /// `WSAEMFILE`.
    const TOO_MANY_SOCKETS: i32 = 10024;
    error.raw_os_error() == Some(TOO_MANY_SOCKETS)
}
