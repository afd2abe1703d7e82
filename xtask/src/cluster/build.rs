//! The programs of a cluster, built from the Go module proxy once and kept in the cache under a key over all their inputs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{command, output, show};
use crate::paths::{ContentKey, cache, root};

/// The Kubernetes version whose go.mod is committed in `testcluster/kube`.
pub(crate) const KUBERNETES: &str = "1.36.3";
/// What most users' nodes run.
const CONTAINERD: &str = "2.4.2";
/// The oldest that the module proxy serves whole: port-forward over direct SPDY only, as shipped.
pub(crate) const KUBERNETES_OLD: &str = "1.30.14";
const COREDNS: &str = "1.15.0";
/// 3.7 needs a module that the module proxy does not serve.
const TRAEFIK: &str = "3.6.12";
/// Reported as the build date: a fixed one keeps the build reproducible.
const BUILD_DATE: &str = "2026-01-01T00:00:00Z";

/// The built programs.
pub(crate) struct Programs {
    /// Every Kubernetes component and kubectl in one.
    pub(crate) kube: PathBuf,
    /// The directory of containerd, its shim and ctr.
    pub(crate) containerd: PathBuf,
    pub(crate) coredns: PathBuf,
    pub(crate) fixture: PathBuf,
}

impl Programs {
    /// Takes the programs from the cache and builds what is not there.
    pub(crate) fn build(kubernetes: &str) -> Result<Self> {
        let go = go_version()?;
        Ok(Self {
            kube: kube(kubernetes, &go)?,
            containerd: containerd(&go)?,
            coredns: coredns(&go)?,
            fixture: fixture(&go)?,
        })
    }
}

fn go_version() -> Result<String> {
    output(&mut command("go", ["env", "GOVERSION", "GOARCH"]))
        .context("the test cluster is built with Go (1.26 or newer, which fetches a newer one itself): install Go, see https://go.dev/dl")
}

/// Makes `cache/<name>-<key>` by running `build` on a scratch directory beside it, unless it is there already.
pub(super) fn cached(
    name: &str,
    key: ContentKey,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = cache()?.join(format!("{name}-{}", key.finish()));
    if place.is_dir() {
        return Ok(place);
    }
    println!("building {name} (once; kept in {})", place.display());
    let scratch = place.with_extension(format!("building-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let built = build(&scratch).with_context(|| format!("cannot build {name}"));
    if built.is_ok() && !place.is_dir() {
        std::fs::rename(&scratch, &place)?;
    } else {
        std::fs::remove_dir_all(&scratch)?;
    }
    built.map(|()| place)
}

fn go(directory: &Path, args: &[&str]) -> Command {
    let mut command = command("go", args);
    // Static programs: they run on an empty root and on any distribution.
    command.current_dir(directory).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
    command
}

fn kube(version: &str, go_version: &str) -> Result<PathBuf> {
    let source = root().join("testcluster/kube");
    let flags = kube_flags(version)?;
    let key = ContentKey::default().add(go_version).add(version).add(&flags).add_files(&source)?;
    let place = cached(&format!("kube-{version}"), key, |scratch| {
        let out = scratch.join("kube");
        let out = out.to_string_lossy();
        let mut args = vec!["build", "-trimpath", "-ldflags", &flags, "-o", &out];
        if version == KUBERNETES {
            args.push(".");
            return show(&mut go(&source, &args));
        }
        let module = scratch.join("source");
        std::fs::create_dir(&module)?;
        for file in ["main.go", "kubelet.go", "kubelet_old.go"] {
            std::fs::copy(source.join(file), module.join(file))?;
        }
        std::fs::write(module.join("go.mod"), go_mod(version)?)?;
        for sample in SAMPLES {
            let directory = module.join(sample);
            std::fs::create_dir(&directory)?;
            std::fs::write(directory.join("go.mod"), format!("module k8s.io/{sample}\n"))?;
        }
        // Lets the build complete go.mod and go.sum by what it really needs.
        args.push("-mod=mod");
        if minor(version)? < KUBELET_WITH_CONTEXT {
            args.push("-tags=kubelet_without_context");
        }
        args.push(".");
        show(&mut go(&module, &args))
    })?;
    Ok(place.join("kube"))
}

/// Staging modules whose release of our version Go's checksum database does not have, and a release of the same minor version that
/// it has. kube-proxy's module holds the types of its configuration file only, the same in all patch releases.
const SUBSTITUTES: [(&str, &str, &str); 1] = [("1.30.14", "k8s.io/kube-proxy", "v0.30.5")];

/// Required by Kubernetes' go.mod, used by none of its programs, and not always to be had: replaced by nothing.
const SAMPLES: [&str; 3] = ["sample-apiserver", "sample-cli-plugin", "sample-controller"];

/// The first minor version whose kubelet command takes a context.
const KUBELET_WITH_CONTEXT: u32 = 32;

fn minor(version: &str) -> Result<u32> {
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.with_context(|| format!("{version:?} is not a Kubernetes version such as {KUBERNETES}"))
}

/// Without these, clients and servers report v0.0.0.
fn kube_flags(version: &str) -> Result<String> {
    let minor = minor(version)?;
    let base = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {base}.gitVersion=v{version} -X {base}.gitMajor=1 -X {base}.gitMinor={minor} \
         -X {base}.gitTreeState=clean -X {base}.gitCommit=proxy -X {base}.buildDate={BUILD_DATE} \
         -X k8s.io/client-go/pkg/version.gitVersion=v{version}"
    ))
}

/// The go.mod of a program that imports `k8s.io/kubernetes` of this version: its own go.mod replaces the staging modules by
/// folders of its repository, which does not work from outside; we replace them by the same modules' releases (v0.MINOR.PATCH).
fn go_mod(version: &str) -> Result<String> {
    let theirs = std::fs::read_to_string(sources("k8s.io/kubernetes", version)?.join("go.mod"))?;
    let Some(release) = version.strip_prefix("1.").map(|rest| format!("v0.{rest}")) else {
        bail!("{version:?} is not a Kubernetes version such as {KUBERNETES}");
    };
    let staging: Vec<&str> =
        theirs.lines().filter_map(|line| Some(line.trim().split_once(" => ./staging")?.0)).collect();
    let mut ours = String::from("module github.com/kftray/kftray/testcluster/kube\n\n");
    for line in theirs.lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug default")) {
        ours.push_str(&format!("{line}\n"));
    }
    ours.push_str(&format!("\nrequire (\n\tk8s.io/kubernetes v{version}\n"));
    for line in theirs.lines().filter(|line| line.starts_with('\t') && !line.contains("=>")) {
        let mut words = line.split_whitespace();
        if let (Some(module), Some(required)) =
            (words.next(), words.next().filter(|word| word.starts_with('v')))
        {
            let required = if staging.contains(&module) { &release } else { required };
            ours.push_str(&format!("\t{module} {required}\n"));
        }
    }
    ours.push_str(")\n\nreplace (\n");
    for module in staging {
        if let Some(sample) = module.strip_prefix("k8s.io/").filter(|name| SAMPLES.contains(name)) {
            ours.push_str(&format!("\t{module} => ./{sample}\n"));
            continue;
        }
        let substitute =
            SUBSTITUTES.iter().find(|(of, instead_of, _)| *of == version && *instead_of == module);
        let release = substitute.map_or(release.as_str(), |(_, _, substitute)| substitute);
        ours.push_str(&format!("\t{module} => {module} {release}\n"));
    }
    ours.push_str(")\n");
    Ok(ours)
}

/// Where Go has put the sources of a module.
fn sources(module: &str, version: &str) -> Result<PathBuf> {
    let download = ["mod", "download", "-json", &format!("{module}@v{version}")];
    let download = output(&mut go(&std::env::temp_dir(), &download))?;
    let download: serde_json::Value = serde_json::from_str(&download)?;
    let directory = download.get("Dir").and_then(|dir| dir.as_str());
    Ok(PathBuf::from(directory.context("go mod download gave no directory")?))
}

fn containerd(go_version: &str) -> Result<PathBuf> {
    let module = "github.com/containerd/containerd/v2";
    let flags = format!("-s -w -X {module}/version.Version=v{CONTAINERD}");
    let key = ContentKey::default().add(go_version).add(&flags);
    cached(&format!("containerd-{CONTAINERD}"), key, |scratch| {
        let programs = ["containerd", "containerd-shim-runc-v2", "ctr"]
            .map(|name| format!("{module}/cmd/{name}@v{CONTAINERD}"));
        let mut args = vec!["install", "-trimpath", "-ldflags", &flags];
        args.extend(programs.iter().map(String::as_str));
        show(go(scratch, &args).env("GOBIN", scratch))
    })
}

fn coredns(go_version: &str) -> Result<PathBuf> {
    let key = ContentKey::default().add(go_version).add(COREDNS);
    let place = cached(&format!("coredns-{COREDNS}"), key, |scratch| {
        let program = format!("github.com/coredns/coredns@v{COREDNS}");
        show(go(scratch, &["install", "-trimpath", "-ldflags", "-s -w", &program]).env("GOBIN", scratch))
    })?;
    Ok(place.join("coredns"))
}

/// The Ingress controller, which only some tests need. `go install` does not take a module that replaces others: an empty
/// module with Traefik's own replacements requires it instead.
pub(super) fn traefik() -> Result<PathBuf> {
    let key = ContentKey::default().add(go_version()?).add(TRAEFIK);
    let place = cached(&format!("traefik-{TRAEFIK}"), key, |scratch| {
        let path = "github.com/traefik/traefik/v3";
        let theirs = sources(path, TRAEFIK)?;
        let module = scratch.join("source");
        std::fs::create_dir(&module)?;
        let go_mod = std::fs::read_to_string(theirs.join("go.mod"))?;
        let (_, rest) = go_mod.split_once('\n').context("Traefik's go.mod is empty")?;
        let ours = format!("module kftray.test/traefik\n{rest}\nrequire {path} v{TRAEFIK}\n");
        std::fs::write(module.join("go.mod"), ours)?;
        // Written, not copied: the module cache is read-only, and Go adds Traefik's own sum.
        std::fs::write(module.join("go.sum"), std::fs::read(theirs.join("go.sum"))?)?;
        let out = scratch.join("traefik");
        let program = format!("{path}/cmd/traefik");
        let args =
            ["build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-o", &out.to_string_lossy(), &program];
        show(&mut go(&module, &args))
    })?;
    Ok(place.join("traefik"))
}

fn fixture(go_version: &str) -> Result<PathBuf> {
    let source = root().join("testcluster/fixture");
    let key = ContentKey::default().add(go_version).add_files(&source)?;
    let place = cached("fixture", key, |scratch| {
        let out = scratch.join("fixture");
        show(&mut go(
            &source,
            &["build", "-trimpath", "-ldflags", "-s -w", "-o", &out.to_string_lossy(), "."],
        ))
    })?;
    Ok(place.join("fixture"))
}
