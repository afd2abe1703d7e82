//! Which kubeconfig files are meant: an explicit path list, else `KUBECONFIG`, else `~/.kube/config`.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::Environment;

/// The paths to read, absolute, in order, none twice. A path may be a folder. Empty only without a home folder.
///
/// An absent, empty or `default` list is the same ("default" is what the reference stores for it).
pub(crate) fn kubeconfig_paths(list: Option<&str>, environment: &Environment) -> Vec<PathBuf> {
    let explicit = list.map(str::trim).filter(|list| !list.is_empty() && *list != "default");
    let mut paths = Vec::new();
    if let Some(list) = explicit.map(OsStr::new).or_else(|| environment.get("KUBECONFIG")) {
        for path in std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()) {
            let path = environment.absolute(&path);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    if paths.is_empty()
        && let Some(home) = environment.home()
    {
        paths.push(home.join(".kube").join("config"));
    }
    paths
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::path::Path;

    use super::*;

    fn paths(list: Option<&str>, variables: &[(&str, &str)]) -> Vec<PathBuf> {
        kubeconfig_paths(list, &Environment::new(variables.iter().copied(), "/cwd"))
    }

    #[test]
    fn explicit_list_wins_over_the_environment() {
        let variables = [("HOME", "/home/me"), ("KUBECONFIG", "/e1::e2:/e1")];
        assert_eq!(paths(Some("a:/b:~/c:"), &variables), ["/cwd/a", "/b", "/home/me/c"].map(PathBuf::from));
        assert_eq!(paths(None, &variables), ["/e1", "/cwd/e2"].map(PathBuf::from));
    }

    #[test]
    fn absent_empty_and_default_are_the_same() {
        for list in [None, Some(""), Some("  "), Some("default"), Some(":")] {
            assert_eq!(
                paths(list, &[("HOME", "/home/me"), ("KUBECONFIG", "")]),
                [Path::new("/home/me/.kube/config")]
            );
        }
        assert_eq!(paths(None, &[]), Vec::<PathBuf>::new());
    }
}
