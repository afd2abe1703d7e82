//! What differs between operating systems, with the same functions for each: whose a file is, files for nobody else, the
//! usual editor.

pub(crate) use system::{EDITOR, foreign_owner, private};

#[cfg(unix)]
mod system {
    use std::fs::OpenOptions;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    use std::path::Path;

    /// The editor where none is named (POSIX has it everywhere).
    pub(crate) const EDITOR: &str = "vi";

    /// Number of the user a file belongs to, if that is neither this one nor root. A file that is not there belongs to
    /// nobody.
    pub(crate) fn foreign_owner(path: &Path) -> Option<u32> {
        let owner = std::fs::metadata(path).ok()?.uid();
        (owner != 0 && owner != nix::unistd::geteuid().as_raw()).then_some(owner)
    }

    /// A file that is made by these options can be read by its owner alone.
    pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options.mode(0o600)
    }
}

#[cfg(not(unix))]
mod system {
    use std::fs::OpenOptions;
    use std::path::Path;

    /// The editor where none is named.
    pub(crate) const EDITOR: &str = "notepad";

    /// Owners are not compared.
    pub(crate) fn foreign_owner(_path: &Path) -> Option<u32> {
        None
    }

    /// A profile's folders are its owner's already.
    pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
        options
    }
}
