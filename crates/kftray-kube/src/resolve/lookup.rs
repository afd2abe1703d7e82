//! One look-up of each kind of target: which feeds it needs, where it steps down, what it publishes.

use std::sync::Arc;

use kftray_commons::{Code, Problem, RemotePort, WorkloadKind};
use kftray_portforward::ports::{Condition, Endpoint, Route};

use super::feed::{
    Access, DAEMON_SETS, DEPLOYMENTS, ENDPOINT_SLICES, FeedKey, JOBS, Kind, PODS, REPLICA_SET_OWNERS,
    REPLICA_SETS, SERVICES, STATEFUL_SETS, Scope,
};
use super::feeds::{Feeds, Ladder, changed};
use super::follow::Published;
use super::object::{Pod, ReplicaSet, Service, Slice, Workload};
use super::pods::{self, Answer, Needs, Owner, PodPort, Scene};
use super::service::{self, PodsWanted};
use super::syntax;

/// Why a look-up came to rest.
pub(super) enum Rest {
    /// No permitted way is left; an administrator can change that, and nothing will tell us.
    Denied(Problem),
    /// Published on trust, without having been able to look.
    Blind,
    /// The target itself can never be looked up.
    Invalid(Problem),
}

/// One look-up on one cluster connection.
pub(super) struct LookUp<'a> {
    pub(super) feeds: &'a Feeds,
    pub(super) scene: Scene,
    pub(super) port: &'a RemotePort,
    pub(super) out: &'a Published,
}

impl LookUp<'_> {
    fn key(&self, kind: Kind, scope: Scope, access: Access) -> FeedKey {
        FeedKey { kind, namespace: Arc::clone(&self.scene.namespace), scope, access }
    }

    fn pods_by(&self, selector: &str) -> Ladder<Pod> {
        let rungs = vec![self.key(PODS, Scope::Labels(selector.into()), Access::Watch)];
        Ladder::new(&self.feeds.pods, "", rungs)
    }

    fn missing(&self) -> Answer {
        Answer::Failed(Problem::new(Code::TargetMissing, format!("{} does not exist", self.scene.place())))
    }

    pub(super) async fn pod(&self, name: &str) -> Rest {
        let named = || Scope::Named(name.into());
        let rungs = vec![self.key(PODS, named(), Access::Watch), self.key(PODS, named(), Access::Once)];
        let mut pods = Ladder::new(&self.feeds.pods, "", rungs);
        loop {
            let view = match pods.view() {
                Ok(view) => view,
                Err(denial) => return self.pod_unseen(name, denial, pods.notes().collect()),
            };
            if let Some(problem) = view.broken() {
                self.out.publish_trouble(problem);
            }
            if view.is_known() {
                let answer = if view.objects.is_empty() {
                    self.missing()
                } else {
                    let why = || pods::not_running(&self.scene, &view.objects);
                    let port = PodPort::from(self.port);
                    pods::answer(&self.scene, &view.objects, &port, Needs::Running, why)
                };
                pods.set_unsettled(!answer.has_ready());
                self.out.publish_answer(answer, pods.notes().collect());
            }
            pods.changed().await;
        }
    }

    /// Not even `get` is permitted; to open a port-forward may be. With a number there is nothing to look up.
    fn pod_unseen(&self, name: &str, denial: Problem, notes: Vec<String>) -> Rest {
        let RemotePort::Number(port) = self.port else { return Rest::Denied(denial) };
        if self.scene.way.by_relay {
            // The relay needs the pod's address, which only the pod tells.
            return Rest::Denied(denial);
        }
        let endpoint = Endpoint {
            cluster: self.scene.cluster,
            namespace: Arc::clone(&self.scene.namespace),
            pod: name.into(),
            uid: "".into(),
            node: None,
            port: port.get(),
            condition: Condition::Ready,
            route: Route::Direct,
        };
        self.out.publish_answer(Answer::Endpoints(vec![endpoint], None), notes);
        Rest::Blind
    }

    pub(super) async fn labels(&self, selector: &str) -> Rest {
        let mut pods = self.pods_by(selector);
        loop {
            let view = match pods.view() {
                Ok(view) => view,
                Err(denial) => return Rest::Denied(denial),
            };
            if let Some(problem) = view.broken() {
                self.out.publish_trouble(problem);
            }
            if view.is_known() {
                let none = || {
                    let namespace = &self.scene.namespace;
                    let message = format!("no pod in namespace {namespace} matches {selector}");
                    Problem::new(Code::NoReadyPods, message).with_remedy(
                        "Compare the selector with the pods' labels; the forward starts when a pod matches and is ready.",
                    )
                };
                let why = || pods::none_ready(&self.scene, &view.objects, none);
                let answer = pods::answer(
                    &self.scene,
                    &view.objects,
                    &PodPort::from(self.port),
                    Needs::Readiness,
                    why,
                );
                pods.set_unsettled(!answer.has_ready());
                self.out.publish_answer(answer, pods.notes().collect());
            }
            pods.changed().await;
        }
    }

    pub(super) async fn service(&self, name: &str) -> Rest {
        let named = || Scope::Named(name.into());
        let rungs = vec![
            self.key(SERVICES, Scope::All, Access::Watch),
            self.key(SERVICES, named(), Access::Watch),
            self.key(SERVICES, named(), Access::Once),
        ];
        let mut ladders = ServiceLadders {
            services: Ladder::new(&self.feeds.services, name, rungs),
            slices: Ladder::new(
                &self.feeds.slices,
                name,
                vec![self.key(ENDPOINT_SLICES, Scope::All, Access::Watch)],
            ),
            pods: None,
        };
        loop {
            match self.service_step(name, &mut ladders) {
                Ok(Step::Wait) => {}
                Ok(Step::Again) => continue,
                Err(denial) => return Rest::Denied(denial),
            }
            tokio::select! {
                () = ladders.services.changed() => {}
                () = ladders.slices.changed() => {}
                () = changed(ladders.pods.as_mut().map(|(_, pods)| pods)) => {}
            }
        }
    }

    /// One evaluation of what is known of a Service.
    ///
    /// # Errors
    /// The denial that leaves no way.
    fn service_step(&self, name: &str, ladders: &mut ServiceLadders) -> Result<Step, Problem> {
        let services = ladders.services.view()?;
        let slices = ladders.slices.view();
        if let Some(problem) =
            services.broken().or_else(|| slices.as_ref().ok().and_then(|view| view.broken()))
        {
            self.out.publish_trouble(problem);
            return Ok(Step::Wait);
        }
        if !services.is_known() {
            return Ok(Step::Wait);
        }
        let Some(service) = services.objects.first() else {
            ladders.settle(false);
            ladders.pods = None;
            let missing = service::missing(&self.scene, name, ladders.services.names());
            self.out.publish_answer(Answer::Failed(missing), ladders.notes());
            return Ok(Step::Wait);
        };
        if let Some(answer) = service::other_name(&self.scene, service, self.port) {
            ladders.settle(answer.has_ready());
            ladders.pods = None;
            self.out.publish_answer(answer, ladders.notes());
            return Ok(Step::Wait);
        }
        let meaning = match service::meaning(&self.scene, service, self.port) {
            Ok(meaning) => meaning,
            Err(problem) => {
                ladders.settle(false);
                ladders.pods = None;
                self.out.publish_answer(Answer::Failed(problem), ladders.notes());
                return Ok(Step::Wait);
            }
        };
        match slices {
            Ok(view) if !view.is_known() => Ok(Step::Wait),
            Ok(view) => self.service_by_slices(ladders, service, &meaning, &view.objects),
            Err(denial) => self.service_by_pods(ladders, service, &meaning, denial),
        }
    }

    fn service_by_slices(
        &self,
        ladders: &mut ServiceLadders,
        service: &Service,
        meaning: &service::Meaning,
        slices: &[Arc<Slice>],
    ) -> Result<Step, Problem> {
        let pods = ladders.pods.as_mut().map(|(_, pods)| pods.view());
        let known = pods.as_ref().and_then(|pods| pods.as_ref().ok()).filter(|pods| pods.is_known());
        let known = known.map(|pods| &*pods.objects);
        let (answer, wanted) = service::by_slices(&self.scene, service, meaning, slices, known);
        ladders.settle(answer.has_ready());
        match (wanted, syntax::of_map(&service.spec.selector)) {
            (PodsWanted::No, _) | (_, None) => ladders.pods = None,
            (PodsWanted::Reason | PodsWanted::Port, Some(selector)) => {
                if ladders.want_pods(self, selector) {
                    // Their feed may be running already.
                    return Ok(Step::Again);
                }
            }
        }
        if wanted == PodsWanted::Port && known.is_none() {
            // Without the pods there is no answer, not even "none".
            return match pods {
                Some(Err(denial)) => Err(denial),
                Some(Ok(view)) => {
                    if let Some(problem) = view.broken() {
                        self.out.publish_trouble(problem);
                    }
                    Ok(Step::Wait)
                }
                None => Ok(Step::Wait),
            };
        }
        self.out.publish_answer(answer, ladders.notes());
        Ok(Step::Wait)
    }

    fn service_by_pods(
        &self,
        ladders: &mut ServiceLadders,
        service: &Service,
        meaning: &service::Meaning,
        denial: Problem,
    ) -> Result<Step, Problem> {
        let Some(selector) = syntax::of_map(&service.spec.selector) else {
            // Its endpoints are nowhere but in the slices.
            return Err(denial);
        };
        ladders.want_pods(self, selector);
        let Some((_, pods)) = &mut ladders.pods else { return Ok(Step::Wait) };
        let view = pods.view().map_err(|also| {
            Problem::new(Code::Forbidden, format!("{}, and {}", denial.message, also.message))
                .with_remedy(format!("{} Or forward to a pod by name.", denial.remedy))
        })?;
        if let Some(problem) = view.broken() {
            self.out.publish_trouble(problem);
        }
        if view.is_known() {
            let answer = service::by_pods(&self.scene, service, meaning, &view.objects);
            ladders.settle(answer.has_ready());
            self.out.publish_answer(answer, ladders.notes());
        }
        Ok(Step::Wait)
    }

    pub(super) async fn workload(&self, kind: WorkloadKind, name: &str) -> Rest {
        let (resource, owner_kind) = match kind {
            WorkloadKind::Deployment => (DEPLOYMENTS, "Deployment"),
            WorkloadKind::StatefulSet => (STATEFUL_SETS, "StatefulSet"),
            WorkloadKind::DaemonSet => (DAEMON_SETS, "DaemonSet"),
            WorkloadKind::ReplicaSet => (REPLICA_SETS, "ReplicaSet"),
            WorkloadKind::Job => (JOBS, "Job"),
        };
        let named = || Scope::Named(name.into());
        let rungs =
            vec![self.key(resource, named(), Access::Watch), self.key(resource, named(), Access::Once)];
        let mut workload = Ladder::new(&self.feeds.workloads, "", rungs);
        let mut behind: Option<(String, Behind)> = None;
        loop {
            let view = match workload.view() {
                Ok(view) => view,
                Err(denial) => return Rest::Denied(denial),
            };
            if let Some(problem) = view.broken() {
                self.out.publish_trouble(problem);
            }
            if view.is_known() {
                match view.objects.first() {
                    Some(object) => {
                        match self.workload_step(owner_kind, object, &mut workload, &mut behind) {
                            Ok(Step::Wait) => {}
                            Ok(Step::Again) => continue,
                            Err(denial) => return Rest::Denied(denial),
                        }
                    }
                    None => {
                        behind = None;
                        workload.set_unsettled(true);
                        self.out.publish_answer(self.missing(), workload.notes().collect());
                    }
                }
            }
            let (pods, sets) = match &mut behind {
                Some((_, behind)) => (Some(&mut behind.pods), behind.replica_sets.as_mut()),
                None => (None, None),
            };
            tokio::select! {
                () = workload.changed() => {}
                () = changed(pods) => {}
                () = changed(sets) => {}
            }
        }
    }

    fn workload_step(
        &self,
        owner_kind: &str,
        object: &Workload,
        ladder: &mut Ladder<Workload>,
        behind: &mut Option<(String, Behind)>,
    ) -> Result<Step, Problem> {
        let Some(selector) = syntax::of_workload(&object.spec.selector) else {
            let message = format!("{} has no usable selector", self.scene.place());
            self.out.publish_answer(Answer::Failed(Problem::new(Code::NoReadyPods, message)), Vec::new());
            *behind = None;
            return Ok(Step::Wait);
        };
        if behind.as_ref().is_none_or(|(known, _)| *known != selector) {
            *behind = None;
        }
        let (_, behind) = behind.get_or_insert_with(|| {
            let pods = self.pods_by(&selector);
            (selector.clone(), Behind { pods, replica_sets: None })
        });
        let view = behind.pods.view()?;
        if let Some(problem) = view.broken() {
            self.out.publish_trouble(problem);
        }
        if !view.is_known() {
            return Ok(Step::Wait);
        }
        // Denied: the names have to do.
        let sets = behind.replica_sets.as_mut().and_then(|sets| sets.view().ok());
        let sets_known = sets.as_ref().filter(|sets| sets.is_known()).map(|sets| &*sets.objects);
        let owner = Owner { kind: owner_kind, workload: object };
        let (ours, unknown) = pods::owned(owner, &view.objects, sets_known);
        if unknown && behind.replica_sets.is_none() {
            let key = self.key(REPLICA_SET_OWNERS, Scope::Labels(selector.into()), Access::Watch);
            behind.replica_sets = Some(Ladder::new(&self.feeds.replica_sets, "", vec![key]));
            return Ok(Step::Again);
        }
        let place = self.scene.place();
        let none = || match object.spec.replicas {
            Some(0) => Problem::new(Code::NoReadyPods, format!("{place} is scaled to 0 replicas"))
                .with_remedy("Scale it up; the forward starts when a pod is ready."),
            _ => Problem::new(Code::NoReadyPods, format!("{place} has no pods yet")),
        };
        let why = || pods::none_ready(&self.scene, &ours, none);
        let answer = pods::answer(&self.scene, &ours, &PodPort::from(self.port), Needs::Readiness, why);
        let settled = answer.has_ready();
        ladder.set_unsettled(!settled);
        behind.pods.set_unsettled(!settled);
        let sets = behind.replica_sets.iter().flat_map(Ladder::notes);
        self.out.publish_answer(answer, ladder.notes().chain(behind.pods.notes()).chain(sets).collect());
        Ok(Step::Wait)
    }
}

/// What an evaluation asks for.
enum Step {
    /// Nothing until something changes.
    Wait,
    /// Another feed was opened; it may have an answer already.
    Again,
}

/// Everything that is watched for a Service.
struct ServiceLadders {
    services: Ladder<Service>,
    slices: Ladder<Slice>,
    /// With the selector they were opened for.
    pods: Option<(String, Ladder<Pod>)>,
}

impl ServiceLadders {
    /// Follows the pods of that selector. Returns whether that is new.
    fn want_pods(&mut self, look: &LookUp<'_>, selector: String) -> bool {
        if self.pods.as_ref().is_some_and(|(known, _)| *known == selector) {
            return false;
        }
        let pods = look.pods_by(&selector);
        self.pods = Some((selector, pods));
        true
    }

    fn settle(&mut self, settled: bool) {
        self.services.set_unsettled(!settled);
        self.slices.set_unsettled(!settled);
        if let Some((_, pods)) = &mut self.pods {
            pods.set_unsettled(!settled);
        }
    }

    fn notes(&self) -> Vec<String> {
        let pods = self.pods.iter().flat_map(|(_, pods)| pods.notes());
        self.services.notes().chain(self.slices.notes()).chain(pods).collect()
    }
}

/// What is watched behind a workload.
struct Behind {
    pods: Ladder<Pod>,
    /// Only if the pods' owners cannot be told by their names.
    replica_sets: Option<Ladder<ReplicaSet>>,
}
