//! List, then watch, and recover from everything that can go wrong in between.
//!
//! Written on the client's requests and not on `kube::runtime::watcher`, which hides what is needed here: that the list
//! was permitted and the watch was not, a resume from the last version after a network change without listing thousands
//! of objects again, and a pause before renewing a watch that a middlebox closes as soon as it is open.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use kftray_commons::{Code, Problem};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::core::params::GetParams;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::feed::{Access, Phase, Scope, Shared};
use super::feeds::{Backoff, Link, Timing};
use super::object::Object;
use super::refusal::Refusal;

/// Objects per page of a list: the value of `client-go`, which keeps answers of the server below a megabyte or so.
const PAGE: u32 = 500;
/// A watch that ends without an event before this is not a normal end.
const SHORT_WATCH: Duration = Duration::from_secs(5);

/// The task of one feed.
pub(super) struct Reflector<T: Object> {
    client: kube::Client,
    timing: Timing,
    kick: watch::Receiver<u64>,
    shared: Arc<Shared<T>>,
    path: Request,
    /// From which version the watch goes on; `None` lists first.
    version: Option<String>,
    /// The cluster refused the watch, not the list.
    watch_denied: Option<Problem>,
}

/// How one attempt ended.
enum End {
    /// The server closed the watch in good order, or after it had delivered something.
    Renew,
    /// Objects were read and nothing will tell of changes. Says whether they differ from the last read.
    Static(bool),
    /// It did not work.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A page of a list. Not `kube::core::ObjectList`, whose flattened type fields make serde buffer the whole answer.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default)]
    items: Option<Vec<T>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

impl<T: Object> Reflector<T> {
    pub(super) fn new(link: &Link, shared: Arc<Shared<T>>) -> Self {
        let key = shared.key();
        let path = match &*key.namespace {
            "" => format!("/{}/{}", key.kind.api, key.kind.plural),
            namespace => format!("/{}/namespaces/{namespace}/{}", key.kind.api, key.kind.plural),
        };
        Self {
            client: link.client.clone(),
            timing: link.timing,
            kick: link.kick.clone(),
            path: Request::new(path),
            version: None,
            watch_denied: None,
            shared,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        // Separate, so that an attempt can be dropped at the kick.
        let mut kick = self.kick.clone();
        kick.mark_unchanged();
        let mut backoff = Backoff::new(self.timing.retry);
        loop {
            let end = tokio::select! {
                biased;
                () = kicked(&mut kick) => {
                    // Also ask again for what was denied: a new network may be a new user.
                    self.watch_denied = None;
                    backoff.reset();
                    continue;
                }
                end = self.attempt(&mut backoff) => end,
            };
            match end {
                End::Renew => {}
                End::Static(changed) => {
                    if changed {
                        backoff.reset();
                    }
                    self.version = None;
                    self.wait_for_doubt(&mut kick, &mut backoff).await;
                }
                End::Refused(refusal) => self.recover(refusal, &mut kick, &mut backoff).await,
            }
        }
    }

    /// What to do before the next attempt.
    async fn recover(&mut self, refusal: Refusal, kick: &mut watch::Receiver<u64>, backoff: &mut Backoff) {
        let resource = self.shared.key().kind.resource;
        let pause = match refusal {
            Refusal::Gone | Refusal::Missing => {
                self.version = None;
                // The first time at once; a server that says so again and again gets its rest.
                let pause = backoff.next();
                if pause <= self.timing.retry.0 { Duration::ZERO } else { pause }
            }
            Refusal::Denied(problem) => {
                self.version = None;
                self.shared.set_phase(Phase::Denied(problem));
                // Followers go elsewhere and drop this feed. One that stays gets what a new network brings.
                kicked(kick).await;
                return;
            }
            Refusal::Failed(problem, at_least) => {
                tracing::debug!(resource, %problem, "watch interrupted");
                let longest = if problem.code == Code::ClusterUnreachable {
                    self.timing.unreachable
                } else {
                    Duration::MAX
                };
                self.shared.set_broken(problem);
                backoff.next().min(longest).max(at_least.unwrap_or_default())
            }
        };
        let failed = Instant::now();
        tokio::select! {
            () = sleep(pause) => {}
            // A session is lost, or is back: as good a reason to try as the end of the pause.
            () = self.shared.hint.notified() => sleep_until(failed + self.timing.hint_gap.min(pause)).await,
            () = kicked(kick) => backoff.reset(),
        }
    }

    /// Waits until somebody doubts what was read: a lost session, a follower that finds no ready pod in it, a new network.
    async fn wait_for_doubt(&self, kick: &mut watch::Receiver<u64>, backoff: &mut Backoff) {
        let earliest = Instant::now() + self.timing.hint_gap;
        let looked_again = async {
            self.shared.some_unsettled().await;
            sleep(backoff.next()).await;
        };
        tokio::select! {
            () = self.shared.hint.notified() => sleep_until(earliest).await,
            () = looked_again => {}
            () = kicked(kick) => {}
        }
    }

    async fn attempt(&mut self, backoff: &mut Backoff) -> End {
        let once = self.shared.key().access == Access::Once;
        let outcome = if once { self.get().await } else { self.list_and_watch(backoff).await };
        outcome.unwrap_or_else(End::from)
    }

    async fn get(&mut self) -> Result<End, Refusal> {
        let Scope::Named(name) = self.shared.key().scope.clone() else {
            return Err(self.failed(Code::Internal, "a single read needs a name"));
        };
        let request =
            self.path.get(&name, &GetParams::default()).map_err(|error| self.unbuildable(&error))?;
        match self.answer("get", self.client.request::<T>(request)).await {
            Ok(object) => Ok(End::Static(self.shared.replace(vec![stripped(object).0], Phase::Static(None)))),
            Err(Refusal::Missing) => Ok(End::Static(self.shared.replace(Vec::new(), Phase::Static(None)))),
            Err(refusal) => Err(refusal),
        }
    }

    async fn list_and_watch(&mut self, backoff: &mut Backoff) -> Result<End, Refusal> {
        let resumed = self.version.is_some();
        if !resumed {
            let (objects, version) = self.list().await?;
            let phase = self.watch_denied.clone().map_or(Phase::Live, |denial| Phase::Static(Some(denial)));
            let changed = self.shared.replace(objects, phase);
            if self.watch_denied.is_some() {
                return Ok(End::Static(changed));
            }
            self.version = Some(version);
        }
        match self.watch(backoff).await {
            Err(Refusal::Denied(problem)) => {
                tracing::info!(%problem, "objects are read once, changes are not seen");
                self.watch_denied = Some(problem.clone());
                self.version = None;
                if resumed {
                    // Permissions changed under a watch: what it last told may be old, and the list denied as well.
                    return Ok(End::Renew);
                }
                self.shared.set_phase(Phase::Static(Some(problem)));
                Ok(End::Static(false))
            }
            end => end,
        }
    }

    async fn list(&self) -> Result<(Vec<T>, String), Refusal> {
        let mut params = ListParams { limit: Some(PAGE), ..self.selectors() };
        let mut objects = Vec::new();
        loop {
            let build = if self.shared.key().kind.metadata { Request::list_metadata } else { Request::list };
            let request = build(&self.path, &params).map_err(|error| self.unbuildable(&error))?;
            match self.answer("list", self.client.request::<Page<T>>(request)).await {
                Ok(page) => {
                    objects
                        .extend(page.items.unwrap_or_default().into_iter().map(|object| stripped(object).0));
                    if page.metadata.next.is_empty() {
                        return Ok((objects, page.metadata.resource_version));
                    }
                    params.continue_token = Some(page.metadata.next);
                }
                // The pages took longer than the server keeps old versions: all at once then.
                Err(Refusal::Gone) if params.continue_token.is_some() => {
                    objects.clear();
                    params = self.selectors();
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn watch(&mut self, backoff: &mut Backoff) -> Result<End, Refusal> {
        let opened = Instant::now();
        let lifetime = self.timing.watch.mul_f64(rand::random_range(5.0 / 6.0..=1.0));
        let ListParams { label_selector, field_selector, .. } = self.selectors();
        // Whole seconds by the protocol; zero would mean the server's default.
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1);
        let params =
            WatchParams { label_selector, field_selector, timeout: Some(seconds), ..WatchParams::default() };
        let version = self.version.clone().unwrap_or_default();
        let build = if self.shared.key().kind.metadata { Request::watch_metadata } else { Request::watch };
        let request = build(&self.path, &params, &version).map_err(|error| self.unbuildable(&error))?;
        let events = self.answer("watch", self.client.request_events::<T>(request)).await?;
        let mut events = std::pin::pin!(events);
        let due = opened + Duration::from_secs(u64::from(seconds)) + self.timing.watch_grace;
        let mut delivered = false;
        loop {
            let Ok(next) = tokio::time::timeout_at(due, events.try_next()).await else {
                return Err(self.failed(Code::ClusterUnreachable, "the watch fell silent"));
            };
            let Some(event) = next.map_err(|error| self.refused(&error, "watch"))? else { break };
            self.event(event)?;
            delivered = true;
            backoff.reset();
        }
        if delivered || opened.elapsed() >= SHORT_WATCH.min(self.timing.watch / 2) {
            return Ok(End::Renew);
        }
        Err(self.failed(Code::ClusterUnreachable, "the watch was closed as soon as it was open"))
    }

    fn event(&mut self, event: WatchEvent<T>) -> Result<(), Refusal> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let (object, version) = stripped(object);
                self.version = Some(version);
                self.shared.apply(object);
            }
            WatchEvent::Deleted(object) => {
                let (object, version) = stripped(object);
                self.version = Some(version);
                self.shared.remove(&object.meta().name);
            }
            WatchEvent::Bookmark(mark) => self.version = Some(mark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(self.refused(&kube::Error::Api(status), "watch")),
        }
        Ok(())
    }

    fn selectors(&self) -> ListParams {
        match &self.shared.key().scope {
            Scope::All => ListParams::default(),
            Scope::Named(name) => ListParams::default().fields(&format!("metadata.name={name}")),
            Scope::Labels(selector) => ListParams::default().labels(selector),
            Scope::Fields(selector) => ListParams::default().fields(selector),
        }
    }

    /// Waits for the answer to a request, but not for ever.
    async fn answer<R>(
        &self,
        verb: &str,
        request: impl Future<Output = kube::Result<R>>,
    ) -> Result<R, Refusal> {
        match timeout(self.timing.answer, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refused(&error, verb)),
            Err(_) => {
                let waited = self.timing.answer.as_secs();
                Err(self.failed(
                    Code::ClusterUnreachable,
                    &format!("the API server has not answered for {waited} s"),
                ))
            }
        }
    }

    fn refused(&self, error: &kube::Error, verb: &str) -> Refusal {
        Refusal::of(error, verb, self.shared.key())
    }

    fn failed(&self, code: Code, message: &str) -> Refusal {
        tracing::trace!(resource = self.shared.key().kind.resource, message);
        Refusal::Failed(Problem::new(code, message), None)
    }

    fn unbuildable(&self, error: &kube::core::request::Error) -> Refusal {
        self.failed(Code::Internal, &error.to_string())
    }
}

/// Resolves at the next kick; never once nobody can kick any more.
async fn kicked(kick: &mut watch::Receiver<u64>) {
    if kick.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Takes the version out: it changes with every write, the rest of an object seldom.
fn stripped<T: Object>(mut object: T) -> (T, String) {
    let version = std::mem::take(&mut object.meta_mut().resource_version);
    (object, version)
}
