//! `kftui relay`: what an administrator, or somebody who wonders, does with relays by hand.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use futures::io::AsyncBufReadExt as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kftray_commons::store::{Directory, Store, relay_settings};
use kftray_commons::{ClusterRef, ContextRef, Problem};
use kftray_kube::deploy::{
    Access, Deploy, Installation, Installed, LogsOf, PullPolicy, RelayInfo, RelayOptions, RelaySettings,
    SubjectKind, created_by, job_manifest, with_environment,
};
use kftray_kube::{Cluster, ClusterState, Clusters, Environment, TransportChoice, TransportMemory};
use serde_json::json;

use crate::cli::Output;
use crate::documents::{complain, print};
use crate::exit::Exit;
use crate::shown::plain;

/// Longest wait for the kubeconfig to be read.
const KUBECONFIG: Duration = Duration::from_secs(10);

/// `--help` of the whole.
pub(crate) const HELP: &str = "\
Examples:
  kftui relay list -A                       every relay of the cluster, and whose it is
  kftui relay logs -n shop                  what the relays there have to say
  kftui relay sweep -n shop                 remove own relays that are over or never started
  kftui relay install --group developers    one for all, in the namespace kftray-system
  kftui relay manifest | kubectl apply -f -     the same by hand
  kftui relay uninstall

A relay carries what Kubernetes itself cannot forward: UDP, hosts that only the cluster reaches, the way
back to this machine. Without an installed one, forwards start their own, which ends by itself.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Show the relays that are there, whosever
    List {
        #[command(flatten)]
        place: Place,
        /// What is printed
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Print the logs of relays
    Logs {
        #[command(flatten)]
        place: Place,
        /// Only of this pod, or of pods whose name begins so
        pod: Option<String>,
        /// Go on until the pods end
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines
        #[arg(long, value_name = "LINES")]
        tail: Option<u32>,
    },
    /// Remove this installation's relays that have ended or never started
    Sweep {
        #[command(flatten)]
        place: Place,
        /// Also those that run: their forwards start new ones
        #[arg(long)]
        all: bool,
    },
    /// Install a relay for many, or bring the installed one up to this version
    Install(InstallArgs),
    /// Remove the installed relay
    Uninstall {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Namespace of the installed relay
        #[arg(short, long, value_name = "NAME", default_value = RelaySettings::SYSTEM_NAMESPACE)]
        namespace: String,
        /// Remove the namespace as well, if the installation has made it
        #[arg(long)]
        delete_namespace: bool,
        /// Even if somebody else has installed it
        #[arg(long)]
        takeover: bool,
    },
    /// Print what `install` would make, as YAML for kubectl
    Manifest {
        #[command(flatten)]
        install: InstallArgs,
        /// Print the Job of a relay on demand instead
        #[arg(long)]
        job: bool,
    },
}

/// Which cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Kubeconfig file or list of files [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<String>,
}

/// Which cluster and namespace.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace [default: the context's]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// What an installed relay is to be like.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the relay
    #[arg(short, long, value_name = "NAME", default_value = RelaySettings::SYSTEM_NAMESPACE)]
    namespace: String,
    /// Image, for example from a mirror [env: KFTRAY_RELAY_IMAGE] [default: this version's]
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Pin the image to a digest
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<String>,
    /// When nodes ask the registry [default: the cluster's rule]
    #[arg(long, value_enum, value_name = "POLICY")]
    pull_policy: Option<Pull>,
    /// Secret with the registry's credentials, repeatable
    #[arg(long, value_name = "NAME")]
    pull_secret: Vec<String>,
    /// Number of pods
    #[arg(long, value_name = "N", default_value_t = 2)]
    replicas: u32,
    /// Ask for a token as well, from the Secret kftray-server, which the users' Role may then read
    #[arg(long)]
    token: bool,
    /// What it may reach: host, *.suffix or CIDR, each with :port or :low-high if wanted; repeatable [default: all but the
    /// API server, the node's metadata and itself]
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    allow: Vec<String>,
    /// What it may not reach, in the same form
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    deny: Vec<String>,
    /// Annotation of the pods, repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    annotation: Vec<(String, String)>,
    /// Label that nodes must have, repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    node_selector: Vec<(String, String)>,
    /// File with changes to the Deployment (with --job: the Job): JSON merge patch, lists of named things merged by name
    #[arg(long, value_name = "FILE")]
    patch: Option<PathBuf>,
    /// Change it even if somebody else has installed it
    #[arg(long)]
    takeover: bool,
    #[command(flatten)]
    subjects: Subjects,
}

/// Who gets rights.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Subjects {
    /// User who may use it, repeatable
    #[arg(long, value_name = "NAME")]
    user: Vec<String>,
    /// Group that may use it, repeatable
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// Service account that may use it, repeatable
    #[arg(long, value_name = "NAMESPACE:NAME")]
    service_account: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// At each start
    Always,
    /// When the node has no such image
    IfNotPresent,
    /// The image must be there
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::IfNotPresent => Self::IfNotPresent,
            Pull::Never => Self::Never,
        }
    }
}

impl Subjects {
    /// In the order of the flags' help.
    pub(crate) fn list(&self) -> Vec<(SubjectKind, String)> {
        let each = |kind, names: &[String]| names.iter().map(|name| (kind, name.clone())).collect::<Vec<_>>();
        [
            each(SubjectKind::User, &self.user),
            each(SubjectKind::Group, &self.group),
            each(SubjectKind::ServiceAccount, &self.service_account),
        ]
        .concat()
    }
}

/// `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// Runs a verb.
pub(crate) async fn run(command: RelayCommand) -> Result<Exit> {
    let environment = Environment::from_process();
    match command {
        RelayCommand::List { place, output } => {
            let connection = Connection::open(environment, &place.cluster).await?;
            let list = connection.list(&place).await?;
            match output {
                Output::Text => print(table(&list).as_bytes()),
                Output::Json => print(lines(&list).as_bytes()),
            }
        }
        RelayCommand::Logs { place, pod, follow, tail } => {
            let connection = Connection::open(environment, &place.cluster).await?;
            connection.logs(&place, pod.as_deref(), LogsOf { tail: tail.map(i64::from), follow }).await
        }
        RelayCommand::Sweep { place, all } => {
            let connection = Connection::open(environment, &place.cluster).await?;
            let namespace = connection.namespace(&place);
            let swept = connection
                .deploy
                .sweep(&connection.cluster, namespace.as_deref(), all)
                .await
                .map_err(told)?;
            let mut text: String = swept
                .iter()
                .map(|one| format!("{}/{} ({}) removed\n", one.namespace, one.name, one.state))
                .collect();
            if swept.is_empty() {
                text.push_str("Nothing to remove.\n");
            }
            print(text.as_bytes())
        }
        RelayCommand::Install(args) => {
            let wanted = installation(&args, &environment)?;
            let connection = Connection::open(environment, &args.cluster).await?;
            let done = connection.deploy.install(&connection.cluster, &wanted).await.map_err(told)?;
            let mut text = steps(&done);
            if wanted.subjects.is_empty() {
                text.push_str(
                    "Nobody but administrators may use it yet: name users with --user or --group, or see `kftui rbac print \
                     installed`.\n",
                );
            }
            print(text.as_bytes())
        }
        RelayCommand::Uninstall { cluster, namespace, delete_namespace, takeover } => {
            let connection = Connection::open(environment, &cluster).await?;
            let settings = RelaySettings { system_namespace: Some(namespace), ..RelaySettings::default() };
            let wanted = Installation { settings, takeover, ..Installation::default() };
            let done = connection
                .deploy
                .uninstall(&connection.cluster, &wanted, delete_namespace)
                .await
                .map_err(told)?;
            let text = if done.is_empty() { "Nothing is installed.\n".to_owned() } else { steps(&done) };
            print(text.as_bytes())
        }
        RelayCommand::Manifest { install, job } => {
            let wanted = installation(&install, &environment)?;
            let text = if job {
                let options = RelayOptions { settings: wanted.settings, ..identity(&environment)? };
                job_manifest(&options, &install.namespace).map_err(told)?
            } else {
                wanted.manifest(&created_by(&environment)).map_err(told)?
            };
            print(text.as_bytes())
        }
    }
}

fn installation(args: &InstallArgs, environment: &Environment) -> Result<Installation> {
    let patch = match &args.patch {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Some(serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?)
        }
    };
    let settings = RelaySettings {
        pull_policy: args.pull_policy.map(PullPolicy::from),
        pull_secrets: args.pull_secret.clone(),
        allow: args.allow.clone(),
        deny: args.deny.clone(),
        annotations: args.annotation.iter().cloned().collect::<BTreeMap<_, _>>(),
        node_selector: args.node_selector.iter().cloned().collect::<BTreeMap<_, _>>(),
        patch,
        system_namespace: Some(args.namespace.clone()),
        ..RelaySettings::default()
    };
    let mut settings = with_environment(settings, environment);
    if args.image.is_some() {
        settings.image.clone_from(&args.image);
    }
    settings.digest.clone_from(&args.digest);
    Ok(Installation {
        settings,
        replicas: args.replicas,
        access: if args.token { Access::Secret } else { Access::Position },
        subjects: args.subjects.list(),
        takeover: args.takeover,
    })
}

/// A cluster and those relays of it that are ours.
struct Connection {
    deploy: Deploy,
    cluster: Arc<Cluster>,
}

impl Connection {
    async fn open(environment: Environment, args: &ClusterArgs) -> Result<Self> {
        let options = identity(&environment)?;
        let clusters = Clusters::new(environment, TransportChoice::Auto, TransportMemory::default());
        let context = args.context.clone().map_or(ContextRef::Current, ContextRef::Named);
        let reference = ClusterRef { kubeconfig: args.kubeconfig.clone(), context };
        let mut states = clusters.follow(&reference);
        let known = states.wait_for(|state| !matches!(state, ClusterState::Pending));
        let state = tokio::time::timeout(KUBECONFIG, known)
            .await
            .context("the kubeconfig cannot be read in time")??;
        let cluster = match &*state {
            ClusterState::Up(cluster) => Arc::clone(cluster),
            ClusterState::Failed(problem) => return Err(told(problem.clone())),
            ClusterState::Pending => bail!("the kubeconfig has not been read"),
        };
        drop(state);
        Ok(Self { deploy: Deploy::new(clusters, options), cluster })
    }

    /// `None`: all of them.
    fn namespace(&self, place: &Place) -> Option<String> {
        if place.all_namespaces {
            return None;
        }
        Some(place.namespace.clone().unwrap_or_else(|| self.cluster.default_namespace().to_owned()))
    }

    async fn list(&self, place: &Place) -> Result<Vec<RelayInfo>> {
        let namespace = self.namespace(place);
        self.deploy.list(&self.cluster, namespace.as_deref()).await.map_err(told)
    }

    async fn logs(&self, place: &Place, pod: Option<&str>, of: LogsOf) -> Result<Exit> {
        let pods: Vec<(String, String)> = self
            .list(place)
            .await?
            .into_iter()
            .flat_map(|relay| relay.pods.into_iter().map(move |pod| (relay.namespace.clone(), pod)))
            .filter(|(_, name)| pod.is_none_or(|wanted| name.starts_with(wanted)))
            .collect();
        if pods.is_empty() {
            bail!("no relay is there; `kftui relay list -A` shows those of all namespaces");
        }
        let several = pods.len() > 1;
        // Anybody may write a log that calls itself a relay's.
        let shown = if io::stdout().is_terminal() { plain } else { str::to_owned };
        let mut all = futures::stream::SelectAll::new();
        for (namespace, pod) in pods {
            match self.deploy.logs(&self.cluster, &namespace, &pod, of).await {
                Ok(log) => {
                    let prefix = if several { format!("{pod}: ") } else { String::new() };
                    all.push(Box::pin(log.lines().map_ok(move |line| format!("{prefix}{}\n", shown(&line)))));
                }
                Err(problem) => complain(&format!("{namespace}/{pod}: {problem}")),
            }
        }
        while let Some(line) = all.next().await {
            print(line?.as_bytes())?;
        }
        Ok(Exit::Clean)
    }
}

/// Who this installation is to clusters.
pub(crate) fn identity(environment: &Environment) -> Result<RelayOptions> {
    Ok(RelayOptions::of(environment, Directory::of_process()?.path())?)
}

/// What the store, the environment and a flag say about relays, in this order of rising weight.
pub(crate) fn settings(
    directory: Option<&Directory>,
    environment: &Environment,
    image: Option<&str>,
) -> RelaySettings {
    let stored = directory.map(stored_settings).unwrap_or_default();
    with_environment(stored, environment).with_image(image)
}

/// Nothing where there is no store. Its being unreadable keeps no forward from running.
fn stored_settings(directory: &Directory) -> RelaySettings {
    if !directory.database().is_file() {
        return RelaySettings::default();
    }
    let stored = Store::open(directory).and_then(|store| store.settings());
    stored.map(|stored| relay_settings(&stored)).unwrap_or_else(|problem| {
        tracing::warn!("the settings of relays are not read: {problem}");
        RelaySettings::default()
    })
}

fn told(problem: Problem) -> anyhow::Error {
    anyhow::anyhow!("{problem}. {} [{}]", problem.remedy, problem.code)
}

fn steps(done: &[Installed]) -> String {
    done.iter().map(|one| format!("{}: {}\n", one.object, one.what)).collect()
}

/// Columns as wide as they need to be.
fn table(list: &[RelayInfo]) -> String {
    if list.is_empty() {
        return "No relay is there.\n".to_owned();
    }
    let header =
        ["NAMESPACE", "NAME", "PURPOSE", "STATE", "VERSION", "MADE BY", "CREATED"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(list.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 7] = std::array::from_fn(width);
    rows.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("{}\n", cells.join("  ").trim_end())
        })
        .collect()
}

fn row(relay: &RelayInfo) -> [String; 7] {
    let purpose = match &relay.alias {
        Some(alias) => format!("{} {alias}", relay.purpose),
        None => relay.purpose.clone(),
    };
    let own = if relay.own { " (this installation)" } else { "" };
    [
        relay.namespace.clone(),
        relay.name.clone(),
        purpose,
        relay.state.clone(),
        relay.version.clone(),
        format!("{}{own}", relay.created_by),
        relay.created.clone(),
    ]
    .map(|cell| plain(&cell))
}

/// One JSON object per line, as everywhere with `--output json`.
fn lines(list: &[RelayInfo]) -> String {
    list.iter()
        .map(|relay| {
            let object = json!({
                "namespace": relay.namespace, "kind": relay.kind, "name": relay.name, "uid": relay.uid,
                "purpose": relay.purpose, "alias": relay.alias, "created_by": relay.created_by, "own": relay.own,
                "version": relay.version, "created": relay.created, "state": relay.state, "pods": relay.pods,
            });
            format!("{object}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(name: &str, own: bool, alias: Option<&str>) -> RelayInfo {
        RelayInfo {
            namespace: "shop".to_owned(),
            kind: "Job",
            name: name.to_owned(),
            uid: "u".to_owned(),
            purpose: if alias.is_some() { "expose" } else { "relay" }.to_owned(),
            alias: alias.map(str::to_owned),
            created_by: "jane@laptop".to_owned(),
            own,
            version: "0.1.0".to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            state: "running".to_owned(),
            pods: vec![format!("{name}-x")],
        }
    }

    #[test]
    fn tables_and_lines() {
        let mut list = [relay("kftray-relay-jane-1", true, None), relay("e", false, Some("my-app"))];
        list[1].created_by = "\u{1b}]52;c;eA==\u{7}bob".to_owned();
        let told = format!("{}\n{}\n{}", table(&list), lines(&list), table(&[]));
        insta::assert_snapshot!(told);
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_store() {
        let place = tempfile::tempdir().unwrap();
        let directory = &Directory::at(place.path());
        let plain = Environment::new([("X", "y")], "/");
        assert_eq!(settings(Some(directory), &plain, None), RelaySettings::default());
        assert!(!directory.database().exists(), "a forward makes no store");

        let mut store = Store::open(directory).unwrap();
        store.set_setting("relay_image", Some("stored:1")).unwrap();
        store.set_setting("relay_pull_secrets", Some("mirror")).unwrap();
        let named = Environment::new([("KFTRAY_RELAY_IMAGE", "named:2")], "/");
        for (environment, flag, image) in
            [(&plain, None, "stored:1"), (&named, None, "named:2"), (&named, Some("flag:3"), "flag:3")]
        {
            let settings = settings(Some(directory), environment, flag);
            assert_eq!(
                (settings.image.as_deref(), settings.pull_secrets),
                (Some(image), vec!["mirror".to_owned()])
            );
        }
        drop(store);
        std::fs::write(directory.database(), "no database").unwrap();
        assert_eq!(settings(Some(directory), &plain, Some("flag:3")).image.as_deref(), Some("flag:3"));
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("a").is_err() && pair("=b").is_err());
    }
}
