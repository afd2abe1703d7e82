//! What is wanted by way of the relay, resolved: the relay's state and the pods' addresses in one stream of values.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};

use kftray_commons::spec::Protocol;
use kftray_commons::{Code, Problem, RemotePort, TargetObject};
use kftray_portforward::ports::{ClusterId, Condition, Endpoint, Resolution, Route, Wanted};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::tunnels::{Tunnel, Tunnels};
use crate::cluster::{Cluster, ClusterState, Clusters};
use crate::relay::{Need, RelayPod, RelayState, Relays};
use crate::resolve::{Resolver, Way};

/// Follows what is wanted by way of the relay. Dropping it ends everything; followers keep their last value.
pub(crate) struct Routes {
    means: Means,
    tasks: Mutex<JoinSet<()>>,
}

/// What a follower works with.
#[derive(Clone)]
struct Means {
    clusters: Clusters,
    resolver: Arc<Resolver>,
    relays: Arc<dyn Relays>,
    tunnels: Tunnels,
}

impl Routes {
    pub(crate) fn new(
        clusters: Clusters,
        resolver: Arc<Resolver>,
        relays: Arc<dyn Relays>,
        tunnels: Tunnels,
    ) -> Self {
        Self { means: Means { clusters, resolver, relays, tunnels }, tasks: Mutex::default() }
    }

    /// See [`kftray_portforward::ports::Resolve::follow`]. Must be called within a tokio runtime.
    pub(crate) fn follow(&self, wanted: &Wanted) -> watch::Receiver<Resolution> {
        let (out, receiver) = watch::channel(Resolution::Pending);
        let follower = Follower { means: self.means.clone(), wanted: wanted.clone(), out };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(follower.run());
        receiver
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

struct Follower {
    means: Means,
    wanted: Wanted,
    out: watch::Sender<Resolution>,
}

impl Follower {
    /// Runs until nobody has a receiver any more.
    async fn run(self) {
        let mut states = self.means.clusters.follow(&self.wanted.target.cluster);
        let mut last: Option<ClusterId> = None;
        loop {
            let state = states.borrow_and_update().clone();
            if let ClusterState::Up(cluster) = &state
                && last.replace(cluster.id()) != Some(cluster.id())
            {
                // What was known of another cluster is void.
                self.publish(Resolution::Pending);
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = self.out.closed() => return,
                never = self.on(&state) => match never {},
            }
        }
    }

    async fn on(&self, state: &ClusterState) -> Infallible {
        match state {
            ClusterState::Pending => {}
            ClusterState::Failed(problem) => self.publish(Resolution::Failed(problem.clone())),
            ClusterState::Up(cluster) if self.wanted.needs_relay() => self.by_relay(cluster).await,
            ClusterState::Up(cluster) => self.by_what_is_there(cluster).await,
        }
        pending().await
    }

    fn namespace<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        self.wanted.target.namespace.as_deref().unwrap_or_else(|| cluster.default_namespace())
    }

    async fn by_relay(&self, cluster: &Arc<Cluster>) {
        let relay = self.relay(Need::Create);
        match &self.wanted.target.object {
            TargetObject::Host(host) => self.host(cluster, host, relay).await,
            TargetObject::Service(_)
            | TargetObject::Pod(_)
            | TargetObject::Labels(_)
            | TargetObject::Workload { .. } => self.object(cluster, relay).await,
        }
    }

    /// A host needs no look-up but the relay's own.
    async fn host(&self, cluster: &Cluster, host: &str, mut relay: watch::Receiver<RelayState>) {
        let RemotePort::Number(port) = self.wanted.port else {
            let message = format!("{host} is a host; its port must be a number, not {}", self.wanted.port);
            return self.publish(Resolution::Failed(Problem::new(Code::SpecInvalid, message)));
        };
        let namespace = self.namespace(cluster);
        let _tunnel = self.attach(cluster, &relay);
        let endpoint = Endpoint {
            cluster: cluster.id(),
            namespace: namespace.into(),
            pod: "".into(),
            uid: "".into(),
            node: None,
            port: port.get(),
            condition: Condition::Ready,
            route: Route::Relay { host: host.into() },
        };
        loop {
            let next = match &*relay.borrow_and_update() {
                RelayState::Up(pods) if is_on(pods, cluster) => {
                    Resolution::Endpoints { endpoints: Arc::from([endpoint.clone()]), why_none: None }
                }
                state @ (RelayState::Up(_)
                | RelayState::Pending
                | RelayState::Absent
                | RelayState::Starting(_)
                | RelayState::Failed(_)) => not_up(state),
            };
            self.publish(next);
            if relay.changed().await.is_err() {
                return;
            }
        }
    }

    /// The pods of an object, once the relay is there.
    async fn object(&self, cluster: &Cluster, mut relay: watch::Receiver<RelayState>) {
        let _tunnel = self.attach(cluster, &relay);
        let mut pods = self.pods(true);
        loop {
            let next = {
                let (relay, pods) = (relay.borrow_and_update(), pods.borrow_and_update());
                match (&*relay, &*pods) {
                    // What is wrong with the target is the more interesting news.
                    (_, Resolution::Failed(_)) => pods.clone(),
                    (RelayState::Up(relays), _) if is_on(relays, cluster) => pods.clone(),
                    (state, Resolution::Pending | Resolution::Endpoints { .. }) => not_up(state),
                }
            };
            self.publish_news(next);
            tokio::select! {
                changed = relay.changed() => if changed.is_err() { return },
                changed = pods.changed() => if changed.is_err() { return },
            }
        }
    }

    /// By the relay while one is there, else direct; starts none.
    async fn by_what_is_there(&self, cluster: &Arc<Cluster>) {
        let mut relay = self.relay(Need::IfThere);
        let up = |state: &RelayState| matches!(state, RelayState::Up(_));
        loop {
            let is_up = up(&relay.borrow_and_update());
            let news = relay.clone();
            let work = async {
                if is_up {
                    self.object(cluster, news).await;
                } else {
                    self.direct().await;
                }
                pending::<()>().await;
            };
            tokio::select! {
                () = work => {}
                changed = relay.wait_for(|state| up(state) != is_up) => if changed.is_err() { break },
            }
        }
        self.direct().await;
    }

    fn relay(&self, need: Need) -> watch::Receiver<RelayState> {
        let target = &self.wanted.target;
        self.means.relays.follow(&target.cluster, target.namespace.as_deref(), need)
    }

    fn attach(&self, cluster: &Cluster, relay: &watch::Receiver<RelayState>) -> Arc<Tunnel> {
        let Means { tunnels, .. } = &self.means;
        tunnels.attach(cluster.id(), self.namespace(cluster), relay, self.wanted.protocol)
    }

    async fn direct(&self) {
        let mut pods = self.pods(false);
        loop {
            let next = pods.borrow_and_update().clone();
            self.publish_news(next);
            if pods.changed().await.is_err() {
                return;
            }
        }
    }

    fn pods(&self, by_relay: bool) -> watch::Receiver<Resolution> {
        let udp = self.wanted.protocol == Protocol::Udp;
        self.means.resolver.follow_by(&self.wanted.target, &self.wanted.port, Way { udp, by_relay })
    }

    /// Publishes what is known; that a look-up has only begun makes nothing void.
    fn publish_news(&self, next: Resolution) {
        if !matches!(next, Resolution::Pending) {
            self.publish(next);
        }
    }

    fn publish(&self, next: Resolution) {
        self.out.send_replace(next);
    }
}

/// After a switch of context relay and cluster follow each in its own time.
fn is_on(relays: &[RelayPod], cluster: &Cluster) -> bool {
    relays.iter().all(|relay| relay.cluster == cluster.id())
}

fn not_up(state: &RelayState) -> Resolution {
    match state {
        RelayState::Pending | RelayState::Absent | RelayState::Up(_) => Resolution::Pending,
        RelayState::Starting(problem) => {
            Resolution::Endpoints { endpoints: Arc::from([]), why_none: Some(problem.clone()) }
        }
        RelayState::Failed(problem) => Resolution::Failed(problem.clone()),
    }
}
