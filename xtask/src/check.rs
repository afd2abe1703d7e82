//! `cargo xtask check`: everything about the sources that a machine can judge without running them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::command::{command, on_path, output, show};
use crate::layers;
use crate::paths::root;

/// Runs every check, and stops at the first that fails.
pub(crate) fn check() -> Result<()> {
    let cargo = |args: &[&str]| {
        let mut cargo = command("cargo", args);
        cargo.current_dir(root());
        cargo
    };
    show(&mut cargo(&["fmt", "--all", "--check"]))?;
    gofmt()?;
    sources()?;
    layers::check()?;
    show(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    show(cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    if !on_path("cargo-deny") {
        bail!("cargo-deny is not installed; `cargo xtask setup` installs what is missing");
    }
    show(&mut cargo(&["deny", "--workspace", "check"]))?;
    println!("check: all is well");
    Ok(())
}

fn gofmt() -> Result<()> {
    if !on_path("gofmt") {
        println!("gofmt is not installed: the Go sources of testcluster/ are not checked");
        return Ok(());
    }
    let unformatted = output(command("gofmt", ["-l", "testcluster"]).current_dir(root()))?;
    if !unformatted.is_empty() {
        bail!("not formatted; run `gofmt -w` on:\n{unformatted}");
    }
    // The fixture needs the standard library only; the cluster's program is judged by being built.
    show(command("go", ["vet", "."]).current_dir(root().join("testcluster/fixture")))
}

/// Where platform code may be: modules that offer the same functions for each system, so that nobody else needs to know which it is.
const PLATFORM_MODULES: [&str; 5] = [
    "crates/kftray-portforward/src/platform/",
    "crates/kftray-kube/src/config/paths.rs",
    "crates/kftray-kube/src/config/login/exec.rs",
    "crates/kftray-testkit/src/api/server.rs",
    "xtask/src/",
];

/// What a condition on the platform looks like.
const PLATFORM_CONDITIONS: [&str; 9] = [
    "target_os",
    "target_vendor",
    "target_family",
    "cfg(unix",
    "cfg(windows",
    "cfg(not(unix",
    "cfg(not(windows",
    "cfg!(unix",
    "cfg!(windows",
];

/// Every module says why it exists, and platform code is where it belongs.
fn sources() -> Result<()> {
    let mut faults = Vec::new();
    for path in rust_sources()? {
        let name = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path)?;
        if !text.starts_with("//!") {
            faults.push(format!("{name}:1: a module opens with `//!` and says why it exists"));
        }
        if !PLATFORM_MODULES.iter().any(|allowed| name.starts_with(allowed)) {
            faults.extend(platform_lines(&text).map(|line| {
                format!(
                    "{name}:{line}: platform conditions belong in the modules listed in xtask/src/check.rs"
                )
            }));
        }
    }
    if !faults.is_empty() {
        bail!("{} faults in the sources:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

/// Numbers of the lines that have a condition on the platform.
fn platform_lines(text: &str) -> impl Iterator<Item = usize> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let code = line.trim_start();
        let conditional = code.starts_with("#[cfg") || code.starts_with("#![cfg") || code.contains("cfg!(");
        (conditional && PLATFORM_CONDITIONS.iter().any(|condition| code.contains(condition)))
            .then_some(index + 1)
    })
}

/// Every Rust file that git knows or would add.
fn rust_sources() -> Result<Vec<PathBuf>> {
    let listed = output(
        command("git", ["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"])
            .current_dir(root()),
    )?;
    Ok(listed.lines().map(|line| root().join(Path::new(line))).filter(|path| path.exists()).collect())
}

#[cfg(test)]
mod tests {
    use super::platform_lines;

    #[test]
    fn platform_conditions_are_found() {
        let text = "//! x\n#[cfg(target_os = \"linux\")]\nmod linux;\n    #[cfg(not(unix))]\n#[cfg(test)]\nif cfg!(windows) {}\n";
        assert_eq!(platform_lines(text).collect::<Vec<_>>(), [2, 4, 6]);
    }

    #[test]
    fn words_and_comments_are_not() {
        let text = "// on #[cfg(unix)] systems\nlet target_os = 1;\n";
        assert_eq!(platform_lines(text).count(), 0);
    }
}
