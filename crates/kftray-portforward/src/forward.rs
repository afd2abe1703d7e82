//! The handle of one forward. Everything the forward consists of hangs on it: dropping it ends all at once.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kftray_commons::spec::Protocol;
use kftray_commons::{Code, Counters, Problem, Status};
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Config;
use crate::counters::Tally;
use crate::engine::Process;
use crate::event::{Event, ReadyVia, Snapshot};
use crate::{listener, platform, reverse, supervisor};

/// Events kept for a receiver that is slow. A forward tells a few per change of state; only a storm of failed
/// connections fills this, and then the newest matter.
const EVENTS: usize = 256;

/// The same for an expose, which tells every call: what a second of a busy page brings.
const CALL_EVENTS: usize = 2048;

/// The longest a stop lets connections finish, so that with everything else it stays under one second.
const MAX_GRACE: Duration = Duration::from_millis(800);

/// The longest a stop waits for the forward's own tasks before it aborts them.
const MAX_STOP: Duration = Duration::from_millis(950);

/// One running forward. Dropping it closes its listeners and connections at once.
#[derive(Debug)]
pub struct Forward {
    about: Arc<About>,
    /// The receiver that has seen every event since the start, for the first who asks.
    first_events: Mutex<Option<broadcast::Receiver<Event>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the forward's tasks tell and what they are told.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) config: Config,
    pub(crate) tally: Tally,
    /// Set once, to the grace: the forward is to stop.
    stop: watch::Sender<Option<Duration>>,
    /// A person asks to try again now.
    pub(crate) retry: Notify,
    status: watch::Sender<Status>,
    events: broadcast::Sender<Event>,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    addresses: Vec<SocketAddr>,
    ready: Option<ReadyVia>,
    urls: Vec<String>,
    /// The open TCP listeners; they close with the tasks that accept on them.
    sockets: Vec<Weak<TcpListener>>,
}

impl Forward {
    pub(crate) fn start(
        process: Arc<Process>,
        config: Config,
        listeners: Vec<std::net::TcpListener>,
    ) -> Self {
        let about = Arc::new(About::new(config));
        let first = about.events.subscribe();
        about.tell(Event::Status(Status::Binding));
        let mut tasks = JoinSet::new();
        tasks.spawn(guard(process, Arc::clone(&about), listeners));
        Self { about, first_events: Mutex::new(Some(first)), tasks: Mutex::new(tasks) }
    }

    /// The name from the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        self.about.name()
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.about.config
    }

    /// The status, now and as it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.about.status.subscribe()
    }

    /// Events. The first receiver gets every event since the start, later ones from now on. A receiver that falls 256
    /// events behind is told so (`RecvError::Lagged`) and should read [`Self::snapshot`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        lock(&self.first_events).take().unwrap_or_else(|| self.about.events.subscribe())
    }

    /// The counters now. Of a UDP forward on Linux this reads a table of the kernel's (below a millisecond): what the
    /// kernel has dropped counts, too.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.about.tally.read(Instant::now());
        if matches!(&self.about.config, Config::Forward(config) if config.protocol == Protocol::Udp) {
            // What the system has lost is added to the tally when the sockets close.
            let addresses = lock(&self.about.place).addresses.clone();
            counters.datagrams_dropped += addresses.into_iter().map(platform::datagrams_lost).sum::<u64>();
        }
        counters
    }

    /// The counters now but for the percentiles, which are 0: cheap enough to ask thousands of forwards whether anything
    /// has moved.
    #[must_use]
    pub fn totals(&self) -> Counters {
        self.about.tally.totals(Instant::now())
    }

    /// Where it listens, with real ports; empty until bound.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        lock(&self.about.place).addresses.clone()
    }

    /// Everything at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counters = self.counters();
        let place = lock(&self.about.place);
        Snapshot {
            name: self.about.name().to_owned(),
            status: self.about.status.borrow().clone(),
            addresses: place.addresses.clone(),
            ready: place.ready.clone(),
            urls: place.urls.clone(),
            counters,
        }
    }

    /// Second handles of the open listeners, for another process ([`Engine::start_with`]): connections that come after
    /// this forward has stopped wait in the system's backlog until the other one accepts them.
    ///
    /// # Errors
    /// What the system says; on Windows always, where listeners cannot be handed over like that.
    ///
    /// [`Engine::start_with`]: crate::Engine::start_with
    pub fn listeners(&self) -> std::io::Result<Vec<std::net::TcpListener>> {
        let open: Vec<_> = lock(&self.about.place).sockets.iter().filter_map(Weak::upgrade).collect();
        open.iter().map(|socket| listener::duplicate(socket)).collect()
    }

    /// Stops accepting now, and lets connections that are open or being opened go on until they end, at most for `limit`. Those
    /// that wait for a pod are reset: whoever listens now takes them when their clients come again. A stop that
    /// comes first, or later, is not delayed by this.
    pub async fn retire(&self, limit: Duration) {
        self.about.stop.send_if_modified(|stop| stop.is_none() && stop.replace(limit).is_none());
        let mut status = self.about.status.subscribe();
        let stopped = status.wait_for(|status| matches!(status, Status::Stopped));
        // Its own limit ends it; this one is for a task that hangs.
        drop(tokio::time::timeout(limit + MAX_STOP, stopped).await);
    }

    /// Tries again now, whatever it waits for: a person has freed the port or logged in.
    pub fn retry(&self) {
        self.about.retry.notify_one();
    }

    /// Stops: closes the listeners and resets waiting connections at once, lets open ones finish for `grace` (at most
    /// 800 ms), then resets them. Never waits for the cluster or the network; ends within a second. Stopping twice is
    /// harmless. Returns the final counters.
    pub async fn stop(&self, grace: Duration) -> Counters {
        let grace = grace.min(MAX_GRACE);
        self.about.stop.send_if_modified(|stop| stop.is_none() && stop.replace(grace).is_none());
        let mut status = self.about.status.subscribe();
        let stopped = status.wait_for(|status| matches!(status, Status::Stopped));
        if tokio::time::timeout(MAX_STOP, stopped).await.is_err() {
            tracing::error!(forward = self.name(), "tasks did not end in time and are aborted");
            lock(&self.tasks).abort_all();
            self.about.publish_stopped();
        }
        self.counters()
    }
}

/// Tells a task that the forward is to stop.
pub(crate) struct StopSignal(watch::Receiver<Option<Duration>>);

impl StopSignal {
    /// Waits for the stop. Cancel-safe; ready at once from then on.
    pub(crate) async fn stopped(&mut self) {
        // The sender lives as long as the forward; without it there is nothing to go on for either.
        drop(self.0.wait_for(Option::is_some).await);
    }

    /// Waits for a stop that leaves no time to connections that are being opened; a forward that retires does. Cancel-safe.
    pub(crate) async fn hurried(&mut self) {
        drop(self.0.wait_for(|stop| stop.is_some_and(|grace| grace <= MAX_GRACE)).await);
    }

    /// How long open connections may go on; zero before the stop.
    pub(crate) fn grace(&self) -> Duration {
        self.0.borrow().unwrap_or_default()
    }
}

impl About {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            tally: Tally::new(Instant::now()),
            stop: watch::Sender::new(None),
            retry: Notify::new(),
            status: watch::Sender::new(Status::Binding),
            events: broadcast::Sender::new(match config {
                Config::Forward(_) => EVENTS,
                Config::Expose(_) => CALL_EVENTS,
            }),
            place: Mutex::default(),
            config,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.config.name()
    }

    /// Whether the stop has been asked for.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    pub(crate) fn stop_signal(&self) -> StopSignal {
        StopSignal(self.stop.subscribe())
    }

    pub(crate) fn publish(&self, status: Status) {
        if self.status.send_if_modified(|now| {
            *now != status && {
                *now = status.clone();
                true
            }
        }) {
            self.tell(Event::Status(status));
        }
    }

    pub(crate) fn publish_stopped(&self) {
        *lock(&self.place) = Place::default();
        if *self.status.borrow() != Status::Stopped {
            // First the event: whoever sees the status finds it told.
            self.tell(Event::Stopped { counters: self.tally.read(Instant::now()) });
            self.status.send_replace(Status::Stopped);
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        // Without a receiver nobody wants to know.
        drop(self.events.send(event));
    }

    pub(crate) fn set_sockets(&self, sockets: Vec<Weak<TcpListener>>) {
        lock(&self.place).sockets = sockets;
    }

    pub(crate) fn set_addresses(&self, addresses: Vec<SocketAddr>, notes: Vec<String>) {
        lock(&self.place).addresses.clone_from(&addresses);
        if !addresses.is_empty() {
            self.tell(Event::Listening { addresses, notes });
        }
    }

    /// An expose is reached under these URLs now, or under none.
    pub(crate) fn set_urls(&self, urls: Vec<String>, notes: Vec<String>) {
        lock(&self.place).urls.clone_from(&urls);
        if !urls.is_empty() {
            self.tell(Event::Published { urls, notes });
        }
    }

    pub(crate) fn set_ready(&self, ready: Option<ReadyVia>) {
        lock(&self.place).ready.clone_from(&ready);
        if let Some(via) = ready {
            self.tell(Event::Ready(via));
        }
    }
}

/// Runs the supervisor; its panic becomes the forward's status instead of the process's end.
async fn guard(process: Arc<Process>, about: Arc<About>, listeners: Vec<std::net::TcpListener>) {
    let mut supervisor = JoinSet::new();
    match about.config.clone() {
        Config::Forward(config) => {
            supervisor.spawn(supervisor::run(process, Arc::clone(&about), config, listeners))
        }
        Config::Expose(config) => supervisor.spawn(reverse::run(process, Arc::clone(&about), config)),
    };
    let Some(Err(error)) = supervisor.join_next().await else { return };
    if !error.is_panic() {
        return;
    }
    tracing::error!(forward = about.name(), %error, "the supervisor panicked");
    let message = format!("the forward {} ended by a fault of this program", about.name());
    about.set_ready(None);
    about.set_urls(Vec::new(), Vec::new());
    about.publish(Status::NeedsUser { cause: Problem::new(Code::Internal, message) });
    about.set_addresses(Vec::new(), Vec::new());
    // A stop must find an end even now.
    about.stop_signal().stopped().await;
    about.publish_stopped();
}

/// A panic while the lock was held leaves plain values behind, never a broken invariant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
