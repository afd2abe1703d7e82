//! What differs between operating systems, with the same functions for each.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
use other as system;

use kftray_commons::spec::Protocol;
pub(crate) use system::{datagrams_lost, peer_state, port_owner, write_last};

/// Whether the program at the other end of a local connection can still read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "other systems cannot tell"))]
pub(crate) enum PeerState {
    /// It holds its socket: what looked like a close was a half-close.
    Open,
    /// It has closed its socket.
    Closed,
    /// This system cannot tell, or the peer is not on this machine.
    Unknown,
}

/// How a person finds out who listens on a port, where [`port_owner`] cannot.
pub(crate) fn find_owner_by_hand(port: u16, protocol: Protocol) -> String {
    if cfg!(windows) {
        return format!("`netstat -ano | findstr :{port}` shows its process id");
    }
    let which = match protocol {
        Protocol::Tcp => format!("-iTCP:{port} -sTCP:LISTEN"),
        Protocol::Udp => format!("-iUDP:{port}"),
    };
    format!("`lsof -nP {which}` shows it, with sudo if it is another user's")
}

/// How many files this process may have open, if the system says so and it is finite.
pub(crate) fn open_files_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit};
        getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft).filter(|&soft| soft != u64::MAX)
    }
    #[cfg(not(unix))]
    None
}
