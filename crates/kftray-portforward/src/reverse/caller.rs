//! One caller's connection, from its arrival to its end.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::Shared;
use super::http::{Exchange, Told};
use super::local::{self, Local, Speaks};
use super::pump::{End, Pump};
use crate::event::{Call, Event};
use crate::ports::{Channel, Inbound};

/// How long bytes are still taken (and thrown away) after an answer of ours, or after the program has closed. A channel that
/// is dropped with bytes on their way is reset, and the reset may overtake the end of the answer. Most callers have ended by
/// then; the others are left to the transport.
const DRAIN: Duration = Duration::from_secs(2);

/// How long a caller may take until its first request's head is whole: what nginx allows. One that says nothing would else
/// keep its place for ever, and the process' own.
const FIRST: Duration = Duration::from_secs(60);

/// Serves one caller to its end.
pub(super) async fn serve(shared: Arc<Shared>, inbound: Inbound, permit: OwnedSemaphorePermit) {
    let tally = &shared.about.tally;
    let _open = tally.accepted();
    let Inbound { mut channel, peer } = inbound;
    let mut caller = Caller { shared: &shared, peer: peer.clone(), since: Instant::now(), raw: false };
    let end = caller.run(channel.as_mut()).await;
    if caller.raw {
        let took = caller.since.elapsed();
        shared.about.tell(Event::Called(Call { caller: peer.clone(), request: None, status: None, took }));
    }
    match end {
        End::Orderly | End::HungUp => {}
        End::Answered { more: true } => {
            if !drain(channel.as_mut()).await {
                channel.close();
            }
        }
        // After that it is reset: one that only sends would else never learn of it.
        End::Unheard => drop(drain(channel.as_mut()).await),
        End::Answered { more: false } => {}
        End::CallerGone(error) => debug!(caller = peer, %error, "the caller is gone"),
        End::ProgramGone(problem) => {
            debug!(caller = peer, %problem, "the local program is gone");
            if caller.raw {
                tally.failed();
                shared.about.tell(Event::CallFailed { caller: peer, problem });
            }
        }
    }
    drop(permit);
}

struct Caller<'a> {
    shared: &'a Shared,
    peer: String,
    since: Instant,
    /// It was no HTTP/1 from the beginning.
    raw: bool,
}

impl Caller<'_> {
    async fn run(&mut self, channel: &mut dyn Channel) -> End {
        let expose = &self.shared.config.offer.expose;
        let http = expose.is_http();
        let mut exchange = match http {
            true => Exchange::new(&self.shared.rules, self.peer.clone()),
            false => Exchange::raw(&self.shared.rules, self.peer.clone()),
        };
        let address = local::address(expose);
        let mut pump = Pump::new(channel, &mut exchange, &self.shared.about.tally, &address);
        let early = timeout(FIRST, pump.until_needed()).await.unwrap_or(Some(End::HungUp));
        self.raw = pump.exchange().is_raw();
        self.tell(pump.exchange());
        if let Some(end) = early {
            return end;
        }
        let speaks = match (http, pump.exchange().is_http2()) {
            (false, _) => Speaks::Anything,
            (true, true) => Speaks::Http2,
            (true, false) => Speaks::Http1,
        };
        let mut local = match Local::connect(expose, speaks).await {
            Ok(local) => local,
            Err(problem) => {
                let end = pump.without_program(problem).await;
                self.tell(pump.exchange());
                return end;
            }
        };
        loop {
            let end = pump.run(&mut local).await;
            self.tell(pump.exchange());
            match end {
                None => {}
                Some(end) => {
                    if matches!(end, End::Orderly | End::Answered { .. } | End::Unheard) {
                        local.orderly();
                    }
                    return end;
                }
            }
        }
    }

    fn tell(&self, exchange: &mut Exchange<'_>) {
        for told in exchange.told() {
            match told {
                Told::Called(call) => self.shared.about.tell(Event::Called(call)),
                Told::Failed { caller, problem } => {
                    self.shared.about.tally.failed();
                    debug!(caller, code = %problem.code, %problem, "a call failed");
                    self.shared.about.tell(Event::CallFailed { caller, problem });
                }
            }
        }
    }
}

/// Lets the last answer arrive, behind which the channel has been finished. Returns whether the caller has ended, too.
async fn drain(channel: &mut dyn Channel) -> bool {
    let deadline = Instant::now() + DRAIN;
    loop {
        match timeout_at(deadline, poll_fn(|cx| channel.poll_recv(cx))).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None) | Err(_)) => return true,
            Err(_) => return false,
        }
    }
}
