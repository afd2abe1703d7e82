//! Everything that can go wrong, as switches that a test (or the demo) throws while the cluster runs.
//!
//! Three groups: the link (between client and API server), the API server's answers, and the port-forward sessions. A
//! switch holds until it is thrown back, unless its documentation says otherwise. [`Faults::clear`] resets them all.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;

use crate::api::connections::{Connections, Ending, Which};
use crate::api::store::Store;
use crate::pki::ServerCertificate;
use crate::portforward::Protocol;

/// The link's properties, for every connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkFaults {
    /// Added to everything from client to server.
    pub(crate) up: Duration,
    /// Added to everything from server to client.
    pub(crate) down: Duration,
    /// Bytes per second and connection, in each direction.
    pub(crate) bandwidth: Option<u64>,
}

/// How PING frames are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pings {
    /// Answered at once.
    #[default]
    Answer,
    /// Answered after this time.
    Late(Duration),
    /// Never answered, while everything else works.
    Ignore,
}

/// What the runtime says when a pod's network namespace cannot be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// containerd: `network namespace for sandbox "..." is closed`.
    NamespaceClosed,
    /// containerd: `failed to find sandbox "..." in store: not found`.
    SandboxNotFound,
    /// containerd: `sandbox container "..." is not running`.
    SandboxNotRunning,
    /// CRI-O: `could not find sandbox ...`.
    CrioSandboxNotFound,
    /// Any other text.
    Other(String),
}

/// Which requests an answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestFault {
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) retry_after: Option<u64>,
    /// How often still; `None` = until cleared.
    pub(crate) left: Option<u32>,
}

/// An upgrade that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) protocol: Protocol,
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

/// The state of all switches.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultState {
    pub(crate) link: LinkFaults,
    /// New connections are black holes from their first byte.
    pub(crate) freeze_new: bool,
    pub(crate) certificate: ServerCertificate,
    pub(crate) requests: Vec<RequestFault>,
    pub(crate) request_delay: Duration,
    /// Seconds that the server's clock is ahead (behind if negative), as its `Date` headers tell it.
    pub(crate) clock_ahead: i64,
    pub(crate) unauthorized: bool,
    /// Verbs and resources that nobody may any more.
    pub(crate) forbidden: Vec<(String, String)>,
    pub(crate) stall_watches: bool,
    /// Counts up to end all open watches.
    pub(crate) watch_generation: u64,
    /// Counts up to answer all open watches with 410.
    pub(crate) gone_generation: u64,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) upgrade_delay: Duration,
    pub(crate) pings: Pings,
    pub(crate) split_writes: Option<usize>,
    pub(crate) close_carrier_after: Option<u64>,
    /// Counts up to send one corrupt frame on every session.
    pub(crate) corrupt_generation: u64,
    /// Counts up to send GOAWAY on every session.
    pub(crate) goaway_generation: u64,
    /// Counts up to make every session stop reading for good.
    pub(crate) hold_replies: bool,
    pub(crate) dial_failure: Option<DialFailure>,
    pub(crate) dial_delay: Duration,
}

/// The switches. Cheap to clone; all clones are the same switches.
#[derive(Clone, Debug)]
pub struct Faults {
    state: watch::Sender<FaultState>,
    listening: watch::Sender<bool>,
    bound: watch::Receiver<bool>,
    connections: Arc<Connections>,
    store: Arc<Store>,
}

impl Faults {
    pub(crate) fn new(
        state: watch::Sender<FaultState>,
        listening: watch::Sender<bool>,
        bound: watch::Receiver<bool>,
        connections: Arc<Connections>,
        store: Arc<Store>,
    ) -> Self {
        Self { state, listening, bound, connections, store }
    }

    /// Throws every switch back, thaws the link and listens again. What is broken stays broken (a dropped connection).
    pub async fn clear(&self) {
        self.set(|state| {
            // Generations only ever count up, or they would fire.
            *state = FaultState {
                watch_generation: state.watch_generation,
                gone_generation: state.gone_generation,
                corrupt_generation: state.corrupt_generation,
                goaway_generation: state.goaway_generation,
                ..FaultState::default()
            };
        });
        self.connections.thaw();
        self.accept_tcp().await;
    }

    fn set(&self, change: impl FnOnce(&mut FaultState)) {
        self.state.send_modify(change);
    }

    // The link.

    /// Adds latency: `up` from client to server, `down` back. Existing connections too.
    pub fn latency(&self, up: Duration, down: Duration) {
        self.set(|state| (state.link.up, state.link.down) = (up, down));
    }

    /// Caps each connection's bytes per second in each direction; `None` lifts the cap.
    pub fn bandwidth(&self, bytes_per_second: Option<u64>) {
        self.set(|state| state.link.bandwidth = bytes_per_second);
    }

    /// Black hole for the connections that exist now: nothing is read or written any more, nothing is closed, while new
    /// ones work (a NAT or VPN that has lost its state).
    pub fn freeze_existing(&self) {
        self.connections.freeze(Which::All);
    }

    /// Black hole for the existing port-forward connections only; watches go on.
    pub fn freeze_carriers(&self) {
        self.connections.freeze(Which::Carriers);
    }

    /// Black hole for everything, new connections too: TCP connects (the kernel does that), then silence.
    pub fn freeze_all(&self) {
        self.set(|state| state.freeze_new = true);
        self.connections.freeze(Which::All);
    }

    /// Ends the black holes: what was under way arrives late.
    pub fn thaw(&self) {
        self.set(|state| state.freeze_new = false);
        self.connections.thaw();
    }

    /// Ends existing connections.
    pub fn drop_connections(&self, which: Which, ending: Ending) {
        self.connections.end(which, ending);
    }

    /// Refuses TCP connections (the port stays reserved). Existing connections live on.
    pub async fn refuse_tcp(&self) {
        self.listen(false).await;
    }

    /// Listens again.
    pub async fn accept_tcp(&self) {
        self.listen(true).await;
    }

    /// A restart of the API server: all connections are cut, connections are refused for `down`, then accepted again on
    /// the same port. Objects survive, open watches and sessions do not.
    pub async fn restart_api_server(&self, down: Duration) {
        self.refuse_tcp().await;
        self.connections.end(Which::All, Ending::Reset);
        tokio::time::sleep(down).await;
        self.accept_tcp().await;
    }

    async fn listen(&self, listen: bool) {
        self.listening.send_replace(listen);
        let mut bound = self.bound.clone();
        // An error means that the cluster is gone, and with it the question.
        bound.wait_for(|bound| *bound == listen).await.ok();
    }

    /// The certificate that new connections see.
    pub fn certificate(&self, certificate: ServerCertificate) {
        self.set(|state| state.certificate = certificate);
    }

    // The API server.

    /// Answers requests with `status`. `verb` as in RBAC (`get`, `list`, `watch`, `create`, ...), `resource` as
    /// `pods` or `pods/portforward`; `*` matches any. `times`: how often, `None` until cleared.
    pub fn fail_requests(
        &self,
        verb: &str,
        resource: &str,
        status: StatusCode,
        message: &str,
        times: Option<u32>,
    ) {
        self.fail_requests_with(verb, resource, status, message, times, None);
    }

    /// 429 with `Retry-After` in seconds.
    pub fn throttle_requests(&self, verb: &str, resource: &str, retry_after: u64, times: Option<u32>) {
        let message = "the server has received too many requests and has asked us to try again later";
        let status = StatusCode::TOO_MANY_REQUESTS;
        self.fail_requests_with(verb, resource, status, message, times, Some(retry_after));
    }

    fn fail_requests_with(
        &self,
        verb: &str,
        resource: &str,
        status: StatusCode,
        message: &str,
        times: Option<u32>,
        retry_after: Option<u64>,
    ) {
        let fault = RequestFault {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            status,
            message: message.to_owned(),
            retry_after,
            left: times,
        };
        self.set(|state| state.requests.push(fault));
    }

    /// Forgets all [`Faults::fail_requests`] and [`Faults::throttle_requests`].
    pub fn stop_failing_requests(&self) {
        self.set(|state| state.requests.clear());
    }

    /// The server's clock is so many seconds ahead (behind if negative), as its `Date` headers tell it.
    pub fn clock_ahead(&self, seconds: i64) {
        self.set(|state| state.clock_ahead = seconds);
    }

    /// Every answer takes this much longer.
    pub fn delay_requests(&self, delay: Duration) {
        self.set(|state| state.request_delay = delay);
    }

    /// 401 for everything, as after an expired login. Open watches and sessions go on, as in reality.
    pub fn unauthorized(&self, on: bool) {
        self.set(|state| state.unauthorized = on);
    }

    /// Nobody may `verb` `resource` any more (`*` matches any), whatever the rules say: 403 with the authorizer's sentence.
    /// Until [`Faults::clear`].
    pub fn forbid(&self, verb: &str, resource: &str) {
        self.set(|state| state.forbidden.push((verb.to_owned(), resource.to_owned())));
    }

    /// Watches deliver nothing, not even bookmarks, until switched off.
    pub fn stall_watches(&self, on: bool) {
        self.set(|state| state.stall_watches = on);
    }

    /// Ends all open watches as a server-side timeout does: the response ends in order.
    pub fn drop_watches(&self) {
        self.set(|state| state.watch_generation += 1);
    }

    /// Compacts the history now: open watches get an ERROR event 410 and end, and every version handed out before is too
    /// old to watch from.
    pub fn gone(&self) {
        self.store.compact();
        self.set(|state| state.gone_generation += 1);
    }

    // Port-forward.

    /// Refuses upgrades to `protocol` with this status; replaces an earlier refusal. As gates and middleboxes do.
    pub fn refuse_upgrade(&self, protocol: Protocol, status: StatusCode, message: &str) {
        let refusal = Refusal { protocol, status, message: message.to_owned() };
        self.set(|state| {
            state.refusals.retain(|other| other.protocol != protocol);
            state.refusals.push(refusal);
        });
    }

    /// Accepts upgrades to `protocol` again.
    pub fn allow_upgrade(&self, protocol: Protocol) {
        self.set(|state| state.refusals.retain(|other| other.protocol != protocol));
    }

    /// An upgrade takes this much longer.
    pub fn delay_upgrades(&self, delay: Duration) {
        self.set(|state| state.upgrade_delay = delay);
    }

    /// How PING frames are treated, from now on.
    pub fn pings(&self, pings: Pings) {
        self.set(|state| state.pings = pings);
    }

    /// Every write of a session is cut into pieces of this many bytes, each its own TLS record.
    pub fn split_writes(&self, size: Option<usize>) {
        self.set(|state| state.split_writes = size.map(|size| size.max(1)));
    }

    /// Sessions cut their connection after this many bytes to the client, in the middle of a frame or not.
    pub fn close_carrier_after(&self, bytes: Option<u64>) {
        self.set(|state| state.close_carrier_after = bytes);
    }

    /// Every session sends one frame that is none.
    pub fn corrupt_frame(&self) {
        self.set(|state| state.corrupt_generation += 1);
    }

    /// Every SPDY session sends GOAWAY, takes no further streams and ends when the last one has.
    pub fn goaway(&self) {
        self.set(|state| state.goaway_generation += 1);
    }

    /// Streams are not answered (no SYN_REPLY, no connection into the pod) while on: kubectl's "Timeout occurred".
    pub fn hold_replies(&self, on: bool) {
        self.set(|state| state.hold_replies = on);
    }

    /// Every connection into a pod fails like this; `None` = works.
    pub fn dial_failure(&self, failure: Option<DialFailure>) {
        self.set(|state| state.dial_failure = failure);
    }

    /// Every connection into a pod takes this much longer.
    pub fn delay_dials(&self, delay: Duration) {
        self.set(|state| state.dial_delay = delay);
    }
}

impl FaultState {
    /// Whether [`Faults::forbid`] has taken this permission away.
    pub(crate) fn forbids(&self, verb: &str, resource: &str) -> bool {
        self.forbidden.iter().any(|(v, r)| (v == "*" || v == verb) && (r == "*" || r == resource))
    }
}

/// The first fault that matches a request; counts it down.
pub(crate) fn take_request_fault(
    state: &watch::Sender<FaultState>,
    verb: &str,
    resource: &str,
) -> Option<RequestFault> {
    let hits = |fault: &RequestFault| {
        (fault.verb == "*" || fault.verb == verb) && (fault.resource == "*" || fault.resource == resource)
    };
    let mut found = None;
    state.send_if_modified(|state| {
        let Some(index) = state.requests.iter().position(hits) else { return false };
        let Some(fault) = state.requests.get_mut(index) else { return false };
        found = Some(fault.clone());
        let Some(left) = &mut fault.left else { return false };
        *left = left.saturating_sub(1);
        if *left == 0 {
            state.requests.remove(index);
        }
        true
    });
    found
}
