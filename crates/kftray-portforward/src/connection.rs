//! The life of one accepted connection: find a pod, open a channel, move bytes, and try another pod where that is safe.
//!
//! What may be tried again: as long as the pod has not answered, a failure after which *certainly nothing* reached the
//! application, or any failure if the client had sent nothing. Everything else ends with a reset and an event.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use kftray_commons::{Code, Cure, Problem, TargetObject};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, trace};

use crate::choice::{Pick, SuspectKind, TRIAL};
use crate::client::Client;
use crate::config::ForwardConfig;
use crate::directory::{Directory, MENDING};
use crate::engine::Process;
use crate::event::Event;
use crate::forward::About;
use crate::platform::PeerState;
use crate::ports::{Channel, Condition, Delivery, Endpoint, HalfClose, Route};
use crate::pump::{Pump, Turn};
use crate::udp;

/// Pauses before another round when every ready pod has refused. A container that has died is noticed by the kubelet
/// within about a second (its relist period) and then is no longer ready, so that the connection is held; one that is
/// ready too early listens soon. A port that is simply wrong is refused after two seconds in all.
const REFUSAL_PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(750), Duration::from_millis(1_000)];

/// Pause after a limit that protects a node was reached: it counts streams of the last second.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(250);

/// Opening a channel may take this long even if connections are not held: an upgrade over a slow VPN does.
const LEAST_OPENING: Duration = Duration::from_secs(10);

/// Openings that are done by then ask nobody why they take long.
const LONG_OPENING: Duration = Duration::from_secs(1);

/// When to look, after the client's end, whether its program is still there; the last one repeats. On loopback the
/// answer is there at once, but for the moments between the end of its stream and the release of its socket.
const PEER_CHECKS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(20),
    Duration::from_millis(500),
    Duration::from_secs(5),
];

/// Where it cannot be known whether a client that sends no more still reads: how long the pod may be silent before the
/// connection is taken for closed (research/datapath.md 4.8).
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

/// What all connections of a forward share.
pub(crate) struct Shared {
    pub(crate) process: Arc<Process>,
    pub(crate) about: Arc<About>,
    pub(crate) config: ForwardConfig,
    pub(crate) directory: Directory,
    /// One permit per UDP flow.
    pub(crate) flows: Arc<Semaphore>,
    /// The relay has been suggested; once is enough.
    suggested: AtomicBool,
}

impl Shared {
    pub(crate) fn new(process: Arc<Process>, about: Arc<About>, config: ForwardConfig) -> Self {
        let directory = Directory::new(config.balance.clone());
        let flows = Arc::new(Semaphore::new(udp::FLOWS));
        Self { process, about, config, directory, flows, suggested: AtomicBool::new(false) }
    }

    /// Suggests the relay, once, when connections are held back to protect the node of a pod.
    async fn suggest_relay(&self, endpoint: &Endpoint) -> Infallible {
        if endpoint.route == Route::Direct && !self.suggested.load(Relaxed) {
            sleep(LONG_OPENING).await;
            self.process.dial.held_back(endpoint).await;
            if !self.suggested.swap(true, Relaxed) {
                self.tell_of_relay();
            }
        }
        std::future::pending().await
    }

    fn tell_of_relay(&self) {
        let message = format!(
            "new connections of {} wait because the node of its pods runs as many as it should; the relay would carry them",
            self.config.name
        );
        self.about.tell(Event::Note(Problem::new(Code::SuggestRelay, message)));
    }
}

/// Why a connection ended before its time.
enum Failure {
    /// The client went away or the forward stops: nobody is left to be told.
    Silent,
    /// It could not be served.
    Problem(Problem),
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    accepted: Instant,
    permit: OwnedSemaphorePermit,
) {
    let tally = &shared.about.tally;
    let _open = tally.accepted();
    let mut connection = match Client::new(stream, peer) {
        Ok(client) => Connection::new(&shared, client, accepted),
        Err(error) => {
            debug!(%peer, %error, "gone before it was accepted");
            return;
        }
    };
    match connection.run().await {
        Ok(()) => Box::pin(connection.client.close()).await,
        Err(Failure::Silent) => {}
        Err(Failure::Problem(problem)) => {
            tally.failed();
            debug!(%peer, code = %problem.code, %problem, "connection failed");
            shared.about.tell(Event::ConnectionFailed { peer, problem });
        }
    }
    drop(permit);
}

struct Connection<'a> {
    shared: &'a Shared,
    client: Client,
    accepted: Instant,
    /// Present while it waits for a pod.
    held: Option<OwnedSemaphorePermit>,
    /// When waiting for a pod ends.
    deadline: Instant,
    /// Endpoints that refused, and how many pauses were made because all had.
    refused: Vec<Endpoint>,
    refusal_pauses: usize,
    last_problem: Option<Problem>,
    /// When it no longer waits for a person to mend the look-up.
    mended_by: Option<Instant>,
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared, client: Client, accepted: Instant) -> Self {
        Self {
            shared,
            client,
            accepted,
            held: None,
            deadline: accepted + shared.config.hold,
            refused: Vec::new(),
            refusal_pauses: 0,
            last_problem: None,
            mended_by: None,
        }
    }

    async fn run(&mut self) -> Result<(), Failure> {
        match self.client.take_first() {
            Ok(length) => self.count_up(length),
            Err(_) => return Err(Failure::Silent),
        }
        let mut first = true;
        loop {
            // Boxed, like everything but the pump: a connection that idles does not pay for how it came to be.
            let (endpoint, mut channel) = Box::pin(self.connect()).await?;
            self.held = None;
            let opened = Instant::now();
            if std::mem::take(&mut first) {
                self.shared.about.tally.opened(opened - self.accepted);
            }
            trace!(peer = %self.client.peer, %endpoint, "open");
            let failed = match self.pump(&endpoint, channel.as_mut()).await {
                End::Orderly => return Ok(()),
                // A reset in the middle of what it sends; else everything it has sent is to arrive.
                End::ClientGone if !self.client.eof => return Err(Failure::Silent),
                End::ClientGone | End::ClientClosed => {
                    Box::pin(leave(channel)).await;
                    return Ok(());
                }
                End::Failed { problem, again: false } => return Err(Failure::Problem(problem)),
                End::Failed { problem, again: true } => problem,
            };
            drop(channel);
            self.client.sent.rewind();
            if opened.elapsed() > self.shared.config.hold {
                // It had been open for long: this is a new wait, not the rest of the old one.
                self.deadline = Instant::now() + self.shared.config.hold;
                self.refusal_pauses = 0;
                self.mended_by = None;
            }
            Box::pin(self.blame(endpoint, failed)).await?;
        }
    }

    fn count_up(&self, length: usize) {
        if length > 0 {
            self.shared.about.tally.up(length, Instant::now());
        }
    }

    /// Finds an endpoint and opens a channel to it, waiting for one as long as the forward holds connections.
    async fn connect(&mut self) -> Result<(Endpoint, Box<dyn Channel>), Failure> {
        loop {
            let bell = self.shared.directory.bell();
            match self.shared.directory.pick(&self.refused) {
                Pick::Go(endpoint) => match self.dial(&endpoint).await? {
                    Ok(channel) => return Ok((endpoint, channel)),
                    Err(problem) => self.blame(endpoint, problem).await?,
                },
                // There are ready pods, and every one of them has refused.
                Pick::Wait(_) if !self.refused.is_empty() && self.shared.directory.any_ready() => {
                    self.pause_after_refusal().await?;
                }
                Pick::Wait(_) if !self.refused.is_empty() => self.refused.clear(),
                Pick::Refuse(problem) => return Err(Failure::Problem(problem)),
                Pick::Mend(problem) => {
                    let mended_by = *self.mended_by.get_or_insert_with(|| Instant::now() + MENDING);
                    let until = self.deadline.min(mended_by);
                    if Instant::now() >= until {
                        return Err(Failure::Problem(problem));
                    }
                    self.hold()?;
                    self.rest(Some(bell), until).await?;
                }
                Pick::Wait(until) => {
                    self.hold()?;
                    let until = until.map_or(self.deadline, |until| self.deadline.min(until.into()));
                    self.rest(Some(bell), until).await?;
                }
            }
        }
    }

    async fn pause_after_refusal(&mut self) -> Result<(), Failure> {
        let pause = REFUSAL_PAUSES.get(self.refusal_pauses).copied();
        let until = pause.map(|pause| Instant::now() + pause).filter(|until| *until <= self.deadline);
        let Some(until) = until else {
            return Err(self.last_problem.take().map_or_else(|| self.give_up(), Failure::Problem));
        };
        self.refusal_pauses += 1;
        self.refused.clear();
        self.rest(None, until).await
    }

    /// Opens a channel, with everything the client has sent so far. The inner error is one after which another try is
    /// safe.
    async fn dial(&mut self, endpoint: &Endpoint) -> Result<Result<Box<dyn Channel>, Problem>, Failure> {
        let first = self.client.sent.give_all();
        let nothing_sent = first.is_empty();
        let deadline = self.deadline.max(Instant::now() + LEAST_OPENING);
        let mut dial = self.shared.process.dial.dial(endpoint, first);
        let mut stop = self.shared.about.stop_signal();
        let mut suggestion = pin!(self.shared.suggest_relay(endpoint));
        let answer = loop {
            tokio::select! {
                biased;
                () = stop.hurried() => return Err(Failure::Silent),
                answer = &mut dial => break answer,
                more = self.client.take_more() => match more {
                    Ok(length) => self.count_up(length),
                    Err(_) => return Err(Failure::Silent),
                },
                () = sleep_until(deadline) => return Err(self.give_up()),
                never = &mut suggestion => match never {},
            }
        };
        match answer {
            Ok(channel) => Ok(Ok(channel)),
            Err(error) if error.delivery == Delivery::Nothing || nothing_sent => {
                self.client.sent.rewind();
                Ok(Err(error.problem))
            }
            Err(error) => Err(Failure::Problem(error.problem)),
        }
    }

    /// Draws the consequences of a failure after which another try is safe: for the endpoint, and whether to try at all.
    async fn blame(&mut self, endpoint: Endpoint, problem: Problem) -> Result<(), Failure> {
        debug!(peer = %self.client.peer, %endpoint, code = %problem.code, %problem, "another try");
        let code = problem.code;
        self.last_problem = Some(problem.clone());
        if code == Code::Overloaded {
            self.hold()?;
            return self.rest(None, Instant::now() + OVERLOAD_PAUSE).await;
        }
        if code == Code::RemoteRefused && endpoint.condition == Condition::Ready {
            self.shared.directory.suspect(&endpoint, SuspectKind::Refused, &problem);
            self.refused.push(endpoint);
            return Ok(());
        }
        self.shared.directory.suspect(&endpoint, SuspectKind::Transport, &problem);
        match code.cure() {
            Cure::User => Err(Failure::Problem(problem)),
            Cure::Retry | Cure::Wait => Ok(()),
        }
    }

    /// Lets time pass until `until`, or the bell if one is given, while the client is looked after.
    async fn rest(&mut self, bell: Option<watch::Receiver<u64>>, until: Instant) -> Result<(), Failure> {
        let mut stop = self.shared.about.stop_signal();
        let rung = async {
            match bell {
                Some(mut bell) => drop(bell.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(rung);
        loop {
            tokio::select! {
                biased;
                () = stop.stopped() => return Err(Failure::Silent),
                () = &mut rung => return Ok(()),
                more = self.client.take_more() => match more {
                    Ok(length) => self.count_up(length),
                    Err(_) => return Err(Failure::Silent),
                },
                () = sleep_until(until) => return Ok(()),
            }
        }
    }

    /// Takes a place among the connections that wait.
    fn hold(&mut self) -> Result<(), Failure> {
        if Instant::now() >= self.deadline {
            return Err(self.give_up());
        }
        if self.held.is_none() {
            let place = Arc::clone(&self.shared.process.held).try_acquire_owned();
            self.held = Some(place.map_err(|_| {
                let name = &self.shared.config.name;
                let message =
                    format!("too many connections wait for pods already, {name} could not hold one more");
                Failure::Problem(Problem::new(Code::Overloaded, message))
            })?);
        }
        Ok(())
    }

    /// The time for waiting is over.
    fn give_up(&self) -> Failure {
        let config = &self.shared.config;
        let cause = self.shared.directory.why().or_else(|| self.last_problem.clone());
        let who = match &config.target.object {
            TargetObject::Host(host) => format!("{host} could not be reached by the relay"),
            object @ (TargetObject::Service(_)
            | TargetObject::Pod(_)
            | TargetObject::Labels(_)
            | TargetObject::Workload { .. }) => format!("no pod of {object} could serve the connection"),
        };
        let message = format!(
            "{who} within {:?}{}",
            config.hold,
            cause.as_ref().map(|cause| format!(": {}", cause.message)).unwrap_or_default(),
        );
        let problem = Problem::new(Code::HoldTimeout, message);
        Failure::Problem(match cause {
            Some(cause) if cause.code.cure() == Cure::User => problem.with_remedy(cause.remedy),
            Some(_) | None => problem,
        })
    }

    /// Moves bytes until an end.
    async fn pump(&mut self, endpoint: &Endpoint, channel: &mut dyn Channel) -> End {
        let withheld = channel.half_close() == HalfClose::Withheld;
        let directory = &self.shared.directory;
        let opened = Instant::now();
        let mut trial = directory.is_on_trial(endpoint).then(|| opened + TRIAL);
        let mut watch = PeerWatch::default();
        let end = {
            let mut pump = Pump::new(&mut self.client, channel, &self.shared.about.tally);
            loop {
                let turn = tokio::select! {
                    biased;
                    turn = pump.turn() => turn,
                    () = at(trial.into_iter().chain(watch.next).min()) => {
                        if trial.take_if(|end| *end <= Instant::now()).is_some() {
                            directory.stood(endpoint, opened);
                        } else if watch.has_closed(pump.client(), pump.written()) {
                            break End::ClientClosed;
                        }
                        continue;
                    }
                };
                match turn {
                    Turn::FirstByte => directory.served(endpoint),
                    Turn::ClientFinished if withheld => watch.begin(pump.written()),
                    Turn::ClientFinished => {}
                    // The other direction is only worth anything where the pod can still hear it.
                    Turn::PodFinished if !withheld => {}
                    Turn::PodFinished | Turn::Finished => break End::Orderly,
                    Turn::ClientGone(error) => {
                        trace!(peer = %pump.client().peer, %error, "the client went away");
                        break End::ClientGone;
                    }
                    Turn::Failed(error) => {
                        let sent = &pump.client().sent;
                        let unseen = error.delivery == Delivery::Nothing && sent.is_whole();
                        let again = !pump.answered() && (unseen || sent.nothing_given());
                        break End::Failed { problem: error.problem, again };
                    }
                }
            }
        };
        if matches!(end, End::Orderly) {
            // Both directions have ended now, so that nothing is left to be reset.
            channel.finish();
        }
        end
    }
}

/// The client has ended and is gone: sees to it that what it has sent arrives.
async fn leave(mut channel: Box<dyn Channel>) {
    channel.finish();
    if channel.close() {
        return;
    }
    // The transport passes the end on when it can; what comes back until then goes nowhere.
    while let Ok(Ok(Some(_))) = timeout(HALF_CLOSED_IDLE, poll_fn(|cx| channel.poll_recv(cx))).await {}
}

/// Waits for a time, if there is one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// How one channel ended.
enum End {
    /// The pod ended, and the client has everything.
    Orderly,
    /// The local socket failed.
    ClientGone,
    /// The client ended and does not listen any more.
    ClientClosed,
    /// The channel failed.
    Failed { problem: Problem, again: bool },
}

/// After a client's end on a transport that withholds it: finds out whether the client only half-closed, in which case
/// the answer is waited for without limit, or is gone, in which case the pod should hear of it.
#[derive(Default)]
struct PeerWatch {
    next: Option<Instant>,
    checks: usize,
    written: u64,
    quiet_since: Option<Instant>,
}

impl PeerWatch {
    fn begin(&mut self, written: u64) {
        let now = Instant::now();
        *self = Self { next: Some(now), checks: 0, written, quiet_since: Some(now) };
    }

    fn has_closed(&mut self, client: &Client, written: u64) -> bool {
        let now = Instant::now();
        self.checks += 1;
        let pause = PEER_CHECKS.get(self.checks).or(PEER_CHECKS.last()).copied().unwrap_or(HALF_CLOSED_IDLE);
        self.next = Some(now + pause);
        if std::mem::replace(&mut self.written, written) != written {
            self.quiet_since = Some(now);
        }
        match client.peer_state() {
            PeerState::Closed => true,
            PeerState::Open => false,
            PeerState::Unknown => self.quiet_since.is_some_and(|since| now - since >= HALF_CLOSED_IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use kftray_commons::{ClusterRef, RemotePort, Target};

    use super::*;
    use crate::config::Limits;
    use crate::ports::{ChannelError, Dial, DialError, Resolution, Resolve, Wanted, Warm};

    /// A cluster of one silent pod.
    struct Silent;

    impl Resolve for Silent {
        fn follow(&self, _: &Wanted) -> watch::Receiver<Resolution> {
            watch::Sender::new(Resolution::Pending).subscribe()
        }
    }

    impl Dial for Silent {
        fn warm(&self, _: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
            Box::pin(std::future::pending())
        }

        fn dial(&self, _: &Endpoint, _: Bytes) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
            Box::pin(std::future::pending())
        }

        fn network_changed(&self) {}
    }

    impl Channel for Silent {
        fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
            Poll::Pending
        }

        fn poll_send_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _: Bytes) {}

        fn finish(&mut self) {}

        fn half_close(&self) -> HalfClose {
            HalfClose::Withheld
        }
    }

    fn shared() -> Arc<Shared> {
        let object = TargetObject::Pod("p".to_owned());
        let target = Target { cluster: ClusterRef::default(), namespace: None, object };
        let config = ForwardConfig::new("p", target, RemotePort::Number(80.try_into().expect("port")));
        let process = Process::new(Arc::new(Silent), Arc::new(Silent), Limits::for_open_files(1024));
        let about = About::new(config.clone().into());
        Arc::new(Shared::new(Arc::new(process), Arc::new(about), config))
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        (client, listener.accept().await.expect("accept").0)
    }

    #[tokio::test]
    async fn an_idle_connections_task_is_small() {
        let shared = shared();
        let (client, stream) = pair().await;
        let permit = Arc::clone(&shared.process.open).try_acquire_owned().expect("free");
        let task = serve(shared, stream, client.local_addr().expect("address"), Instant::now(), permit);
        let size = std::mem::size_of_val(&task);
        assert!(size < 1_536, "{size}");
    }

    /// Where the system cannot tell a close from a half-close, silence decides.
    #[tokio::test(start_paused = true)]
    async fn an_unknown_peer_counts_as_gone_after_a_minute_of_silence() {
        let (client, stream) = pair().await;
        let foreign = "192.0.2.1:4000".parse().expect("address");
        let mut accepted = Client::new(stream, client.local_addr().expect("address")).expect("client");
        accepted.peer = foreign;
        let mut watch = PeerWatch::default();
        watch.begin(0);
        let begin = Instant::now();
        let mut written = 0;
        loop {
            at(watch.next).await;
            // The pod still answers for the first half minute.
            if begin.elapsed() < Duration::from_secs(30) {
                written += 1;
            }
            if watch.has_closed(&accepted, written) {
                break;
            }
        }
        let silent = begin.elapsed().as_secs();
        assert!((85..=95).contains(&silent), "{silent}");
    }

    #[tokio::test]
    async fn bytes_that_have_arrived_are_taken_without_waiting() {
        use tokio::io::AsyncWriteExt;
        let (mut client, stream) = pair().await;
        client.write_all(b"GET /").await.expect("write");
        let mut accepted = Client::new(stream, client.local_addr().expect("address")).expect("client");
        assert_eq!(accepted.take_first().expect("read"), 5);
        assert_eq!(accepted.sent.give_all(), "GET /");
        assert_eq!(accepted.take_first().expect("nothing more"), 0);
        // The runtime's own readiness is not disturbed by it.
        client.write_all(b"x").await.expect("write");
        assert_eq!(accepted.take_more().await.expect("read"), 1);
    }
}
