//! Systems without `/proc`: what can be said without privileges and without starting other programs is nothing.

use std::net::SocketAddr;

use super::PeerState;

/// The program that listens on an address, if it can be found.
pub(crate) fn port_owner(_address: SocketAddr) -> Option<String> {
    None
}

/// Whether the peer of a local connection still holds its socket.
pub(crate) fn peer_state(_local: SocketAddr, _peer: SocketAddr) -> PeerState {
    PeerState::Unknown
}
