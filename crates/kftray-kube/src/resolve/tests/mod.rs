//! Targets followed against a scripted API server, mostly on a paused clock.

mod apiserver;
mod lookups;
mod permissions;
mod services;
mod watches;

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kftray_commons::{ClusterRef, Code, ContextRef, Problem, RemotePort, Target, TargetObject};
use kftray_portforward::ports::{ClusterId, Condition, Resolution};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream_like::changes;

use self::apiserver::Api;
use super::feeds::{Link, Timing};
use super::follow::Connection;
use super::{Resolver, Root, Source};

/// Long enough for anything that should happen at once, on a paused clock or a slow machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// The state of a cluster as tests set it.
#[derive(Clone)]
enum Given {
    Up(u64, Api),
    Failed(Problem),
}

struct Scripted(watch::Receiver<Given>);

impl Source for Scripted {
    fn follow(&self, root: &Weak<Root>, _: &ClusterRef) -> BoxStream<'static, Connection> {
        let root = Weak::clone(root);
        changes(self.0.clone())
            .filter_map(move |given| {
                let connection = root.upgrade().map(|root| match given {
                    Given::Failed(problem) => Connection::Failed(problem),
                    Given::Up(id, api) => Connection::Up(root.feeds(ClusterId(id), || Link {
                        id: ClusterId(id),
                        client: api.client(),
                        default_namespace: "shop".into(),
                        runtime: root.runtime.clone(),
                        timing: root.timing,
                        kick: root.kick.subscribe(),
                    })),
                });
                std::future::ready(connection)
            })
            .boxed()
    }

    fn reset(&self, _: ClusterId) {}
}

mod tokio_stream_like {
    //! A watch channel as a stream of its values, the current one first.

    use futures::Stream;
    use tokio::sync::watch;

    pub(super) fn changes<T: Clone + Send + Sync>(
        mut receiver: watch::Receiver<T>,
    ) -> impl Stream<Item = T> + Send {
        receiver.mark_changed();
        futures::stream::unfold(receiver, |mut receiver| async {
            receiver.changed().await.ok()?;
            let value = receiver.borrow_and_update().clone();
            Some((value, receiver))
        })
    }
}

/// A resolver on one scripted cluster.
struct Ground {
    api: Api,
    cluster: watch::Sender<Given>,
    resolver: Resolver,
}

impl Ground {
    fn new() -> Self {
        let api = Api::default();
        let (cluster, given) = watch::channel(Given::Up(1, api.clone()));
        let resolver = Resolver::over(Box::new(Scripted(given)), Timing::default());
        Self { api, cluster, resolver }
    }

    /// With Service `web` (80 -> 8080, named http) and one ready pod `web-1`.
    fn with_web() -> Self {
        let ground = Self::new();
        ground.api.put(
            "services",
            service(
                "web",
                json!({"app": "web"}),
                json!([
            {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]),
            ),
        );
        ground.api.put("pods", pod("web-1", "web", true));
        ground.api.put("endpointslices", slice("web-a", "web", &[("web-1", true)]));
        ground
    }

    fn follow(&self, object: TargetObject, port: &RemotePort) -> watch::Receiver<Resolution> {
        self.resolver.follow(&target(object), port)
    }

    fn service(&self, name: &str) -> watch::Receiver<Resolution> {
        self.follow(TargetObject::Service(name.to_owned()), &number(80))
    }

    fn notes(&self, object: TargetObject) -> Vec<String> {
        self.resolver.notes(&target(object), &number(80))
    }
}

fn target(object: TargetObject) -> Target {
    let cluster = ClusterRef { kubeconfig: None, context: ContextRef::Current };
    Target { cluster, namespace: None, object }
}

fn number(port: u16) -> RemotePort {
    RemotePort::Number(port.try_into().unwrap())
}

fn name(port: &str) -> RemotePort {
    RemotePort::Name(port.to_owned())
}

fn service(name: &str, selector: Value, ports: Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}")},
           "spec": {"type": "ClusterIP", "selector": selector, "ports": ports}})
}

fn pod(name: &str, app: &str, ready: bool) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": app}},
           "spec": {"nodeName": "node1",
                    "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
           "status": {"phase": "Running",
                      "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                      "containerStatuses": [{"name": "c", "ready": ready, "started": true, "state": {"running": {}}}]}})
}

fn slice(name: &str, service: &str, pods: &[(&str, bool)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, ready)| {
            json!({"addresses": ["10.0.0.1"], "nodeName": "node1",
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": format!("uid-{pod}")}})
        })
        .collect();
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints,
           "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

/// One line per resolution, for comparing.
fn text(resolution: &Resolution) -> String {
    match resolution {
        Resolution::Pending => "pending".to_owned(),
        Resolution::Failed(problem) => format!("{}: {}", problem.code, problem.message),
        Resolution::Endpoints { endpoints, why_none } => {
            let one = |endpoint: &kftray_portforward::ports::Endpoint| {
                let condition = match endpoint.condition {
                    Condition::Ready => "",
                    Condition::Draining => " draining",
                    Condition::NotReady => " unready",
                };
                format!("{}:{}{condition}", endpoint.pod, endpoint.port)
            };
            let pods = endpoints.iter().map(one).collect::<Vec<_>>().join(", ");
            why_none.as_ref().map_or(pods.clone(), |problem| format!("[{pods}] {}", problem.message))
        }
    }
}

/// Waits until the resolution reads so.
async fn becomes(receiver: &mut watch::Receiver<Resolution>, expected: &str) {
    let reached = timeout(PATIENCE, receiver.wait_for(|now| text(now) == expected)).await;
    if matches!(reached, Ok(Ok(_))) {
        return;
    }
    drop(reached);
    let last = text(&receiver.borrow());
    panic!("never became\n  {expected}\nlast was\n  {last}");
}

/// Lets everything that can happen now happen. On a paused clock this takes no time.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

fn problem(code: Code) -> Problem {
    Problem::new(code, "given")
}
