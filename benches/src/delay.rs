//! A TCP proxy that delivers every byte a fixed time after it came, in both directions: added round trip without a kernel module.
//!
//! It delays bytes, not the handshake: connecting through it costs one delayed round trip less than on a long line, for every contender alike.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Portions under way per direction: at 256 KiB each far more than any bandwidth-delay product here.
const IN_FLIGHT: usize = 4_096;

/// A running delay proxy; ends when dropped.
pub struct Delay {
    /// Where it listens.
    pub address: SocketAddr,
    _accepting: JoinSet<()>,
}

/// Starts a proxy to `target` that delays each direction by half of `round_trip`.
///
/// # Errors
/// When no local port can be bound.
pub async fn start(target: SocketAddr, round_trip: Duration) -> Result<Delay> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut accepting = JoinSet::new();
    accepting.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        connections.spawn(carry(client, target, round_trip / 2));
                    }
                }
                Some(_ended) = connections.join_next() => {}
            }
        }
    });
    Ok(Delay { address, _accepting: accepting })
}

async fn carry(client: TcpStream, target: SocketAddr, delay: Duration) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // A failure in one direction is passed on by the sockets' ends.
    let (_up, _down) =
        tokio::join!(one_way(from_client, to_server, delay), one_way(from_server, to_client, delay));
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> Result<()> {
    let (portion_tx, mut portion_rx) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        loop {
            let mut portion = Vec::with_capacity(256 << 10);
            let length = from.read_buf(&mut portion).await?;
            if length == 0 || portion_tx.send((Instant::now() + delay, portion)).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, portion)) = portion_rx.recv().await {
            sleep_until(due).await;
            to.write_all(&portion).await?;
        }
        to.shutdown().await?;
        anyhow::Ok(())
    };
    tokio::try_join!(read, write)?;
    Ok(())
}
