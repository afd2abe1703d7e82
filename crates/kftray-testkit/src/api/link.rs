//! The wire between client and API server, with latency, a bandwidth cap and black holes.
//!
//! The server side of every TCP connection is an in-memory pipe; this pump moves bytes between it and the socket, so
//! that faults work below TLS and for every kind of connection alike.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::faults::FaultState;

/// The pipe's size: about a socket buffer, so that backpressure is felt where a real server feels it.
pub(crate) const PIPE: usize = 64 * 1024;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// Bytes on the wire while latency holds them back; enough for 100 MB/s at 50 ms.
const IN_FLIGHT: usize = 8 << 20;

/// How long the server may still send to a client that has ended its half. The real API server cancels what such a client
/// has asked for; this bounds sessions whose read loop is stalled and never sees the end.
const AFTER_CLIENT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// Moves bytes until the server side is closed (and everything it wrote is sent) or the socket fails.
pub(crate) async fn run(
    tcp: &mut TcpStream,
    server: DuplexStream,
    faults: &watch::Sender<FaultState>,
    frozen: watch::Receiver<bool>,
) {
    let (tcp_read, tcp_write) = tcp.split();
    let (server_read, server_write) = tokio::io::split(server);
    let up = pump(tcp_read, server_write, Direction::Up, faults.subscribe(), frozen.clone());
    let down = pump(server_read, tcp_write, Direction::Down, faults.subscribe(), frozen);
    tokio::pin!(up, down);
    // When the server has finished, nobody reads what the client still sends. When the client has, the server learns it
    // from its pipe and finishes in its own time; only a broken socket ends both ways at once.
    tokio::select! {
        _ = &mut down => {}
        end = &mut up => match end {
            End::Finished | End::ToBroken => {
                tokio::time::timeout(AFTER_CLIENT, down).await.ok();
            }
            End::FromBroken => {}
        }
    }
}

/// How a direction ended.
enum End {
    /// Everything was delivered.
    Finished,
    FromBroken,
    ToBroken,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    faults: watch::Receiver<FaultState>,
    mut frozen: watch::Receiver<bool>,
) -> End {
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut queued = 0;
    let mut ended = None;
    let mut free_at = Instant::now();
    let mut buffer = vec![0; CHUNK];
    loop {
        thawed(&mut frozen).await;
        let now = Instant::now();
        if let Some((_, chunk)) = queue.pop_front_if(|(due, _)| *due <= now) {
            queued -= chunk.len();
            pace(&faults, &mut free_at, chunk.len()).await;
            thawed(&mut frozen).await;
            if to.write_all(&chunk).await.is_err() {
                return End::ToBroken;
            }
            continue;
        }
        // What is on its way is delivered before the end is.
        if let Some(end) = ended.take_if(|_| queue.is_empty()) {
            to.shutdown().await.ok();
            return end;
        }
        let next = queue.front().map(|(due, _)| *due);
        tokio::select! {
            read = from.read(&mut buffer), if ended.is_none() && queued < IN_FLIGHT => match read {
                Ok(0) => ended = Some(End::Finished),
                Ok(count) => {
                    let due = Instant::now() + delay(&faults, direction);
                    queue.push_back((due, buffer.get(..count).unwrap_or_default().to_vec()));
                    queued += count;
                }
                Err(_) => ended = Some(End::FromBroken),
            },
            () = sleep_until(next) => {}
            _ = frozen.changed() => {}
        }
    }
}

/// Waits until the connection is not frozen.
async fn thawed(frozen: &mut watch::Receiver<bool>) {
    // An error means that the connection is being dropped, and this with it.
    frozen.wait_for(|frozen| !frozen).await.ok();
}

fn delay(faults: &watch::Receiver<FaultState>, direction: Direction) -> Duration {
    let link = faults.borrow().link;
    match direction {
        Direction::Up => link.up,
        Direction::Down => link.down,
    }
}

/// Waits until the capped link has room for `len` more bytes.
async fn pace(faults: &watch::Receiver<FaultState>, free_at: &mut Instant, len: usize) {
    let Some(bandwidth) = faults.borrow().link.bandwidth.filter(|&bandwidth| bandwidth > 0) else { return };
    let start = Instant::now().max(*free_at);
    let nanos = u128::from(u64::try_from(len).unwrap_or(u64::MAX)) * 1_000_000_000 / u128::from(bandwidth);
    *free_at = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    tokio::time::sleep_until(*free_at).await;
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
