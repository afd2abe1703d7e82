//! The process environment as a value, so that nothing below the border reads globals and tests can vary it in parallel.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Environment variables, working directory and home folder, read once.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    directory: PathBuf,
    home: Option<PathBuf>,
}

impl Environment {
    /// This process's own. Call it once, at the border.
    #[must_use]
    pub fn from_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            directory: std::env::current_dir()
                .unwrap_or_else(|_| PathBuf::from(std::path::MAIN_SEPARATOR_STR)),
            home: std::env::home_dir(),
        }
    }

    /// An environment of one's own; the home folder is `HOME` (else `USERPROFILE`), if given. `directory` is absolute.
    #[must_use]
    pub fn new<K: Into<OsString>, V: Into<OsString>>(
        variables: impl IntoIterator<Item = (K, V)>,
        directory: impl Into<PathBuf>,
    ) -> Self {
        let variables: BTreeMap<_, _> =
            variables.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let home = ["HOME", "USERPROFILE"]
            .iter()
            .find_map(|name| variables.get(OsStr::new(name)))
            .map(PathBuf::from);
        Self { variables, directory: directory.into(), home }
    }

    /// A variable's value; empty counts as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A variable's value as text; empty and not Unicode count as unset.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// The user's name as the variables tell it; empty if they do not.
    #[must_use]
    pub fn user(&self) -> &str {
        ["USER", "LOGNAME", "USERNAME"].iter().find_map(|name| self.text(name)).unwrap_or_default()
    }

    /// Every variable, for child processes.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str()))
    }

    /// The home folder, if there is one.
    #[must_use]
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// `path` made absolute: `~/` is the home folder, anything relative is below the working directory.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => self.directory.join(path),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets (tokens, proxy passwords): names only.
        f.debug_struct("Environment")
            .field("variables", &self.variables.keys())
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
