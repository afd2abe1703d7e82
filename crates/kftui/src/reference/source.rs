//! Where the flags say that forwards come from, read and filtered.

use std::io::Read as _;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use kftray_commons::border::{Defaults, Import};
use kftray_commons::spec::{Listen, LocalPort};
use kftray_commons::{ClusterRef, ContextRef, ForwardId, ForwardSpec, Problem, RemotePort, Workload};
use kftray_kube::discover::{self, Discovered, Found};
use kftray_kube::{ClusterState, KubeOptions, KubePorts};

use super::ReferenceArgs;
use crate::commands::import;
use crate::exit::Exit;
use crate::project::{self, Format};
use crate::render::Progress;
use crate::run::Ports;
use crate::shown;

/// Forwards that are found later, as they are.
pub(crate) type More = BoxStream<'static, Vec<ForwardSpec>>;

/// What a source gives.
pub(super) struct Source {
    pub(super) specs: Vec<ForwardSpec>,
    pub(super) more: Option<More>,
    /// Local ports that are taken by them.
    pub(super) ports: Ports,
}

/// Reads the source. `None`: the flags name none. The error is told already.
pub(super) async fn open(args: &ReferenceArgs) -> Result<Option<Source>, Exit> {
    if args.auto_discover {
        return match discovered(args).await {
            Ok(source) => Ok(Some(source)),
            Err(problem) => {
                shown::trouble("discovery", &problem);
                Err(Exit::of(problem.code))
            }
        };
    }
    let (name, text, format) = match read(args) {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(None),
        Err(error) => {
            shown::aside(&format!("{error:#}"));
            return Err(Exit::BadInput);
        }
    };
    let import: Import = project::read(&text, format, &Defaults::default());
    import::tell(&name, &import);
    if import.entries.is_empty() {
        shown::aside(&format!("{name}: there is no entry in it"));
    }
    let mut ports = Ports::default();
    let specs = import.entries.into_iter().filter_map(|entry| entry.result.ok());
    let specs = specs.filter(|spec| args.filter.iter().all(|condition| condition.holds(spec)));
    // The store takes what this build does not serve yet; this process cannot run it.
    let specs = if args.save || args.interactive() {
        specs.collect()
    } else {
        specs.filter_map(|spec| ports.take(&name, spec)).collect()
    };
    Ok(Some(Source { specs, more: None, ports }))
}

/// Name, text and format of what is read.
fn read(args: &ReferenceArgs) -> Result<Option<(String, String, Format)>> {
    if let Some(path) = &args.configs_path {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("{name} cannot be read"))?;
        return Ok(Some((name, text, Format::of(path))));
    }
    if let Some(text) = &args.json {
        return Ok(Some(("--json".to_owned(), text.clone(), Format::Json)));
    }
    if !args.stdin {
        return Ok(None);
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).context("standard input cannot be read")?;
    Ok(Some(("standard input".to_owned(), text, Format::Json)))
}

async fn discovered(args: &ReferenceArgs) -> Result<Source, Problem> {
    let mut progress = Progress::on_terminal();
    progress.set(Some("looking for annotated Services".to_owned()));
    let looked = look(args).await;
    progress.set(None);
    let (found, more) = looked?;
    for warning in &found.warnings {
        shown::aside(warning);
    }
    let mut ports = Ports::default();
    let specs = specs(found, args);
    let specs = if args.save || args.interactive() {
        specs
    } else {
        specs.into_iter().filter_map(|spec| ports.take("--auto-discover", spec)).collect()
    };
    if specs.is_empty() && more.is_none() {
        shown::aside("no Service asks to be forwarded: annotate one with kftray.app/enabled=\"true\"");
    }
    Ok(Source { specs, more, ports })
}

async fn look(args: &ReferenceArgs) -> Result<(Found, Option<More>), Problem> {
    let clusters = KubePorts::new(KubeOptions::from_process()).clusters().clone();
    let mut states = clusters.follow(&cluster(args));
    let settled = states.wait_for(|state| !matches!(state, ClusterState::Pending)).await;
    let cluster = match settled.as_deref() {
        Ok(ClusterState::Up(cluster)) => cluster.clone(),
        Ok(ClusterState::Failed(problem)) => return Err(problem.clone()),
        Ok(ClusterState::Pending) | Err(_) => {
            return Err(Problem::new(kftray_commons::Code::Internal, "the kubeconfig was not read"));
        }
    };
    let namespace = args.namespace.as_deref();
    let found = discover::discover(&cluster, namespace).await?;
    if !args.watch {
        return Ok((found, None));
    }
    // The watch tells everything once more; what is known is left out.
    let mut known = found.forwards.clone();
    let changes = discover::follow(cluster, namespace).await?;
    let args = args.clone();
    let more = changes.filter_map(move |change| {
        // Held, so that watches and credentials live as long as the stream.
        let _clusters = &clusters;
        let news = match change {
            Ok(mut found) => {
                found.forwards.retain(|one| !known.contains(one));
                known.extend(found.forwards.iter().cloned());
                specs(found, &args)
            }
            Err(problem) => {
                shown::trouble("discovery", &problem);
                Vec::new()
            }
        };
        std::future::ready((!news.is_empty()).then_some(news))
    });
    Ok((found, Some(more.boxed())))
}

fn cluster(args: &ReferenceArgs) -> ClusterRef {
    let context = match args.context.as_deref() {
        None | Some("@current") => ContextRef::Current,
        Some(name) => ContextRef::Named(name.to_owned()),
    };
    ClusterRef { kubeconfig: args.kubeconfig.clone(), context }
}

/// The forwards, as the flags want them; what cannot be one is told.
fn specs(found: Found, args: &ReferenceArgs) -> Vec<ForwardSpec> {
    let numbered = found.forwards.into_iter().zip(1..);
    let all = numbered.filter_map(|(one, number)| match spec(one, number, args) {
        Ok(spec) => Some(spec),
        Err(why) => {
            shown::aside(&why);
            None
        }
    });
    all.filter(|spec| args.filter.iter().all(|condition| condition.holds(spec))).collect()
}

fn spec(found: Discovered, number: u64, args: &ReferenceArgs) -> Result<ForwardSpec, String> {
    let at = format!("service/{} in namespace {}", found.service, found.namespace);
    let port =
        std::num::NonZeroU16::new(found.remote_port).ok_or_else(|| format!("{at}: port 0 is no port"))?;
    let workload = Workload::Service { name: found.service, port: RemotePort::Number(port) };
    let mut spec = ForwardSpec::new(ForwardId(number), workload);
    spec.alias = Some(found.alias);
    spec.namespace = Some(found.namespace);
    spec.cluster = cluster(args);
    spec.listen = Listen {
        port: LocalPort::from(found.local_port),
        auto_loopback: args.auto_loopback,
        ..Listen::default()
    };
    spec.domain_enabled = args.alias_as_domain;
    match spec.check().into_iter().next() {
        Some(fault) => Err(format!("{at}: {}: {}. {}", fault.field, fault.message, fault.remedy)),
        None => Ok(spec),
    }
}
