//! The secret of an installation, from which every token of its relays is derived (docs/decisions/0009-relay-tokens.md).
//!
//! Derived and not stored, so that a restarted program can use the relay that is still there, and so that one small file is
//! all there is to protect.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kftray_relay_proto::token::Token;
use ring::hmac;

/// Length of the key and of a token, in bytes.
const KEY: usize = 32;
/// Random bytes of a nonce: two relays never share a token.
const NONCE: usize = 16;
/// Bytes of the key's derivative that name the installation: no secret, and enough that two never meet.
const ID: usize = 8;

/// Why an installation's key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("the key of this installation's relays, {}, cannot be used: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is no key: 64 hexadecimal digits are expected; remove it and a new one is made", .0.display())]
    Invalid(PathBuf),
}

/// The secret of an installation. Holds a secret: `Debug` shows the public id only.
#[derive(Clone)]
pub struct InstallationKey {
    key: hmac::Key,
    id: String,
}

impl InstallationKey {
    /// Reads the key file, or makes it (only readable by its owner) if there is none. Blocks on the disk. Two programs that
    /// start at once get the same key.
    ///
    /// # Errors
    /// [`KeyError`] if the file cannot be read, made, or is something else.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source };
        match std::fs::read_to_string(path) {
            Ok(text) => return Self::parse(&text).ok_or_else(|| KeyError::Invalid(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(directory).map_err(failed)?;
        // Whole before it has its name, and never over somebody else's: `NamedTempFile` is made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        writeln!(file, "{}", hex(&rand::random::<[u8; KEY]>())).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error.error)),
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).ok_or_else(|| KeyError::Invalid(path.to_owned()))
    }

    /// A key of this process alone: its relays are not found again by the next.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self::new(&rand::random::<[u8; KEY]>())
    }

    /// The same at every run, so that manifests can be compared with snapshots.
    #[cfg(test)]
    pub(crate) fn of_test() -> Self {
        Self::new(&[7; KEY])
    }

    fn parse(text: &str) -> Option<Self> {
        unhex(text.trim()).map(|bytes| Self::new(&bytes))
    }

    fn new(bytes: &[u8; KEY]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let tag = hmac::sign(&key, b"kftray installation 1");
        let id = hex(tag.as_ref().get(..ID).unwrap_or_default());
        Self { key, id }
    }

    /// Names the installation in labels: 16 hexadecimal digits, no secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The token of the relay with that nonce. Bound to server and namespace as well, so that a cluster which shows the
    /// nonce of another cluster's relay does not get that relay's token.
    pub(crate) fn token(&self, server: &str, namespace: &str, nonce: &str) -> Token {
        let mut context = hmac::Context::with_key(&self.key);
        for part in ["kftray relay token 1", server, namespace, nonce] {
            context.update(part.as_bytes());
            // No part can hold it, so no two lists of parts are signed alike.
            context.update(b"\n");
        }
        let mut bytes = [0; KEY];
        bytes.copy_from_slice(context.sign().as_ref());
        Token::new(bytes)
    }
}

impl fmt::Debug for InstallationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstallationKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A token that is not derived, for a relay that many installations share.
pub(crate) fn random_token() -> Token {
    Token::new(rand::random())
}

/// A new nonce: 32 hexadecimal digits.
pub(crate) fn nonce() -> String {
    hex(&rand::random::<[u8; NONCE]>())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'?'));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

fn unhex(text: &str) -> Option<[u8; KEY]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/relay.key");
        let first = InstallationKey::load(&path).unwrap();
        let second = InstallationKey::load(&path).unwrap();
        assert_eq!(first.id(), second.id());
        assert_eq!(first.token("s", "n", "1"), second.token("s", "n", "1"));
        assert_eq!(first.id().len(), 16);
        assert_ne!(InstallationKey::ephemeral().id(), first.id());
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.key");
        InstallationKey::load(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn many_who_start_at_once_get_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.key");
        let ids: Vec<String> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| InstallationKey::load(&path).unwrap().id().to_owned()))
                .collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_no_key_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.key");
        for text in ["", "xyz", &"0".repeat(63), &"g".repeat(64)] {
            std::fs::write(&path, text).unwrap();
            let error = InstallationKey::load(&path).unwrap_err();
            assert!(error.to_string().contains("remove it"), "{error}");
        }
    }

    #[test]
    fn tokens_differ_by_every_part_and_the_key_shows_itself_to_nobody() {
        let key = InstallationKey::ephemeral();
        let token = key.token("https://a", "shop", "1");
        for (server, namespace, nonce) in [
            ("https://b", "shop", "1"),
            ("https://a", "shop2", "1"),
            ("https://a", "shop", "2"),
            ("https://a\nshop", "", "1"),
        ] {
            assert_ne!(key.token(server, namespace, nonce), token);
        }
        assert!(!format!("{key:?} {token:?}").contains(&token.to_secret_text()));
    }
}
