//! What a picker shows of a kubeconfig: its contexts, without touching any cluster.

use std::path::PathBuf;

use kftray_commons::Problem;

use super::{Environment, Loaded, kubeconfig_paths};

/// The contexts of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contexts {
    /// In the order of the files.
    pub contexts: Vec<KnownContext>,
    /// The current one, if the kubeconfig names one.
    pub current: Option<String>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// One context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownContext {
    /// Its name.
    pub name: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Its user's name, if it has one.
    pub user: Option<String>,
    /// Its namespace, if it names one.
    pub namespace: Option<String>,
}

impl Contexts {
    /// Reads them; `kubeconfig` is a path list, `None` the environment's. Blocks on the disk.
    ///
    /// # Errors
    /// [`kftray_commons::Code::KubeconfigMissing`], [`kftray_commons::Code::KubeconfigInvalid`].
    pub fn read(kubeconfig: Option<&str>, environment: &Environment) -> Result<Self, Problem> {
        let Loaded { config, files, .. } = Loaded::read(&kubeconfig_paths(kubeconfig, environment))?;
        let known = config.contexts.into_iter().map(|named| {
            let context = named.context.unwrap_or_default();
            KnownContext {
                name: named.name,
                cluster: context.cluster,
                user: context.user.filter(|name| !name.is_empty()),
                namespace: context.namespace.filter(|name| !name.is_empty()),
            }
        });
        Ok(Self { contexts: known.collect(), current: config.current_context, files })
    }
}
