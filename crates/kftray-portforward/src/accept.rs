//! One listener and the connections that came through it. They end together, after the grace of a stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug_span, error, warn};

use crate::connection::{self, Shared};
use crate::listener::is_out_of_files;

/// Pause after an accept that failed for want of something (files, memory, a network): other connections end meanwhile,
/// and the client waits in the system's backlog.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the forward stops, then lets the connections finish for the grace. Never ends before.
pub(crate) async fn run(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    let mut connections = JoinSet::new();
    let mut stop = shared.about.stop_signal();
    // Set while accepting fails; said once.
    let mut short = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.stopped() => break,
            Some(ended) = connections.join_next() => {
                report(&shared, ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                short = false;
                admit(&shared, stream, peer, &mut connections).await;
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut short, true) {
                    let out_of_files = is_out_of_files(&error);
                    warn!(forward = shared.config.name, %error, out_of_files, "cannot accept for now");
                }
                tokio::select! {
                    () = stop.stopped() => break,
                    () = sleep(SHORTAGE_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    let grace = stop.grace();
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(&shared, ended);
        }
    };
    if timeout(grace, drained).await.is_err() {
        // Aborted sockets reset: a cut-off answer must not look whole.
        connections.shutdown().await;
    }
}

/// Starts a connection's task. Where the process may have no more connections, this waits for one to end; the next
/// clients stay in the backlog.
async fn admit(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
    let accepted = Instant::now();
    let open = Arc::clone(&shared.process.open);
    let permit = match Arc::clone(&open).try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            warn!(forward = shared.config.name, "the process has as many connections as it may have");
            let mut stop = shared.about.stop_signal();
            tokio::select! {
                () = stop.stopped() => return,
                permit = open.acquire_owned() => match permit {
                    Ok(permit) => permit,
                    // The semaphore is never closed.
                    Err(_) => return,
                },
            }
        }
    };
    let span = debug_span!("connection", forward = shared.config.name);
    let task = connection::serve(Arc::clone(shared), stream, peer, accepted, permit);
    connections.spawn(task.instrument(span));
}

/// The client gave up before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn report(shared: &Shared, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        shared.about.tally.failed();
        error!(forward = shared.config.name, %error, "a connection's task panicked");
    }
}
