//! What file systems offer to keep others out, with the same functions for every system.

#[cfg(feature = "store")]
pub(super) use system::create_private_file;
pub(super) use system::{close_to_others, create_private_directory, foreign_owner};

#[cfg(unix)]
mod system {
    use std::fs::{self, DirBuilder, Metadata, Permissions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use nix::unistd::geteuid;

    /// Nothing for anybody but the owner.
    const OTHERS: u32 = 0o077;
    /// The part of it that lets others change things.
    const OTHERS_WRITE: u32 = 0o022;

    /// Makes a directory with mode 0700.
    pub(in crate::store) fn create_private_directory(path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    /// Makes an empty file with mode 0600; fails if there is one.
    #[cfg(feature = "store")]
    pub(in crate::store) fn create_private_file(path: &Path) -> io::Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt as _;
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    /// The owner, if it is somebody else. Root may use everybody's: who runs as root has decided that.
    pub(in crate::store) fn foreign_owner(found: &Metadata) -> Option<u32> {
        let user = geteuid();
        (!user.is_root() && found.uid() != user.as_raw()).then(|| found.uid())
    }

    /// Takes away what others may do. On a file system that cannot, reading is tolerated and writing is not.
    pub(in crate::store) fn close_to_others(path: &Path, found: &Metadata) -> io::Result<()> {
        let mode = found.permissions().mode();
        if mode & OTHERS == 0 {
            return Ok(());
        }
        let closed = fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 & !OTHERS));
        if mode & OTHERS_WRITE == 0 { Ok(()) } else { closed }
    }
}

#[cfg(windows)]
mod system {
    use std::fs::{self, Metadata};
    use std::io;
    use std::path::Path;

    /// Makes a directory; the profile's access list keeps others out.
    pub(in crate::store) fn create_private_directory(path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    /// Makes an empty file; fails if there is one.
    #[cfg(feature = "store")]
    pub(in crate::store) fn create_private_file(path: &Path) -> io::Result<fs::File> {
        fs::OpenOptions::new().write(true).create_new(true).open(path)
    }

    /// Owners are not looked at.
    pub(in crate::store) fn foreign_owner(_found: &Metadata) -> Option<u32> {
        None
    }

    /// Nothing to do.
    pub(in crate::store) fn close_to_others(_path: &Path, _found: &Metadata) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, unix, feature = "store"))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn nothing_for_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let mode = |name: &str| {
            fs::metadata(directory.path().join(name)).expect("there").permissions().mode() & 0o777
        };
        create_private_file(&directory.path().join("file")).expect("made");
        create_private_directory(&directory.path().join("directory")).expect("made");
        assert_eq!((mode("file"), mode("directory")), (0o600, 0o700));
        assert!(create_private_file(&directory.path().join("file")).is_err(), "nothing is overwritten");
        let open = directory.path().join("open");
        fs::write(&open, "").expect("written");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o664)).expect("opened");
        close_to_others(&open, &fs::metadata(&open).expect("there")).expect("closed");
        assert_eq!(mode("open"), 0o600);
    }
}
