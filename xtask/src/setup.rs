//! `cargo xtask setup`: what the other chores need on this machine, installed where we know how, else named.

use anyhow::{Context as _, Result, bail};

use crate::command::{command, on_path, run, show};

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    /// Looked for on the PATH (an absolute path: at that place).
    program: &'static str,
    package: &'static str,
    /// Why it is needed.
    purpose: &'static str,
}

pub(crate) const fn tool(program: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { program, package, purpose }
}

const TOOLS: [Tool; 17] = [
    tool("runc", "runc", "the cluster's containers"),
    tool("/usr/lib/cni/bridge", "containernetworking-plugins", "the pods' network"),
    tool("iptables", "iptables", "the cluster's Services, and faults"),
    tool("ip", "iproute2", "the node's network namespace"),
    tool("nsenter", "util-linux", "processes in the node's network namespace"),
    tool("curl", "curl", "end-to-end tests: a client"),
    tool("psql", "postgresql-client", "end-to-end tests: a client"),
    tool("redis-cli", "redis-tools", "end-to-end tests: a client"),
    tool("dig", "bind9-dnsutils", "end-to-end tests: a client"),
    tool("logger", "bsdutils", "end-to-end tests: a client"),
    tool("nc", "netcat-openbsd", "end-to-end tests: a client"),
    tool("ps", "procps", "end-to-end tests: processes' memory"),
    tool("tinyproxy", "tinyproxy-bin", "tests through an HTTP proxy"),
    tool("microsocks", "microsocks", "tests through a SOCKS proxy"),
    tool("openssl", "openssl", "tests through a TLS proxy"),
    tool("tmux", "tmux", "tests of the window in a terminal"),
    tool("wrk", "wrk", "benchmarks: HTTP load"),
];

/// Cargo's subcommands that we use, and why.
const SUBCOMMANDS: [(&str, &str); 2] =
    [("cargo-nextest", "the test runner"), ("cargo-deny", "licences and advisories")];

/// Installs what is missing.
pub(crate) fn setup() -> Result<()> {
    install(&TOOLS)?;
    for (name, _) in SUBCOMMANDS {
        if !on_path(name) {
            show(&mut command("cargo", ["install", "--locked", name]))?;
        }
    }
    if !on_path("go") {
        bail!(
            "Go is missing: it builds the test cluster. Install 1.21 or newer (it fetches the version it needs itself), see https://go.dev/dl"
        );
    }
    println!("setup: everything is there");
    Ok(())
}

/// Installs those of these tools that are missing.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if !cfg!(target_os = "linux") {
        println!("setup: the test cluster and its end-to-end tests need Linux; everything else works here");
        return Ok(());
    }
    if !on_path("apt-get") {
        for tool in missing {
            println!(
                "missing: {} ({}); Debian has it in package {}",
                tool.program, tool.purpose, tool.package
            );
        }
        bail!("install the programs above with this system's package manager");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run as root: apt-get install -y --no-install-recommends {}", packages.join(" "));
    }
    let get = || {
        show(
            command("apt-get", ["install", "-y", "-q", "--no-install-recommends"])
                .args(&packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    get().or_else(|_| {
        // A fresh machine's lists may be missing or old.
        run(&mut command("apt-get", ["update", "-q"])).context("cannot refresh the package lists")?;
        get()
    })
}

impl Tool {
    fn is_there(&self) -> bool {
        // `join` takes an absolute path as it is.
        on_path(self.program)
    }
}
