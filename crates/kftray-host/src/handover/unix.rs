//! Unix: listeners travel beside the bytes of a local socket.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::Arc;

use kftray_commons::api::Place;
use kftray_commons::{Code, Problem, border};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::ask::{post, refused};
use super::{Offer, Offered, PATIENCE, Taken};
use crate::configs::limit_fields;
use crate::core::{Core, Ending};
use crate::platform::is_mine;

/// Listeners of one forward at most: it has two addresses as a rule, and Linux lets 253 travel at once.
const LISTENERS_MAX: usize = 64;

/// The byte beside which listeners travel, and the one that says that they have come.
const HERE: u8 = b'h';
const THANKS: u8 = b't';

/// Offers everything that runs.
///
/// # Errors
/// `internal` if the system does not give second handles or a socket.
pub(crate) async fn offer(core: &Arc<Core>) -> Result<Offer, Problem> {
    let failed =
        |error: io::Error| Problem::new(Code::Internal, format!("nothing can be handed over: {error}"));
    let mut forwards = Vec::new();
    let mut listeners: Vec<Vec<TcpListener>> = Vec::new();
    for passenger in core.fleet().passengers() {
        let mut open = passenger.forward.listeners().map_err(failed)?;
        open.truncate(LISTENERS_MAX);
        forwards.push(Offered {
            id: passenger.id,
            origin: passenger.origin,
            entry: border::object(&passenger.spec, &limit_fields(passenger.lifetime)),
            listeners: open.len(),
            holders: passenger.holders,
        });
        listeners.push(open);
    }
    let meeting = Meeting::open(&crate::platform::place(core.directory.path())).map_err(failed)?;
    let socket = meeting.path.display().to_string();
    let heir = Arc::clone(core);
    core.tasks().start(async move {
        match give(meeting, listeners).await {
            Ok(()) => {
                // The other one goes on with what is exposed: nothing of it may go with this one, whatever ends here from
                // now on.
                heir.fleet().kube().relays().leave_exposed();
                heir.end(Ending::HandOver);
            }
            Err(error) => tracing::warn!(%error, "another host asked for the forwards and did not take them"),
        }
    });
    Ok(Offer { socket, forwards, leases: core.leases().offered() })
}

/// Where the new host fetches what one offer is about: a socket whose file goes with it.
struct Meeting {
    listener: UnixListener,
    path: PathBuf,
}

impl Meeting {
    /// Beside the host's socket, by a path of the same length: a longer one may be too long for a socket. Every offer has
    /// a name of its own, so that two at a time do not disturb each other.
    fn open(place: &Place) -> io::Result<Self> {
        let path = place.socket.with_extension(format!("{:04x}", rand::random::<u16>()));
        // What is there was left by a host that was killed.
        drop(std::fs::remove_file(&path));
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // Nobody listens there any more.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Waits for the new host, gives it the listeners and waits for its thanks.
async fn give(meeting: Meeting, listeners: Vec<Vec<TcpListener>>) -> io::Result<()> {
    let (stream, _) = timeout(PATIENCE, meeting.listener.accept()).await??;
    is_mine(&stream).map_err(io::Error::other)?;
    let stream = blocking(stream)?;
    spawn_blocking(move || {
        for open in &listeners {
            send(&stream, open)?;
        }
        let mut thanks = [0];
        (&stream).read_exact(&mut thanks)?;
        if thanks == [THANKS] { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
    })
    .await
    .map_err(io::Error::other)?
}

/// Takes everything from the host that serves a place. When this is done the old host is about to end.
///
/// # Errors
/// `host_unreachable` with what went wrong; the old host goes on then.
pub(crate) async fn take(place: &Place) -> Result<Taken, Problem> {
    let offer = timeout(PATIENCE, ask(place)).await.map_err(|_| refused("it does not answer"))??;
    let connected = timeout(PATIENCE, UnixStream::connect(&offer.socket)).await;
    let stream = connected.map_err(|_| refused("it does not answer"))?.map_err(refused)?;
    is_mine(&stream).map_err(refused)?;
    let stream = blocking(stream).map_err(refused)?;
    let receiving = spawn_blocking(move || -> io::Result<Taken> {
        let mut taken = Taken { leases: offer.leases, ..Taken::default() };
        for offered in offer.forwards {
            let listeners = receive(&stream, offered.listeners)?;
            taken.forwards.push((offered, listeners));
        }
        (&stream).write_all(&[THANKS])?;
        Ok(taken)
    });
    receiving.await.map_err(refused)?.map_err(refused)
}

/// Asks the old host for its offer.
async fn ask(place: &Place) -> Result<Offer, Problem> {
    let body = post(place, "handover").await?;
    serde_json::from_slice(&body).map_err(refused)
}

/// A stream for blocking calls that give up.
fn blocking(stream: UnixStream) -> io::Result<StdStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn send(stream: &StdStream, listeners: &[TcpListener]) -> io::Result<()> {
    let handles: Vec<BorrowedFd<'_>> = listeners.iter().map(|listener| listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&handles)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    sendmsg(stream, &[IoSlice::new(&[HERE])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(stream: &StdStream, expected: usize) -> io::Result<Vec<TcpListener>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut handles: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            handles.extend(received);
        }
    }
    let listeners: Vec<TcpListener> = handles.into_iter().map(TcpListener::from).collect();
    if received.bytes == 1 && byte == [HERE] && listeners.len() == expected {
        Ok(listeners)
    } else {
        Err(io::Error::other(format!("{} of {expected} listeners came", listeners.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_travel_whole() {
        let (near, far) = StdStream::pair().expect("a pair");
        let open: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses: Vec<_> = open.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        send(&near, &open).expect("sent");
        send(&near, &[]).expect("sent");
        drop(open);
        let came = receive(&far, 3).expect("received");
        let there: Vec<_> = came.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        assert_eq!(there, addresses);
        assert!(receive(&far, 0).expect("received").is_empty());
        // Still open although the first handles are closed.
        std::net::TcpStream::connect(addresses[0]).expect("connect");
    }
}
