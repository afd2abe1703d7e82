//! Reading kubeconfig files and merging them by the documented rules
//! (<https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/#merging-kubeconfig-files>).

use std::io;
use std::path::{Path, PathBuf};

use kftray_commons::{Code, Problem};
use kube::config::{Kubeconfig, KubeconfigError};

/// Kubeconfig files, merged.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The merge; relative paths in it are absolute by now.
    pub(crate) config: Kubeconfig,
    /// The files it was read from.
    pub(crate) files: Vec<PathBuf>,
    /// Files of a folder that are no kubeconfig, with the reason.
    pub(crate) ignored: Vec<(PathBuf, String)>,
}

impl Loaded {
    /// Reads every path; a folder stands for its files in the order of their names. A path that does not exist is passed over
    /// as long as another one does. Blocks on the disk.
    ///
    /// # Errors
    /// [`Code::KubeconfigMissing`] for none there or one unreadable, [`Code::KubeconfigInvalid`] with file and line.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, Problem> {
        let mut loaded = Self::default();
        for path in paths {
            match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => loaded.add_folder(path)?,
                Ok(_) => loaded.add_file(path)?,
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(unreadable(path, &error)),
            }
        }
        if loaded.files.is_empty() { Err(missing(paths, &loaded.ignored)) } else { Ok(loaded) }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Problem> {
        let config = parse(path)?;
        self.merge(path, config)
    }

    /// A folder may hold other things than kubeconfigs (a README, a `config.lock`): those are passed over, but kept in mind
    /// for the message when the context is not found.
    fn add_folder(&mut self, folder: &Path) -> Result<(), Problem> {
        let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
                    && path.is_file()
            })
            .collect();
        files.sort();
        for file in files {
            match parse(&file) {
                Ok(config)
                    if config.contexts.is_empty()
                        && config.clusters.is_empty()
                        && config.auth_infos.is_empty() => {}
                Ok(config) => self.merge(&file, config)?,
                Err(problem) => {
                    tracing::debug!(file = %file.display(), %problem, "not a kubeconfig, passed over");
                    self.ignored.push((file, problem.message));
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, path: &Path, mut config: Kubeconfig) -> Result<(), Problem> {
        // An empty `current-context: ""` sets nothing (clientcmd treats the empty string as unset).
        config.current_context = config.current_context.filter(|name| !name.is_empty());
        let so_far = std::mem::take(&mut self.config);
        self.config = so_far.merge(config).map_err(|error| problem(path, &error))?;
        self.files.push(path.to_owned());
        Ok(())
    }
}

fn parse(path: &Path) -> Result<Kubeconfig, Problem> {
    Kubeconfig::read_from(path).map_err(|error| problem(path, &error))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn problem(path: &Path, error: &KubeconfigError) -> Problem {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other kind is an invalid file, with its own text"
    )]
    match error {
        KubeconfigError::ReadConfig(error, _) if error.kind() == io::ErrorKind::InvalidData => {
            Problem::new(Code::KubeconfigInvalid, format!("{}: is not text ({error})", path.display()))
        }
        KubeconfigError::ReadConfig(error, _) => unreadable(path, error),
        KubeconfigError::Parse(error) => {
            // The rest of the text quotes the file, which holds secrets.
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_end_matches(':').to_owned();
            let place =
                error.location().map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
            Problem::new(Code::KubeconfigInvalid, format!("{}{place}: {first}", path.display()))
        }
        KubeconfigError::KindMismatch | KubeconfigError::ApiVersionMismatch => Problem::new(
            Code::KubeconfigInvalid,
            format!("{}: kind or apiVersion differs from the files before it in the list", path.display()),
        ),
        other => Problem::new(Code::KubeconfigInvalid, format!("{}: {other}", path.display())),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::KubeconfigMissing, format!("kubeconfig {} cannot be read: {error}", path.display()))
}

fn missing(paths: &[PathBuf], ignored: &[(PathBuf, String)]) -> Problem {
    let list = |paths: &mut dyn Iterator<Item = &PathBuf>| {
        paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let message = if paths.is_empty() {
        "there is no kubeconfig: KUBECONFIG is not set and there is no home folder".to_owned()
    } else if ignored.is_empty() {
        format!("there is no kubeconfig at {}", list(&mut paths.iter()))
    } else {
        format!(
            "there is no kubeconfig at {}; no kubeconfig are: {}",
            list(&mut paths.iter()),
            list(&mut ignored.iter().map(|(path, _)| path))
        )
    };
    Problem::new(Code::KubeconfigMissing, message)
}
