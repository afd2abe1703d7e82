//! Programs for pods: the usual servers, and the unusual ones.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{BoxFuture, Handler, Inbound, PodHandler, PodIdentity};

/// Bytes per read and write of the bulk programs; the runtime's copy buffer.
const CHUNK: usize = 32 * 1024;

/// Sends back what it reads, and ends when the client has.
#[must_use]
pub fn echo() -> Handler {
    Arc::new(|inbound: Inbound| async move {
        let (mut read, mut write) = tokio::io::split(inbound.stream);
        tokio::io::copy(&mut read, &mut write).await.ok();
        write.shutdown().await.ok();
    })
}

/// Passes every connection on to a TCP port of this machine, as it is when the connection comes; how a real program
/// stands in for one in a pod. Where nothing listens the connection is closed.
#[must_use]
pub fn passed_on(to: impl Fn() -> SocketAddr + Send + Sync + 'static) -> Handler {
    let to = Arc::new(to);
    Arc::new(move |mut inbound: Inbound| {
        let to = Arc::clone(&to);
        async move {
            let Ok(mut there) = TcpStream::connect(to()).await else { return };
            // Either end may break: then the other one ends, too.
            tokio::io::copy_bidirectional(&mut inbound.stream, &mut there).await.ok();
        }
    })
}

/// Reads and forgets.
#[must_use]
pub fn discard() -> Handler {
    Arc::new(|mut inbound: Inbound| async move {
        tokio::io::copy(&mut inbound.stream, &mut tokio::io::sink()).await.ok();
    })
}

/// Reads to the end, then answers with the number of bytes as decimal text: only right with half-close.
#[must_use]
pub fn count() -> Handler {
    Arc::new(|mut inbound: Inbound| async move {
        let total = tokio::io::copy(&mut inbound.stream, &mut tokio::io::sink()).await.unwrap_or_default();
        inbound.stream.write_all(total.to_string().as_bytes()).await.ok();
    })
}

/// Sends `bytes` bytes of [`pattern`] (`None`: without end), whatever it reads, then closes.
#[must_use]
pub fn chargen(bytes: Option<u64>) -> Handler {
    Arc::new(move |mut inbound: Inbound| async move {
        let mut sent = 0_u64;
        while bytes.is_none_or(|bytes| sent < bytes) {
            let left = bytes.map_or(CHUNK, |bytes| usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK));
            let chunk = pattern(sent, left);
            if inbound.stream.write_all(&chunk).await.is_err() {
                return;
            }
            sent += u64::try_from(left).unwrap_or_default();
        }
        inbound.stream.shutdown().await.ok();
    })
}

/// `len` bytes of the sequence that [`chargen`] sends, from `offset` on: a period of 251 (a prime: shifts show).
#[must_use]
pub fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..).take(len).map(|index| u8::try_from(index % 251).unwrap_or_default()).collect()
}

/// Greets first, as SSH, SMTP and MySQL do, then echoes.
#[must_use]
pub fn greet(banner: &'static str) -> Handler {
    Arc::new(move |inbound: Inbound| async move {
        let (mut read, mut write) = tokio::io::split(inbound.stream);
        if write.write_all(banner.as_bytes()).await.is_ok() {
            tokio::io::copy(&mut read, &mut write).await.ok();
        }
    })
}

/// Reads to the client's end, waits, answers with what it has read, closes.
#[must_use]
pub fn answer_after_eof(delay: Duration) -> Handler {
    Arc::new(move |mut inbound: Inbound| async move {
        let mut request = Vec::new();
        inbound.stream.read_to_end(&mut request).await.ok();
        tokio::time::sleep(delay).await;
        inbound.stream.write_all(&request).await.ok();
    })
}

/// Nothing listens here.
#[must_use]
pub fn refuse() -> Handler {
    struct Refuse;

    impl PodHandler for Refuse {
        fn serve(&self, _inbound: Inbound) -> BoxFuture {
            Box::pin(async {})
        }

        fn listens(&self) -> bool {
            false
        }
    }

    Arc::new(Refuse)
}

/// Accepts and never reads nor writes.
#[must_use]
pub fn never_read() -> Handler {
    Arc::new(|inbound: Inbound| async move {
        std::future::pending::<()>().await;
        drop(inbound);
    })
}

/// Accepts and closes at once.
#[must_use]
pub fn close() -> Handler {
    Arc::new(|inbound: Inbound| async move { drop(inbound) })
}

/// Reads `after` bytes, then resets the connection.
#[must_use]
pub fn reset(after: usize) -> Handler {
    Arc::new(move |mut inbound: Inbound| async move {
        let mut seen = vec![0; after];
        inbound.stream.read_exact(&mut seen).await.ok();
        inbound.stream.reset();
    })
}

/// An HTTP/1.1 server with keep-alive. `respond` gets the request and the pod that answers.
#[must_use]
pub fn http<F, T>(respond: F) -> Handler
where
    F: Fn(Request<Incoming>, PodIdentity) -> T + Send + Sync + 'static,
    T: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let respond = Arc::new(respond);
    Arc::new(move |inbound: Inbound| {
        let respond = Arc::clone(&respond);
        async move {
            let pod = inbound.pod;
            let service = service_fn(|request| {
                let answer = respond(request, pod.clone());
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(inbound.stream), service);
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a pod's HTTP connection ended");
            }
        }
    })
}

/// An HTTP server that answers every request with 200 and the pod's name.
#[must_use]
pub fn http_hello() -> Handler {
    http(|_request, pod| async move {
        Response::new(Full::new(Bytes::from(format!("hello from {}\n", pod.name))))
    })
}
