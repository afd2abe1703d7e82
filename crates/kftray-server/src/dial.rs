//! Dialling: look up, judge, connect. All of it for one open, and all of it within one timeout.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use kftray_relay_proto::open::{Policy, Target};
use kftray_relay_proto::reason::{Refusal, RefusalKind};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::relay::Core;

/// Before a dial is given up, unless the client says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Nobody waits longer for a dial.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Before the next address is tried beside one that does not answer (RFC 8305, 5: "Connection Attempt Delay").
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Before those that do not answer are dialled once more, from another port. A Service that was made a moment ago leads nowhere
/// until its node has heard of it, and the node remembers for each port where its first packet went (conntrack).
const ONCE_MORE: Duration = Duration::from_millis(1500);

/// Addresses that are.
const MOST_ONCE_MORE: usize = 4;

/// Whoever vanished without a word is noticed after 60 + 4 x 15 s of silence.
pub(crate) const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);

/// What the kernel may hold of a flow while the relay is busy. It grants less where `net.core.rmem_max` says so.
const UDP_RECEIVE_BUFFER: usize = 1024 * 1024;

/// Connects to a target, and says which address it was. `data_follows`: something is to be sent to it at once.
pub(crate) async fn tcp(
    core: &Core,
    target: &Target,
    policy: Policy,
    data_follows: bool,
) -> Result<(TcpStream, IpAddr), Refusal> {
    let limit = policy.connect_timeout.unwrap_or(CONNECT_TIMEOUT).min(LONGEST_TIMEOUT);
    let dial = async {
        let addresses = addresses(core, target, policy).await?;
        let raced = race(&addresses, |address| connect(address, data_follows)).await;
        raced.map_err(|(address, error)| refusal(target, address, &error))
    };
    let (stream, address) = timeout(limit, dial).await.unwrap_or_else(|_| Err(timed_out(target, limit)))?;
    // A refinement: a socket that refuses it still works.
    stream.set_nodelay(true).ok();
    Ok((stream, address.ip()))
}

/// A socket that is connected to a target: only its datagrams come in, and ICMP errors come back.
pub(crate) async fn udp(core: &Core, target: &Target, policy: Policy) -> Result<UdpSocket, Refusal> {
    let limit = policy.connect_timeout.unwrap_or(CONNECT_TIMEOUT).min(LONGEST_TIMEOUT);
    let found = timeout(limit, addresses(core, target, policy)).await;
    let addresses = found.unwrap_or_else(|_| Err(timed_out(target, limit)))?;
    let mut first_error = None;
    for address in addresses {
        match connected(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                first_error.get_or_insert((address, error));
            }
        }
    }
    Err(first_error.map_or_else(
        || Refusal::new(RefusalKind::NameNotFound, format!("{} has no address", target.host)),
        |(address, error)| refusal(target, address, &error),
    ))
}

async fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    SockRef::from(&socket).set_recv_buffer_size(UDP_RECEIVE_BUFFER).ok();
    socket.connect(address).await?;
    Ok(socket)
}

/// The addresses that may be dialled, families taking turns (RFC 8305, 4).
async fn addresses(core: &Core, target: &Target, policy: Policy) -> Result<Vec<SocketAddr>, Refusal> {
    let found = core.names.look_up(&target.host, policy.family).await?;
    let names = [target.host.as_str(), found.name.as_str()];
    let mut allowed = Vec::new();
    let mut denied = None;
    for address in found.addresses {
        match core.settings.reach.check(&names, address, target.port) {
            Ok(()) => allowed.push(address),
            Err(denial) => {
                denied.get_or_insert((address, denial));
            }
        }
    }
    if let (true, Some((address, denial))) = (allowed.is_empty(), denied) {
        let who = SocketAddr::new(address, target.port);
        let name = if target.host.parse::<IpAddr>().is_ok() {
            String::new()
        } else {
            format!("{} leads to ", target.host)
        };
        return Err(Refusal::new(RefusalKind::Denied, format!("{name}{who}, which {denial}")));
    }
    Ok(interleaved(allowed).into_iter().map(|address| SocketAddr::new(address, target.port)).collect())
}

fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut mixed = Vec::new();
    for address in first {
        mixed.push(address);
        mixed.extend(second.next());
    }
    mixed.extend(second);
    mixed
}

/// Connects to whichever address answers first, starting them one after the other (RFC 8305, 5).
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(T, SocketAddr), (SocketAddr, io::Error)> {
    let mut waiting = addresses.iter().copied();
    let mut running = FuturesUnordered::new();
    let attempt = |address| {
        let connecting = connect(address);
        async move { connecting.await.map(|stream| (stream, address)).map_err(|error| (address, error)) }
    };
    let mut first_error = None;
    let once_more = sleep(ONCE_MORE);
    tokio::pin!(once_more);
    running.extend(waiting.next().map(attempt));
    while !running.is_empty() {
        tokio::select! {
            result = running.next() => match result {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => {
                    first_error.get_or_insert(error);
                    running.extend(waiting.next().map(attempt));
                }
                None => break,
            },
            () = sleep(NEXT_ADDRESS), if waiting.len() > 0 => running.extend(waiting.next().map(attempt)),
            () = &mut once_more, if waiting.len() == 0 && !once_more.is_elapsed() => {
                running.extend(addresses.iter().copied().take(MOST_ONCE_MORE).map(attempt));
            }
        }
    }
    Err(first_error.unwrap_or_else(|| {
        ((std::net::Ipv4Addr::UNSPECIFIED, 0).into(), io::Error::new(io::ErrorKind::NotFound, "no address"))
    }))
}

async fn connect(address: SocketAddr, data_follows: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if data_follows {
        acknowledge_late(&socket);
    }
    socket.connect(address).await
}

/// The handshake's last packet is then the one with the data: one packet less of some six.
fn acknowledge_late(socket: &TcpSocket) {
    // Other systems do not have it, and the relay does not run there but in tests.
    #[cfg(target_os = "linux")]
    SockRef::from(socket).set_tcp_quickack(false).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

fn timed_out(target: &Target, limit: Duration) -> Refusal {
    let Target { host, port } = target;
    let message = format!("{host} port {port} did not answer within {} s", limit.as_secs_f32());
    Refusal::new(RefusalKind::TimedOut, message)
}

/// What an error of the kernel means to a person.
fn refusal(target: &Target, address: SocketAddr, error: &io::Error) -> Refusal {
    let who = if target.host.parse::<IpAddr>().is_ok() {
        address.to_string()
    } else {
        format!("{} ({address})", target.host)
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the list of kinds is open; the rest is told in its own words"
    )]
    let (kind, message) = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            (RefusalKind::Refused, format!("{who} refuses connections: nothing listens there"))
        }
        io::ErrorKind::TimedOut => (RefusalKind::TimedOut, format!("{who} does not answer")),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::NetworkDown => (RefusalKind::Unreachable, format!("{who}: {error}")),
        io::ErrorKind::PermissionDenied => {
            (RefusalKind::Unreachable, format!("the relay's node does not let it reach {who}: {error}"))
        }
        io::ErrorKind::NotFound => (RefusalKind::NameNotFound, format!("{} has no address", target.host)),
        _ if is_exhaustion(error) => {
            (RefusalKind::Busy, format!("the relay has no socket left for {who}: {error}"))
        }
        _ => (RefusalKind::Unreachable, format!("cannot connect to {who}: {error}")),
    };
    Refusal::new(kind, message)
}

/// EMFILE, ENFILE, ENOBUFS: the relay itself is out of something (errno(3), Linux numbers).
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn families_take_turns() {
        let list = |text: &str| text.split(' ').map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(interleaved(list("::1 ::2 ::3 1.1.1.1")), list("::1 1.1.1.1 ::2 ::3"));
        assert_eq!(interleaved(list("1.1.1.1 2.2.2.2")), list("1.1.1.1 2.2.2.2"));
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hold_up_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        let late = |address| connect(address, true);
        let (stream, address) = race(&[closed, listener.local_addr().unwrap()], late).await.unwrap();
        assert_eq!(address, listener.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), address);
        let (address, error) = race(&[closed], late).await.unwrap_err();
        assert_eq!((address, error.kind()), (closed, io::ErrorKind::ConnectionRefused));
        assert!(race(&[], late).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_dialled_once_more() {
        let [one, other] = [1, 2].map(|last| SocketAddr::from(([192, 0, 2, last], 80)));
        let dialled = Mutex::new(Vec::new());
        let begin = Instant::now();
        let connect = |address| {
            let mut dialled = dialled.lock().unwrap();
            dialled.push((address, begin.elapsed()));
            let answers = dialled.len() == 4;
            async move { if answers { Ok(()) } else { std::future::pending().await } }
        };
        let ((), address) = race(&[one, other], connect).await.unwrap();
        assert_eq!(address, other);
        let expected = [(one, Duration::ZERO), (other, NEXT_ADDRESS), (one, ONCE_MORE), (other, ONCE_MORE)];
        let seen = dialled.lock().unwrap().clone();
        assert_eq!(seen.len(), expected.len());
        for ((address, at), (to, when)) in seen.into_iter().zip(expected) {
            // Timers count in milliseconds.
            assert!(
                address == to && at >= when && at < when + Duration::from_millis(5),
                "{address} at {at:?}"
            );
        }
        // Only once.
        let silent = |_| std::future::pending::<io::Result<()>>();
        assert!(timeout(Duration::from_secs(60), race(&[one], silent)).await.is_err());
    }
}
