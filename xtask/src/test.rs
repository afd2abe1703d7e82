//! `cargo xtask test`: every test there is, from unit tests to the built program on real clusters.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::cluster::{self, Profile, Which};
use crate::command::{command, show};
use crate::paths::{root, target};
use crate::setup;

const HELP: &str = "\
Examples:
  cargo xtask test --no-e2e                  no cluster, no root
  cargo xtask test --no-e2e kubeconfig       of these, the ones with `kubeconfig` in their names
  cargo xtask test --e2e --keep              on real clusters, which stay up for the next run
  cargo xtask test --e2e liveness            the end-to-end tests of that name
  cargo xtask test --e2e --profile old       on Kubernetes 1.30 (its first build takes five minutes)

It runs `cargo xtask setup` first. For one crate `cargo nextest run -p CRATE` is enough. When a
test on a cluster fails, the cluster's logs are kept in target/e2e-logs.";

/// Which tests.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Test {
    /// Only the tests that need no cluster (any system, no root)
    #[arg(long, conflicts_with = "e2e")]
    no_e2e: bool,
    /// Only the end-to-end tests on real clusters
    #[arg(long)]
    e2e: bool,
    /// With --e2e: only on the cluster of this profile
    #[arg(long, value_enum, requires = "e2e")]
    profile: Option<Profile>,
    /// With --e2e: leave the clusters up, for the next run or a look at them
    #[arg(long, requires = "e2e")]
    keep: bool,
    /// Only tests whose names contain one of these
    filters: Vec<String>,
}

/// A cluster of the end-to-end tests and which of them run on it.
struct Stage {
    profile: Profile,
    /// Its own name, so that a developer's cluster is left alone.
    name: &'static str,
    /// A nextest filter expression.
    tests: &'static str,
    /// Else only when its profile is asked for.
    always: bool,
    /// With an Ingress controller.
    ingress: bool,
}

/// What depends on how the cluster is spoken to; the other tests would only repeat themselves on a second cluster.
const CARRIER_TESTS: &str = "binary(clients) | binary(rollout) | binary(bytes)";

/// The old Kubernetes speaks what the one without tunnel speaks, and its build takes another five minutes: on demand only.
/// `compat` needs an older build, and has a chore of its own.
///
/// The relay's tests have a cluster of their own (half a minute): they install a relay for everybody, take memory away, restart
/// the runtime and leave relays that end in their own time, which the others, some of which measure, would notice.
const STAGES: [Stage; 4] = [
    Stage {
        profile: Profile::Default,
        name: "e2e",
        tests: "not binary(/^relay_|^compat$/)",
        always: true,
        ingress: false,
    },
    Stage {
        profile: Profile::Default,
        name: "e2e-relay",
        tests: "binary(/^relay_/)",
        always: true,
        ingress: true,
    },
    Stage {
        profile: Profile::SpdyOnly,
        name: "e2e-spdy-only",
        tests: CARRIER_TESTS,
        always: true,
        ingress: false,
    },
    Stage { profile: Profile::Old, name: "e2e-old", tests: CARRIER_TESTS, always: false, ingress: false },
];

impl Test {
    /// Runs them and ends with the runners' closing lines.
    pub(crate) fn run(&self) -> Result<()> {
        if !self.no_e2e && !cfg!(target_os = "linux") {
            bail!("the end-to-end tests need Linux; `cargo xtask test --no-e2e` runs all the others");
        }
        if !self.no_e2e && !nix::unistd::geteuid().is_root() {
            bail!(
                "the end-to-end tests need root for their cluster; run as root, or `cargo xtask test --no-e2e` for all the others"
            );
        }
        setup::setup()?;
        let mut closing = Vec::new();
        let mut failed = Vec::new();
        if !self.e2e {
            let mut keep = |what: &str, result: Result<Vec<String>>| match result {
                Ok(lines) => closing.push((what.to_owned(), lines)),
                Err(error) => failed.push(format!("{what}: {error:#}")),
            };
            keep("unit and integration tests", self.workspace());
            if self.filters.is_empty() {
                keep("documentation tests", watch(&mut cargo(&["test", "--workspace", "--doc", "--locked"])));
            }
        }
        if !self.no_e2e {
            build()?;
            let chosen =
                |stage: &&Stage| self.profile.map_or(stage.always, |profile| profile == stage.profile);
            for stage in STAGES.iter().filter(chosen) {
                match self.stage(stage) {
                    Ok(lines) => closing.push((format!("end-to-end tests, cluster {}", stage.name), lines)),
                    Err(error) => failed.push(format!("end-to-end tests, cluster {}: {error:#}", stage.name)),
                }
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("\n"));
        }
        for (what, lines) in closing {
            println!("{what}:");
            lines.iter().for_each(|line| println!("{line}"));
        }
        Ok(())
    }

    fn workspace(&self) -> Result<Vec<String>> {
        let nextest = ["nextest", "run", "--locked", "--workspace", "-E", "not package(kftray-e2e)"];
        // With a filter it is no fault that most crates have nothing to run.
        watch(cargo(&nextest).args(&self.filters).arg("--no-tests=pass"))
    }

    fn stage(&self, stage: &Stage) -> Result<Vec<String>> {
        let which = Which::named(stage.profile, stage.name);
        cluster::up(&which, false)?;
        let result = cluster::load(&which)
            .and_then(|()| cluster::load_relay(&which))
            .and_then(|()| if stage.ingress { cluster::load_ingress(&which) } else { Ok(()) })
            .and_then(|()| self.on_cluster(stage, &which));
        if result.is_err() {
            let kept = target().join("e2e-logs").join(stage.name);
            cluster::keep_logs(&which, &kept)?;
            println!("the cluster's logs are kept in {}", kept.display());
        }
        if !self.keep {
            cluster::down(&which)?;
        }
        result
    }

    fn on_cluster(&self, stage: &Stage, which: &Which) -> Result<Vec<String>> {
        let filter = format!("package(kftray-e2e) & ({})", stage.tests);
        // Of the workspace, though only one package runs: alone it would have its dependencies built anew with fewer features.
        let mut tests =
            cargo(&["nextest", "run", "--locked", "--workspace", "--profile", "e2e", "-E", &filter]);
        tests.args(&self.filters).arg("--no-tests=pass");
        environment(&mut tests, which)?;
        watch(&mut tests)
    }
}

/// Builds what the end-to-end tests and the benchmarks run: what users run, hence optimised.
pub(crate) fn build() -> Result<()> {
    show(&mut cargo(&["build", "--release", "--locked", "-p", "kftui"]))?;
    show(&mut cargo(&["build", "--locked", "-p", "xtask"]))
}

/// Points a program at the cluster and at the built programs.
pub(crate) fn environment(program: &mut Command, which: &Which) -> Result<()> {
    let suffix = std::env::consts::EXE_SUFFIX;
    program
        .env("KFTRAY_E2E_KFTUI", target().join(format!("release/kftui{suffix}")))
        .env("KFTRAY_E2E_XTASK", target().join(format!("debug/xtask{suffix}")));
    for (name, value) in cluster::environment(which)? {
        match name {
            "KUBECONFIG" => program.env("KFTRAY_E2E_KUBECONFIG", value),
            "KFTRAY_CLUSTER_NAME" => program.env("KFTRAY_E2E_CLUSTER", value),
            "KFTRAY_CLUSTER_KUBECTL" => {
                // The cluster's own kubectl before any other, since a machine may have none or an old one.
                let own = PathBuf::from(&value);
                let path = std::env::var_os("PATH").unwrap_or_default();
                let directories =
                    own.parent().map(PathBuf::from).into_iter().chain(std::env::split_paths(&path));
                program.env("PATH", std::env::join_paths(directories)?)
            }
            other => program.env(other, value),
        };
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Command {
    let mut cargo = command("cargo", args);
    cargo.current_dir(root());
    cargo
}

/// Runs a test runner in the open and returns its closing lines.
fn watch(runner: &mut Command) -> Result<Vec<String>> {
    let program = runner.get_program().to_string_lossy().into_owned();
    let args: Vec<_> = runner.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    println!("$ {program} {}", args.join(" "));
    let mut child =
        runner.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start cargo")?;
    let (out, err) = (child.stdout.take().context("no output")?, child.stderr.take().context("no output")?);
    // nextest reports on standard error, doc tests on standard output.
    let mut closing = std::thread::scope(|scope| -> Result<Vec<String>> {
        let reports = scope.spawn(move || pass_on(err, |line| eprintln!("{line}")));
        let mut lines = pass_on(out, |line| println!("{line}"))?;
        lines.extend(
            reports
                .join()
                .map_err(|_| anyhow::anyhow!("the reader of the test runner's output panicked"))??,
        );
        Ok(lines)
    })?;
    let status = child.wait()?;
    if !status.success() {
        closing.insert(0, format!("`{program} {}` failed ({status})", args.join(" ")));
        bail!("{}", closing.join("\n"));
    }
    Ok(closing)
}

fn pass_on(output: impl std::io::Read, show: impl Fn(&str)) -> Result<Vec<String>> {
    let mut closing = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        show(&line);
        if is_closing(&line) {
            closing.push(line);
        }
    }
    Ok(closing)
}

/// nextest: `     Summary [   1.2s] 10 tests run: 10 passed, 0 skipped`; the standard runner: `test result: ok. 3 passed; ...`.
fn is_closing(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("Summary [") || line.starts_with("test result:")
}

#[cfg(test)]
mod tests {
    use super::is_closing;

    #[test]
    fn closing_lines_are_the_runners() {
        assert!(is_closing("     Summary [   0.312s] 4 tests run: 4 passed, 0 skipped"));
        assert!(is_closing(
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s"
        ));
        assert!(!is_closing("        PASS [   0.004s] xtask check::tests::a_summary"));
    }
}
