//! TCP, opened the way a tunnel needs it: every address of a name in turn, no Nagle, dead peers noticed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Name look-up and TCP handshake together; beyond that a person has given up too. client-go allows 30 s.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address gets before the next one is tried beside it (RFC 8305, section 5 "Connection Attempt Delay").
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// First probe after this much silence. PINGs of the layers above come first; this one serves where there are none.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// Unacknowledged data kills a connection for requests and watches after this, instead of after the system's quarter of an
/// hour.
pub(crate) const REQUEST_STALL: Duration = Duration::from_secs(15);
/// The same for a session's carrier. Linux counts a closed window as unacknowledged too: one program that does not read closes
/// it for all connections of the session. These would hang with it for as long as the session is patient; cut off after this
/// time they reconnect at once, on another session. (Tried with 300 s, as long as a person sits at a breakpoint: neighbours hung.)
pub(crate) const CARRIER_STALL: Duration = Duration::from_secs(30);

/// Opens a connection to a name or address. `stall`: how long sent data may stay unacknowledged (Linux only).
///
/// # Errors
/// The last address's failure, the look-up's failure, or [`io::ErrorKind::TimedOut`].
pub(crate) async fn connect(host: &str, port: u16, stall: Duration) -> io::Result<TcpStream> {
    tokio::time::timeout(CONNECT_TIMEOUT, async {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        let stream = race(interleave(addresses)).await?;
        tune(&stream, stall);
        Ok(stream)
    })
    .await
    .unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        ))
    })
}

/// Families in turn, beginning with the resolver's first choice (RFC 8305, section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut preferred, mut other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    preferred.reverse();
    other.reverse();
    let mut order = Vec::new();
    while !preferred.is_empty() || !other.is_empty() {
        order.extend(preferred.pop());
        order.extend(other.pop());
    }
    order
}

async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter().peekable();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS), if waiting.peek().is_some() => {}
        }
    }
}

/// A socket that refuses an option is dead already or exotic: either way the next read says so.
fn tune(stream: &TcpStream, stall: Duration) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    let results = [
        stream.set_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(stall)),
    ];
    let _only_linux = stall;
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "socket option refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let parse =
            |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(interleave(given), parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(interleave(Vec::new()), Vec::new());
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stream = race(vec![closed, live]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        assert_eq!(race(vec![closed]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn sockets_are_tuned() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream =
            connect("localhost", listener.local_addr().unwrap().port(), REQUEST_STALL).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(REQUEST_STALL));
    }
}
