//! Systems without `/proc`: what can be said without privileges and without starting other programs is nothing.

use std::net::SocketAddr;

use kftray_commons::spec::Protocol;

use super::PeerState;

/// The program that listens on an address, if it can be found.
pub(crate) fn port_owner(_address: SocketAddr, _protocol: Protocol) -> Option<String> {
    None
}

/// Datagrams that the system has dropped for want of room.
pub(crate) fn datagrams_lost(_address: SocketAddr) -> u64 {
    0
}

/// Whether the peer of a local connection still holds its socket.
pub(crate) fn peer_state(_local: SocketAddr, _peer: SocketAddr) -> PeerState {
    PeerState::Unknown
}
