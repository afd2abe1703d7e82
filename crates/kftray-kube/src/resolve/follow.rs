//! One target followed: from cluster to cluster, from denial to permission; publishes what changes.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kftray_commons::{Code, Cure, Problem, RemotePort, Target, TargetObject};
use kftray_portforward::ports::{ClusterId, Resolution};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::feeds::{Backoff, Feeds};
use super::lookup::{LookUp, Rest};
use super::pods::{Answer, Scene};
use super::{Way, syntax};

/// The state of the cluster behind a target.
#[derive(Clone)]
pub(super) enum Connection {
    Pending,
    Up(Arc<Feeds>),
    Failed(Problem),
}

/// What the followers of one (target, port) share.
pub(super) struct Published {
    pub(super) sender: watch::Sender<Resolution>,
    /// Steps down from the best way to look the target up, for people.
    pub(super) notes: Mutex<Vec<String>>,
}

impl Published {
    pub(super) fn new() -> Self {
        Self { sender: watch::Sender::new(Resolution::Pending), notes: Mutex::default() }
    }

    fn publish(&self, next: Resolution) {
        self.sender.send_if_modified(|current| {
            let new = !same(current, &next);
            if new {
                *current = next;
            }
            new
        });
    }

    pub(super) fn publish_answer(&self, answer: Answer, mut notes: Vec<String>) {
        // Two ways to the same objects are denied in the same words.
        notes.dedup();
        let next = match answer {
            Answer::Failed(problem) => Resolution::Failed(problem),
            Answer::Endpoints(endpoints, why_none) => {
                let why_none = why_none.map(|mut problem| {
                    if !notes.is_empty() {
                        problem.message = format!("{} (note: {})", problem.message, notes.join("; "));
                    }
                    problem
                });
                Resolution::Endpoints { endpoints: endpoints.into(), why_none }
            }
        };
        self.set_notes(notes);
        self.publish(next);
    }

    /// The cluster does not answer. Endpoints that are known stay: the pods may well be reachable.
    pub(super) fn publish_trouble(&self, problem: &Problem) {
        let known = matches!(&*self.sender.borrow(), Resolution::Endpoints { .. });
        if !(known && problem.code.cure() == Cure::Retry) {
            self.publish(Resolution::Failed(problem.clone()));
        }
    }

    fn has_notes(&self) -> bool {
        !self.notes.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn set_notes(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }
}

fn same(a: &Resolution, b: &Resolution) -> bool {
    match (a, b) {
        (Resolution::Pending, Resolution::Pending) => true,
        (Resolution::Failed(a), Resolution::Failed(b)) => a == b,
        (
            Resolution::Endpoints { endpoints: a, why_none: why_a },
            Resolution::Endpoints { endpoints: b, why_none: why_b },
        ) => a == b && why_a == why_b,
        (Resolution::Pending | Resolution::Failed(_) | Resolution::Endpoints { .. }, _) => false,
    }
}

/// Publishes the resolution of one (target, port) until it is dropped.
pub(super) struct Follower {
    pub(super) target: Target,
    pub(super) port: RemotePort,
    pub(super) way: Way,
    pub(super) out: Arc<Published>,
}

impl Follower {
    /// Runs until it is dropped.
    pub(super) async fn run(self, mut connections: BoxStream<'static, Connection>) {
        let mut current = Connection::Pending;
        let mut last: Option<ClusterId> = None;
        loop {
            if let Connection::Up(feeds) = &current
                && last.replace(feeds.link.id) != Some(feeds.link.id)
            {
                // What was known of another cluster is void.
                self.out.publish(Resolution::Pending);
                self.out.set_notes(Vec::new());
            }
            let next = tokio::select! {
                next = connections.next() => next,
                never = self.on(&current) => match never {},
            };
            match next {
                Some(next) => current = next,
                // No more news of the cluster: what is there stays.
                None => match self.on(&current).await {},
            }
        }
    }

    async fn on(&self, connection: &Connection) -> Infallible {
        match connection {
            Connection::Pending => {}
            Connection::Failed(problem) => self.out.publish(Resolution::Failed(problem.clone())),
            Connection::Up(feeds) => {
                let mut backoff = Backoff::new(feeds.link.timing.denied);
                let mut kick = feeds.link.kick.clone();
                loop {
                    kick.mark_unchanged();
                    let started = Instant::now();
                    let rest = tokio::select! {
                        rest = self.look_up(feeds) => rest,
                        () = self.kicked_off_the_best_way(&mut kick) => continue,
                    };
                    if started.elapsed() > feeds.link.timing.denied.1 {
                        backoff.reset();
                    }
                    let pause = async {
                        match rest {
                            Rest::Denied(problem) => {
                                self.out.publish(Resolution::Failed(problem));
                                let next = backoff.next();
                                sleep(next).await;
                                next
                            }
                            Rest::Blind => pending().await,
                            Rest::Invalid(problem) => {
                                self.out.publish(Resolution::Failed(problem));
                                pending().await
                            }
                        }
                    };
                    let kept = feeds.link.timing.denial_kept;
                    // Who has waited asks again; what others were denied meanwhile is believed.
                    let age = tokio::select! {
                        waited = pause => waited.min(kept),
                        Ok(()) = kick.changed() => kept,
                    };
                    feeds.forget_denials(age);
                }
            }
        }
        pending::<Infallible>().await
    }

    /// Resolves at a kick if the cluster has denied the best way: it is worth another try then.
    async fn kicked_off_the_best_way(&self, kick: &mut watch::Receiver<u64>) {
        while kick.changed().await.is_ok() {
            if self.out.has_notes() {
                return;
            }
        }
        pending::<()>().await;
    }

    async fn look_up(&self, feeds: &Feeds) -> Rest {
        let namespace = self.target.namespace.as_deref().unwrap_or(&feeds.link.default_namespace);
        let object = &self.target.object;
        let name = match object {
            TargetObject::Service(name) | TargetObject::Pod(name) | TargetObject::Workload { name, .. } => {
                Some(name)
            }
            TargetObject::Labels(_) | TargetObject::Host(_) => None,
        };
        for (what, name) in [("namespace", Some(namespace)), ("name", name.map(String::as_str))] {
            if let Some(name) = name
                && !syntax::is_name(name)
            {
                let message = format!("`{name}` cannot be the {what} of an object in a cluster");
                return Rest::Invalid(Problem::new(Code::SpecInvalid, message));
            }
        }
        let look = LookUp {
            feeds,
            scene: Scene {
                cluster: feeds.link.id,
                namespace: namespace.into(),
                what: object.to_string().into(),
                way: self.way,
            },
            port: &self.port,
            out: &self.out,
        };
        match object {
            TargetObject::Service(name) => look.service(name).await,
            TargetObject::Pod(name) => look.pod(name).await,
            TargetObject::Labels(selector) => match syntax::canonical(selector) {
                Ok(canonical) => look.labels(&canonical).await,
                Err(why) => {
                    let message = format!("`{selector}` is no valid label selector: {why}");
                    Rest::Invalid(Problem::new(Code::SpecInvalid, message))
                }
            },
            TargetObject::Workload { kind, name } => look.workload(*kind, name).await,
            TargetObject::Host(host) => {
                let message = format!("{host} is no object of the cluster; only the relay reaches it");
                Rest::Invalid(Problem::new(Code::SpecInvalid, message))
            }
        }
    }
}
