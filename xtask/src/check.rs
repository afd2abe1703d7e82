//! `cargo xtask check`: everything about the sources that a machine can judge without running them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::command::{command, on_path, output, run, show};
use crate::layers;
use crate::paths::root;
use crate::wire;

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
    wire::check()?;
    show(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    show(cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    deny()?;
    println!("check: all is well");
    Ok(())
}

/// Licences, sources and bans from what is at hand; advisories from a database on the network.
fn deny() -> Result<()> {
    if !on_path("cargo-deny") {
        bail!("cargo-deny is not installed; `cargo xtask setup` installs what is missing");
    }
    let deny = |checks: &[&str]| {
        let mut deny = command("cargo", ["deny", "--workspace", "--locked", "check"]);
        deny.args(checks).current_dir(root());
        deny
    };
    show(&mut deny(&["bans", "licenses", "sources"]))?;
    println!("$ cargo deny check advisories");
    match run(&mut deny(&["advisories"])) {
        // A machine without a way to github.com can judge everything else.
        Err(error) if format!("{error:#}").contains("failed to fetch advisory database") => {
            println!(
                "NOT CHECKED: advisories, because their database (github.com/RustSec/advisory-db) cannot be reached from here"
            );
            Ok(())
        }
        result => result,
    }
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
const PLATFORM_MODULES: [&str; 19] = [
    // The mode of the key file, in its test.
    "crates/kftray-kube/src/relay/deploy/key.rs",
    "crates/kftray-commons/src/store/platform.rs",
    "crates/kftray-portforward/src/platform/",
    // Addresses and options of listening sockets.
    "crates/kftray-portforward/src/listener.rs",
    "crates/kftray-kube/src/config/paths.rs",
    "crates/kftray-kube/src/config/login/exec.rs",
    // Socket options of connections to the API server.
    "crates/kftray-kube/src/connect/tcp.rs",
    "crates/kftray-kube/src/connect/dial.rs",
    // Socket options of connections to targets.
    "crates/kftray-server/src/dial.rs",
    "crates/kftray-testkit/src/api/server.rs",
    "crates/kftray-testkit/src/kubeconfig.rs",
    "crates/kftui/src/signals.rs",
    "crates/kftui/src/child.rs",
    "crates/kftui/src/platform.rs",
    "xtask/src/",
    // The local socket, users, signals and limits.
    "crates/kftray-client/src/platform/",
    "crates/kftray-host/src/platform/",
    // Listeners from one process to the next, and word of the network.
    "crates/kftray-host/src/handover/",
    "crates/kftray-host/src/network/",
];

/// What a condition on the platform looks like.
const PLATFORM_CONDITIONS: [&str; 6] =
    ["target_os", "target_vendor", "target_family", "(unix", "(windows", " unix)"];

/// Every module says why it exists, and platform code is where it belongs.
fn sources() -> Result<()> {
    let mut faults = Vec::new();
    for path in rust_sources()? {
        let name = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path)?;
        if !text.starts_with("//!") {
            faults.push(format!("{name}:1: a module opens with `//!` and says why it exists"));
        }
        // A test may well be about one system.
        let is_test = name.starts_with("tests/") || name.starts_with("benches/") || name.contains("/tests/");
        if !is_test && !PLATFORM_MODULES.iter().any(|allowed| name.starts_with(allowed)) {
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

/// Where our Rust sources are.
const SOURCES: [&str; 5] = ["crates", "tests", "benches", "fuzz", "xtask"];

fn rust_sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = SOURCES.iter().map(|name| root().join(name)).collect();
    while let Some(directory) = directories.pop() {
        if !directory.is_dir() || directory.ends_with("target") {
            continue;
        }
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
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
