//! One UDP flow: the datagrams of one local peer, there and back.
//!
//! A flow is what a NAT would keep: it begins with the peer's first datagram, opens a channel when it has something to
//! send, opens another one when that is lost, and ends in silence. A peer whose datagrams cannot be delivered is told to
//! people, and left alone for a moment, so that a program that shouts into the dark does not become a storm of openings.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::{Code, Cure, Problem};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tracing::{debug, trace};

use super::backlog::Inbox;
use super::expiry::Expiry;
use crate::choice::{Pick, SuspectKind};
use crate::connection::Shared;
use crate::directory::MENDING;
use crate::event::Event;
use crate::ports::{ChannelError, DatagramChannel, Endpoint};

/// How long a datagram is worth delivering while its flow has no way: five seconds is what resolvers wait before they ask
/// again (`resolv.conf(5)`, timeout), and games and metrics want less.
const LATE: Duration = Duration::from_secs(5);

/// How long the peer of a refused flow is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Pause after a limit of relay or process was reached.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(250);

/// Opening a channel may take this long; it does not wait for the relay's answer.
const OPENING: Duration = Duration::from_secs(10);

/// Datagrams of one direction in one poll; then other flows of the thread have their turn.
const ROUNDS: usize = 64;

/// One flow.
pub(super) struct Flow {
    pub(super) shared: Arc<Shared>,
    /// The listener's socket: answers come from the address that was asked.
    pub(super) socket: Arc<UdpSocket>,
    pub(super) peer: SocketAddr,
    pub(super) inbox: Arc<Inbox>,
}

/// How a flow ended.
enum End {
    /// Nobody has said anything for long.
    Idle,
    /// Its datagrams cannot be delivered.
    Refused(Problem),
}

/// How one channel ended.
enum Closed {
    Idle,
    /// By the relay, without fault.
    Orderly,
    Failed(Problem),
}

impl Flow {
    /// Runs it to its end. Its inbox is closed then.
    pub(super) async fn run(self) {
        let tally = &self.shared.about.tally;
        let _open = tally.accepted();
        match self.serve().await {
            End::Idle => trace!(peer = %self.peer, "the flow has expired"),
            End::Refused(problem) => {
                debug!(peer = %self.peer, code = %problem.code, %problem, "the flow was refused");
                tally.failed();
                self.shared.about.tell(Event::ConnectionFailed { peer: self.peer, problem });
                sleep(REFUSED_PAUSE).await;
            }
        }
        tally.dropped(self.inbox.close());
    }

    async fn serve(&self) -> End {
        let mut expiry = Expiry::new(Instant::now());
        loop {
            tokio::select! {
                biased;
                () = self.inbox.filled() => {}
                () = sleep_until(expiry.deadline()) => {
                    if self.inbox.close_if_empty() {
                        return End::Idle;
                    }
                    continue;
                }
            }
            let (endpoint, mut channel) = match self.connect(&mut expiry).await {
                Ok(opened) => opened,
                Err(end) => return end,
            };
            trace!(peer = %self.peer, %endpoint, "flow open");
            match self.pump(&endpoint, channel.as_mut(), &mut expiry).await {
                Closed::Idle => return End::Idle,
                Closed::Orderly => {}
                // A relay that has as much as it takes is no fault of the way to it.
                Closed::Failed(problem) if is_the_targets(&problem) || problem.code == Code::Overloaded => {
                    return End::Refused(problem);
                }
                Closed::Failed(problem) => {
                    debug!(peer = %self.peer, %endpoint, code = %problem.code, %problem, "the channel was lost");
                    self.shared.directory.suspect(&endpoint, SuspectKind::Transport, &problem);
                }
            }
        }
    }

    /// Finds an endpoint and opens a channel to it, for as long as the peer keeps sending.
    async fn connect(&self, expiry: &mut Expiry) -> Result<(Endpoint, Box<dyn DatagramChannel>), End> {
        let directory = &self.shared.directory;
        // What waits was sent now; later arrivals do not prolong this, or a peer could wait for ever without a way.
        expiry.asked(Instant::now());
        let mut mended_by = None;
        loop {
            let mut bell = directory.bell();
            match directory.pick(&[]) {
                Pick::Go(endpoint) => {
                    let opening = timeout(OPENING, self.shared.process.dial.dial_udp(&endpoint)).await;
                    let problem = match opening {
                        Ok(Ok(channel)) => {
                            expiry.goes_to(endpoint.port);
                            return Ok((endpoint, channel));
                        }
                        Ok(Err(error)) => error.problem,
                        Err(_) => no_answer(&endpoint),
                    };
                    if problem.code == Code::Overloaded {
                        sleep(OVERLOAD_PAUSE).await;
                    } else if is_the_targets(&problem) {
                        return Err(End::Refused(problem));
                    } else {
                        directory.suspect(&endpoint, SuspectKind::Transport, &problem);
                    }
                }
                Pick::Refuse(problem) => return Err(End::Refused(problem)),
                Pick::Mend(problem) => {
                    let until = *mended_by.get_or_insert_with(|| Instant::now() + MENDING);
                    if until <= Instant::now() {
                        return Err(End::Refused(problem));
                    }
                    rung(&mut bell, expiry.deadline().min(until)).await;
                }
                Pick::Wait(until) => {
                    let until = until.map_or(expiry.deadline(), |until| expiry.deadline().min(until.into()));
                    rung(&mut bell, until).await;
                }
            }
            if expiry.deadline() <= Instant::now() {
                return Err(End::Idle);
            }
        }
    }

    /// Moves datagrams until the channel or the flow ends.
    async fn pump(
        &self,
        endpoint: &Endpoint,
        channel: &mut dyn DatagramChannel,
        expiry: &mut Expiry,
    ) -> Closed {
        let tally = &self.shared.about.tally;
        let mut timer = pin!(sleep_until(expiry.deadline()));
        let mut losses = Losses::default();
        let mut served = false;
        let closed = loop {
            let turn = poll_fn(|cx| self.poll_turn(cx, channel, timer.as_mut(), expiry)).await;
            losses.count(channel, tally);
            match turn {
                Turn::Datagram(datagram) => {
                    let now = Instant::now();
                    expiry.answered(now);
                    // It may have moved to an earlier time.
                    if expiry.deadline() < timer.deadline() {
                        timer.as_mut().reset(expiry.deadline());
                    }
                    if !std::mem::replace(&mut served, true) {
                        self.shared.directory.served(endpoint);
                    }
                    match self.socket.send_to(&datagram, self.peer).await {
                        Ok(_) => tally.datagram_down(datagram.len(), now),
                        Err(error) => {
                            debug!(peer = %self.peer, %error, "an answer could not be given");
                            tally.dropped(1);
                        }
                    }
                }
                Turn::Late if expiry.deadline() > Instant::now() => timer.as_mut().reset(expiry.deadline()),
                Turn::Late if self.inbox.close_if_empty() => break Closed::Idle,
                Turn::Late => timer.as_mut().reset(Instant::now() + LATE),
                Turn::Ended(Ok(())) => break Closed::Orderly,
                Turn::Ended(Err(error)) => break Closed::Failed(error.problem),
            }
        };
        losses.count(channel, tally);
        closed
    }

    /// Passes on what the peer has sent, and looks what has come back.
    fn poll_turn(
        &self,
        cx: &mut Context<'_>,
        channel: &mut dyn DatagramChannel,
        timer: std::pin::Pin<&mut Sleep>,
        expiry: &mut Expiry,
    ) -> Poll<Turn> {
        let tally = &self.shared.about.tally;
        let mut late = 0;
        let mut rounds = 0;
        let age = LATE.min(self.shared.config.hold);
        let now = Instant::now();
        while let Poll::Ready(datagram) = self.inbox.poll_pop(cx, now, age, &mut late) {
            tally.datagram_up(datagram.len(), now);
            expiry.asked(now);
            channel.send(datagram);
            rounds += 1;
            if rounds == ROUNDS {
                cx.waker().wake_by_ref();
                break;
            }
        }
        tally.dropped(late);
        match channel.poll_recv(cx) {
            Poll::Ready(Ok(Some(datagram))) => return Poll::Ready(Turn::Datagram(datagram)),
            Poll::Ready(Ok(None)) => return Poll::Ready(Turn::Ended(Ok(()))),
            Poll::Ready(Err(error)) => return Poll::Ready(Turn::Ended(Err(error))),
            Poll::Pending => {}
        }
        timer.poll(cx).map(|()| Turn::Late)
    }
}

/// Waits for the bell, at the latest until then.
async fn rung(bell: &mut watch::Receiver<u64>, until: Instant) {
    tokio::select! {
        biased;
        _ = bell.changed() => {}
        () = sleep_until(until) => {}
    }
}

/// What has come back.
enum Turn {
    Datagram(Bytes),
    /// The timer has run out.
    Late,
    Ended(Result<(), ChannelError>),
}

/// What of a channel's losses has been counted.
#[derive(Default)]
struct Losses(u64);

impl Losses {
    fn count(&mut self, channel: &dyn DatagramChannel, tally: &crate::counters::Tally) {
        let now = channel.dropped();
        tally.dropped(now.saturating_sub(std::mem::replace(&mut self.0, now)));
    }
}

/// Whether the target itself cannot be had (ICMP unreachable, denied, no such name), and not just the way to it.
fn is_the_targets(problem: &Problem) -> bool {
    problem.code == Code::RemoteRefused || problem.code.cure() == Cure::User
}

fn no_answer(endpoint: &Endpoint) -> Problem {
    let message = format!("no flow to {endpoint} could be opened within {} s", OPENING.as_secs());
    Problem::new(Code::ConnectionLost, message)
}
