//! Asking the API server a question over one TLS connection: cheaper by far than starting kubectl, when one asks again and again.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

use super::pki::Pki;

/// The API server answers our questions in milliseconds; a start-up under load is slower.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One API server, asked as administrator.
pub(crate) struct Api {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl Api {
    /// Does not connect yet.
    pub(crate) fn new(address: SocketAddr, pki: &Pki) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.authority()?.as_bytes())?)?;
        let certificate = CertificateDer::from_pem_file(pki.path("admin.crt"))?;
        let key = PrivateKeyDer::from_pem_file(pki.path("admin.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { address, tls: Arc::new(tls) })
    }

    /// GET; the body of an answer with status 200.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let mut session =
            rustls::ClientConnection::new(Arc::clone(&self.tls), ServerName::from(self.address.ip()))?;
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        // HTTP/1.0: the answer ends with the connection, and comes unchunked.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\nAccept: application/json\r\n\r\n", self.address)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            // Some servers close without the TLS goodbye.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error.into()),
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("the API server gave no HTTP answer")?;
        let status = head.lines().next().unwrap_or_default();
        if status.split_whitespace().nth(1) != Some("200") {
            bail!("GET {path}: {status}");
        }
        Ok(body.to_owned())
    }

    /// GET of a JSON object.
    pub(crate) fn object(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get(path)?)?)
    }

    /// Whether the API server says that all of it has started.
    pub(crate) fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok()
    }
}

/// Whether an object's condition of this type is "True".
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        condition.get("type").and_then(Value::as_str) == Some(kind)
            && condition.get("status").and_then(Value::as_str) == Some("True")
    })
}
