//! A program of this machine made reachable: a relay and objects of its own, a carrier of its own, a listener on it.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kftray_commons::{Code, Cure, Problem};
use kftray_portforward::ports::{DialError, Inbound, Offer, Publication, PublicationState};
use kftray_relay_proto::hello::Purpose;
use kftray_relay_proto::open::{Listen, Mode, Open, Reply};
use kftray_relay_proto::reason::EndKind;
use kftray_relay_proto::record::{Decoder, Record};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::carrier::{Carrier, Inbound as Streams};
use super::channel::{Next, Records, RelayChannel};
use super::explain;
use super::lane::Lane;
use super::tunnels::Tunnels;
use crate::relay::{Exposed, Need, RelayPod, RelayState, Relays};

/// Accepted connections that wait for the engine; behind them the carrier holds some more, and the rest waits at the relay.
const WAITING: usize = 16;
/// How long the relay may take to say who calls; it sends that first of all.
const INCOMING: Duration = Duration::from_secs(10);
/// How long the relay may take to listen.
const LISTENING: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach the relay; doubled each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A tunnel that was up for this long was no failure: the next attempt comes at once.
const PROVED: Duration = Duration::from_secs(10);

/// Begins to make a program reachable. Must be called within a tokio runtime.
pub(crate) fn publish(relays: Arc<dyn Relays>, tunnels: &Tunnels, offer: &Offer) -> Box<dyn Publication> {
    let state = watch::Sender::new(PublicationState::Pending(None));
    let (sender, inbound) = mpsc::channel(WAITING);
    let again = Arc::new(Notify::new());
    let publisher = Publisher {
        relays,
        tunnels: tunnels.clone(),
        offer: offer.clone(),
        state: state.clone(),
        inbound: sender,
        again: Arc::clone(&again),
    };
    let task = tokio::runtime::Handle::current().spawn(publisher.run());
    Box::new(Published { state, inbound, again, _task: AbortOnDropHandle::new(task) })
}

struct Published {
    state: watch::Sender<PublicationState>,
    inbound: mpsc::Receiver<Inbound>,
    again: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

impl Publication for Published {
    fn state(&self) -> watch::Receiver<PublicationState> {
        self.state.subscribe()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        match self.inbound.poll_recv(cx) {
            Poll::Ready(Some(inbound)) => Poll::Ready(inbound),
            // The task has ended with its runtime: nothing comes any more.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn retry(&mut self) {
        self.again.notify_one();
    }
}

struct Publisher {
    relays: Arc<dyn Relays>,
    tunnels: Tunnels,
    offer: Offer,
    state: watch::Sender<PublicationState>,
    inbound: mpsc::Sender<Inbound>,
    /// Somebody asks for another attempt.
    again: Arc<Notify>,
}

/// Why a tunnel ended.
enum Over {
    /// It may come back by itself.
    Lost(Problem),
    /// Only another wish, or other objects, make a difference.
    Final(Problem),
}

impl Publisher {
    async fn run(self) {
        loop {
            self.attempt().await;
        }
    }

    /// From the wish for a relay until somebody asks for another attempt.
    async fn attempt(&self) {
        let Offer { cluster, namespace, name, .. } = &self.offer;
        let need = Need::Expose(name.as_str().into());
        let mut relay = self.relays.follow(cluster, namespace.as_deref(), need);
        // Objects of a relay that was are kept until those of its successor are there: they are mostly the same.
        let mut _before = None;
        loop {
            let state = relay.borrow_and_update().clone();
            let work = async {
                match &state {
                    RelayState::Pending | RelayState::Absent => self.tell(PublicationState::Pending(None)),
                    RelayState::Starting(problem) => {
                        self.tell(PublicationState::Pending(Some(problem.clone())));
                    }
                    RelayState::Failed(problem) => {
                        self.tell(PublicationState::Failed(problem.clone()));
                        self.again.notified().await;
                        return;
                    }
                    RelayState::Up(pods) => {
                        if let Some(pod) = pods.first() {
                            self.by(pod, &mut _before).await;
                            return;
                        }
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = work => return,
                changed = moved(&mut relay, &state) => if !changed {
                    // It says no more: what was told stays.
                    self.again.notified().await;
                    return;
                },
            }
        }
    }

    fn tell(&self, next: PublicationState) {
        self.state.send_if_modified(|current| {
            let new = *current != next;
            *current = next;
            new
        });
    }

    /// By this relay, until somebody asks for another attempt.
    async fn by(&self, relay: &RelayPod, kept: &mut Option<Exposed>) {
        let exposed = match self.relays.expose(relay, &self.offer).await {
            Ok(exposed) => exposed,
            Err(problem) => {
                self.tell(PublicationState::Failed(problem));
                return self.again.notified().await;
            }
        };
        let exposed = kept.insert(exposed);
        self.keep_tunnel(relay, exposed).await;
    }

    /// Keeps a tunnel to that relay up. Returns when somebody asks for another attempt after a final refusal.
    async fn keep_tunnel(&self, relay: &RelayPod, exposed: &Exposed) {
        let mut pause = PAUSES.0;
        loop {
            let begin = Instant::now();
            match self.tunnel(relay, exposed).await {
                Over::Final(problem) => {
                    self.tell(PublicationState::Failed(problem));
                    self.again.notified().await;
                    return;
                }
                Over::Lost(problem) => {
                    tracing::debug!(name = self.offer.name, %problem, "the tunnel of an expose");
                    self.tell(PublicationState::Pending(Some(problem)));
                }
            }
            if begin.elapsed() > PROVED {
                pause = PAUSES.0;
                continue;
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(PAUSES.1),
                () = self.again.notified() => {}
            }
        }
    }

    /// One tunnel, to its end.
    async fn tunnel(&self, relay: &RelayPod, exposed: &Exposed) -> Over {
        let (carrier, mut streams, control) = match self.listen(relay, exposed).await {
            Ok(tunnel) => tunnel,
            Err(over) => return over,
        };
        let mut greetings = FuturesUnordered::new();
        let mut lost = pin!(carrier.lost());
        let mut ended = pin!(control.ended());
        let mut outside = exposed.outside.clone();
        outside.mark_changed();
        let mut followed = true;
        loop {
            // While the engine takes none, none is taken from the carrier; the relay then holds them back.
            let room = self.inbound.max_capacity() > greetings.len();
            tokio::select! {
                problem = &mut lost => return Over::Lost(problem),
                over = &mut ended => return over,
                stream = streams.recv(), if room => match stream {
                    Some(stream) => greetings.push(self.greet(Lane::new(stream, Arc::clone(&carrier)))),
                    None => {
                        let problem = carrier.problem();
                        return Over::Lost(problem.unwrap_or_else(|| explain::cut_off(&self.offer.name)));
                    }
                },
                Some(()) = greetings.next() => {}
                changed = outside.changed(), if followed => {
                    followed = changed.is_ok();
                    // Whoever finds the way in is served, whatever keeps the others away.
                    self.tell(match outside.borrow_and_update().clone() {
                        Some(problem) => PublicationState::Pending(Some(problem)),
                        None => PublicationState::Up { urls: exposed.urls.clone(), notes: exposed.notes.clone() },
                    });
                }
            }
        }
    }

    /// A carrier with a listener on it.
    async fn listen(
        &self,
        relay: &RelayPod,
        exposed: &Exposed,
    ) -> Result<(Arc<Carrier>, Streams, Control), Over> {
        let lost = |error: DialError| {
            let is_final = error.problem.code == Code::RelayRefused;
            if is_final { Over::Final(error.problem) } else { Over::Lost(error.problem) }
        };
        let start = self.tunnels.connect(relay, Purpose::Expose).await.map_err(lost)?;
        let (carrier, streams) = Carrier::accepting(start);
        let mut opening = BytesMut::new();
        let expose = &self.offer.expose;
        Open::Listen(Listen {
            name: self.offer.name.clone(),
            port: exposed.port,
            mode: if expose.is_http() { Mode::Http } else { Mode::Tcp },
            // For public callers the relay sees the Ingress controller; their addresses are in the requests.
            callers: if expose.is_public() {
                Vec::new()
            } else {
                expose.access.allow.iter().map(ToString::to_string).collect()
            },
        })
        .encode(&mut opening);
        let closed = |_| Over::Lost(explain::cut_off(&self.offer.name));
        let lane = carrier.open(opening).await.map_err(closed)?;
        let mut control = Control { lane, records: Records::after_reply(Decoder::stream()) };
        match timeout(LISTENING, control.opened(&self.offer.name)).await {
            Ok(Ok(())) => Ok((carrier, streams, control)),
            Ok(Err(over)) => Err(over),
            Err(_) => {
                let message = "the relay does not say whether it listens";
                Err(Over::Lost(Problem::new(Code::ConnectionLost, message)))
            }
        }
    }

    /// Reads who calls, and hands the connection on.
    async fn greet(&self, lane: Lane) {
        let mut head = BytesMut::new();
        let incoming = timeout(INCOMING, async {
            loop {
                match Open::decode(&mut head) {
                    Ok(Some(Open::Incoming(incoming))) => return Some(incoming),
                    Ok(Some(_)) | Err(_) => return None,
                    Ok(None) => {}
                }
                head.extend_from_slice(&std::future::poll_fn(|cx| lane.poll_read(cx)).await?);
            }
        });
        let Ok(Some(incoming)) = incoming.await else {
            tracing::debug!(name = self.offer.name, "a stream of the relay that is no connection");
            return;
        };
        lane.write(|out| Reply::Opened { address: String::new(), port: 0 }.encode(out));
        let target: Arc<str> = incoming.peer.as_str().into();
        let records = Records::accepted(Decoder::stream(), head.freeze());
        let channel = Box::new(RelayChannel::new(lane, records, target));
        // An error means that the publication is being withdrawn.
        drop(self.inbound.send(Inbound { channel, peer: incoming.peer }).await);
    }
}

/// Waits until the relay is another one, or its state another. False if it never changes any more.
async fn moved(relay: &mut watch::Receiver<RelayState>, known: &RelayState) -> bool {
    let uid = |state: &RelayState| match state {
        RelayState::Up(pods) => pods.first().map(|pod| Arc::clone(&pod.uid)),
        RelayState::Pending | RelayState::Absent | RelayState::Starting(_) | RelayState::Failed(_) => None,
    };
    let known_uid = uid(known);
    let differs = |state: &RelayState| match uid(state) {
        Some(uid) => known_uid.as_ref() != Some(&uid),
        None => state != known,
    };
    relay.wait_for(differs).await.is_ok()
}

/// The stream whose life is the listener's.
struct Control {
    lane: Lane,
    records: Records,
}

impl Control {
    /// Waits until the relay listens.
    async fn opened(&mut self, name: &str) -> Result<(), Over> {
        let listening = std::future::poll_fn(|cx| {
            let next = self.records.poll_next(&self.lane, cx);
            if next.is_pending() && self.records.is_open() { Poll::Ready(None) } else { next.map(Some) }
        });
        match listening.await {
            None => Ok(()),
            Some(next) => Err(Self::over(next, name)),
        }
    }

    /// Resolves when the relay does not listen any more.
    async fn ended(mut self) -> Over {
        loop {
            let next = std::future::poll_fn(|cx| self.records.poll_next(&self.lane, cx)).await;
            if !matches!(next, Next::Record(Record::Data(_) | Record::Dropped(_))) {
                return Self::over(next, "the exposed program");
            }
        }
    }

    fn over(next: Next, name: &str) -> Over {
        match next {
            Next::Record(Record::End { kind: EndKind::TakenOver, message }) => {
                let message = format!("{name} is exposed by another program of yours now {message}");
                Over::Final(Problem::new(Code::NameTaken, message.trim_end()))
            }
            Next::Record(Record::End { kind, message }) => Over::Lost(explain::broken(name, kind, &message)),
            Next::Refused(refusal) => {
                let problem = explain::refusal(name, &refusal);
                let may_pass = problem.code.cure() == Cure::Retry;
                if may_pass { Over::Lost(problem) } else { Over::Final(problem) }
            }
            Next::Record(Record::Data(_) | Record::Dropped(_)) | Next::CutOff => {
                Over::Lost(explain::cut_off(name))
            }
        }
    }
}
