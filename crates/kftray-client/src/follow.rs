//! The host's state, kept up to date: a snapshot first, changes after it, and all again after an interruption.
//!
//! Run, run once, wait: the form of every reconnect here. A host that crashed is started again by a client that may start
//! one; a host that said goodbye is not.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use http::Method;
use http_body_util::BodyExt as _;
use kftray_commons::Code;
use kftray_commons::api::{Change, Delta, Error, Hello, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::request::{Question, ask};
use crate::sse::{Event, Reader};
use crate::{Client, Result, connect, start};

/// The host says something every 15 s; three times that without a sound and the connection is given up.
const SILENCE: Duration = Duration::from_secs(45);

/// Waits between attempts to find the host again: at once for one that is being replaced, then at a pace that nobody
/// notices on an idle machine.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// What is known of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Whether it is what the host says now.
    pub link: Link,
    /// The last that was known. Empty before the first connection.
    pub snapshot: Arc<Snapshot>,
    /// Who the host is or was; none before the first connection.
    pub host: Option<Arc<Hello>>,
}

/// Whether the host is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// The first snapshot is on its way.
    Connecting,
    /// What the snapshot says is what the host knows.
    Connected,
    /// The host is away; the snapshot is old. It is looked for all the time.
    Disconnected {
        /// Why.
        problem: Error,
    },
}

/// The host's state as it changes. Also a stream, whose items are the newest state after each change: a reader that is
/// slow misses states in between, never the last one.
pub struct Follow {
    states: watch::Receiver<State>,
    next: Option<Pin<Box<Waiting>>>,
    _task: JoinSet<()>,
}

type Waiting = dyn Future<Output = (Option<State>, watch::Receiver<State>)> + Send;

impl Follow {
    /// The newest state.
    #[must_use]
    pub fn state(&self) -> State {
        self.states.borrow().clone()
    }

    /// Waits for the next change; the newest state after it. Cancel-safe.
    pub async fn changed(&mut self) -> State {
        // The task ends only with this value.
        drop(self.states.changed().await);
        self.states.borrow_and_update().clone()
    }

    /// Waits until the condition holds; the state in which it does. Cancel-safe.
    pub async fn wait_for(&mut self, mut condition: impl FnMut(&State) -> bool) -> State {
        let found = self.states.wait_for(|state| condition(state)).await.map(|state| state.clone());
        match found {
            Ok(state) => state,
            Err(_) => std::future::pending().await,
        }
    }
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("state", &*self.states.borrow()).finish_non_exhaustive()
    }
}

impl Stream for Follow {
    type Item = State;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<State>> {
        let this = self.get_mut();
        let states = &this.states;
        let waiting = this.next.get_or_insert_with(|| {
            let mut states = states.clone();
            Box::pin(async move {
                let state = states.changed().await.is_ok().then(|| states.borrow_and_update().clone());
                (state, states)
            })
        });
        let Poll::Ready((state, states)) = waiting.as_mut().poll(cx) else { return Poll::Pending };
        this.states = states;
        this.next = None;
        Poll::Ready(state)
    }
}

impl Client {
    /// Follows the host's state until the value is dropped. Never fails: interruptions are states. Must be called on a
    /// tokio runtime.
    #[must_use]
    pub fn follow(&self) -> Follow {
        let first = State { link: Link::Connecting, snapshot: Arc::default(), host: None };
        let (sender, receiver) = watch::channel(first);
        let mut task = JoinSet::new();
        task.spawn(run(self.clone(), sender));
        Follow { states: receiver, next: None, _task: task }
    }
}

/// How one connection ended.
enum End {
    /// The host said that it ends.
    Goodbye { successor: bool },
    /// It was lost, or never came.
    Lost(Error),
}

async fn run(client: Client, states: watch::Sender<State>) {
    let mut failures = 0_usize;
    let mut last = None;
    let mut may_start = false;
    loop {
        let mut came_up = false;
        let end = run_once(&client, &states, &mut last, may_start, &mut came_up).await;
        failures = if came_up { 0 } else { failures + 1 };
        let problem = match end {
            End::Goodbye { successor } => {
                may_start = false;
                let what = if successor { "another host takes over" } else { "the host has ended" };
                Error::new(Code::HostEnding, what)
            }
            End::Lost(problem) => {
                may_start |= came_up;
                problem
            }
        };
        states.send_if_modified(|state| {
            let link = Link::Disconnected { problem };
            let changed = state.link != link;
            state.link = link;
            changed
        });
        sleep(PAUSES.get(failures).copied().unwrap_or(PAUSES[PAUSES.len() - 1])).await;
    }
}

async fn run_once(
    client: &Client,
    states: &watch::Sender<State>,
    last: &mut Option<String>,
    may_start: bool,
    came_up: &mut bool,
) -> End {
    match attach(client, states, last.clone(), may_start).await {
        Ok((answer, host)) => read(answer, host, states, last, came_up).await,
        Err(problem) => End::Lost(problem),
    }
}

async fn attach(
    client: &Client,
    states: &watch::Sender<State>,
    last: Option<String>,
    may_start: bool,
) -> Result<(crate::request::Answer, Arc<Hello>)> {
    let hello = match &client.start {
        Some(options) if may_start => start::ensure(&client.place, options).await?,
        Some(_) | None => connect::hello(&client.place).await?,
    };
    let mut question = Question::new(Method::GET, "/events");
    // The id names the host's instance, so that another host does not take it for its own.
    question.last_event = last.filter(|_| states.borrow().host.is_some());
    Ok((ask(&client.place, question).await?, Arc::new(hello)))
}

async fn read(
    mut answer: crate::request::Answer,
    host: Arc<Hello>,
    states: &watch::Sender<State>,
    last: &mut Option<String>,
    came_up: &mut bool,
) -> End {
    let lost = |message: String| End::Lost(Error::new(Code::HostUnreachable, message));
    let mut reader = Reader::default();
    loop {
        let frame = match timeout(SILENCE, answer.body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return lost(format!("the connection to the host was lost: {error}")),
            Ok(None) => return lost("the host went away".to_owned()),
            Err(_) => return lost("the host is silent".to_owned()),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        let Ok(events) = reader.push(&bytes) else { return lost("the host says too much".to_owned()) };
        for event in events {
            match take(event, &host, states, last) {
                Ok(None) => *came_up = true,
                Ok(Some(successor)) => return End::Goodbye { successor },
                Err(problem) => {
                    // The state may not be what the host means: begin anew.
                    *last = None;
                    return End::Lost(problem);
                }
            }
        }
    }
}

/// Takes one event into the state. Answers whether there is a successor if the host says goodbye.
fn take(
    event: Event,
    host: &Arc<Hello>,
    states: &watch::Sender<State>,
    last: &mut Option<String>,
) -> Result<Option<bool>> {
    let garbled = |error: serde_json::Error| {
        Error::new(Code::VersionMismatch, format!("an event of the host is not understood: {error}"))
    };
    let mut goodbye = None;
    match event.name.as_str() {
        "snapshot" => {
            let snapshot: Snapshot = serde_json::from_str(&event.data).map_err(garbled)?;
            states.send_modify(|state| {
                state.snapshot = Arc::new(snapshot);
                state.link = Link::Connected;
                state.host = Some(Arc::clone(host));
            });
        }
        "delta" => {
            let delta: Delta = serde_json::from_str(&event.data).map_err(garbled)?;
            if let Change::HostEnding { successor } = &delta.change {
                goodbye = Some(*successor);
            }
            let known = states.borrow().snapshot.seq;
            if delta.seq > known + 1 {
                return Err(Error::new(
                    Code::Internal,
                    format!("changes {known} to {} are missing", delta.seq),
                ));
            }
            states.send_modify(|state| {
                Arc::make_mut(&mut state.snapshot).apply(&delta);
                state.link = Link::Connected;
                state.host = Some(Arc::clone(host));
            });
        }
        // Nothing was missed.
        "resumed" => states.send_modify(|state| state.link = Link::Connected),
        // An event of a newer host.
        _ => {}
    }
    if event.id.is_some() {
        *last = event.id;
    }
    Ok(goodbye)
}
