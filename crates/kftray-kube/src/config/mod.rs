//! What the user's machine says about clusters: environment, kubeconfig files, the chosen context, credentials, and word of
//! any change to them.

mod contexts;
mod entry;
mod environment;
mod files;
mod load;
pub(crate) mod login;
mod paths;

pub use contexts::{Contexts, KnownContext};
pub(crate) use entry::Entry;
pub use environment::Environment;
pub(crate) use files::FileWatch;
pub(crate) use load::Loaded;
pub(crate) use paths::kubeconfig_paths;
