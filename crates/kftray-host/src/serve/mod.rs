//! Connections: accepted cheaply, served each in a task of its own, bounded in number, dropped when they do not move.

mod answer;
mod body;
mod stall;
mod tcp;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kftray_commons::Code;
use kftray_commons::api::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::platform::{Listener, Stream, is_mine};
pub(crate) use answer::{Answer, Refusal, method_unknown, path_unknown};
pub(crate) use body::{Body, ImportBody};
use stall::Stall;
pub(crate) use tcp::TcpEntrance;

/// Connections at the same time: a thousand clients that follow, and room for what they ask meanwhile. A connection
/// costs about 20 KiB and a file.
const CONNECTIONS: usize = 1_200;

/// Connections by TCP at the same time: any user of this machine may open them without showing the token, so they are few
/// and take no room from the socket's.
const BY_TCP: usize = 64;

/// How long a client may take to send the head of a request, or leave a connection unused.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes read ahead of a connection. A head that does not fit is refused.
const READ_BUFFER: usize = 64 * 1024;

/// How long a client that is not served may take to read why.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// A way in: where clients connect, and who may stay.
pub(crate) trait Entrance: Sync {
    /// A client's connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Whether a client may stay; else why not.
    fn admit(&self, stream: &Self::Stream) -> Result<(), String>;
}

impl Entrance for Listener {
    type Stream = Stream;

    async fn accept(&self) -> io::Result<Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }

    fn admit(&self, stream: &Stream) -> Result<(), String> {
        is_mine(stream)
    }
}

/// The connections of an entrance.
pub(crate) struct Clients {
    most: usize,
    room: Arc<Semaphore>,
    /// These, and the requests of another entrance that count as theirs.
    connections: watch::Sender<usize>,
}

impl Clients {
    /// Those of the socket.
    pub(crate) fn new() -> Self {
        Self::at_most(CONNECTIONS)
    }

    /// Those by TCP.
    pub(crate) fn by_tcp() -> Self {
        Self::at_most(BY_TCP)
    }

    fn at_most(most: usize) -> Self {
        Self { most, room: Arc::new(Semaphore::new(most)), connections: watch::Sender::new(0) }
    }

    /// How many there are, as it changes.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.connections.subscribe()
    }
}

/// Serves one entrance until it is told to end, then drops every connection.
pub(crate) async fn serve(
    entrance: impl Entrance,
    app: Router,
    clients: Clients,
    mut ending: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => break,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a client's connection ended by a fault of this program");
                }
                continue;
            }
            accepted = entrance.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of files or memory; connections end meanwhile, and the client waits in the backlog.
                tracing::warn!(%error, "cannot accept a client for now");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(why) = entrance.admit(&stream) {
            tracing::warn!(why, "a client was refused");
            tasks.spawn(turn_away(stream, Error::new(Code::PeerRefused, why)));
            continue;
        }
        let Ok(permit) = Arc::clone(&clients.room).try_acquire_owned() else {
            let message = format!("the host serves {} connections already", clients.most);
            tasks.spawn(turn_away(stream, Error::new(Code::TooManyClients, message)));
            continue;
        };
        let (app, count) = (app.clone(), Count::new(&clients.connections));
        tasks.spawn(async move {
            one(stream, app).await;
            drop((permit, count));
        });
    }
    // Goodbyes are written already; what is left are clients that do not read them.
    let farewell = async { while tasks.join_next().await.is_some() {} };
    if timeout(Duration::from_millis(200), farewell).await.is_err() {
        tasks.shutdown().await;
    }
}

async fn one(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: Router) {
    let io = TokioIo::new(Stall::new(stream));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(READ_BUFFER)
        .serve_connection(io, TowerToHyperService::new(app))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Says why a client is not served. What it says is read and thrown away: closing a socket with unread bytes would take
/// the answer with it.
async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin, error: Error) {
    let status = http::StatusCode::from_u16(kftray_commons::api::status_of(error.code)).unwrap_or_default();
    let body = serde_json::to_string(&error).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let told = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut ignored = [0; 4096];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that does not read it has had its chance.
    drop(timeout(REFUSAL_PATIENCE, told).await);
}

/// Counts a connection, or a request, until it is dropped.
struct Count(watch::Sender<usize>);

impl Count {
    fn new(connections: &watch::Sender<usize>) -> Self {
        connections.send_modify(|count| *count += 1);
        Self(connections.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
