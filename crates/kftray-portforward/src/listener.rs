//! The local side: which sockets an address means, opening them all or none, and who is in the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use kftray_commons::spec::Protocol;
use kftray_commons::{Code, Problem};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::config::LocalAddress;
use crate::platform;

/// Connections that the system keeps while they wait to be accepted: bursts of a test run are in the hundreds; the system
/// cuts larger numbers down to its own limit.
const BACKLOG: i32 = 1024;

/// What the system shall keep of datagrams that have not been received yet, in bytes; it cuts this down to its own limit.
/// A burst of 50 peers with a few of the largest datagrams.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// How often a random port is drawn anew because it is taken on another of the addresses. Each draw fails with the share
/// of taken ephemeral ports, which is small on any usable machine.
const DRAWS: usize = 32;

/// Open listeners of one forward.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// One per address, in the order of the configuration.
    pub(crate) sockets: Vec<Listener>,
    /// Their addresses, with real ports.
    pub(crate) addresses: Vec<SocketAddr>,
    /// What a person may want to know.
    pub(crate) notes: Vec<String>,
}

/// One open socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }
}

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    ip: IpAddr,
    /// Left out with a note where the machine does not have it.
    optional: bool,
}

/// Opens a listener on every address, all with the same port; all or none. Looks host names up, nothing else is remote.
pub(crate) async fn open(
    addresses: &[LocalAddress],
    port: Option<NonZeroU16>,
    protocol: Protocol,
) -> Result<Listeners, Problem> {
    let places = places(addresses).await?;
    let Some(port) = port else {
        for _ in 1..DRAWS {
            match open_all(&places, 0, protocol) {
                Err(refusal) if refusal.drawn && refusal.error.kind() == io::ErrorKind::AddrInUse => {}
                answer => return answer.map_err(|refusal| refusal.tell(protocol)),
            }
        }
        return open_all(&places, 0, protocol).map_err(|refusal| refusal.tell(protocol));
    };
    open_all(&places, port.get(), protocol).map_err(|refusal| refusal.tell(protocol))
}

/// Whether a forward could listen there now: opens everything as a start would and lets it go again.
///
/// # Errors
/// What a start would say, with the port's owner where that can be found out.
pub async fn probe(
    addresses: &[LocalAddress],
    port: Option<NonZeroU16>,
    protocol: Protocol,
) -> Result<Vec<SocketAddr>, Problem> {
    open(addresses, port, protocol).await.map(|opened| opened.addresses)
}

/// Takes listeners into use that were opened elsewhere. `None` if there are none, or the system does not have them.
pub(crate) fn adopt(given: Vec<std::net::TcpListener>) -> Option<Listeners> {
    let mut opened = Listeners { sockets: Vec::new(), addresses: Vec::new(), notes: Vec::new() };
    for socket in given {
        let adopted = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
        let adopted = adopted.and_then(|socket| Ok((socket.local_addr()?, socket)));
        match adopted {
            Ok((address, socket)) => {
                opened.addresses.push(address);
                opened.sockets.push(Listener::Tcp(socket));
            }
            Err(error) => {
                tracing::warn!(%error, "a listener that was handed over cannot be used");
                return None;
            }
        }
    }
    (!opened.sockets.is_empty()).then_some(opened)
}

/// A second handle of an open listener.
#[cfg(unix)]
pub(crate) fn duplicate(socket: &TcpListener) -> io::Result<std::net::TcpListener> {
    use std::os::fd::AsFd as _;
    socket.as_fd().try_clone_to_owned().map(std::net::TcpListener::from)
}

/// A second handle of an open listener would be of no use to another process here.
#[cfg(not(unix))]
pub(crate) fn duplicate(_: &TcpListener) -> io::Result<std::net::TcpListener> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// The IP addresses that the configured ones mean, without doubles.
async fn places(addresses: &[LocalAddress]) -> Result<Vec<Place>, Problem> {
    let localhost = [LocalAddress::Localhost];
    let addresses = if addresses.is_empty() { &localhost } else { addresses };
    let mut places: Vec<Place> = Vec::new();
    for address in addresses {
        let means = match address {
            LocalAddress::Localhost => vec![
                Place { ip: Ipv4Addr::LOCALHOST.into(), optional: false },
                Place { ip: Ipv6Addr::LOCALHOST.into(), optional: true },
            ],
            LocalAddress::Ip(ip) => vec![Place { ip: *ip, optional: false }],
            LocalAddress::Host(name) => look_up(name).await?,
        };
        for place in means {
            match places.iter_mut().find(|known| known.ip == place.ip) {
                Some(known) => known.optional &= place.optional,
                None => places.push(place),
            }
        }
    }
    Ok(places)
}

async fn look_up(name: &str) -> Result<Vec<Place>, Problem> {
    let unavailable = |why: String| {
        Problem::new(Code::AddressUnavailable, format!("the local host name {name} cannot be used: {why}"))
    };
    let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| unavailable(error.to_string()))?;
    let places: Vec<Place> = found.map(|address| Place { ip: address.ip(), optional: false }).collect();
    if places.is_empty() {
        return Err(unavailable("it has no address".to_owned()));
    }
    Ok(places)
}

/// Why a socket could not be opened.
struct Refusal {
    address: SocketAddr,
    error: io::Error,
    /// The port was drawn by the system for the first address and is taken on this one.
    drawn: bool,
}

fn open_all(places: &[Place], port: u16, protocol: Protocol) -> Result<Listeners, Refusal> {
    let mut opened = Listeners { sockets: Vec::new(), addresses: Vec::new(), notes: Vec::new() };
    for place in places {
        let known = opened.addresses.first().map_or(port, SocketAddr::port);
        let address = SocketAddr::new(place.ip, known);
        // `::` with both families already covers `0.0.0.0`.
        let covered = opened.addresses.iter().any(|open| open.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        if covered && place.ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
            continue;
        }
        match open_one(address, protocol) {
            Ok(socket) => {
                opened.addresses.push(socket.local_addr().unwrap_or(address));
                opened.sockets.push(socket);
            }
            Err(error) if place.optional && is_missing(&error) => {
                opened.notes.push(format!(
                    "this machine has no {}, so only the other addresses are served",
                    place.ip
                ));
            }
            Err(error) => return Err(Refusal { address, error, drawn: known != port }),
        }
    }
    Ok(opened)
}

fn open_one(address: SocketAddr, protocol: Protocol) -> io::Result<Listener> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(number))?;
    if address.is_ipv6() {
        let both_families = address.ip().is_unspecified();
        socket.set_only_v6(!both_families)?;
    }
    socket.set_nonblocking(true)?;
    match protocol {
        Protocol::Tcp => {
            bind(&socket, address)?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into()).map(Listener::Tcp)
        }
        Protocol::Udp => {
            // Without SO_REUSEADDR, which would let two programs share a port, on Linux, too; UDP has no TIME_WAIT.
            socket.bind(&SockAddr::from(address))?;
            // As much as the system allows.
            drop(socket.set_recv_buffer_size(RECEIVE_BUFFER));
            UdpSocket::from_std(socket.into()).map(Listener::Udp)
        }
    }
}

/// Binds so that a port can be had whose last connections still linger in TIME_WAIT, and no port that somebody else
/// listens on. On Linux SO_REUSEADDR means exactly that.
#[cfg(target_os = "linux")]
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))
}

/// The same for the BSD family, where SO_REUSEADDR also lets `127.0.0.1` be bound beside another program's `0.0.0.0` and
/// silently takes its connections away: there the option is only set when nobody answers on the port.
#[cfg(all(unix, not(target_os = "linux")))]
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    /// A listener on this machine answers at once.
    const ANSWER: std::time::Duration = std::time::Duration::from_millis(100);

    let busy = match socket.bind(&SockAddr::from(address)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        done => return done,
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    if std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), ANSWER).is_ok() {
        return Err(busy);
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))
}

/// The same for Windows: lingering connections do not hinder there, and SO_REUSEADDR would let two programs share a port.
#[cfg(not(unix))]
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.bind(&SockAddr::from(address))
}

/// The machine has no such address, or not even the family.
fn is_missing(error: &io::Error) -> bool {
    /// `EAFNOSUPPORT` of Linux, macOS and Windows sockets.
    const NO_FAMILY: [i32; 3] = [97, 47, 10047];
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error().is_some_and(|code| NO_FAMILY.contains(&code))
}

impl Refusal {
    fn tell(self, protocol: Protocol) -> Problem {
        let Self { address, error, .. } = self;
        if error.kind() == io::ErrorKind::AddrInUse {
            return match platform::port_owner(address, protocol) {
                Some(owner) => Problem::new(Code::PortInUse, format!("{address} is in use by {owner}")),
                None => {
                    let by_hand = platform::find_owner_by_hand(address.port(), protocol);
                    let problem =
                        Problem::new(Code::PortInUse, format!("{address} is in use by another program"));
                    problem.with_remedy(format!("{} {by_hand}.", Code::PortInUse.remedy()))
                }
            };
        }
        let code = if error.kind() == io::ErrorKind::PermissionDenied {
            Code::PortPrivileged
        } else if is_out_of_files(&error) {
            Code::TooManyFiles
        } else {
            Code::AddressUnavailable
        };
        if is_missing(&error) {
            return Problem::new(code, format!("{} is not an address of this machine", address.ip()));
        }
        Problem::new(code, format!("{address} cannot be opened: {error}"))
    }
}

/// The process or the system has no file descriptors left.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    /// `ENFILE` and `EMFILE` of every Unix, `WSAEMFILE` of Windows.
    const CODES: [i32; 3] = [23, 24, 10024];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: SocketAddr) -> Option<NonZeroU16> {
        NonZeroU16::new(address.port())
    }

    #[tokio::test]
    async fn localhost_is_both_families_on_one_random_port() {
        let opened = open(&[LocalAddress::Localhost], None, Protocol::Tcp).await.expect("open");
        let ips: Vec<IpAddr> = opened.addresses.iter().map(SocketAddr::ip).collect();
        assert_eq!(ips.first(), Some(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(opened.addresses.iter().all(|address| address.port() == opened.addresses[0].port()));
        // One of: both are open, or the note says why not.
        assert_eq!(ips.len() + opened.notes.len(), 2);
    }

    #[tokio::test]
    async fn a_busy_port_is_refused_on_all_addresses_and_names_its_owner() {
        let taken = open(&[LocalAddress::Localhost], None, Protocol::Tcp).await.expect("open");
        let problem = open(&[LocalAddress::Localhost], port(taken.addresses[0]), Protocol::Tcp)
            .await
            .expect_err("busy");
        assert_eq!(problem.code, Code::PortInUse);
        if cfg!(target_os = "linux") {
            let pid = format!("(pid {})", std::process::id());
            assert!(problem.message.contains(&pid), "{}", problem.message);
        }
    }

    #[tokio::test]
    async fn a_port_busy_on_the_second_address_leaves_the_first_free() {
        let second: IpAddr = "127.0.0.2".parse().expect("ip");
        let Ok(taken) = open(&[LocalAddress::Ip(second)], None, Protocol::Tcp).await else { return };
        let both = [LocalAddress::Ip(Ipv4Addr::LOCALHOST.into()), LocalAddress::Ip(second)];
        let wanted = port(taken.addresses[0]);
        assert_eq!(open(&both, wanted, Protocol::Tcp).await.expect_err("busy").code, Code::PortInUse);
        open(&both[..1], wanted, Protocol::Tcp).await.expect("the first address was given back");
    }

    #[tokio::test]
    async fn a_port_can_be_opened_again_at_once() {
        let first = open(&[LocalAddress::Localhost], None, Protocol::Tcp).await.expect("open");
        let address = first.addresses[0];
        let client = tokio::net::TcpStream::connect(address).await.expect("connect");
        let Listener::Tcp(listener) = &first.sockets[0] else { panic!("not TCP") };
        let (server, _) = listener.accept().await.expect("accept");
        // The server closes first: its side lingers in TIME_WAIT.
        drop(server);
        drop(client);
        drop(first);
        open(&[LocalAddress::Localhost], port(address), Protocol::Tcp).await.expect("open again");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_duplicate_keeps_what_waits_in_the_backlog() {
        let mut first =
            open(&[LocalAddress::Ip(Ipv4Addr::LOCALHOST.into())], None, Protocol::Tcp).await.expect("open");
        let Listener::Tcp(socket) = first.sockets.remove(0) else { panic!("no TCP listener") };
        let second = duplicate(&socket).expect("a second handle");
        drop(socket);
        let address = second.local_addr().expect("bound");
        // The first handle is closed; nobody accepts; the connection waits.
        let _client = tokio::net::TcpStream::connect(address).await.expect("connect");
        let adopted = adopt(vec![second]).expect("adopted");
        assert_eq!(adopted.addresses, [address]);
        let Listener::Tcp(listener) = &adopted.sockets[0] else { panic!("no TCP listener") };
        listener.accept().await.expect("it waited");
        assert!(adopt(Vec::new()).is_none());
    }

    #[tokio::test]
    async fn every_address_of_both_families() {
        let any =
            [LocalAddress::Ip(Ipv6Addr::UNSPECIFIED.into()), LocalAddress::Ip(Ipv4Addr::UNSPECIFIED.into())];
        let Ok(opened) = open(&any, None, Protocol::Tcp).await else { return };
        assert_eq!(opened.sockets.len(), 1);
        let through_v4 = (Ipv4Addr::LOCALHOST, opened.addresses[0].port());
        tokio::net::TcpStream::connect(through_v4).await.expect("IPv4 reaches it");
    }

    #[tokio::test]
    async fn names_are_looked_up_and_doubles_dropped() {
        let loopback = LocalAddress::Ip(Ipv4Addr::LOCALHOST.into());
        let host = LocalAddress::Host("127.0.0.1".to_owned());
        let found = places(&[LocalAddress::Localhost, loopback, host]).await.expect("known");
        assert_eq!(found.len(), 2);
    }

    #[tokio::test]
    async fn datagram_sockets_share_nothing_with_tcp_and_name_their_owner() {
        let tcp = open(&[LocalAddress::Localhost], None, Protocol::Tcp).await.expect("open");
        let wanted = port(tcp.addresses[0]);
        // Another program may have that port for UDP; then there is nothing to see here.
        let Ok(_udp) = open(&[LocalAddress::Localhost], wanted, Protocol::Udp).await else { return };
        let again = open(&[LocalAddress::Localhost], wanted, Protocol::Udp).await.expect_err("busy");
        assert_eq!(again.code, Code::PortInUse);
        if cfg!(target_os = "linux") {
            let pid = format!("(pid {})", std::process::id());
            assert!(again.message.contains(&pid), "{}", again.message);
        }
    }

    #[tokio::test]
    async fn a_foreign_address_is_unavailable() {
        // TEST-NET-3 of RFC 5737: never an address of this machine.
        let foreign = LocalAddress::Ip("203.0.113.7".parse().expect("ip"));
        let problem = open(&[foreign], None, Protocol::Tcp).await.expect_err("foreign");
        assert_eq!(problem.code, Code::AddressUnavailable);
        assert!(problem.message.contains("203.0.113.7"), "{}", problem.message);
    }
}
