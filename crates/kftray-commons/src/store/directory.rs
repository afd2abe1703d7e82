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

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(kftray: &str, xdg: &str, home: &str) -> Environment {
        let said = |text: &str| (text != "-").then(|| OsString::from(text));
        Environment {
            kftray_config: said(kftray),
            xdg_config_home: said(xdg),
            home: said(home).map(PathBuf::from),
            current_directory: Some("/work".into()),
        }
    }

    fn resolved(kftray: &str, xdg: &str, home: &str, there: &[&str]) -> Option<(String, Rule)> {
        let exists = |path: &Path| there.iter().any(|known| Path::new(known) == path);
        let found = Directory::resolve(&environment(kftray, xdg, home), exists).ok()?;
        Some((found.path().to_string_lossy().into_owned(), found.rule()))
    }

    #[cfg(unix)]
    #[test]
    fn the_rules_in_their_order() {
        let all = ["/x/kftray", "/home/u/.kftray"];
        let cases = [
            ("/k", "/x", "/home/u", &all[..], Some(("/k", Rule::Variable))),
            ("k", "/x", "/home/u", &all, Some(("/work/k", Rule::Variable))),
            ("", "/x", "/home/u", &all, Some(("/x/kftray", Rule::Xdg))),
            ("-", "/x", "/home/u", &all, Some(("/x/kftray", Rule::Xdg))),
            ("-", "/x", "/home/u", &all[1..], Some(("/home/u/.kftray", Rule::Home))),
            ("-", "/x", "/home/u", &[], Some(("/home/u/.kftray", Rule::Home))),
            ("-", "", "/home/u", &all, Some(("/home/u/.kftray", Rule::Home))),
            ("-", "x", "/home/u", &["x/kftray"], Some(("/home/u/.kftray", Rule::Home))),
            ("-", "-", "/home/u", &all, Some(("/home/u/.kftray", Rule::Home))),
            ("-", "-", "", &all, None),
            ("-", "-", "-", &all, None),
        ];
        for (kftray, xdg, home, there, expected) in cases {
            let found = resolved(kftray, xdg, home, there);
            let found = found.as_ref().map(|(path, rule)| (path.as_str(), *rule));
            assert_eq!(found, expected, "{kftray} {xdg} {home} {there:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn it_is_closed_to_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;

        let fresh = temporary.path().join("a/b/kftray");
        Directory::at(&fresh).prepare().expect("made");
        assert_eq!(mode(&fresh), 0o700);

        let open = temporary.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("opened");
        Directory::at(&open).prepare().expect("closed");
        assert_eq!(mode(&open), 0o700);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_files_are_refused() {
        let temporary = tempfile::tempdir().expect("a directory");
        let real = temporary.path().join("real");
        fs::create_dir(&real).expect("made");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let file = temporary.path().join("file");
        fs::write(&file, "").expect("written");
        for (path, word) in
            [(&link, "symbolic link"), (&file, "no directory"), (&file.join("below"), "cannot be used")]
        {
            let problem = Directory::at(path.clone()).prepare().expect_err("refused");
            assert_eq!(problem.code, Code::DirectoryRefused);
            assert!(problem.message.contains(word), "{problem}");
        }
        // A link on the way to it is the business of whoever made it.
        Directory::at(link.join("below")).prepare().expect("made");
    }
}
