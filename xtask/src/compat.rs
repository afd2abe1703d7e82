//! `cargo xtask compat`: an older build and this one together. Each talks to the other's host, a live forward is handed over
//! both ways, and each opens the other's store (`tests/e2e/tests/compat.rs`).
//!
//! Not part of `cargo xtask test`: the older build takes minutes the first time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::cluster::{self, Profile, Which};
use crate::command::{command, output, run, show};
use crate::paths::{cache, root};
use crate::{setup, test};

/// What is compared with while nothing has been released: the first state with a host and its API, version 1.
const FIRST: &str = "109c093";

const HELP: &str = "\
Examples:
  cargo xtask compat                    with the newest release
  cargo xtask compat --old v0.2.0
  cargo xtask compat --old HEAD~50 --keep

The older one is built once and kept in the cache. What was found last is in docs/reliability.md.";

/// Which older build.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Compat {
    /// The older one: a tag, branch or commit [default: the newest release; 109c093 while there is none]
    #[arg(long, value_name = "REV")]
    old: Option<String>,
    /// Leave the cluster up, for the next run or a look at it
    #[arg(long)]
    keep: bool,
}

impl Compat {
    /// Builds both, brings a cluster of its own up, and runs the tests; their tables are shown.
    pub(crate) fn run(&self) -> Result<()> {
        setup::setup()?;
        let commit = commit(self.old.as_deref())?;
        let old = program(&commit)?;
        test::build()?;
        let which = Which::named(Profile::Default, "compat");
        cluster::up(&which, false)?;
        println!("old: {commit}");
        let result = cluster::load(&which).and_then(|()| together(&which, &old));
        if !self.keep {
            cluster::down(&which)?;
        }
        result
    }
}

fn together(which: &Which, old: &Path) -> Result<()> {
    let args = ["nextest", "run", "--locked", "-p", "kftray-e2e", "--profile", "e2e", "--no-capture"];
    let mut tests = command("cargo", args);
    tests.args(["-E", "binary(compat)"]).current_dir(root());
    test::environment(&mut tests, which)?;
    show(tests.env("KFTRAY_E2E_OLD", old))
}

/// The commit of a revision.
fn commit(asked: Option<&str>) -> Result<String> {
    let git = |args: &[&str]| output(command("git", args).current_dir(root()));
    let released = || git(&["describe", "--tags", "--abbrev=0", "--match", "v*"]).ok();
    let revision = match asked {
        Some(revision) => revision.to_owned(),
        None => released().map_or_else(|| FIRST.to_owned(), |tag| tag.trim().to_owned()),
    };
    let wanted = format!("{revision}^{{commit}}");
    let found = git(&["rev-parse", "--verify", "--quiet", &wanted]);
    Ok(found.with_context(|| format!("there is no revision {revision}"))?.trim().to_owned())
}

/// The `kftui` of a commit, built once and kept in the cache.
fn program(commit: &str) -> Result<PathBuf> {
    let place = cache()?.join("compat").join(commit);
    let program = place.join("kftui");
    if program.is_file() {
        return Ok(program);
    }
    std::fs::create_dir_all(&place)?;
    let (tree, build) = (place.join("tree"), place.join("target"));
    let git = |args: &[&str]| -> std::process::Command {
        let mut git = command("git", args);
        git.arg(&tree).current_dir(root());
        git
    };
    if tree.exists() {
        // Left by a run that was cut short.
        run(&mut git(&["worktree", "remove", "--force"]))?;
    }
    run(git(&["worktree", "add", "--force", "--detach"]).arg(commit))?;
    // Unoptimised: it is asked what it says, not how fast, and this takes a third of the time.
    let mut cargo = command("cargo", ["build", "--locked", "-p", "kftui", "--target-dir"]);
    // The toolchain is the older tree's own, not the one this program was built with.
    let built = show(cargo.arg(&build).current_dir(&tree).env_remove("RUSTUP_TOOLCHAIN"));
    let kept = built.and_then(|()| Ok(std::fs::copy(build.join("debug/kftui"), &program).map(drop)?));
    run(&mut git(&["worktree", "remove", "--force"]))?;
    // Gigabytes that nobody needs again; there is none if the build did not begin.
    std::fs::remove_dir_all(&build).ok();
    kept.map(|()| program)
}
