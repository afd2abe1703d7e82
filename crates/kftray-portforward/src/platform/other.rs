//! Systems without `/proc`: what can be said without privileges and without starting other programs is nothing.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use kftray_commons::spec::Protocol;
use tokio::net::TcpStream;

use super::PeerState;

/// The program that listens on an address, if it can be found.
pub(crate) fn port_owner(_address: SocketAddr, _protocol: Protocol) -> Option<String> {
    None
}

/// Datagrams that the system has dropped for want of room.
pub(crate) fn datagrams_lost(_address: SocketAddr) -> u64 {
    0
}

/// Writes what comes right before the socket's end, as far as the socket takes it.
pub(crate) fn write_last(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    stream.try_write_vectored(slices)
}

/// Whether the peer of a local connection still holds its socket.
pub(crate) fn peer_state(_local: SocketAddr, _peer: SocketAddr) -> PeerState {
    PeerState::Unknown
}
