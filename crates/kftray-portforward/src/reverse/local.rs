//! The local program's side: connecting to it, by TLS if it wants that.
//!
//! Certificates are checked against the system's roots unless the program is on this machine: development servers sign
//! their own, and nobody sits between two ends of the loopback interface.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kftray_commons::spec::Expose;
use kftray_commons::{Code, Problem};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connecting may take this long; a program on this machine answers at once, one in the office within a second.
const CONNECTING: Duration = Duration::from_secs(5);

/// The TLS handshake, too: a development server may compile something first.
const SHAKING_HANDS: Duration = Duration::from_secs(10);

/// Which protocol is asked for in TLS (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    Anything,
}

/// Where the program listens, for people: `localhost:3000`, `https://[::1]:3000`.
pub(super) fn address(expose: &Expose) -> String {
    let scheme = if expose.local_tls { "https://" } else { "" };
    match expose.local_host.contains(':') {
        true => format!("{scheme}[{}]:{}", expose.local_host, expose.local_port),
        false => format!("{scheme}{}:{}", expose.local_host, expose.local_port),
    }
}

/// A connection to the program. Dropped before [`Self::orderly`], it is reset: a program must never take a cut-off request
/// for a whole one.
pub(super) struct Local {
    stream: Stream,
    orderly: bool,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Local {
    /// Connects. The problem is for people, and for the caller's page.
    pub(super) async fn connect(expose: &Expose, speaks: Speaks) -> Result<Self, Problem> {
        let down = |why: &str| {
            let message = format!("nothing answers at {}: {why}", address(expose));
            Problem::new(Code::LocalProgramDown, message)
        };
        let (host, port) = (expose.local_host.as_str(), expose.local_port.get());
        let tcp = match timeout(CONNECTING, TcpStream::connect((host, port))).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(down(&error.to_string())),
            Err(_) => return Err(down(&format!("no connection within {} s", CONNECTING.as_secs()))),
        };
        // Without it small answers are late; nothing else depends on it.
        drop(tcp.set_nodelay(true));
        if !expose.local_tls {
            return Ok(Self { stream: Stream::Plain(tcp), orderly: false });
        }
        let on_this_machine = tcp.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        let shake = async {
            let config = tls_config(on_this_machine, speaks).map_err(|error| error.to_string())?;
            let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
            let connector = TlsConnector::from(Arc::new(config));
            connector.connect(name, tcp).await.map_err(|error| error.to_string())
        };
        match timeout(SHAKING_HANDS, shake).await {
            Ok(Ok(tls)) => Ok(Self { stream: Stream::Tls(Box::new(tls)), orderly: false }),
            Ok(Err(why)) => Err(down(&format!("TLS failed: {why}"))),
            Err(_) => Err(down(&format!("no TLS handshake within {} s", SHAKING_HANDS.as_secs()))),
        }
    }

    /// Both directions have ended as they should.
    pub(super) fn orderly(&mut self) {
        self.orderly = true;
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if !self.orderly {
            // Where it fails the socket is gone already.
            drop(self.tcp().set_zero_linger());
        }
    }
}

impl AsyncRead for Local {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            // An end without TLS's own is as good as most programs give.
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buffer).map(|read| match read {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                read => read,
            }),
        }
    }
}

impl AsyncWrite for Local {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

fn tls_config(on_this_machine: bool, speaks: Speaks) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let mut config = if on_this_machine {
        let verifier = Arc::new(Unchecked(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        let verifier = Arc::new(rustls_platform_verifier::Verifier::new(provider)?);
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    config.alpn_protocols = match speaks {
        Speaks::Http1 => vec![b"http/1.1".to_vec()],
        Speaks::Http2 => vec![b"h2".to_vec()],
        Speaks::Anything => Vec::new(),
    };
    Ok(config)
}

/// Takes any certificate whose holder has its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
