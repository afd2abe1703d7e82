//! A TCP port of this machine, only when asked: for programs that cannot open a local socket.
//!
//! Whoever can read the file `host.tcp` may come in, and that is this user: the kernel names no one at the other end of a TCP
//! connection. A web page can reach the port, too, so `Origin` is refused, whatever it says, and `Host` must name the port
//! itself, or a page could come by a name of its own that points here (DNS rebinding).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::{HeaderMap, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use kftray_commons::api::{Error, Place};
use kftray_commons::{Code, Problem};
use serde::Serialize;
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Clients, Count, Entrance, Refusal};
use crate::platform;

/// The port, and the file that tells of it until this is dropped.
pub(crate) struct TcpEntrance {
    listener: TcpListener,
    guard: Arc<Guard>,
    /// Removed with the port.
    file: PathBuf,
}

/// What a request must show.
struct Guard {
    /// The `Authorization` header, whole.
    authorization: String,
    /// The `Host` headers that name this port.
    hosts: [String; 2],
}

/// The guard, and where it counts those that pass.
#[derive(Clone)]
struct Door {
    guard: Arc<Guard>,
    requests: watch::Sender<usize>,
}

/// An answer that counts as long as it lives.
struct Counted {
    body: Body,
    _count: Count,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The file's content.
#[derive(Serialize)]
struct Told<'a> {
    url: &'a str,
    token: &'a str,
}

impl TcpEntrance {
    /// Opens a port that is free and writes its address and a new token down, for this user only.
    ///
    /// # Errors
    /// `host_unreachable` if there is no port or the file cannot be written.
    pub(crate) async fn open(place: &Place) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            Problem::new(Code::HostUnreachable, format!("the host's TCP port cannot be opened: {error}"))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let told = Told { url: &format!("http://{address}"), token: &token };
        let text = serde_json::to_string(&told).map_err(io::Error::other).map_err(failed)?;
        write_private(&place.tcp, &text).map_err(failed)?;
        tracing::info!(%address, file = %place.tcp.display(), "serves a TCP port");
        Ok(Self { listener, guard: Arc::new(Guard::new(address, &token)), file: place.tcp.clone() })
    }

    /// The application behind the guard. A request that passes counts among `clients`, until its answer has been sent: a
    /// connection may be anybody's.
    pub(crate) fn guarded(&self, app: Router, clients: &Clients) -> Router {
        let door = Door { guard: Arc::clone(&self.guard), requests: clients.connections.clone() };
        app.layer(from_fn_with_state(door, check))
    }
}

impl Drop for TcpEntrance {
    fn drop(&mut self) {
        // Without the port it is of no use to anybody.
        drop(fs::remove_file(&self.file));
    }
}

impl Entrance for TcpEntrance {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Everybody may ask; each request shows who it is.
    fn admit(&self, _: &TcpStream) -> Result<(), String> {
        Ok(())
    }
}

impl Guard {
    fn new(address: SocketAddr, token: &str) -> Self {
        let port = address.port();
        Self {
            authorization: format!("Bearer {token}"),
            hosts: [format!("127.0.0.1:{port}"), format!("localhost:{port}")],
        }
    }

    /// Why a request is refused.
    fn refuses(&self, headers: &HeaderMap) -> Option<&'static str> {
        if headers.contains_key(header::ORIGIN) {
            return Some("web pages are not served: the request has an Origin");
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| self.hosts.iter().any(|known| known == host)) {
            return Some("the Host header does not name this port");
        }
        let shown = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes).unwrap_or_default();
        let knows: bool = shown.ct_eq(self.authorization.as_bytes()).into();
        (!knows).then_some(
            "the request does not show the token of the file host.tcp (Authorization: Bearer TOKEN)",
        )
    }
}

async fn check(State(door): State<Door>, request: Request, next: Next) -> Result<Response, Refusal> {
    match door.guard.refuses(request.headers()) {
        None => {
            let count = Count::new(&door.requests);
            let answer = next.run(request).await;
            Ok(answer.map(|body| Body::new(Counted { body, _count: count })))
        }
        Some(why) => {
            tracing::warn!(why, "a request by TCP was refused");
            Err(Error::new(Code::PeerRefused, why).into())
        }
    }
}

/// Writes a new file that only this user can read; one that is there was left by a host that was killed.
fn write_private(path: &std::path::Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    platform::private(&mut options);
    options.open(path)?.write_all(text.as_bytes())
}
