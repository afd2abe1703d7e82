//! Linux: who listens on a port, whether a local peer still holds its socket, and the last packet of a stream.
//!
//! The listening program is found as `ss -p` finds it: `/proc/net/tcp{,6}` gives the socket's inode, `/proc/PID/fd` the
//! process that holds it. Format: `Documentation/networking/proc_net_tcp.rst` of the kernel.
//!
//! The peer's socket is looked up by its exact addresses through `sock_diag(7)`: one message to the kernel, whatever the
//! number of sockets on the machine.

use std::fs;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use kftray_commons::spec;
use nix::libc::{MSG_MORE, MSG_NOSIGNAL};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::PeerState;

/// The tables of a protocol, and the state of a socket in them that has a port and no peer: `TCP_LISTEN` and `TCP_CLOSE`
/// of `include/net/tcp_states.h`.
fn tables(protocol: spec::Protocol) -> ([&'static str; 2], &'static str) {
    match protocol {
        spec::Protocol::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        spec::Protocol::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    }
}

/// The program that listens on an address, as `name (pid 123)`. A program of another user keeps its files secret; then
/// only its user id is named.
pub(crate) fn port_owner(address: SocketAddr, protocol: spec::Protocol) -> Option<String> {
    let (tables, state) = tables(protocol);
    let (inode, uid) =
        tables.iter().find_map(|table| listening_inode(&fs::read_to_string(table).ok()?, address, state))?;
    Some(match holder(inode) {
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => format!("a program of user id {uid}"),
    })
}

/// Datagrams that the system has dropped because the socket bound to exactly this address was not read in time: the last
/// column of `/proc/net/udp{,6}`.
pub(crate) fn datagrams_lost(address: SocketAddr) -> u64 {
    let (tables, _) = tables(spec::Protocol::Udp);
    let lost = tables.iter().find_map(|table| {
        fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (ip, port) = parse_address(fields.nth(1)?)?;
            let found = ip == address.ip().to_canonical() && port == address.port();
            found.then(|| fields.next_back()?.parse().ok()).flatten()
        })
    });
    lost.unwrap_or(0)
}

/// Inode and user id of the socket that listens where `address` would, from the text of one of the tables.
fn listening_inode(table: &str, address: SocketAddr, listening: &str) -> Option<(u64, u32)> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, uid, inode) = (fields.get(1)?, fields.get(3)?, fields.get(7)?, fields.get(9)?);
        let (ip, port) = parse_address(local)?;
        let overlaps = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        let found = *state == listening && port == address.port() && overlaps;
        found.then(|| Some((inode.parse().ok()?, uid.parse().ok()?))).flatten()
    })
}

/// `0100007F:1F90` is 127.0.0.1:8080: each 32-bit word of the address is printed in the machine's byte order.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            let ip = Ipv6Addr::from(bytes);
            ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
        }
        _ => return None,
    };
    Some((ip, port))
}

/// Pid and name of the process that holds a socket.
fn holder(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let files = fs::read_dir(entry.path().join("fd")).ok()?;
        let holds = files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link == Path::new(&wanted)));
        holds.then(|| (pid, program_name(&entry.path())))
    })
}

/// The program's file name; the kernel's 15 characters of it where the command line is empty.
fn program_name(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let first = line.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(first);
    match name.rsplit('/').next() {
        Some(base) if !base.is_empty() => base.to_owned(),
        _ => fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned(),
    }
}

/// Whether the peer of a local connection still holds its socket. Only loopback peers are asked for: those are certainly
/// in this network namespace, so that an answer "no such socket" means what it says.
pub(crate) fn peer_state(local: SocketAddr, peer: SocketAddr) -> PeerState {
    if !local.ip().to_canonical().is_loopback() || !peer.ip().to_canonical().is_loopback() {
        return PeerState::Unknown;
    }
    // The peer's socket has the addresses the other way round.
    diag_inode(peer, local).map_or(PeerState::Unknown, |inode| match inode {
        Some(inode) if inode != 0 => PeerState::Open,
        Some(_) | None => PeerState::Closed,
    })
}

/// Writes what comes right before the socket's end, as far as the socket takes it: it waits in the kernel and leaves in one
/// packet with the end (`MSG_MORE`, send(2)), which also wakes the reader once instead of twice.
pub(crate) fn write_last(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.try_io(Interest::WRITABLE, || {
        SockRef::from(stream).send_vectored_with_flags(slices, MSG_MORE | MSG_NOSIGNAL)
    })
}

/// Inode of the TCP socket with exactly these addresses; 0 if no process holds it any more, `None` if there is none.
/// Message formats: `include/uapi/linux/{netlink,inet_diag}.h`, unchanged since Linux 3.3.
fn diag_inode(source: SocketAddr, destination: SocketAddr) -> io::Result<Option<u32>> {
    const AF_NETLINK: i32 = 16;
    const NETLINK_SOCK_DIAG: i32 = 4;
    const NLMSG_ERROR: u16 = 2;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const ENOENT: i32 = 2;
    /// The reply's `idiag_inode`: 16 bytes of netlink header, then offset 68 of `inet_diag_msg`.
    const INODE_AT: usize = 16 + 68;

    let socket = Socket::new(
        Domain::from(AF_NETLINK),
        Type::DGRAM.cloexec(),
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    socket.send(&diag_request(source, destination))?;
    let mut reply = [0u8; 512];
    let length = io::Read::read(&mut (&socket), &mut reply)?;
    let reply = reply.get(..length).unwrap_or_default();
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let kind =
        reply.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(malformed)?;
    let word = |at: usize| reply.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    match kind {
        SOCK_DIAG_BY_FAMILY => word(INODE_AT).map(Some).ok_or_else(malformed),
        NLMSG_ERROR => {
            let errno = word(16).ok_or_else(malformed)?.cast_signed().wrapping_neg();
            if errno == ENOENT { Ok(None) } else { Err(io::Error::from_raw_os_error(errno)) }
        }
        _ => Err(malformed()),
    }
}

/// `nlmsghdr` and `inet_diag_req_v2` for one exact socket.
fn diag_request(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 16 + 56;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const IPPROTO_TCP: u8 = 6;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;

    let mut request = Vec::with_capacity(LENGTH as usize);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([if source.is_ipv4() { AF_INET } else { AF_INET6 }, IPPROTO_TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(source.port().to_be_bytes());
    request.extend(destination.port().to_be_bytes());
    for address in [source.ip(), destination.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.copy_from_slice(&ip.octets()),
        }
        request.extend(bytes);
    }
    request.extend([0; 4]);
    // INET_DIAG_NOCOOKIE.
    request.extend([0xff; 8]);
    request
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn addresses_are_read_in_the_machines_byte_order() {
        if cfg!(target_endian = "little") {
            let v4 = parse_address("0100007F:1F90").expect("valid");
            assert_eq!(v4, (Ipv4Addr::LOCALHOST.into(), 8080));
            let v6 = parse_address("00000000000000000000000001000000:0050").expect("valid");
            assert_eq!(v6, (Ipv6Addr::LOCALHOST.into(), 80));
        }
        for junk in ["", "1:2", "0100007F", "0100007F:xyz", "zz00007F:0001"] {
            assert_eq!(parse_address(junk), None, "{junk}");
        }
    }

    #[test]
    fn a_listener_is_found_by_its_process() {
        let listener = TcpListener::bind("0.0.0.0:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let owner = port_owner(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), spec::Protocol::Tcp)
            .expect("found");
        assert!(owner.ends_with(&format!("(pid {})", std::process::id())), "{owner}");
        assert!(owner.starts_with("kftray_portforward"), "{owner}");
        drop(listener);
        assert_eq!(port_owner(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), spec::Protocol::Tcp), None);
    }

    #[test]
    fn datagrams_that_were_not_read_in_time_are_known() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let address = socket.local_addr().expect("address");
        assert_eq!(datagrams_lost(address), 0);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        // More than any usual receive buffer holds.
        for _ in 0..2_000 {
            peer.send_to(&[0; 60_000], address).expect("send");
        }
        assert!(datagrams_lost(address) > 0);
    }

    #[test]
    fn a_half_close_is_told_from_a_close() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
            let (server, peer) = listener.accept().expect("accept");
            let local = server.local_addr().expect("address");
            assert_eq!(peer_state(local, peer), PeerState::Open);
            client.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(peer_state(local, peer), PeerState::Open, "half-closed");
            drop(client);
            assert_eq!(peer_state(local, peer), PeerState::Closed);
        }
    }

    #[test]
    fn a_close_by_the_end_of_the_program_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read _", address.port());
        let Ok(mut child) = Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn() else {
            return;
        };
        let (server, peer) = listener.accept().expect("accept");
        assert_eq!(peer_state(server.local_addr().expect("address"), peer), PeerState::Open);
        drop(child.stdin.take());
        child.wait().expect("ends");
        assert_eq!(peer_state(server.local_addr().expect("address"), peer), PeerState::Closed);
    }

    #[test]
    fn a_peer_elsewhere_is_unknown() {
        let here = "192.0.2.1:80".parse().expect("address");
        let there = "192.0.2.2:4000".parse().expect("address");
        assert_eq!(peer_state(here, there), PeerState::Unknown);
    }
}
