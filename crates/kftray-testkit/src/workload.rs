//! Builders for workloads and Services: a few words instead of a page of JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::kinds::Kind;
use crate::api::status::Status;
use crate::cluster::{DEFAULT_NAMESPACE, FakeCluster};
use crate::controller::{NODE, READY_AFTER, START_AFTER, STOP_AFTER};
use crate::pods::{Handler, PROGRAM};

/// A workload to be created. Its pods carry the label `app=NAME`.
#[must_use = "nothing exists before `create`"]
pub struct WorkloadBuilder<'a> {
    cluster: &'a FakeCluster,
    /// `None`: a single pod.
    kind: Option<Kind>,
    name: String,
    namespace: String,
    replicas: u64,
    ports: Vec<(String, u16, Handler)>,
    labels: Vec<(String, String)>,
    annotations: Vec<(&'static str, String)>,
    strategy: Option<Value>,
}

impl<'a> WorkloadBuilder<'a> {
    pub(crate) fn new(cluster: &'a FakeCluster, kind: Option<Kind>, name: &str) -> Self {
        Self {
            cluster,
            kind,
            name: name.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            replicas: 1,
            ports: Vec::new(),
            labels: vec![("app".to_owned(), name.to_owned())],
            annotations: Vec::new(),
            strategy: None,
        }
    }

    /// In this namespace instead of `default`; it must exist.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// How many pods; 1 unless said. No meaning for a pod or a DaemonSet.
    pub fn replicas(mut self, replicas: u64) -> Self {
        self.replicas = replicas;
        self
    }

    /// A container port with its name and the program behind it.
    pub fn port(mut self, name: &str, number: u16, handler: Handler) -> Self {
        self.ports.push((name.to_owned(), number, handler));
        self
    }

    /// A further label of the pods, or another value for `app`.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.retain(|(other, _)| other != name);
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `maxSurge` and `maxUnavailable` of a Deployment; 25 % each unless said.
    pub fn rolling(mut self, max_surge: u64, max_unavailable: u64) -> Self {
        let budget = json!({ "maxSurge": max_surge, "maxUnavailable": max_unavailable });
        self.strategy = Some(json!({ "type": "RollingUpdate", "rollingUpdate": budget }));
        self
    }

    /// A Deployment that ends all old pods before it starts new ones.
    pub fn recreate(mut self) -> Self {
        self.strategy = Some(json!({ "type": "Recreate" }));
        self
    }

    /// How long its pods take to start, to become ready, and to end; replaces the cluster's
    /// [`Timings`](crate::Timings).
    pub fn pod_times(mut self, start: Duration, ready: Duration, stop: Duration) -> Self {
        for (name, time) in [(START_AFTER, start), (READY_AFTER, ready), (STOP_AFTER, stop)] {
            self.annotations.push((name, time.as_millis().to_string()));
        }
        self
    }

    /// Creates it; pods follow in their own time (see [`FakeCluster::wait_ready`]).
    ///
    /// # Errors
    /// What the API would answer: it exists already, no such namespace.
    pub fn create(self) -> Result<(), Status> {
        let program = format!("{}/{}", self.namespace, self.name);
        let template = self.template(&program);
        for (_, number, handler) in self.ports {
            self.cluster.shared.pods.set_handler(&program, number, handler);
        }
        let Some(kind) = self.kind else {
            let mut pod = json!({
                "metadata": template["metadata"],
                "spec": template["spec"],
                "status": { "phase": "Pending" },
            });
            pod["metadata"]["name"] = json!(self.name);
            pod["spec"]["nodeName"] = json!(NODE);
            return self.cluster.shared.store.create(Kind::Pod, &self.namespace, pod).map(drop);
        };
        let mut object = json!({
            "metadata": { "name": self.name, "labels": { "app": self.name } },
            "spec": {
                "selector": { "matchLabels": template["metadata"]["labels"] },
                "template": template,
            },
        });
        match kind {
            Kind::DaemonSet => {}
            Kind::Job => object["spec"]["parallelism"] = json!(self.replicas),
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Deployment
            | Kind::ReplicaSet
            | Kind::StatefulSet
            | Kind::Event
            | Kind::Secret
            | Kind::Ingress
            | Kind::IngressClass
            | Kind::NetworkPolicy
            | Kind::Role
            | Kind::RoleBinding => object["spec"]["replicas"] = json!(self.replicas),
        }
        if let (Kind::Deployment, Some(strategy)) = (kind, self.strategy) {
            object["spec"]["strategy"] = strategy;
        }
        self.cluster.shared.store.create(kind, &self.namespace, object).map(drop)
    }

    fn template(&self, program: &str) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let mut annotations = json!({ PROGRAM: program });
        for (name, value) in &self.annotations {
            annotations[*name] = json!(value);
        }
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, number, _)| json!({ "name": name, "containerPort": number, "protocol": "TCP" }))
            .collect();
        json!({
            "metadata": { "labels": labels, "annotations": annotations },
            "spec": {
                "containers": [{ "name": "main", "image": "fake/program:1", "ports": ports }],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
            },
        })
    }
}

/// A Service to be created.
#[must_use = "nothing exists before `create`"]
pub struct ServiceBuilder<'a> {
    cluster: &'a FakeCluster,
    name: String,
    namespace: String,
    ports: Vec<Value>,
    selector: Option<Vec<(String, String)>>,
    spec: serde_json::Map<String, Value>,
}

/// A Service's target port: a number or a container port's name.
#[derive(Clone, Debug)]
pub struct TargetPort(Value);

impl From<u16> for TargetPort {
    fn from(number: u16) -> Self {
        Self(json!(number))
    }
}

impl From<&str> for TargetPort {
    fn from(name: &str) -> Self {
        Self(json!(name))
    }
}

impl<'a> ServiceBuilder<'a> {
    pub(crate) fn new(cluster: &'a FakeCluster, name: &str) -> Self {
        Self {
            cluster,
            name: name.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            ports: Vec::new(),
            selector: Some(vec![("app".to_owned(), name.to_owned())]),
            spec: serde_json::Map::new(),
        }
    }

    /// In this namespace instead of `default`; it must exist.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The Service's only port, without a name.
    pub fn port(mut self, port: u16, target: impl Into<TargetPort>) -> Self {
        self.ports.push(json!({ "port": port, "targetPort": target.into().0, "protocol": "TCP" }));
        self
    }

    /// A named port; a Service with several needs names.
    pub fn named_port(mut self, name: &str, port: u16, target: impl Into<TargetPort>) -> Self {
        self.ports
            .push(json!({ "name": name, "port": port, "targetPort": target.into().0, "protocol": "TCP" }));
        self
    }

    /// Selects pods with this label instead of `app=NAME`.
    pub fn selector(mut self, name: &str, value: &str) -> Self {
        self.selector = Some(vec![(name.to_owned(), value.to_owned())]);
        self
    }

    /// No selector: its EndpointSlices are made by hand.
    pub fn without_selector(mut self) -> Self {
        self.selector = None;
        self
    }

    /// `clusterIP: None`.
    pub fn headless(mut self) -> Self {
        self.spec.insert("clusterIP".to_owned(), json!("None"));
        self
    }

    /// Endpoints are `ready` whatever their pods say.
    pub fn publish_not_ready(mut self) -> Self {
        self.spec.insert("publishNotReadyAddresses".to_owned(), json!(true));
        self
    }

    /// Creates it.
    ///
    /// # Errors
    /// What the API would answer: it exists already, no such namespace.
    pub fn create(mut self) -> Result<(), Status> {
        if let Some(selector) = self.selector {
            let selector: serde_json::Map<String, Value> =
                selector.into_iter().map(|(name, value)| (name, json!(value))).collect();
            self.spec.insert("selector".to_owned(), Value::Object(selector));
        }
        self.spec.insert("type".to_owned(), json!("ClusterIP"));
        self.spec.insert("ports".to_owned(), json!(self.ports));
        let service = json!({ "metadata": { "name": self.name }, "spec": self.spec });
        self.cluster.shared.store.create(Kind::Service, &self.namespace, service).map(drop)
    }
}
