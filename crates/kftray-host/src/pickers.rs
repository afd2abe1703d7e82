//! What pickers show: contexts, namespaces, Services, workloads, ports. Each asks for exactly what it shows, so that a user
//! who may see one namespace can pick in it; what is missing is said beside what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kftray_commons::api::{
    ContextInfo, ContextList, NamespaceList, PortInfo, PortList, ServiceInfo, ServiceList, WorkloadInfo,
    WorkloadList,
};
use kftray_commons::target::{ClusterRef, ContextRef};
use kftray_commons::{Code, Problem, WorkloadKind};
use kftray_kube::{Asked, Cluster, ClusterState, Contexts, request_problem};
use kube::api::{Api, ListParams};
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::core::Core;

/// Objects per page of a list, as in the resolver.
const PAGE: u32 = 500;

/// The namespace that means all of them.
const ALL: &str = "*";

/// Annotations that are shown.
const ANNOTATIONS: &str = "kftray.app/";

/// Which part of which cluster is asked for.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ClusterParams {
    /// Kubeconfig path list; none is the host's `KUBECONFIG`, else `~/.kube/config`.
    kubeconfig: Option<String>,
    /// Context; none is the current one.
    context: Option<String>,
    /// Namespace; none is the context's, `*` is all.
    namespace: Option<String>,
}

/// Which object's ports are asked for.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ObjectParams {
    /// Kubeconfig path list; none is the host's `KUBECONFIG`, else `~/.kube/config`.
    kubeconfig: Option<String>,
    /// Context; none is the current one.
    context: Option<String>,
    /// Namespace; none is the context's.
    namespace: Option<String>,
    /// `service`, `pod`, `deployment`, `statefulset`, `daemonset`, `replicaset` or `job`.
    kind: String,
    /// The object's name.
    name: String,
}

/// The contexts of a kubeconfig.
///
/// # Errors
/// `kubeconfig_missing`, `kubeconfig_invalid`.
pub(crate) async fn contexts(core: &Core, kubeconfig: Option<String>) -> Result<ContextList, Problem> {
    let environment = core.environment().clone();
    let read = tokio::task::spawn_blocking(move || Contexts::read(kubeconfig.as_deref(), &environment));
    let Contexts { contexts, current, files } =
        read.await.map_err(|error| Problem::new(Code::Internal, error.to_string()))??;
    let info = |context: kftray_kube::KnownContext| ContextInfo {
        current: current.as_ref() == Some(&context.name),
        name: context.name,
        cluster: context.cluster,
        user: context.user,
        namespace: context.namespace,
    };
    Ok(ContextList {
        contexts: contexts.into_iter().map(info).collect(),
        files: files.iter().map(|path| path.display().to_string()).collect(),
        current,
    })
}

/// The namespaces of a cluster.
///
/// # Errors
/// What the cluster says, except that listing is not permitted.
pub(crate) async fn namespaces(core: &Core, params: ClusterParams) -> Result<NamespaceList, Problem> {
    let cluster = cluster(core, params.kubeconfig.clone(), params.context.clone()).await?;
    let asked = Asked { verb: "list", resource: "namespaces", group: "", namespace: None };
    match pages::<Namespace>(&Api::all(cluster.client()), asked, &cluster).await {
        Ok(found) => {
            let names: BTreeSet<String> = found.iter().map(ResourceExt::name_any).collect();
            Ok(NamespaceList { namespaces: names.into_iter().collect(), problem: None })
        }
        Err(problem) if problem.code == Code::Forbidden => {
            // What is known without asking: the context's own, and those that forwards of it use.
            let mut names = BTreeSet::from([cluster.default_namespace().to_owned()]);
            let of_context = core.board().configs().into_iter().filter(|config| {
                config.summary.context.as_deref().is_none_or(|name| name == cluster.context())
            });
            names.extend(of_context.filter_map(|config| config.summary.namespace.clone()));
            Ok(NamespaceList { namespaces: names.into_iter().collect(), problem: Some(problem) })
        }
        Err(problem) => Err(problem),
    }
}

/// The Services of a namespace, or of all.
///
/// # Errors
/// What the cluster says; where only one namespace may be listed, that one is, with the problem beside it.
pub(crate) async fn services(core: &Core, params: ClusterParams) -> Result<ServiceList, Problem> {
    let cluster = cluster(core, params.kubeconfig, params.context).await?;
    let (found, problem) = within::<Service>(&cluster, params.namespace.as_deref(), "services", "").await?;
    let mut services: Vec<ServiceInfo> = found.iter().map(service).collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(ServiceList { services, problem })
}

/// The workloads of a namespace, or of all, pods included.
///
/// # Errors
/// What the cluster says, if no kind at all can be listed.
pub(crate) async fn workloads(core: &Core, params: ClusterParams) -> Result<WorkloadList, Problem> {
    let cluster = cluster(core, params.kubeconfig, params.context).await?;
    let namespace = params.namespace.as_deref();
    let (deployments, stateful_sets, daemon_sets, replica_sets, jobs, pods) = tokio::join!(
        within::<Deployment>(&cluster, namespace, "deployments", "apps"),
        within::<StatefulSet>(&cluster, namespace, "statefulsets", "apps"),
        within::<DaemonSet>(&cluster, namespace, "daemonsets", "apps"),
        within::<ReplicaSet>(&cluster, namespace, "replicasets", "apps"),
        within::<Job>(&cluster, namespace, "jobs", "batch"),
        within::<Pod>(&cluster, namespace, "pods", ""),
    );
    let mut all = Listed::default();
    all.take(deployments, |object| Some(deployment(object)));
    all.take(stateful_sets, |object| Some(stateful_set(object)));
    all.take(daemon_sets, |object| Some(daemon_set(object)));
    // Those of a Deployment are its business.
    all.take(replica_sets, |object| object.owner_references().is_empty().then(|| replica_set(object)));
    all.take(jobs, |object| Some(job(object)));
    all.take(pods, |object| Some(pod(object)));
    let Listed { mut workloads, problems, any } = all;
    if let (false, Some(problem)) = (any, problems.first()) {
        return Err(problem.clone());
    }
    workloads.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
    Ok(WorkloadList { workloads, problems })
}

/// The ports of one object.
///
/// # Errors
/// `request_invalid` for a kind that is none, `not_found`, what the cluster says.
pub(crate) async fn ports(core: &Core, params: ObjectParams) -> Result<PortList, Problem> {
    let ObjectParams { kubeconfig, context, namespace, kind, name } = params;
    let cluster = cluster(core, kubeconfig, context).await?;
    let namespace = namespace.unwrap_or_else(|| cluster.default_namespace().to_owned());
    let place = Place { cluster: &cluster, namespace: &namespace, name: &name };
    let ports = match kind.as_str() {
        "service" | "svc" => service(&place.get::<Service>("services", "").await?).ports,
        "pod" => pod(&place.get::<Pod>("pods", "").await?).ports,
        other => match WorkloadKind::parse(other) {
            Some(WorkloadKind::Deployment) => deployment(&place.get("deployments", "apps").await?).ports,
            Some(WorkloadKind::StatefulSet) => stateful_set(&place.get("statefulsets", "apps").await?).ports,
            Some(WorkloadKind::DaemonSet) => daemon_set(&place.get("daemonsets", "apps").await?).ports,
            Some(WorkloadKind::ReplicaSet) => replica_set(&place.get("replicasets", "apps").await?).ports,
            Some(WorkloadKind::Job) => job(&place.get("jobs", "batch").await?).ports,
            None => {
                let message = format!("`{other}` is no kind that has ports");
                return Err(Problem::new(Code::RequestInvalid, message).with_remedy(
                    "Ask for service, pod, deployment, statefulset, daemonset, replicaset or job.",
                ));
            }
        },
    };
    Ok(PortList { ports })
}

/// The cluster of a context, once the kubeconfig has been read.
pub(crate) async fn cluster(
    core: &Core,
    kubeconfig: Option<String>,
    context: Option<String>,
) -> Result<Arc<Cluster>, Problem> {
    let context = context.filter(|name| !name.is_empty() && name != "@current");
    let reference =
        ClusterRef { kubeconfig, context: context.map_or(ContextRef::Current, ContextRef::Named) };
    let mut states = core.fleet().kube().clusters().follow(&reference);
    let state = states.wait_for(|state| !matches!(state, ClusterState::Pending)).await;
    match state.as_deref() {
        Ok(ClusterState::Up(cluster)) => Ok(Arc::clone(cluster)),
        Ok(ClusterState::Failed(problem)) => Err(problem.clone()),
        Ok(ClusterState::Pending) | Err(_) => {
            Err(Problem::new(Code::Internal, "nobody reads the kubeconfig any more"))
        }
    }
}

/// Every object of a list.
async fn pages<K>(api: &Api<K>, asked: Asked<'_>, cluster: &Cluster) -> Result<Vec<K>, Problem>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await;
        let page = page.map_err(|error| request_problem(&error, asked, cluster.context()))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Every object of a namespace, or of all; where all may not be listed, those of the context's namespace and the reason.
async fn within<K>(
    cluster: &Cluster,
    namespace: Option<&str>,
    resource: &'static str,
    group: &'static str,
) -> Result<(Vec<K>, Option<Problem>), Problem>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let own = cluster.default_namespace();
    let asked = |namespace| Asked { verb: "list", resource, group, namespace };
    if namespace == Some(ALL) {
        match pages(&Api::<K>::all(cluster.client()), asked(None), cluster).await {
            Ok(found) => return Ok((found, None)),
            Err(problem) if problem.code == Code::Forbidden => {
                let api = Api::<K>::namespaced(cluster.client(), own);
                return Ok((pages(&api, asked(Some(own)), cluster).await?, Some(problem)));
            }
            Err(problem) => return Err(problem),
        }
    }
    let name = namespace.unwrap_or(own);
    let api = Api::<K>::namespaced(cluster.client(), name);
    Ok((pages(&api, asked(Some(name)), cluster).await?, None))
}

/// One object by name.
struct Place<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    name: &'a str,
}

impl Place<'_> {
    async fn get<K>(&self, resource: &'static str, group: &'static str) -> Result<K, Problem>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api = Api::<K>::namespaced(self.cluster.client(), self.namespace);
        let asked = Asked { verb: "get", resource, group, namespace: Some(self.namespace) };
        api.get(self.name).await.map_err(|error| request_problem(&error, asked, self.cluster.context()))
    }
}

/// Workloads of several kinds.
#[derive(Default)]
struct Listed {
    workloads: Vec<WorkloadInfo>,
    problems: Vec<Problem>,
    /// At least one kind could be listed.
    any: bool,
}

impl Listed {
    fn take<K>(
        &mut self,
        listed: Result<(Vec<K>, Option<Problem>), Problem>,
        info: impl Fn(&K) -> Option<WorkloadInfo>,
    ) {
        match listed {
            Ok((objects, problem)) => {
                self.any = true;
                self.workloads.extend(objects.iter().filter_map(info));
                self.problems.extend(problem);
            }
            Err(problem) => self.problems.push(problem),
        }
    }
}

fn service(object: &Service) -> ServiceInfo {
    let spec = object.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default().into_iter().map(|port| PortInfo {
        name: port.name.filter(|name| !name.is_empty()),
        port: number(port.port),
        protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
        target: port.target_port.map(|target| match target {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => name,
        }),
        app_protocol: port.app_protocol,
    });
    let annotations = object.annotations().iter().filter(|(key, _)| key.starts_with(ANNOTATIONS));
    ServiceInfo {
        name: object.name_any(),
        namespace: object.namespace().unwrap_or_default(),
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        ports: ports.collect(),
        annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
        labels: object.labels().clone(),
    }
}

fn workload<K: ResourceExt>(
    kind: &str,
    object: &K,
    pods: Option<&PodSpec>,
    ready: Option<i32>,
    wanted: Option<i32>,
) -> WorkloadInfo {
    let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
    WorkloadInfo {
        kind: kind.to_owned(),
        name: object.name_any(),
        namespace: object.namespace().unwrap_or_default(),
        ports: pods.map(container_ports).unwrap_or_default(),
        labels: object.labels().clone() as BTreeMap<String, String>,
        ready: count(ready),
        wanted: count(wanted),
    }
}

fn deployment(object: &Deployment) -> WorkloadInfo {
    let (spec, status) = (&object.spec, object.status.as_ref());
    let ready = status.and_then(|status| status.ready_replicas);
    workload("deployment", object, spec.template.spec.as_ref(), ready, spec.replicas.or(Some(1)))
}

fn stateful_set(object: &StatefulSet) -> WorkloadInfo {
    let (spec, status) = (&object.spec, object.status.as_ref());
    let ready = status.and_then(|status| status.ready_replicas);
    workload("statefulset", object, spec.template.spec.as_ref(), ready, spec.replicas.or(Some(1)))
}

fn daemon_set(object: &DaemonSet) -> WorkloadInfo {
    let pods = object.spec.template.spec.as_ref();
    let status = object.status.as_ref();
    let ready = status.map(|status| status.number_ready);
    workload("daemonset", object, pods, ready, status.map(|status| status.desired_number_scheduled))
}

fn replica_set(object: &ReplicaSet) -> WorkloadInfo {
    let (spec, status) = (&object.spec, object.status.as_ref());
    let pods = spec.template.as_ref().and_then(|template| template.spec.as_ref());
    let ready = status.and_then(|status| status.ready_replicas);
    workload("replicaset", object, pods, ready, spec.replicas.or(Some(1)))
}

fn job(object: &Job) -> WorkloadInfo {
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let pods = spec.and_then(|spec| spec.template.spec.as_ref());
    let ready = status.and_then(|status| status.ready);
    workload("job", object, pods, ready, spec.and_then(|spec| spec.parallelism).or(Some(1)))
}

fn pod(object: &Pod) -> WorkloadInfo {
    let conditions = object.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True").count();
    workload("pod", object, object.spec.as_ref(), i32::try_from(ready).ok(), Some(1))
}

/// The ports that containers declare, sidecars that start first included, without doubles.
fn container_ports(pods: &PodSpec) -> Vec<PortInfo> {
    let containers = pods.containers.iter().chain(pods.init_containers.iter().flatten());
    let mut ports: Vec<PortInfo> = Vec::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let info = PortInfo {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: number(port.container_port),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            target: None,
            app_protocol: None,
        };
        if !ports.contains(&info) {
            ports.push(info);
        }
    }
    ports
}

/// Kubernetes keeps ports as 32-bit numbers and admits only 1 to 65535.
fn number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or_default()
}
