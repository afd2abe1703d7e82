//! One caller's HTTP/1 connection as it passes by: sans-IO, bytes in, bytes out.
//!
//! The heads of requests are rewritten and checked; everything else goes through as it came, as soon as it comes: bodies of
//! any framing, answers, server-sent events. Answers are only watched, to know which request they belong to. After an
//! upgrade (WebSocket), and where it was no HTTP/1 from the first byte (HTTP/2 with prior knowledge, anything else), the
//! connection is bytes and nothing more is looked at.

mod body;
mod head;
mod page;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use kftray_commons::{Code, Problem};

use crate::event::Call;
use body::Body;
use head::{Answer, Fault, HEAD_MAX, Hop, Read, Request};
use page::Reason;
pub(in crate::reverse) use rules::Rules;

/// Requests of one connection that may wait for their answers: clients that pipeline at all send a handful.
const PIPELINED: usize = 64;

/// How HTTP/2 begins where nobody has asked first (RFC 9113, 3.4), as far as it is not HTTP/1.
const HTTP2: &[u8] = b"PRI * HTTP/2";

/// Something to tell people.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Told {
    Called(Call),
    Failed { caller: String, problem: Problem },
}

/// One connection.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    rules: &'a Rules,
    /// The relay's word for who calls.
    peer: String,
    peer_ip: Option<IpAddr>,
    asking: Asking,
    answering: Answering,
    /// Requests without answer, oldest first.
    open: VecDeque<Pending>,
    outbox: VecDeque<Bytes>,
    /// An answer of ours, given after those of the program; the end of the connection.
    own: Option<Bytes>,
    told: Vec<Told>,
    /// No request has come yet.
    first: bool,
}

/// The caller's side.
#[derive(Debug)]
enum Asking {
    /// Between requests, or inside of a head.
    Head(BytesMut),
    Body(Body),
    /// Another protocol was asked for; what came since is kept until the answer says which it is.
    Upgrading(BytesMut),
    /// Not ours to understand.
    Raw,
    /// What comes goes nowhere.
    Over,
}

/// The program's side.
#[derive(Debug)]
enum Answering {
    Head(Vec<u8>),
    Body(Body),
    /// It is not understood, or need not be.
    Blind,
}

#[derive(Debug)]
struct Pending {
    caller: String,
    method: String,
    path: String,
    wants_html: bool,
    upgrade: bool,
    since: Instant,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(rules: &'a Rules, peer: String) -> Self {
        let peer_ip = peer.parse::<SocketAddr>().ok().map(|at| at.ip().to_canonical());
        Self {
            rules,
            peer_ip: peer_ip.or_else(|| head::address(&peer)),
            peer,
            asking: Asking::Head(BytesMut::new()),
            answering: Answering::Head(Vec::new()),
            open: VecDeque::new(),
            outbox: VecDeque::new(),
            own: None,
            told: Vec::new(),
            first: true,
        }
    }

    /// A connection that is not HTTP by what the exposer says.
    pub(super) fn raw(rules: &'a Rules, peer: String) -> Self {
        let mut exchange = Self::new(rules, peer);
        if exchange.rules.allow_unseen(exchange.peer_ip) {
            exchange.become_raw();
        } else {
            exchange.turn_away_unseen();
        }
        exchange
    }

    /// Whether bytes of the caller can be taken now.
    pub(super) fn takes(&self) -> bool {
        match &self.asking {
            Asking::Head(_) => self.open.len() < PIPELINED,
            // After the end, too: so that the caller's is noticed.
            Asking::Body(_) | Asking::Raw | Asking::Over => true,
            // One more piece, for the same reason.
            Asking::Upgrading(kept) => kept.is_empty(),
        }
    }

    /// Whether the program has to be connected now.
    pub(super) fn needs_program(&self) -> bool {
        !self.outbox.is_empty() || matches!(self.asking, Asking::Raw)
    }

    /// Whether nothing is looked at any more.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.asking, Asking::Raw)
    }

    /// Whether the program has to speak HTTP/2 at once.
    pub(super) fn is_http2(&self) -> bool {
        self.is_raw() && self.outbox.front().is_some_and(|bytes| bytes.starts_with(HTTP2))
    }

    /// What waits for the program, in order.
    pub(super) fn outbox(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.outbox
    }

    /// What there is to tell.
    pub(super) fn told(&mut self) -> std::vec::Drain<'_, Told> {
        self.told.drain(..)
    }

    /// Whether there is something to tell.
    pub(super) fn has_news(&self) -> bool {
        !self.told.is_empty()
    }

    /// Whether an answer of ours is to be given, now or later.
    pub(super) fn has_own(&self) -> bool {
        self.own.is_some()
    }

    /// Whether an answer of ours is due: every earlier request has its own.
    pub(super) fn own_is_due(&self) -> bool {
        let between = match &self.answering {
            Answering::Head(begun) => begun.is_empty(),
            Answering::Body(_) => false,
            Answering::Blind => true,
        };
        self.own.is_some() && self.open.is_empty() && between
    }

    /// Whether all that was asked is answered, and nothing more has come of an answer. What is only passed on never is.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty() && matches!(&self.answering, Answering::Head(begun) if begun.is_empty())
    }

    /// Takes an answer of ours, once it is due. An empty one: the connection ends without a word.
    pub(super) fn own(&mut self) -> Option<Bytes> {
        self.own.take()
    }

    /// Takes bytes of the caller.
    pub(super) fn ask(&mut self, bytes: Bytes, now: Instant) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match &mut self.asking {
                Asking::Raw => return self.outbox.push_back(rest),
                Asking::Over => return,
                Asking::Upgrading(kept) => return kept.extend_from_slice(&rest),
                Asking::Body(body) => match body.take(&rest) {
                    Ok(length) => {
                        self.outbox.push_back(rest.split_to(length));
                        if body.is_done() {
                            self.asked();
                        }
                    }
                    Err(body::Malformed) => return self.turn_away_begun(),
                },
                Asking::Head(begun) => {
                    // Parsed anew at every line, not at every byte.
                    let worth_a_look = begun.is_empty() || rest.contains(&b'\n');
                    begun.extend_from_slice(&rest);
                    if !worth_a_look && begun.len() <= HEAD_MAX {
                        return;
                    }
                    match self.head(now) {
                        Some(behind) => rest = behind,
                        None => return,
                    }
                }
            }
        }
    }

    /// Looks at the head that has begun; returns what is behind it once it is whole.
    fn head(&mut self, now: Instant) -> Option<Bytes> {
        let Asking::Head(begun) = &mut self.asking else { return None };
        let request = match head::request(begun) {
            Read::Partial => return None,
            Read::Head(request) => request,
            Read::Other if self.first => {
                let bytes = std::mem::take(begun).freeze();
                self.unseen(bytes);
                return None;
            }
            Read::Other | Read::Bad(Fault::Malformed) => {
                self.turn_away(Reason::Malformed, None);
                return None;
            }
            Read::Bad(Fault::TooLarge) => {
                self.turn_away(Reason::TooLarge, None);
                return None;
            }
        };
        let head = begun.split_to(request.length);
        let behind = std::mem::take(begun).freeze();
        self.first = false;
        let caller = match &request.forwarded_for {
            Some(text) if self.rules.behind_proxy => head::address(text),
            Some(_) | None => self.peer_ip,
        };
        if let Err(reason) = self.rules.judge(caller, &request) {
            self.turn_away(reason, Some((caller, &request)));
            return None;
        }
        let hop = Hop {
            caller,
            proto: self.rules.proto,
            behind_proxy: self.rules.behind_proxy,
            hides_credentials: self.rules.access.wants_credentials(),
        };
        self.outbox.push_back(head::rewritten(&head, &request, &hop));
        self.open.push_back(Pending {
            caller: self.shown(caller),
            method: request.method,
            path: request.path,
            wants_html: request.wants_html,
            upgrade: request.upgrade,
            since: now,
        });
        if request.body.is_done() {
            self.asked();
        } else {
            self.asking = Asking::Body(request.body);
        }
        Some(behind)
    }

    /// It is no HTTP/1 from its first bytes on.
    fn unseen(&mut self, begin: Bytes) {
        if self.rules.allow_unseen(self.peer_ip) {
            self.become_raw();
            self.outbox.push_back(begin);
        } else {
            self.turn_away_unseen();
        }
    }

    /// A request is whole.
    fn asked(&mut self) {
        let upgrading = self.open.back().is_some_and(|pending| pending.upgrade);
        let upgrading = upgrading && !matches!(self.answering, Answering::Blind);
        self.asking = match upgrading {
            true => Asking::Upgrading(BytesMut::new()),
            false => Asking::Head(BytesMut::new()),
        };
    }

    /// Watches bytes of the program on their way to the caller.
    pub(super) fn answer(&mut self, bytes: &[u8], now: Instant) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match &mut self.answering {
                Answering::Blind => return,
                Answering::Body(body) => match body.take(rest) {
                    Ok(length) => {
                        rest = rest.get(length..).unwrap_or_default();
                        if body.is_done() {
                            self.answering = Answering::Head(Vec::new());
                        }
                    }
                    Err(body::Malformed) => return self.go_blind(),
                },
                // Nobody has asked: whatever it is, it belongs to no request.
                Answering::Head(begun) if begun.is_empty() && self.open.is_empty() => return self.go_blind(),
                Answering::Head(begun) => {
                    let before = begun.len();
                    begun.extend_from_slice(rest);
                    match head::answer(begun) {
                        Read::Partial => return,
                        Read::Head(answer) => {
                            rest = rest.get(answer.length.saturating_sub(before)..).unwrap_or_default();
                            self.answered(answer, now);
                        }
                        Read::Other | Read::Bad(_) => return self.go_blind(),
                    }
                }
            }
        }
    }

    /// The head of an answer is whole.
    fn answered(&mut self, answer: Answer, now: Instant) {
        self.answering = Answering::Head(Vec::new());
        let Some(front) = self.open.front() else { return };
        let switches = front.upgrade
            && (answer.status == 101 || (front.method == "CONNECT" && answer.status / 100 == 2));
        if answer.status < 200 && !switches {
            return;
        }
        let Some(pending) = self.open.pop_front() else { return };
        let has_body = pending.method != "HEAD" && !answer.body.is_done();
        self.told.push(Told::Called(Call {
            caller: pending.caller,
            request: Some((pending.method, pending.path)),
            status: Some(answer.status),
            took: now.saturating_duration_since(pending.since),
        }));
        if switches {
            self.become_raw();
            return;
        }
        if has_body {
            self.answering = Answering::Body(answer.body);
        }
        if pending.upgrade
            && let Asking::Upgrading(kept) = &mut self.asking
        {
            // It stays HTTP: what was kept is the next request.
            let kept = std::mem::take(kept).freeze();
            self.asking = Asking::Head(BytesMut::new());
            self.ask(kept, now);
        }
    }

    /// Answers are not understood any more; they go through all the same.
    fn go_blind(&mut self) {
        self.answering = Answering::Blind;
        self.open.clear();
        if matches!(self.asking, Asking::Upgrading(_)) {
            self.become_raw();
        }
    }

    fn become_raw(&mut self) {
        if let Asking::Upgrading(kept) = std::mem::replace(&mut self.asking, Asking::Raw)
            && !kept.is_empty()
        {
            self.outbox.push_back(kept.freeze());
        }
        self.answering = Answering::Blind;
    }

    /// The caller will send no more. What has come of a protocol that might have become HTTP is passed on; a request that
    /// is not whole never is.
    pub(super) fn asked_all(&mut self, now: Instant) {
        // Not every byte was looked at.
        drop(self.head(now));
        let Asking::Head(begun) = &mut self.asking else { return };
        if begun.is_empty() {
            return;
        }
        let bytes = std::mem::take(begun).freeze();
        if !self.first || head::begins_as_http(&bytes) {
            self.turn_away(Reason::Malformed, None);
        } else {
            self.unseen(bytes);
        }
    }

    /// The program has closed its side, or is gone. Callers who wait for an answer that has not begun get one of ours.
    pub(super) fn program_gone(&mut self, problem: Option<Problem>) {
        let begun = match &self.answering {
            Answering::Head(begun) => !begun.is_empty(),
            Answering::Body(_) | Answering::Blind => true,
        };
        let Some(pending) = self.open.front().filter(|_| !begun) else {
            if let Some(problem) = problem {
                self.told.push(Told::Failed { caller: self.peer.clone(), problem });
            }
            self.asking = Asking::Over;
            if !self.own_is_due() {
                // In the middle of an answer it never will be.
                self.own = None;
            }
            return;
        };
        let problem = problem.unwrap_or_else(|| {
            let message = format!(
                "the program at {} closed the connection without answering {} {}",
                self.rules.host.program, pending.method, pending.path
            );
            Problem::new(Code::LocalProgramDown, message)
        });
        let Rules { host, access, .. } = self.rules;
        let page = Reason::Down.answer(host, access, pending.wants_html, pending.method != "HEAD");
        let caller = pending.caller.clone();
        let call = Call {
            caller: caller.clone(),
            request: Some((pending.method.clone(), pending.path.clone())),
            status: Some(502),
            took: std::time::Duration::ZERO,
        };
        self.told.extend([Told::Failed { caller, problem }, Told::Called(call)]);
        self.open.clear();
        self.outbox.clear();
        self.asking = Asking::Over;
        self.own = Some(page);
    }

    /// Answers a request ourselves and ends the connection.
    fn turn_away(&mut self, reason: Reason, request: Option<(Option<IpAddr>, &Request)>) {
        let Rules { host, access, .. } = self.rules;
        let (caller, html, with_body) = match request {
            Some((caller, request)) => (self.shown(caller), request.wants_html, request.method != "HEAD"),
            None => (self.peer.clone(), false, true),
        };
        self.own = Some(reason.answer(host, access, html, with_body));
        self.asking = Asking::Over;
        let why = match reason {
            Reason::Malformed => "its request is not valid HTTP",
            Reason::TooLarge => "the head of its request is too large",
            Reason::Unauthorized => "it has shown no credentials, or wrong ones",
            Reason::Forbidden => "its address is not in exposure_allow",
            Reason::Down => "the local program does not answer",
        };
        let message = format!("{caller} was turned away from {}: {why}", host.name);
        self.told.push(Told::Failed { caller, problem: Problem::new(Code::CallerRefused, message) });
    }

    /// Answers a request ourselves whose body turns out to be none. The program waits for the rest of it, so that ours comes
    /// in the place of its answer, unless that has begun.
    fn turn_away_begun(&mut self) {
        if matches!(&self.answering, Answering::Head(begun) if begun.is_empty()) {
            drop(self.open.pop_back());
        }
        self.turn_away(Reason::Malformed, None);
    }

    /// Ends a connection without a word, since nobody knows its language.
    fn turn_away_unseen(&mut self) {
        self.asking = Asking::Over;
        self.own = Some(Bytes::new());
        let message = format!(
            "{} was turned away from {}: what it speaks is not HTTP/1, so that its right to call cannot be checked",
            self.peer, self.rules.host.name
        );
        let problem = Problem::new(Code::CallerRefused, message);
        self.told.push(Told::Failed { caller: self.peer.clone(), problem });
    }

    fn shown(&self, caller: Option<IpAddr>) -> String {
        match caller {
            Some(ip) if self.peer_ip != Some(ip) => ip.to_string(),
            Some(_) | None => self.peer.clone(),
        }
    }
}
