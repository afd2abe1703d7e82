//! Services that ask to be forwarded by annotations, the reference's format:
//!
//! | annotation | format |
//! |---|---|
//! | `kftray.app/enabled` | `"true"` |
//! | `kftray.app/configs` | optional; `alias-localPort-remotePort`, separated by commas; the last part may be a port's name |
//!
//! Without `configs` every TCP port of the Service becomes a forward: alias is the Service's name, local and remote port are
//! its target port. What a user may list decides how far it looks: all namespaces, else the context's own.

mod annotation;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::api::core::v1::{Pod, Service};
use kftray_commons::{Code, Problem};
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, ResourceExt as _};

use crate::Cluster;
use crate::connect::{Asked, request_problem};
use annotation::{Goes, Item};

/// Objects per page of a list, as in the resolver.
const PAGE: u32 = 500;

/// A forward that a Service asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Discovered {
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// What it shall be called.
    pub alias: String,
    /// Local port; 0 is any free one.
    pub local_port: u16,
    /// Port of the Service or its containers.
    pub remote_port: u16,
}

/// What a look at the cluster found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The forwards, by namespace, Service and annotation.
    pub forwards: Vec<Discovered>,
    /// What could not be used, and where it had to look less far; one sentence each.
    pub warnings: Vec<String>,
}

/// How far it may look.
enum Reach {
    /// Every namespace.
    Cluster,
    /// One.
    Namespace(String),
}

/// Looks once. `namespace` limits it to one, and then needs no permission beyond it.
///
/// # Errors
/// What the cluster says to the request: not permitted, not reachable, not logged in.
pub async fn discover(cluster: &Cluster, namespace: Option<&str>) -> Result<Found, Problem> {
    let mut found = Found::default();
    let (_, services) = list(cluster, namespace, &mut found.warnings).await?;
    for service in &services {
        take(cluster, service, &mut found).await;
    }
    found.forwards.sort();
    Ok(found)
}

/// Goes on looking: every forward that Services ask for now or later, each once, by a watch. The stream ends when the
/// caller drops it; what goes wrong on the way is a value of it, and it goes on.
///
/// # Errors
/// As [`discover`], from the first look.
pub async fn follow(
    cluster: Arc<Cluster>,
    namespace: Option<&str>,
) -> Result<BoxStream<'static, Result<Found, Problem>>, Problem> {
    let mut warnings = Vec::new();
    let (reach, _) = list(&cluster, namespace, &mut warnings).await?;
    let first = Found { forwards: Vec::new(), warnings };
    let events = watch(api(&cluster, &reach), watcher::Config::default()).default_backoff();
    let known = BTreeSet::<Discovered>::new();
    let changes = futures::stream::unfold(
        (Box::pin(events), cluster, known),
        |(mut events, cluster, mut known)| async {
            loop {
                let found = match events.next().await? {
                    Ok(Event::Apply(service) | Event::InitApply(service)) => {
                        let mut found = Found::default();
                        take(&cluster, &service, &mut found).await;
                        found.forwards.retain(|one| known.insert(one.clone()));
                        found
                    }
                    Ok(Event::Delete(service)) => {
                        // Annotated again later, it is news again.
                        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
                        known.retain(|one| one.namespace != namespace || one.service != name);
                        continue;
                    }
                    Ok(Event::Init | Event::InitDone) => continue,
                    Err(error) => {
                        return Some((Err(broken(&error, cluster.context())), (events, cluster, known)));
                    }
                };
                if found != Found::default() {
                    return Some((Ok(found), (events, cluster, known)));
                }
            }
        },
    );
    let told = (first != Found::default()).then_some(Ok(first));
    Ok(futures::stream::iter(told).chain(changes).boxed())
}

fn api(cluster: &Cluster, reach: &Reach) -> Api<Service> {
    match reach {
        Reach::Cluster => Api::all(cluster.client()),
        Reach::Namespace(name) => Api::namespaced(cluster.client(), name),
    }
}

/// Every Service within reach, and how far that was.
async fn list(
    cluster: &Cluster,
    namespace: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<(Reach, Vec<Service>), Problem> {
    if let Some(name) = namespace {
        let reach = Reach::Namespace(name.to_owned());
        let services = pages(&api(cluster, &reach), Some(name), cluster.context()).await?;
        return Ok((reach, services));
    }
    match pages(&api(cluster, &Reach::Cluster), None, cluster.context()).await {
        Ok(services) => Ok((Reach::Cluster, services)),
        Err(problem) if problem.code == Code::Forbidden => {
            let own = cluster.default_namespace().to_owned();
            let reach = Reach::Namespace(own.clone());
            let services = pages(&api(cluster, &reach), Some(&own), cluster.context()).await?;
            warnings.push(format!("only namespace {own} was searched: {problem}"));
            Ok((reach, services))
        }
        Err(problem) => Err(problem),
    }
}

async fn pages(api: &Api<Service>, namespace: Option<&str>, context: &str) -> Result<Vec<Service>, Problem> {
    let asked = Asked { verb: "list", resource: "services", group: "", namespace };
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await.map_err(|error| request_problem(&error, asked, context))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// The forwards that one Service asks for.
async fn take(cluster: &Cluster, service: &Service, found: &mut Found) {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let read = annotation::read(service);
    let at = format!("service/{name} in namespace {namespace}");
    found.warnings.extend(read.warnings.iter().map(|warning| format!("{at}: {warning}")));
    for Item { alias, local, goes } in read.items {
        let port = match goes {
            Goes::Number(port) => port,
            Goes::Container { name, service_port } => {
                container_port(cluster, service, &namespace, &name).await.unwrap_or(service_port)
            }
        };
        found.forwards.push(Discovered {
            namespace: namespace.clone(),
            service: name.clone(),
            alias,
            local_port: local.unwrap_or(port),
            remote_port: port,
        });
    }
}

/// The number behind a port's name in the selected pods, if all that declare it agree. Else the Service's own number goes as
/// well: each connection is then mapped anew.
async fn container_port(cluster: &Cluster, service: &Service, namespace: &str, name: &str) -> Option<u16> {
    let selector = service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())?;
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), namespace);
    let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await.ok()?;
    let specs = pods.items.iter().filter_map(|pod| pod.spec.as_ref());
    let containers =
        specs.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let numbers: BTreeSet<i32> =
        ports.filter(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port).collect();
    match numbers.into_iter().collect::<Vec<_>>()[..] {
        [number] => u16::try_from(number).ok(),
        _ => None,
    }
}

fn broken(error: &watcher::Error, context: &str) -> Problem {
    let asked = Asked { verb: "watch", resource: "services", group: "", namespace: None };
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are told by their own text")]
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => request_problem(error, asked, context),
        other => Problem::new(Code::ClusterError, format!("context {context}: {other}")),
    }
}
