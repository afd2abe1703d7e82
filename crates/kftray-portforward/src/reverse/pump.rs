//! Moves bytes between a caller's channel and the local program, both directions in one future without locks, through the
//! [`Exchange`] that looks at them.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use kftray_commons::{Code, Problem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::http::Exchange;
use super::local::Local;
use crate::counters::Tally;
use crate::ports::{Channel, ChannelError};

/// One read from the program. On the stack, so that a connection that idles holds no buffer.
const READ: usize = 32 * 1024;

/// How much waits for the program before the caller is left alone.
const TO_PROGRAM: usize = 256 * 1024;

/// Rounds in one poll; then other callers of the thread have their turn.
const ROUNDS: usize = 16;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Everything has been given to both sides.
    Orderly,
    /// The last answer has been given; the caller may have `more` to say, which nobody hears.
    Answered { more: bool },
    /// The program has closed both directions, and the caller goes on.
    Unheard,
    /// The caller was turned away without a word.
    HungUp,
    /// The tunnel or the caller broke off.
    CallerGone(ChannelError),
    /// The program broke off in the middle.
    ProgramGone(Problem),
}

/// What stops a direction for the moment.
enum Step {
    Moved,
    Stuck,
    End(End),
}

/// One connection in motion.
pub(super) struct Pump<'a, 'r> {
    channel: &'a mut dyn Channel,
    exchange: &'a mut Exchange<'r>,
    tally: &'a Tally,
    /// Where the program listens, for people.
    address: &'a str,
    asked_all: bool,
    /// The program has been told that nothing more comes.
    told_program: bool,
    /// Why the program takes no more. What it said before that is still to be read.
    deaf: Option<io::Error>,
    unflushed: bool,
    program_ended: bool,
}

impl<'a, 'r> Pump<'a, 'r> {
    pub(super) fn new(
        channel: &'a mut dyn Channel,
        exchange: &'a mut Exchange<'r>,
        tally: &'a Tally,
        address: &'a str,
    ) -> Self {
        Self {
            channel,
            exchange,
            tally,
            address,
            asked_all: false,
            told_program: false,
            deaf: None,
            unflushed: false,
            program_ended: false,
        }
    }

    /// What the connection is and what there is to tell, between calls.
    pub(super) fn exchange(&mut self) -> &mut Exchange<'r> {
        self.exchange
    }

    /// Takes bytes of the caller until the program is needed; `Some` if it never is.
    pub(super) async fn until_needed(&mut self) -> Option<End> {
        poll_fn(|cx| {
            loop {
                if self.exchange.needs_program() {
                    return Poll::Ready(None);
                }
                // Before what comes behind a request that is turned away.
                if let Step::End(end) = self.own_answer(cx) {
                    return Poll::Ready(Some(end));
                }
                match self.take_asked(cx) {
                    Step::Moved => continue,
                    Step::End(end) => return Poll::Ready(Some(end)),
                    Step::Stuck => {}
                }
                if self.asked_all && !self.exchange.has_own() {
                    self.channel.finish();
                    return Poll::Ready(Some(End::Orderly));
                }
                return Poll::Pending;
            }
        })
        .await
    }

    /// The program cannot be connected. What is there to be answered is.
    pub(super) async fn without_program(&mut self, problem: Problem) -> End {
        if self.exchange.is_raw() {
            // Nobody could understand an answer.
            return End::ProgramGone(problem);
        }
        self.exchange.program_gone(Some(problem.clone()));
        poll_fn(|cx| match self.own_answer(cx) {
            Step::End(end) => Poll::Ready(end),
            Step::Moved | Step::Stuck if self.exchange.has_own() => Poll::Pending,
            Step::Moved | Step::Stuck => Poll::Ready(End::ProgramGone(problem.clone())),
        })
        .await
    }

    /// Moves bytes until the end, or until there is something to tell (`None`): then it is to be called again.
    pub(super) async fn run(&mut self, local: &mut Local) -> Option<End> {
        poll_fn(|cx| {
            for _ in 0..ROUNDS {
                let mut moved = false;
                for direction in 0..4 {
                    // Answers first: they free memory of the program's and the caller's.
                    let step = match direction {
                        0 => self.own_answer(cx),
                        1 => self.pass_answers(cx, local),
                        2 => self.take_asked(cx),
                        _ => self.give_asked(cx, local),
                    };
                    match step {
                        Step::Moved => moved = true,
                        Step::Stuck => {}
                        Step::End(end) => return Poll::Ready(Some(end)),
                    }
                }
                if self.exchange.has_news() {
                    return Poll::Ready(None);
                }
                if self.program_ended && self.told_program && !self.exchange.has_own() {
                    return Poll::Ready(Some(End::Orderly));
                }
                if !moved {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn take_asked(&mut self, cx: &mut Context<'_>) -> Step {
        let waiting: usize = self.exchange.outbox().iter().map(Bytes::len).sum();
        if self.asked_all || !self.exchange.takes() || waiting >= TO_PROGRAM {
            return Step::Stuck;
        }
        match self.channel.poll_recv(cx) {
            Poll::Pending => Step::Stuck,
            Poll::Ready(Ok(Some(bytes))) => {
                let now = Instant::now();
                self.tally.down(bytes.len(), now);
                self.exchange.ask(bytes, now.into_std());
                Step::Moved
            }
            Poll::Ready(Ok(None)) => {
                self.asked_all = true;
                self.exchange.asked_all(Instant::now().into_std());
                Step::Moved
            }
            Poll::Ready(Err(error)) => Step::End(End::CallerGone(error)),
        }
    }

    fn give_asked(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Step {
        let is_over = self.program_ended && !self.exchange.is_raw();
        if self.told_program || self.deaf.is_some() || is_over {
            return Step::Stuck;
        }
        if let Some(front) = self.exchange.outbox().front_mut() {
            return match Pin::new(local).poll_write(cx, front) {
                Poll::Pending => Step::Stuck,
                Poll::Ready(Ok(0)) => self.program_deaf(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(length)) => {
                    front.advance(length);
                    if front.is_empty() {
                        self.exchange.outbox().pop_front();
                    }
                    self.unflushed = true;
                    Step::Moved
                }
                Poll::Ready(Err(error)) => self.program_deaf(error),
            };
        }
        if self.unflushed {
            return match Pin::new(local).poll_flush(cx) {
                Poll::Pending => Step::Stuck,
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    Step::Moved
                }
                Poll::Ready(Err(error)) => self.program_deaf(error),
            };
        }
        if !self.asked_all {
            return Step::Stuck;
        }
        match Pin::new(local).poll_shutdown(cx) {
            Poll::Pending => Step::Stuck,
            // A program that has closed already needs not be told.
            Poll::Ready(_) => {
                self.told_program = true;
                Step::Moved
            }
        }
    }

    fn pass_answers(&mut self, cx: &mut Context<'_>, local: &mut Local) -> Step {
        if self.program_ended {
            return Step::Stuck;
        }
        match self.channel.poll_send_ready(cx) {
            Poll::Pending => return Step::Stuck,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Step::End(End::CallerGone(error)),
        }
        let mut space = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        match Pin::new(local).poll_read(cx, &mut buffer) {
            Poll::Pending => Step::Stuck,
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => match self.deaf.take() {
                Some(error) => self.program_failed(&error),
                None => self.program_closed(),
            },
            Poll::Ready(Ok(())) => {
                let now = Instant::now();
                let bytes = buffer.filled();
                self.tally.up(bytes.len(), now);
                self.exchange.answer(bytes, now.into_std());
                self.channel.send(Bytes::copy_from_slice(bytes));
                Step::Moved
            }
            Poll::Ready(Err(error)) => self.program_failed(&error),
        }
    }

    /// The program has ended its side.
    fn program_closed(&mut self) -> Step {
        self.program_ended = true;
        if self.exchange.is_raw() {
            // The caller may go on: where it is not HTTP, a half-close can mean something.
            self.channel.finish();
            return Step::Moved;
        }
        self.exchange.program_gone(None);
        if self.exchange.has_own() {
            return Step::Moved;
        }
        self.channel.finish();
        self.answered()
    }

    fn answered(&self) -> Step {
        Step::End(End::Answered { more: !self.asked_all })
    }

    /// The program takes no more.
    fn program_deaf(&mut self, error: io::Error) -> Step {
        if self.program_ended {
            // It had said everything; what it does not read any more is its own business.
            return Step::End(End::Unheard);
        }
        self.exchange.outbox().clear();
        self.deaf = Some(error);
        Step::Moved
    }

    /// The program has reset the connection, and everything from before that is read.
    fn program_failed(&mut self, error: &io::Error) -> Step {
        if self.exchange.is_settled() {
            // One that answers early and closes resets what it has not read of the question.
            return self.program_closed();
        }
        let message = format!("the program at {} broke the connection off: {error}", self.address);
        let problem = Problem::new(Code::LocalProgramDown, message);
        self.program_ended = true;
        if !self.exchange.is_raw() {
            self.exchange.program_gone(Some(problem.clone()));
            if self.exchange.has_own() {
                return Step::Moved;
            }
        }
        Step::End(End::ProgramGone(problem))
    }

    /// Gives an answer of ours, once it is due and there is room.
    fn own_answer(&mut self, cx: &mut Context<'_>) -> Step {
        if !self.exchange.own_is_due() {
            return Step::Stuck;
        }
        match self.channel.poll_send_ready(cx) {
            Poll::Pending => return Step::Stuck,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Step::End(End::CallerGone(error)),
        }
        match self.exchange.own() {
            None => Step::Stuck,
            Some(bytes) if bytes.is_empty() => Step::End(End::HungUp),
            Some(bytes) => {
                self.tally.up(bytes.len(), Instant::now());
                self.channel.send(bytes);
                self.channel.finish();
                self.answered()
            }
        }
    }
}
