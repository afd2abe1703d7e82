//! Where a user's kftray lives: which directory, and that nobody else can read or swap what is in it.
//!
//! The rules are pure: the environment comes in as a value. [`Environment::of_process`] and [`Directory::prepare`] are the
//! only parts that look at the machine.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::platform;
use crate::problem::{Code, Problem};

/// Directory below `$XDG_CONFIG_HOME`.
const XDG_NAME: &str = "kftray";
/// Directory below the home directory.
const HOME_NAME: &str = ".kftray";

/// What of the environment decides where the directory is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `KFTRAY_CONFIG`: the directory itself. Empty counts as absent, as in the reference.
    pub kftray_config: Option<OsString>,
    /// `XDG_CONFIG_HOME`. Empty and relative ones count as absent (XDG Base Directory Specification 0.8).
    pub xdg_config_home: Option<OsString>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// What a relative `KFTRAY_CONFIG` begins at.
    pub current_directory: Option<PathBuf>,
}

/// By which rule a directory was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// `KFTRAY_CONFIG`.
    Variable,
    /// `$XDG_CONFIG_HOME/kftray`, which exists.
    Xdg,
    /// `~/.kftray`.
    Home,
    /// The caller named it.
    Given,
}

/// A user's configuration directory. Absolute; it need not exist until [`Directory::prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
    rule: Rule,
}

impl Environment {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            kftray_config: std::env::var_os("KFTRAY_CONFIG"),
            xdg_config_home: std::env::var_os("XDG_CONFIG_HOME"),
            home: std::env::home_dir(),
            current_directory: std::env::current_dir().ok(),
        }
    }
}

impl Directory {
    /// This directory. A relative path begins wherever the process is when it is used.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), rule: Rule::Given }
    }

    /// `KFTRAY_CONFIG`, else `$XDG_CONFIG_HOME/kftray` if `exists` says that it is there, else `~/.kftray`.
    ///
    /// # Errors
    /// [`Code::DirectoryRefused`] if nothing says where: no variable and no home.
    pub fn resolve(environment: &Environment, exists: impl Fn(&Path) -> bool) -> Result<Self, Problem> {
        let said =
            |value: &Option<OsString>| value.clone().filter(|text| !text.is_empty()).map(PathBuf::from);
        if let Some(path) = said(&environment.kftray_config) {
            let path = match &environment.current_directory {
                Some(start) => start.join(path),
                None => path,
            };
            return Ok(Self { path, rule: Rule::Variable });
        }
        let xdg = said(&environment.xdg_config_home).filter(|path| path.is_absolute());
        if let Some(path) = xdg.map(|path| path.join(XDG_NAME))
            && exists(&path)
        {
            return Ok(Self { path, rule: Rule::Xdg });
        }
        let home = environment.home.as_ref().filter(|home| home.is_absolute());
        let Some(home) = home else {
            let message = "neither KFTRAY_CONFIG nor the home directory is known";
            return Err(Problem::new(Code::DirectoryRefused, message)
                .with_remedy("Set HOME, or set KFTRAY_CONFIG to a directory that belongs to you alone."));
        };
        Ok(Self { path: home.join(HOME_NAME), rule: Rule::Home })
    }

    /// The other directories that the rules could choose and that hold forwards, as `exists` says: a person who does not
    /// find a forward may have it there.
    #[must_use]
    pub fn others(&self, environment: &Environment, exists: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let xdg = environment.xdg_config_home.as_ref().map(|xdg| Path::new(xdg).join(XDG_NAME));
        let home = environment.home.as_ref().map(|home| home.join(HOME_NAME));
        let there = |path: &PathBuf| {
            path.is_absolute()
                && *path != self.path
                && ["kftray.db", "configs.db"].iter().any(|name| exists(&path.join(name)))
        };
        [xdg, home].into_iter().flatten().filter(there).collect()
    }

    /// [`Directory::resolve`] with this process's environment and disk.
    ///
    /// # Errors
    /// As [`Directory::resolve`].
    pub fn of_process() -> Result<Self, Problem> {
        Self::resolve(&Environment::of_process(), Path::is_dir)
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// By which rule it was chosen.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// The store's file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path.join("kftray.db")
    }

    /// Makes sure that it exists, is a directory and no link, belongs to this user, and is closed to others (mode 0700;
    /// on Windows the profile's access list does that).
    ///
    /// # Errors
    /// [`Code::DirectoryRefused`] says what is wrong with it.
    pub fn prepare(&self) -> Result<(), Problem> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => self.judge(&found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = self.path.parent() {
                    fs::create_dir_all(parent).map_err(|error| self.refused(&error))?;
                }
                match platform::create_private_directory(&self.path) {
                    Ok(()) => Ok(()),
                    // Another program was quicker.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        let found = fs::symlink_metadata(&self.path).map_err(|error| self.refused(&error))?;
                        self.judge(&found)
                    }
                    Err(error) => Err(self.refused(&error)),
                }
            }
            Err(error) => Err(self.refused(&error)),
        }
    }

    fn judge(&self, found: &fs::Metadata) -> Result<(), Problem> {
        let path = self.path.display();
        let refused = |message: String| Problem::new(Code::DirectoryRefused, message);
        if found.is_symlink() {
            let remedy = "Set KFTRAY_CONFIG to the directory itself instead of a link to it.";
            return Err(refused(format!("{path} is a symbolic link")).with_remedy(remedy));
        }
        if !found.is_dir() {
            return Err(refused(format!("{path} is no directory")));
        }
        if let Some(owner) = platform::foreign_owner(found) {
            return Err(refused(format!("{path} belongs to another user (uid {owner})")));
        }
        match platform::close_to_others(&self.path, found) {
            Ok(()) => Ok(()),
            Err(error) => {
                Err(refused(format!("{path} is open to other users and cannot be closed: {error}")))
            }
        }
    }

    fn refused(&self, error: &io::Error) -> Problem {
        Problem::new(Code::DirectoryRefused, format!("{} cannot be used: {error}", self.path.display()))
    }
}
