//! `cargo xtask cluster`: real one-node Kubernetes clusters on this machine, from the Go module proxy and distribution packages only.
//!
//! Each cluster has a name, a state directory, a network namespace and a cgroup of its own, so several run side by side.

mod api;
mod build;
mod cgroup;
mod debian;
mod fault;
mod image;
mod network;
mod node;
mod pki;
mod process;
mod user;
mod workloads;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::command::{command, on_path};
use crate::{paths, wait};
use api::Api;
use build::Programs;
use network::Network;
use pki::Pki;

/// Printed below the verbs.
pub(crate) const HELP: &str = "\
Examples:
  cargo xtask cluster up && eval \"$(cargo xtask cluster env)\"     kubectl and kftui go there now
  cargo xtask cluster load            something to forward to: kubectl -n kftest get svc
  cargo xtask cluster fault drop      and `undrop`; `mend` ends every fault
  cargo xtask cluster down

Up takes 10 to 15 s; the very first one builds Kubernetes from source, some minutes. Several
clusters run side by side under names of their own (--name). testcluster/README.md says more.";

/// The only node's name.
const NODE: &str = "node1";

/// Every cluster's API server listens here, at its own address.
const API_PORT: u16 = 6443;

/// A variant of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// The current Kubernetes: port-forward over WebSockets and over SPDY.
    Default,
    /// The same with the WebSocket tunnel switched off: direct SPDY only.
    SpdyOnly,
    /// Kubernetes 1.30, from before the API server offered the WebSocket tunnel by default.
    Old,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::SpdyOnly => "spdy-only",
            Self::Old => "old",
        }
    }

    fn kubernetes(self) -> &'static str {
        match self {
            Self::Default | Self::SpdyOnly => build::KUBERNETES,
            Self::Old => build::KUBERNETES_OLD,
        }
    }

    fn api_server_flags(self) -> &'static [&'static str] {
        match self {
            Self::Default | Self::Old => &[],
            Self::SpdyOnly => &["--feature-gates", "PortForwardWebsockets=false"],
        }
    }
}

/// Which cluster.
#[derive(Args)]
pub(crate) struct Which {
    /// The cluster's name (default: the profile's)
    #[arg(long, global = true)]
    name: Option<String>,
    /// The cluster's variant
    #[arg(long, global = true, value_enum, default_value = "default")]
    profile: Profile,
}

impl Which {
    /// The cluster of this name and profile.
    pub(crate) fn named(profile: Profile, name: &str) -> Self {
        Self { name: Some(name.to_owned()), profile }
    }
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Start it; at once when it is up (the first start builds everything: some minutes)
    Up {
        /// Write an audit log of every request the API server gets (`<state>/log/audit.log`)
        #[arg(long)]
        audit: bool,
        /// Also build the relay's image and load it as kftray-server:VERSION
        #[arg(long)]
        relay: bool,
    },
    /// Stop it and remove every trace of it
    Down,
    /// Show the clusters and their processes
    Status,
    /// Print shell commands that point KUBECONFIG and kubectl at it: eval "$(cargo xtask cluster env)"
    Env,
    /// Apply the workloads of testcluster/manifests (namespace kftest) and wait until they are ready
    Load {
        /// Also an Ingress controller, Traefik, on ports 80 and 443 of the node (its first build takes five minutes)
        #[arg(long)]
        ingress: bool,
    },
    /// Run this cluster's own kubectl
    Kubectl {
        /// For kubectl, as in `cargo xtask cluster kubectl -- get pods -A`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make a user with few rights and print the path of its kubeconfig
    User(user::User),
    /// Break something, or mend it
    Fault {
        #[command(subcommand)]
        fault: fault::Fault,
    },
}

/// One cluster, up or not.
pub(crate) struct Cluster {
    name: String,
    profile: Profile,
    state: PathBuf,
    network: Network,
    programs: ProgramPaths,
    audit: bool,
}

/// Where the running cluster's programs are, so that no build is needed to talk to it.
#[derive(Clone, Serialize, Deserialize)]
struct ProgramPaths {
    kube: PathBuf,
    containerd: PathBuf,
}

/// What is remembered of a cluster, in `<state>/cluster.json`. Written before the first trace of the cluster exists.
#[derive(Serialize, Deserialize)]
struct Record {
    profile: Profile,
    index: u8,
    programs: ProgramPaths,
    audit: bool,
    /// The start came to its end.
    complete: bool,
}

/// Runs one verb.
pub(crate) fn run(which: &Which, verb: Verb) -> Result<()> {
    match verb {
        Verb::Up { audit, relay } => {
            up(which, audit)?;
            if relay { load_relay(which) } else { Ok(()) }
        }
        Verb::Down => down(which),
        Verb::Status => status(),
        Verb::Env => print_env(&existing(which)?),
        Verb::Load { ingress } => {
            load(which)?;
            if ingress { load_ingress(which) } else { Ok(()) }
        }
        Verb::Kubectl { args } => existing(which)?.kubectl_in_place(&args),
        Verb::User(user) => user.create(&existing(which)?),
        Verb::Fault { fault } => fault.apply(&existing(which)?),
    }
}

/// Brings the cluster up; at once when it is.
pub(crate) fn up(which: &Which, audit: bool) -> Result<()> {
    require_root()?;
    let name = name(which)?;
    let already_up = || -> Result<bool> {
        let found = find(&name)?.filter(|cluster| cluster.profile == which.profile && cluster.audit == audit);
        found.map_or(Ok(false), |cluster| cluster.is_complete())
    };
    if !already_up()? {
        // Before the lock: a build takes minutes, and other clusters have no part in it.
        Programs::build(which.profile.kubernetes())?;
    }
    let _lock = lock()?;
    if let Some(cluster) = find(&name)? {
        if already_up()? {
            println!("cluster {name} is up (KUBECONFIG={})", cluster.kubeconfig().display());
            return Ok(());
        }
        println!("cluster {name} is dead, half-started or different; removing it");
        cluster.stop()?;
    }
    let programs = Programs::build(which.profile.kubernetes())?;
    let cluster = Cluster {
        state: states()?.join(&name),
        network: Network { namespace: format!("kft-{name}"), index: free_index()? },
        programs: ProgramPaths { kube: programs.kube.clone(), containerd: programs.containerd.clone() },
        profile: which.profile,
        audit,
        name,
    };
    // A cluster whose state directory was removed by hand has no record, but may have left everything else.
    cluster.stop()?;
    fs::create_dir_all(&cluster.state)?;
    cluster.remember(false)?;
    cluster.start(&programs)?;
    cluster.remember(true)?;
    println!("cluster {} is up: Kubernetes {}", cluster.name, cluster.profile.kubernetes());
    println!("KUBECONFIG={}", cluster.kubeconfig().display());
    Ok(())
}

/// Takes the cluster down, if there is one.
pub(crate) fn down(which: &Which) -> Result<()> {
    require_root()?;
    let name = name(which)?;
    let _lock = lock()?;
    match find(&name)? {
        Some(cluster) => {
            cluster.stop()?;
            println!("cluster {name} is gone");
        }
        None => println!("there is no cluster {name}"),
    }
    Ok(())
}

/// Applies the workloads and waits for them.
pub(crate) fn load(which: &Which) -> Result<()> {
    workloads::load(&existing(which)?)
}

/// Loads the Ingress controller and waits for it.
pub(crate) fn load_ingress(which: &Which) -> Result<()> {
    workloads::load_ingress(&existing(which)?)
}

/// Builds the relay's image and loads it, in place of an earlier one.
pub(crate) fn load_relay(which: &Which) -> Result<()> {
    let (name, archive) = crate::image::for_this_machine()?;
    existing(which)?.import(&[image::Image { name: name.clone(), archive }])?;
    println!("the relay's image is loaded as {name}");
    Ok(())
}

/// Copies the logs of the cluster's processes to a directory that outlives it.
pub(crate) fn keep_logs(which: &Which, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(existing(which)?.state.join("log"))? {
        let entry = entry?;
        fs::copy(entry.path(), directory.join(entry.file_name()))?;
    }
    Ok(())
}

/// What `env` prints, as pairs.
pub(crate) fn environment(which: &Which) -> Result<Vec<(&'static str, String)>> {
    Ok(existing(which)?.environment())
}

fn status() -> Result<()> {
    let mut none = true;
    for name in names()? {
        let Some(cluster) = find(&name)? else { continue };
        none = false;
        let complete =
            if cluster.is_complete()? { "up" } else { "not complete: `cargo xtask cluster up` mends it" };
        println!(
            "{name}: {complete} ({:?}, Kubernetes {}, {})",
            cluster.profile,
            cluster.profile.kubernetes(),
            cluster.server()
        );
        for process in node::PROCESSES {
            let pid = cluster.process(process).pid()?.map_or("not running".to_owned(), |pid| pid.to_string());
            println!("  {process:20} {pid}");
        }
    }
    if none {
        println!("no cluster is up; start one with `cargo xtask cluster up`");
    }
    Ok(())
}

fn print_env(cluster: &Cluster) -> Result<()> {
    for (name, value) in cluster.environment() {
        println!("export {name}='{value}'");
    }
    Ok(())
}

impl Cluster {
    /// Whether it was started to the end and all its processes still run.
    fn is_complete(&self) -> Result<bool> {
        if !self.record()?.is_some_and(|record| record.complete) {
            return Ok(false);
        }
        for name in node::PROCESSES {
            if self.process(name).pid()?.is_none() {
                return Ok(false);
            }
        }
        Ok(self.api()?.is_ready())
    }

    fn record(&self) -> Result<Option<Record>> {
        record(&self.name)
    }

    fn remember(&self, complete: bool) -> Result<()> {
        let record = Record {
            profile: self.profile,
            index: self.network.index,
            programs: self.programs.clone(),
            audit: self.audit,
            complete,
        };
        Ok(fs::write(self.state.join("cluster.json"), serde_json::to_vec_pretty(&record)?)?)
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KUBECONFIG", self.kubeconfig().to_string_lossy().into_owned()),
            ("KFTRAY_CLUSTER_NAME", self.name.clone()),
            ("KFTRAY_CLUSTER_STATE", self.state.to_string_lossy().into_owned()),
            ("KFTRAY_CLUSTER_KUBECTL", self.kubectl_path().to_string_lossy().into_owned()),
            ("KFTRAY_CLUSTER_FIXTURE", self.fixture_path().to_string_lossy().into_owned()),
            ("KFTRAY_CLUSTER_HOST_IP", self.network.host().to_string()),
            ("KFTRAY_CLUSTER_NODE_IP", self.network.node().to_string()),
        ]
    }

    /// The administrator's.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    fn kubectl_path(&self) -> PathBuf {
        self.state.join("bin/kubectl")
    }

    /// The pods' program, which is also a client of HTTP/3.
    fn fixture_path(&self) -> PathBuf {
        self.state.join("bin/fixture")
    }

    /// kubectl as administrator.
    pub(crate) fn kubectl(&self, args: &[&str]) -> std::process::Command {
        let mut kubectl = command(&self.programs.kube, ["kubectl", "--kubeconfig"]);
        kubectl.arg(self.kubeconfig()).args(args);
        kubectl
    }

    fn kubectl_in_place(&self, args: &[String]) -> Result<()> {
        use std::os::unix::process::CommandExt as _;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let error = self.kubectl(&args).stdin(std::process::Stdio::inherit()).exec();
        Err(error).context("cannot start kubectl")
    }

    fn context(&self) -> String {
        format!("kft-{}", self.name)
    }

    fn server(&self) -> String {
        format!("https://{}:{API_PORT}", self.network.node())
    }

    fn pki(&self) -> Pki {
        Pki::new(self.state.join("pki"))
    }

    fn api(&self) -> Result<Api> {
        Api::new(SocketAddr::from((self.network.node(), API_PORT)), &self.pki())
    }
}

fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "a cluster needs root (network namespaces, mounts, cgroups); run it as root, for example under `sudo -E`"
        );
    }
    for program in ["runc", "iptables", "ip", "nsenter", "setsid"] {
        if !on_path(program) {
            bail!("{program} is not installed; `cargo xtask setup` installs what is missing");
        }
    }
    if !fs::exists("/usr/lib/cni/bridge")? {
        bail!("the CNI plugins are not in /usr/lib/cni; `cargo xtask setup` installs what is missing");
    }
    Ok(())
}

fn name(which: &Which) -> Result<String> {
    let name = which.name.clone().unwrap_or_else(|| which.profile.name().to_owned());
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 20 || !name.bytes().all(fits) {
        bail!("{name:?} is no name for a cluster: 1 to 20 of a-z, 0-9 and '-'");
    }
    Ok(name)
}

fn states() -> Result<PathBuf> {
    Ok(paths::cache()?.join("state"))
}

/// One start or stop at a time: two at once would take the same index.
fn lock() -> Result<File> {
    let states = states()?;
    fs::create_dir_all(&states)?;
    let file = File::create(states.join(".lock"))?;
    file.lock().context("cannot lock the clusters' state directory")?;
    Ok(file)
}

fn names() -> Result<Vec<String>> {
    let states = states()?;
    if !states.exists() {
        return Ok(Vec::new());
    }
    let mut names: Vec<String> = fs::read_dir(states)?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

fn record(name: &str) -> Result<Option<Record>> {
    let path = states()?.join(name).join("cluster.json");
    match fs::read(&path) {
        Ok(bytes) => {
            let record = serde_json::from_slice(&bytes);
            record.map(Some).with_context(|| {
                format!("{} is damaged; end the cluster's processes and remove it", path.display())
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The cluster of this name, whatever its condition.
fn find(name: &str) -> Result<Option<Cluster>> {
    let Some(Record { profile, index, programs, audit, complete: _ }) = record(name)? else {
        return Ok(None);
    };
    Ok(Some(Cluster {
        name: name.to_owned(),
        profile,
        state: states()?.join(name),
        network: Network { namespace: format!("kft-{name}"), index },
        programs,
        audit,
    }))
}

fn existing(which: &Which) -> Result<Cluster> {
    let name = name(which)?;
    find(&name)?.with_context(|| {
        format!("there is no cluster {name}; start it with `cargo xtask cluster up --name {name}`")
    })
}

fn free_index() -> Result<u8> {
    let mut taken = Vec::new();
    for name in names()? {
        taken.extend(record(&name)?.map(|record| record.index));
    }
    (0..=u8::MAX).find(|index| !taken.contains(index)).context("256 clusters are up")
}
