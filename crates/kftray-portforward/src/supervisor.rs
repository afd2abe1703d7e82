//! The one task that owns a forward: it feeds the lifecycle machine and carries its effects out.
//!
//! ```text
//! resolver --Resolution--> [supervisor] --Status, Event--> faces
//!                            |  ^
//!                 stop, bell v  | proof of life
//!                          listeners, each with its connections
//! ```

use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use kftray_commons::{Code, Problem};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info};

use crate::accept;
use crate::choice::SuspectKind;
use crate::config::ForwardConfig;
use crate::connection::Shared;
use crate::engine::Process;
use crate::event::ReadyVia;
use crate::forward::About;
use crate::listener::{self, Listener, Listeners};
use crate::machine::{Effect, Input, Machine};
use crate::ports::{DialError, Endpoint, Resolution, Warm};
use crate::udp;

/// Runs a forward from its start to the end of its last connection.
pub(crate) async fn run(
    process: Arc<Process>,
    about: Arc<About>,
    config: ForwardConfig,
    given: Vec<std::net::TcpListener>,
) {
    let resolution = process.resolve.follow(&config.wanted());
    let shared = Arc::new(Shared::new(process, about, config));
    let mut supervisor = Supervisor {
        shared,
        given,
        machine: Machine::new(),
        binding: None,
        warming: None,
        transport: None,
        listeners: JoinSet::new(),
    };
    supervisor.run(resolution).await;
}

struct Supervisor {
    shared: Arc<Shared>,
    /// Open listeners from elsewhere, until they are taken into use.
    given: Vec<std::net::TcpListener>,
    machine: Machine,
    binding: Option<BoxFuture<'static, Result<Listeners, Problem>>>,
    warming: Option<(Endpoint, BoxFuture<'static, Result<Warm, DialError>>)>,
    /// The transport held, until it is lost.
    transport: Option<(Endpoint, BoxFuture<'static, Problem>)>,
    /// One task per open listener.
    listeners: JoinSet<()>,
}

/// What woke the supervisor.
enum Wake {
    Stop,
    ListenerEnded,
    Retry,
    Network,
    Resolution,
    Bound(Result<Listeners, Problem>),
    Warmed(Result<Warm, DialError>),
    Lost(Problem),
    Served,
    Deadline,
}

impl Supervisor {
    async fn run(&mut self, mut resolution: watch::Receiver<Resolution>) {
        let shared = Arc::clone(&self.shared);
        let mut stop = shared.about.stop_signal();
        let mut network = shared.process.network.subscribe();
        self.learn(&mut resolution);
        self.step(Input::Start);
        loop {
            let deadline = self.machine.deadline();
            let wake = tokio::select! {
                // A stop is heard before anything else.
                biased;
                () = stop.stopped() => Wake::Stop,
                Some(ended) = self.listeners.join_next() => {
                    if let Err(error) = ended {
                        error!(forward = shared.config.name, %error, "a listener's task ended");
                    }
                    Wake::ListenerEnded
                }
                () = shared.about.retry.notified() => Wake::Retry,
                _ = network.changed() => Wake::Network,
                Ok(()) = resolution.changed() => Wake::Resolution,
                bound = present(self.binding.as_mut()) => Wake::Bound(bound),
                warmed = present(self.warming.as_mut().map(|(_, attempt)| attempt)) => Wake::Warmed(warmed),
                problem = present(self.transport.as_mut().map(|(_, lost)| lost)) => Wake::Lost(problem),
                () = shared.directory.proof() => Wake::Served,
                () = sleep_until(deadline.map_or_else(Instant::now, Instant::from)), if deadline.is_some() => {
                    Wake::Deadline
                }
            };
            match wake {
                Wake::Stop => break,
                Wake::ListenerEnded => self.listener_ended(),
                Wake::Retry => self.hurry(Input::Retry),
                Wake::Network => self.hurry(Input::NetworkChanged),
                Wake::Resolution => self.learn(&mut resolution),
                Wake::Bound(bound) => self.bound(bound),
                Wake::Warmed(warmed) => self.warmed(warmed),
                Wake::Lost(problem) => self.lost(problem),
                Wake::Served => self.step(Input::Served),
                Wake::Deadline => self.step(Input::Timer),
            }
        }
        self.step(Input::Stop);
        drop(resolution);
        while self.listeners.join_next().await.is_some() {}
        self.step(Input::Drained);
        self.shared.about.publish_stopped();
    }

    /// Feeds the machine and does what it says.
    fn step(&mut self, input: Input) {
        let effects = self.machine.step(input, Instant::now().into_std(), rand::random());
        for effect in effects {
            match effect {
                Effect::Bind => {
                    let config = self.shared.config.clone();
                    let given = std::mem::take(&mut self.given);
                    self.binding = Some(Box::pin(async move {
                        match listener::adopt(given) {
                            Some(listeners) => Ok(listeners),
                            None => {
                                listener::open(&config.addresses, config.local_port, config.protocol).await
                            }
                        }
                    }));
                }
                Effect::Close => {
                    // Open listeners hear the stop themselves, at the same time as this task.
                    self.binding = None;
                }
                Effect::Warm => self.warm(),
                Effect::DropWarm => {
                    self.warming = None;
                    self.transport = None;
                    self.shared.about.set_ready(None);
                }
                Effect::Publish(status) => {
                    debug!(forward = self.shared.config.name, status = status.name());
                    // "Stopped" is told at the very end, after the last event.
                    if status != kftray_commons::Status::Stopped {
                        self.shared.about.publish(status);
                    }
                }
            }
        }
        if self.machine.wants_proof() {
            self.shared.directory.want_proof();
        }
    }

    fn warm(&mut self) {
        let endpoint = self.shared.directory.choose_for_transport();
        self.warming = endpoint.map(|endpoint| {
            let attempt = self.shared.process.dial.warm(&endpoint);
            (endpoint, attempt)
        });
    }

    fn learn(&mut self, resolution: &mut watch::Receiver<Resolution>) {
        let news = self.shared.directory.update(&resolution.borrow_and_update());
        if let Some(supply) = news {
            self.step(Input::Supply(supply));
        }
    }

    fn hurry(&mut self, input: Input) {
        self.shared.directory.clear_all();
        self.step(input);
    }

    fn bound(&mut self, bound: Result<Listeners, Problem>) {
        self.binding = None;
        match bound {
            Ok(listeners) => {
                let mut sockets = Vec::new();
                for socket in listeners.sockets {
                    let shared = Arc::clone(&self.shared);
                    match socket {
                        Listener::Tcp(socket) => {
                            let socket = Arc::new(socket);
                            sockets.push(Arc::downgrade(&socket));
                            self.listeners.spawn(accept::run(shared, socket));
                        }
                        Listener::Udp(socket) => {
                            self.listeners.spawn(udp::run(shared, socket));
                        }
                    }
                }
                self.shared.about.set_sockets(sockets);
                info!(forward = self.shared.config.name, addresses = ?listeners.addresses, "listening");
                self.shared.about.set_addresses(listeners.addresses, listeners.notes);
                self.step(Input::Bound);
            }
            Err(problem) => self.step(Input::BindFailed(problem)),
        }
    }

    fn warmed(&mut self, warmed: Result<Warm, DialError>) {
        let Some((endpoint, _)) = self.warming.take() else { return };
        match warmed {
            Ok(Warm { transport, rtt, lost }) => {
                let moved = self.transport.replace((endpoint.clone(), lost)).is_some();
                if !moved {
                    // The cluster is back: whatever was suspect for its transport may be tried again.
                    self.shared.directory.clear_all();
                }
                // Before the status: whoever sees "ready" finds by what.
                self.shared.about.set_ready(Some(ReadyVia { endpoint, transport, rtt }));
                self.step(Input::WarmOk);
            }
            Err(error) => {
                self.shared.directory.suspect(&endpoint, SuspectKind::Transport, &error.problem);
                self.step(Input::WarmFailed(error.problem));
            }
        }
    }

    fn lost(&mut self, problem: Problem) {
        if let Some((endpoint, _)) = self.transport.take() {
            self.shared.directory.suspect(&endpoint, SuspectKind::Transport, &problem);
        }
        self.shared.about.set_ready(None);
        self.step(Input::TransportLost(problem));
    }

    /// A listener ends only with the forward; if it panicked, the forward cannot be what it says it is.
    fn listener_ended(&mut self) {
        // A listener may hear the stop a moment before this task does.
        if self.shared.about.is_stopping() {
            return;
        }
        let message = format!("a listener of {} ended by a fault of this program", self.shared.config.name);
        let cause = Problem::new(Code::Internal, message);
        self.shared.about.publish(kftray_commons::Status::NeedsUser { cause });
    }
}

/// The future, if there is one; otherwise never. It stays where it is: the caller removes it when it is done.
async fn present<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
