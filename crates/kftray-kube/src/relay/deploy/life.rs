//! One relay kept up: an installed one used, else an own one adopted or created, watched, and created again when it ends.
//!
//! Nothing is remembered outside the cluster: which relay is ours its labels and its token's hash say.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kftray_commons::{Code, Cure, Problem};
use kftray_relay_proto::token::Token;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::api::{Api, JOBS, identity};
use super::manifest::{Use, Wanted, label};
use super::progress::{Progress, Scene, searching};
use super::seen::{Event, Job, Pod};
use super::settings::{RelaySettings, RelaySpec};
use super::{Identity, Need, RelayPod, RelayState, TUNNEL_PORT, expose, installed, key};
use crate::Cluster;
use crate::resolve::feed::{
    Access, EVENTS, Feed, FeedKey, JOBS as WATCHED_JOBS, Kind, PODS, Phase, Scope, Subscription,
};
use crate::resolve::feeds::{Backoff, Link, Registry, Timing};
use crate::resolve::object::Object;

/// First and longest pause before a relay that ended is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// First and longest pause before asking again for what the cluster refused: mostly only an administrator changes that.
const REFUSED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Longest pause where nobody has refused anything: the cluster was merely away.
const AWAY: Duration = Duration::from_secs(10);
/// A relay that was up this long did not end because of how it was made.
const PROVEN: Duration = Duration::from_secs(60);
/// Minutes after which an own Job without a running pod is somebody's who is gone: a pull takes minutes, not a quarter of an
/// hour.
const STALE_MINUTES: i64 = 15;
/// Longest wait for a deletion that nobody waits for.
pub(super) const TIDY: Duration = Duration::from_secs(10);

/// What all lives of a process share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) identity: Arc<Identity>,
    pub(super) settings: watch::Receiver<RelaySettings>,
    /// Counts up when the machine woke or changed network.
    pub(super) kick: watch::Receiver<u64>,
    /// UIDs of pods that a tunnel could not use.
    pub(super) doubts: watch::Receiver<HashSet<Arc<str>>>,
    /// Counts up when a relay was started here, for those who only use what is there.
    pub(super) started: watch::Sender<u64>,
    /// How many deletions are under way.
    pub(super) withdrawing: watch::Receiver<usize>,
}

/// One relay on one connection to a cluster.
pub(super) struct Life {
    pub(super) cluster: Arc<Cluster>,
    pub(super) namespace: Arc<str>,
    may_start: bool,
    purpose: Use,
    pub(super) shared: Shared,
    pub(super) link: Link,
    /// An own Job that is not up yet: nobody's if we go.
    pending: Option<(String, String)>,
    /// UIDs of Jobs whose pod has ended: their controller may take a moment to say so.
    ended: HashSet<String>,
}

/// Why a round is over.
enum End {
    /// The relay ended; it had been up for so long.
    Over(Duration),
    /// The cluster refuses it, or does not answer; who can help.
    Refused(Cure),
    /// None is there and none is to be started.
    Absent,
}

impl Life {
    pub(super) fn new(cluster: Arc<Cluster>, namespace: &str, need: Need, shared: Shared) -> Self {
        let link = link(&cluster, Handle::current(), shared.kick.clone());
        let purpose = match &need {
            Need::IfThere | Need::Create => Use::Forwards,
            Need::Expose(alias) => Use::Expose(alias.to_string()),
        };
        Self {
            cluster,
            namespace: namespace.into(),
            may_start: need != Need::IfThere,
            purpose,
            shared,
            link,
            pending: None,
            ended: HashSet::new(),
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn keep(&mut self, out: &watch::Sender<RelayState>) -> Infallible {
        let (mut settings, mut kick) = (self.shared.settings.clone(), self.shared.kick.clone());
        let mut started = self.shared.started.subscribe();
        let mut restart = Backoff::new(RESTART);
        let mut refused = Backoff::new(REFUSED);
        loop {
            settings.mark_unchanged();
            kick.mark_unchanged();
            started.mark_unchanged();
            let spec = settings.borrow().resolve();
            let pause = match spec {
                Err(problem) => {
                    publish(out, RelayState::Failed(problem));
                    None
                }
                Ok(spec) => {
                    let end = tokio::select! {
                        end = self.round(&spec, out) => end,
                        // The same relay is found again if it fits the new settings as well.
                        Ok(()) = settings.changed() => continue,
                    };
                    match end {
                        End::Over(up) => {
                            if up >= PROVEN {
                                restart.reset();
                            }
                            refused.reset();
                            Some(restart.next())
                        }
                        End::Refused(Cure::Retry) => Some(refused.next().min(AWAY)),
                        End::Refused(Cure::Wait | Cure::User) => Some(refused.next()),
                        End::Absent => None,
                    }
                }
            };
            let pause = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                Ok(()) = settings.changed() => {}
                Ok(()) = kick.changed() => {}
                Ok(()) = started.changed(), if !self.may_start => {}
            }
        }
    }

    /// What must not stay when nobody wants the relay any more and it never came up.
    pub(super) async fn abandon(&mut self) {
        let Some((name, uid)) = self.pending.take() else { return };
        let api = self.api(&self.namespace);
        if let Ok(Err(problem)) = timeout(TIDY, api.delete(JOBS, &name, &uid)).await {
            tracing::info!(%problem, name, "a relay that nobody waits for any more stays behind");
        }
    }

    pub(super) fn api(&self, namespace: &str) -> Api {
        Api::new(self.cluster.client(), namespace)
    }

    /// One relay from beginning to end.
    async fn round(&mut self, spec: &RelaySpec, out: &watch::Sender<RelayState>) -> End {
        if self.purpose != Use::Forwards {
            // A relay that is just being deleted must not be found.
            let mut withdrawing = self.shared.withdrawing.clone();
            if timeout(TIDY, withdrawing.wait_for(|count| *count == 0)).await.is_err() {
                tracing::info!("an older expose is still being withdrawn");
            }
        } else if spec.settings().use_installed != Some(false) {
            installed::keep(self, spec, out).await;
        }
        let job = match self.find(spec).await {
            Ok(Some(job)) => job,
            Ok(None) if !self.may_start => {
                publish(out, RelayState::Absent);
                return End::Absent;
            }
            Ok(None) => {
                publish_unless_up(out, RelayState::Starting(searching(&self.namespace)));
                match self.create(spec).await {
                    Ok(job) => job,
                    Err(problem) => return refused(out, problem),
                }
            }
            Err(problem) if !self.may_start => {
                tracing::info!(%problem, "whether a relay is there cannot be seen");
                publish(out, RelayState::Absent);
                return match problem.code.cure() {
                    Cure::Retry => End::Refused(Cure::Retry),
                    Cure::Wait | Cure::User => End::Absent,
                };
            }
            Err(problem) => return refused(out, problem),
        };
        self.follow(spec, &job, out).await
    }

    fn wanted<'a>(&'a self, spec: &'a RelaySpec, server: &'a str) -> Wanted<'a> {
        Wanted {
            spec,
            identity: &self.shared.identity,
            server,
            namespace: &self.namespace,
            purpose: &self.purpose,
        }
    }

    /// The oldest own Job that fits, so that two who look at once agree. Stale ones are swept by the way.
    async fn find(&self, spec: &RelaySpec) -> Result<Option<Value>, Problem> {
        let server = self.cluster.server();
        let wanted = self.wanted(spec, &server);
        let api = self.api(&self.namespace);
        let mut jobs = api.list(JOBS, &wanted.selector()).await?;
        // An expose without its client is not ready and runs all the same: to be taken up again.
        let is_stale = |job: &Value| {
            let may_run = self.purpose != Use::Forwards && wanted.fits(job);
            !may_run && is_stale(job, Timestamp::now())
        };
        for job in &jobs {
            if is_stale(job) {
                let (name, uid) = identity(job);
                if let Err(problem) = api.delete(JOBS, &name, &uid).await {
                    tracing::info!(%problem, name, "a stale relay stays behind");
                }
            }
        }
        jobs.retain(|job| {
            let ended = job["metadata"]["uid"].as_str().is_some_and(|uid| self.ended.contains(uid));
            wanted.fits(job) && is_alive(job) && !ended && !is_stale(job)
        });
        jobs.sort_by_key(|job| {
            let part = |field: &str| job["metadata"][field].as_str().unwrap_or_default().to_owned();
            (part("creationTimestamp"), part("name"))
        });
        Ok(jobs.into_iter().next())
    }

    async fn create(&mut self, spec: &RelaySpec) -> Result<Value, Problem> {
        // One of older settings that never came up: nobody else knows of it.
        self.abandon().await;
        if let Use::Expose(alias) = &self.purpose {
            // Before anything is made: who has the name?
            expose::refuse_foreign(&self.api(&self.namespace), &self.shared.identity, alias).await?;
        }
        let server = self.cluster.server();
        let api = self.api(&self.namespace);
        let nonce = key::nonce();
        let job = self.wanted(spec, &server).job(&nonce);
        let created = match api.create(JOBS, &job).await? {
            Some(created) => created,
            // An answer that got lost: the name has a nonce in it, so this is ours.
            None => {
                let name = job["metadata"]["name"].as_str().unwrap_or_default();
                api.get(JOBS, name).await?.ok_or_else(|| {
                    Problem::new(Code::ClusterError, format!("job {name} was created and is gone again"))
                })?
            }
        };
        self.pending = Some(identity(&created));
        self.shared.started.send_modify(|count| *count = count.wrapping_add(1));
        // Another program of ours may have done the same at the same moment: all use the oldest.
        match self.find(spec).await {
            Ok(Some(oldest)) if oldest["metadata"]["uid"] != created["metadata"]["uid"] => {
                self.abandon().await;
                Ok(oldest)
            }
            Ok(_) | Err(_) => Ok(created),
        }
    }

    /// Watches a Job and its pod until they end.
    async fn follow(&mut self, spec: &RelaySpec, job: &Value, out: &watch::Sender<RelayState>) -> End {
        let (name, uid) = identity(job);
        let nonce = job["metadata"]["labels"][label::NONCE].as_str().unwrap_or_default().to_owned();
        let mut pods: Followed<Pod> =
            self.watch(PODS, &self.namespace, Scope::Labels(format!("{}={nonce}", label::NONCE).into()));
        let mut jobs: Followed<Job> =
            self.watch(WATCHED_JOBS, &self.namespace, Scope::Named(name.as_str().into()));
        let mut events: Option<(Arc<str>, Followed<Event>)> = None;
        let mut doubts = self.shared.doubts.clone();
        let mut up: Option<Instant> = None;
        loop {
            let (seen_pods, seen_jobs) = (pods.view(), jobs.view());
            if let Phase::Denied(problem) = &seen_pods.phase {
                return refused(out, problem.clone());
            }
            let pod_phase_known = seen_pods.is_known();
            if !pod_phase_known {
                if let Some(problem) = seen_pods.broken() {
                    publish_unless_up(out, RelayState::Failed(problem.clone()));
                }
            } else {
                let gone =
                    seen_jobs.is_known() && seen_jobs.objects.is_empty() && seen_pods.objects.is_empty();
                let (seen_events, notes) = match &mut events {
                    Some((_, followed)) => followed.with_notes(),
                    None => (Arc::default(), Vec::new()),
                };
                let scene = Scene { namespace: &self.namespace, job: &name, notes: &notes };
                let progress = if gone {
                    Progress::Over(Problem::new(
                        Code::RelayEnded,
                        format!("the relay {}/{name} ended: its Job is gone", self.namespace),
                    ))
                } else {
                    scene.judge(seen_jobs.objects.first().map(Arc::as_ref), &seen_pods.objects, &seen_events)
                };
                pods.set_unsettled(progress != Progress::Up);
                match progress {
                    Progress::Starting(problem) => publish(out, RelayState::Starting(problem)),
                    Progress::Stuck(problem) => publish(out, RelayState::Failed(problem)),
                    Progress::Up => {
                        self.pending = None;
                        up.get_or_insert_with(Instant::now);
                        let running: Vec<RelayPod> = seen_pods
                            .objects
                            .iter()
                            .filter(|pod| pod.is_up())
                            .map(|pod| self.own(spec, pod, &nonce))
                            .collect();
                        if running.iter().any(|pod| doubts.borrow().contains(&pod.uid)) {
                            // Nobody can use it, so it does no good to anybody.
                            self.pending = Some((name, uid));
                            self.abandon().await;
                            return End::Over(up.map_or(Duration::ZERO, |since| since.elapsed()));
                        }
                        publish(out, RelayState::Up(running.into()));
                    }
                    Progress::Over(problem) => {
                        tracing::info!(%problem, "a relay ended");
                        self.pending = None;
                        self.ended.insert(uid);
                        let since = up.map_or(Duration::ZERO, |since| since.elapsed());
                        let again = if problem.remedy == Code::RelayEnded.remedy() {
                            RelayState::Starting(Problem::new(
                                Code::RelayStarting,
                                format!("{}; it is started again", problem.message),
                            ))
                        } else {
                            RelayState::Failed(problem)
                        };
                        publish(out, again);
                        return End::Over(since);
                    }
                }
                // Whose events tell what is going on just now: the Job's until there is a pod; nobody's once it is up.
                let about: Option<Arc<str>> = match (up, seen_pods.objects.first()) {
                    (Some(_), _) => None,
                    (None, Some(pod)) => Some(Arc::clone(&pod.metadata.meta.uid)),
                    (None, None) => Some(uid.as_str().into()),
                };
                if events.as_ref().map(|(about, _)| about) != about.as_ref() {
                    events = about.map(|about| {
                        let scope = Scope::Fields(format!("involvedObject.uid={about}").into());
                        let followed = self.watch(EVENTS, &self.namespace, scope);
                        (about, followed)
                    });
                    continue;
                }
            }
            let news = async {
                match &mut events {
                    Some((_, followed)) => followed.changed().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = pods.changed() => {}
                () = jobs.changed() => {}
                () = news => {}
                Ok(()) = doubts.changed() => {}
            }
        }
    }

    fn own(&self, spec: &RelaySpec, pod: &Pod, nonce: &str) -> RelayPod {
        let server = self.cluster.server();
        let token = self.wanted(spec, &server).token(nonce);
        self.pod(pod, &self.namespace, token, false)
    }

    pub(super) fn pod(&self, pod: &Pod, namespace: &Arc<str>, token: Token, installed: bool) -> RelayPod {
        RelayPod {
            cluster: self.cluster.id(),
            namespace: Arc::clone(namespace),
            pod: Arc::clone(&pod.metadata.meta.name),
            uid: Arc::clone(&pod.metadata.meta.uid),
            node: pod.spec.node_name.clone(),
            port: TUNNEL_PORT,
            token,
            installed,
        }
    }

    pub(super) fn watch<T: Object>(&self, kind: Kind, namespace: &str, scope: Scope) -> Followed<T> {
        Followed::of(&self.link, kind, namespace, scope)
    }
}

/// What watches of our own need.
pub(super) fn link(cluster: &Cluster, runtime: Handle, kick: watch::Receiver<u64>) -> Link {
    Link {
        id: cluster.id(),
        client: cluster.client(),
        default_namespace: cluster.default_namespace().into(),
        runtime,
        timing: Timing::default(),
        kick,
    }
}

/// A watch of our own, ended when it is dropped.
pub(super) struct Followed<T: Object> {
    subscription: Subscription<T>,
    _feed: Arc<Feed<T>>,
    _registry: Arc<Registry<T>>,
}

impl<T: Object> Followed<T> {
    pub(super) fn of(link: &Link, kind: Kind, namespace: &str, scope: Scope) -> Self {
        let registry = Registry::new(link.clone());
        let key = FeedKey { kind, namespace: namespace.into(), scope, access: Access::Watch };
        let feed = registry.open(&key);
        Self { subscription: feed.subscribe(""), _registry: registry, _feed: feed }
    }

    pub(super) fn view(&mut self) -> crate::resolve::feed::View<T> {
        self.subscription.view()
    }

    pub(super) async fn changed(&mut self) {
        self.subscription.changed().await;
    }

    /// Without a watch only a look now and then tells when the pod is up; see [`Subscription::set_unsettled`].
    pub(super) fn set_unsettled(&mut self, unsettled: bool) {
        self.subscription.set_unsettled(unsettled);
    }

    fn with_notes(&mut self) -> (Arc<[Arc<T>]>, Vec<String>) {
        let view = self.view();
        let denied = match &view.phase {
            Phase::Denied(problem) => vec![problem.message.clone()],
            Phase::Loading | Phase::Live | Phase::Static(_) | Phase::Broken(_) => Vec::new(),
        };
        (view.objects, denied)
    }
}

pub(super) fn publish(out: &watch::Sender<RelayState>, next: RelayState) {
    out.send_if_modified(|current| {
        let new = *current != next;
        *current = next;
        new
    });
}

fn refused(out: &watch::Sender<RelayState>, problem: Problem) -> End {
    let cure = problem.code.cure();
    publish(out, RelayState::Failed(problem));
    End::Refused(cure)
}

/// A relay that is up stays up for whoever uses it while we only look.
fn publish_unless_up(out: &watch::Sender<RelayState>, next: RelayState) {
    if !matches!(*out.borrow(), RelayState::Up(_)) {
        publish(out, next);
    }
}

/// Neither finished nor being deleted.
pub(super) fn is_alive(job: &Value) -> bool {
    let conditions = job["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ended = conditions.iter().any(|condition| {
        condition["status"] == "True"
            && matches!(
                condition["type"].as_str(),
                Some("Complete" | "SuccessCriteriaMet" | "Failed" | "FailureTarget")
            )
    });
    !ended && job["metadata"]["deletionTimestamp"].is_null()
}

/// Alive for longer than any start takes, and nothing runs.
pub(super) fn is_stale(job: &Value, now: Timestamp) -> bool {
    let created =
        job["metadata"]["creationTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let old = created.is_some_and(|created| now.as_second() - created.as_second() > STALE_MINUTES * 60);
    // `ready` is left out by servers that do not count it, and then nothing can be said.
    old && is_alive(job) && job["status"]["ready"] == 0
}
