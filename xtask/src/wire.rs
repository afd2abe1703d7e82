//! The relay's wire does not change under programs that are out there: a guard over the vectors of each version.
//!
//! Three things hold together: the tests of `kftray-relay-proto` compare the code with `vectors/vN.txt`; here each file is
//! compared with its hash in `vectors/frozen.txt`; and the hashes of the last release must all still be there. So a change
//! of the wire fails a test, a change of the vectors fails here, and a change of a released hash fails here too. What is
//! left is a new version with a file of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::command::{command, output};
use crate::paths::root;

const VECTORS: &str = "crates/kftray-relay-proto/vectors";
const FROZEN: &str = "frozen.txt";
const VERSION: &str = "crates/kftray-relay-proto/src/version.rs";

/// Fails when a version's vectors are not what they were.
pub(crate) fn check() -> Result<()> {
    let directory = root().join(VECTORS);
    let frozen = fs::read_to_string(directory.join(FROZEN)).context("the list of the wire's versions")?;
    let mut faults = against_list(&directory, &frozen)?;
    let highest = highest(&fs::read_to_string(root().join(VERSION))?)?;
    if !names(&frozen).any(|name| name == format!("v{highest}.txt")) {
        faults.push(format!("version {highest} has no vectors: v{highest}.txt and its line in {FROZEN}"));
    }
    if let Some(released) = released() {
        faults.extend(against_release(&frozen, &released));
    }
    if !faults.is_empty() {
        bail!(
            "the relay's wire has changed ({VECTORS}; \"Growth\" in kftray-relay-proto says what needs a new version):\n{}",
            faults.join("\n")
        );
    }
    Ok(())
}

/// Hash and name, as `sha256sum` writes them.
fn lines(frozen: &str) -> impl Iterator<Item = (&str, &str)> {
    frozen.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once("  "))
}

fn names(frozen: &str) -> impl Iterator<Item = &str> {
    lines(frozen).map(|(_, name)| name)
}

fn against_list(directory: &Path, frozen: &str) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (hash, name) in lines(frozen) {
        let Ok(contents) = fs::read(directory.join(name)) else {
            faults.push(format!("{name} is gone"));
            continue;
        };
        let found: String = Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect();
        if found != hash {
            faults.push(format!(
                "{name} differs from its hash: released versions never change (its hash is {found})"
            ));
        }
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != FROZEN && !names(frozen).any(|known| known == name) {
            faults.push(format!("{name} is not in {FROZEN}"));
        }
    }
    faults.sort();
    Ok(faults)
}

fn against_release(frozen: &str, released: &str) -> Vec<String> {
    let kept = |line: &(&str, &str)| lines(frozen).any(|now| now == *line);
    let lost = lines(released).filter(|line| !kept(line));
    lost.map(|(_, name)| format!("{name} was released with another hash: raise the version instead"))
        .collect()
}

/// The list as the last release had it; `None` before the first, and outside of a repository.
fn released() -> Option<String> {
    let git = |args: &[&str]| output(command("git", args).current_dir(root())).ok();
    let tag = git(&["describe", "--tags", "--abbrev=0", "--match", "v*"])?;
    git(&["show", &format!("{}:{VECTORS}/{FROZEN}", tag.trim())])
}

/// The newest version that the code speaks.
fn highest(source: &str) -> Result<u16> {
    let line = source.lines().find(|line| line.contains("SUPPORTED: Versions"));
    let number =
        line.and_then(|line| line.split("highest: ").nth(1)?.split([' ', ',', '}']).next()?.parse().ok());
    number.with_context(|| format!("{VERSION} names no highest version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn what_changes_is_found() {
        let directory = std::env::temp_dir().join(format!("kftray-wire-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("v1.txt"), "hello").unwrap();
        let frozen = format!("# comment\n{HELLO}  v1.txt\n");
        assert!(against_list(&directory, &frozen).unwrap().is_empty());
        fs::write(directory.join("v1.txt"), "hello!").unwrap();
        fs::write(directory.join("v2.txt"), "new").unwrap();
        let faults = against_list(&directory, &frozen).unwrap();
        assert_eq!(faults.len(), 2, "{faults:?}");
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(against_release(&frozen, &frozen), Vec::<String>::new());
        assert_eq!(against_release("0123  v1.txt\n", &frozen).len(), 1);
    }

    #[test]
    fn the_version_is_read_from_the_source() {
        let line = "pub const SUPPORTED: Versions = Versions { lowest: 1, highest: 12 };";
        assert_eq!(highest(line).unwrap(), 12);
        assert!(highest("").is_err());
    }

    #[test]
    fn the_committed_vectors_are_whole() {
        check().unwrap();
    }
}
