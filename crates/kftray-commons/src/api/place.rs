//! Where a host and its clients meet: the files of one configuration directory.

use std::path::{Path, PathBuf};

/// The longest path of a socket that every Unix takes: `sun_path` has 104 bytes on the BSDs (108 on Linux), the last
/// one is a zero.
const SOCKET_PATH_MAX: usize = 103;

/// The meeting place of one configuration directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The configuration directory.
    pub directory: PathBuf,
    /// The directory of the socket: the configuration directory, unless its path is too long for a socket.
    pub socket_directory: PathBuf,
    /// The host's socket.
    pub socket: PathBuf,
    /// Locked by the host for as long as it lives; contains its process id.
    pub lock: PathBuf,
    /// Locked by the client that starts a host, so that two do not start two.
    pub startup_lock: PathBuf,
    /// What a background host writes.
    pub log: PathBuf,
    /// Address and token of the TCP port, while a host serves one.
    pub tcp: PathBuf,
}

impl Place {
    /// The place of a directory (absolute). `runtime_directory` is `$XDG_RUNTIME_DIR`, `user` the user's number: the
    /// socket goes there, or to `/tmp/kftray-USER`, under a name made from the directory's, where its path in the
    /// directory would be too long.
    #[must_use]
    pub fn of(directory: &Path, runtime_directory: Option<&Path>, user: u32) -> Self {
        let named = |name: &str| directory.join(name);
        let fits = |path: &Path| path.as_os_str().len() <= SOCKET_PATH_MAX;
        let mut socket_directory = directory.to_owned();
        let mut socket = named("host.sock");
        if !fits(&socket) {
            let name = format!("{:016x}.sock", fingerprint(directory.as_os_str().as_encoded_bytes()));
            let runtime = runtime_directory.map(|runtime| runtime.join("kftray"));
            socket_directory = runtime
                .filter(|runtime| fits(&runtime.join(&name)))
                .unwrap_or_else(|| PathBuf::from(format!("/tmp/kftray-{user}")));
            socket = socket_directory.join(name);
        }
        Self {
            directory: directory.to_owned(),
            socket_directory,
            socket,
            lock: named("host.lock"),
            startup_lock: named("host.start"),
            log: named("host.log"),
            tcp: named("host.tcp"),
        }
    }
}

/// FNV-1a, 64 bits: tells a user's few directories apart. Nobody is kept out by it; the socket's directory is.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_directory_has_its_own_socket() {
        let place = Place::of(Path::new("/home/x/.kftray"), None, 1000);
        assert_eq!(place.socket, Path::new("/home/x/.kftray/host.sock"));
        assert_eq!(place.socket_directory, place.directory);
    }

    #[test]
    fn a_long_one_has_it_elsewhere_and_two_do_not_share() {
        let long = |end: &str| PathBuf::from(format!("/{}/{end}", "d".repeat(120)));
        let runtime = Path::new("/run/user/1000");
        let a = Place::of(&long("a"), Some(runtime), 1000);
        let b = Place::of(&long("b"), Some(runtime), 1000);
        assert!(a.socket.starts_with("/run/user/1000/kftray"), "{}", a.socket.display());
        assert_ne!(a.socket, b.socket);
        assert_eq!(a.lock, long("a").join("host.lock"));
        let without = Place::of(&long("a"), None, 1000);
        assert!(without.socket.starts_with("/tmp/kftray-1000"), "{}", without.socket.display());
        assert!(without.socket.as_os_str().len() <= SOCKET_PATH_MAX);
    }
}
