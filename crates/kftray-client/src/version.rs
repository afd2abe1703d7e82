//! Whether host and client understand each other, and who is older.

use kftray_commons::Code;
use kftray_commons::api::{Error, Hello, PROTOCOL, Versions};

/// Names the client's protocol versions, as `MIN-MAX`, so that a host can say that it is too new for it.
pub(crate) const HEADER: &str = "kftray-protocol";

/// Its value.
pub(crate) fn header() -> String {
    format!("{}-{}", PROTOCOL.min, PROTOCOL.max)
}

/// How a host compares with this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Understood; nothing to do.
    Fits,
    /// Understood, but of an older version than this program.
    Older,
    /// Not understood because it is older.
    TooOld,
    /// Not understood because it is newer.
    TooNew,
}

/// Compares by protocol first, then by program version.
pub(crate) fn relation(ours: Versions, our_version: &str, hello: &Hello) -> Relation {
    if ours.common(hello.protocol).is_none() {
        return if hello.protocol.max < ours.min { Relation::TooOld } else { Relation::TooNew };
    }
    match (triple(our_version), triple(&hello.version)) {
        (Some(ours), Some(theirs)) if theirs < ours => Relation::Older,
        (Some(_) | None, Some(_) | None) => Relation::Fits,
    }
}

/// Why a host cannot be talked to.
pub(crate) fn mismatch(ours: Versions, our_version: &str, hello: &Hello) -> Error {
    let message = format!(
        "the host (version {}, pid {}) speaks protocol {}, this program (version {our_version}) speaks {ours}",
        hello.version, hello.pid, hello.protocol
    );
    let mut error = Error::new(Code::VersionMismatch, message);
    error.remedy = match relation(ours, our_version, hello) {
        Relation::TooNew => "Update this program, or end the newer host with `kftui host stop`.".to_owned(),
        Relation::TooOld | Relation::Older | Relation::Fits => {
            "End the old host with `kftui host stop`; the next command starts a new one.".to_owned()
        }
    };
    error
}

/// `1.2.3-rc.1+build` as numbers; a pre-release counts as its release, since only order between releases matters here.
fn triple(version: &str) -> Option<[u64; 3]> {
    let core = version.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some([next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use kftray_commons::api::Mode;

    use super::*;

    fn hello(protocol: Versions, version: &str) -> Hello {
        Hello {
            protocol,
            version: version.to_owned(),
            build: String::new(),
            instance: "i".to_owned(),
            pid: 1,
            started_at: 0,
            mode: Mode::Background,
            config_dir: String::new(),
            clients: 0,
        }
    }

    #[test]
    fn who_is_older() {
        let ours = Versions { min: 2, max: 3 };
        let relation =
            |min, max, version: &str| relation(ours, "1.2.0", &hello(Versions { min, max }, version));
        assert_eq!(relation(2, 3, "1.2.0"), Relation::Fits);
        assert_eq!(relation(1, 2, "1.1.9"), Relation::Older);
        assert_eq!(relation(3, 4, "1.10.0"), Relation::Fits);
        assert_eq!(relation(1, 1, "1.0.0"), Relation::TooOld);
        assert_eq!(relation(4, 5, "2.0.0"), Relation::TooNew);
        assert_eq!(relation(2, 3, "unheard-of"), Relation::Fits);
    }

    #[test]
    fn the_message_says_who_must_move() {
        let ours = Versions { min: 2, max: 3 };
        let old = mismatch(ours, "1.2.0", &hello(Versions { min: 1, max: 1 }, "1.0.0"));
        assert_eq!(old.code, Code::VersionMismatch);
        assert!(old.remedy.contains("old host"), "{}", old.remedy);
        let new = mismatch(ours, "1.2.0", &hello(Versions { min: 4, max: 4 }, "2.0.0"));
        assert!(new.remedy.contains("Update this program"), "{}", new.remedy);
        assert!(new.message.contains("version 2.0.0"), "{}", new.message);
    }
}
