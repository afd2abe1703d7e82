//! The legacy channel protocol `v4.channel.k8s.io`, the last resort: one carrier for each connection.
//!
//! The runtime dialled the port at the handshake. There is no half-close and no end but the socket's, and a WebSocket ping
//! tests only the first hop. No task: whoever polls the channel drives the carrier.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{Channel, ChannelError, Delivery, HalfClose};
use kftray_spdy::channel;
use kftray_spdy::ws;
use tokio::time::{Instant, Sleep};

use super::classify::classify;
use super::limits::{
    COPY_BELOW, PING_DEADLINE, PING_IDLE, READ_BUFFER, READ_ROOM, STREAM_QUEUE, WITHHOLD_ANSWERED,
    WITHHOLD_IDLE,
};
use crate::connect::CarrierIo;
use crate::pool::Permit;

/// Which port of the carrier's list: it was upgraded for one.
const INDEX: usize = 0;

/// One connection with a carrier of its own.
pub(crate) struct LegacyChannel {
    io: Box<dyn CarrierIo>,
    pod: Arc<str>,
    port: u16,
    /// Gives the node's place back when dropped.
    _permit: Option<Permit>,
    frames: ws::Parser,
    channels: channel::Parser,
    input: BytesMut,
    output: Vec<u8>,
    written: usize,
    unflushed: bool,
    received: bool,
    asked: bool,
    /// The client ended; the socket is closed when the pod has been silent for long enough.
    finished: bool,
    over: bool,
    heard: Instant,
    activity: Instant,
    pinged: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    waker: Option<Waker>,
}

impl LegacyChannel {
    /// A connection over a carrier that was upgraded for `port` alone. `pod` is `namespace/name`, for people.
    ///
    /// # Errors
    /// Never for one port; the codec's check is passed on.
    pub(crate) fn new(
        io: Box<dyn CarrierIo>,
        pod: Arc<str>,
        port: u16,
        first: Bytes,
        permit: Option<Permit>,
    ) -> Result<Self, Problem> {
        let channels = channel::Parser::new(ws::Role::Client, 1).map_err(|error| protocol(&error))?;
        let now = Instant::now();
        let mut channel = Self {
            io,
            pod,
            port,
            _permit: permit,
            frames: ws::Parser::new(ws::Role::Client, u64::MAX),
            channels,
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
            unflushed: false,
            received: false,
            asked: false,
            finished: false,
            over: false,
            heard: now,
            activity: now,
            pinged: None,
            timer: Box::pin(tokio::time::sleep(PING_IDLE)),
            waker: None,
        };
        channel.send(first);
        Ok(channel)
    }

    fn keep(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    fn error(&self, problem: Problem) -> ChannelError {
        ChannelError { problem, delivery: Delivery::Unknown }
    }

    fn broken(&self, error: &std::io::Error) -> ChannelError {
        let message = format!("pod {}: {}", self.pod, super::driver::breakage(error));
        self.error(Problem::new(Code::ConnectionLost, message))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *self.io).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(self.broken(&std::io::ErrorKind::WriteZero.into()))),
                Ok(written) => self.written += written,
                Err(error) => return Poll::Ready(Err(self.broken(&error))),
            }
            self.unflushed = true;
        }
        if self.unflushed {
            if let Err(error) = ready!(Pin::new(&mut *self.io).poll_flush(cx)) {
                return Poll::Ready(Err(self.broken(&error)));
            }
            self.unflushed = false;
        }
        self.output.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// The next bytes out of what was read; `None` when more must be read.
    fn parse(&mut self) -> Result<Option<Option<Bytes>>, ChannelError> {
        while let Some(event) =
            self.frames.next(&mut self.input).map_err(|error| self.error(protocol(&error)))?
        {
            match event {
                ws::Event::Data { payload, ends, .. } => {
                    let event =
                        self.channels.next(payload, ends).map_err(|error| self.error(protocol(&error)))?;
                    match event {
                        Some(channel::Event::Data { payload, .. }) => {
                            self.received = true;
                            self.asked = false;
                            self.activity = self.heard;
                            let small = payload.len() < COPY_BELOW;
                            let payload = if small { Bytes::copy_from_slice(&payload) } else { payload };
                            return Ok(Some(Some(payload)));
                        }
                        Some(channel::Event::Error { text, .. }) => {
                            return Err(classify(&text, &self.pod, self.port, self.received));
                        }
                        Some(channel::Event::Port { .. }) | None => {}
                    }
                }
                ws::Event::Ping(payload) => ws::put_pong(&mut self.output, ws::Role::Client, &payload),
                ws::Event::Pong(_) => {}
                ws::Event::Close { .. } => return Ok(Some(None)),
            }
        }
        Ok(None)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        loop {
            if let Some(item) = self.parse()? {
                return Poll::Ready(Ok(item));
            }
            if self.input.capacity() - self.input.len() < READ_ROOM {
                self.input.reserve(READ_BUFFER);
            }
            match ready!(tokio_util::io::poll_read_buf(Pin::new(&mut *self.io), cx, &mut self.input)) {
                // The only end there is.
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(_) => {
                    self.heard = Instant::now();
                    self.pinged = None;
                }
                Err(error) => return Poll::Ready(Err(self.broken(&error))),
            }
        }
    }

    /// The clock: a withheld end, a PING, its deadline.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        loop {
            let now = Instant::now();
            if self.close_due().is_some_and(|due| now >= due) {
                return Poll::Ready(Ok(None));
            }
            let ping = self.pinged.map_or(self.heard + PING_IDLE, |sent| sent + PING_DEADLINE);
            if now >= ping {
                if self.pinged.is_some() && self.output.is_empty() {
                    let message = format!("the connection to pod {} fell silent", self.pod);
                    return Poll::Ready(Err(self.error(Problem::new(Code::ConnectionLost, message))));
                }
                // Behind bytes that the carrier does not take a ping says nothing: ask again when they are gone.
                if self.output.is_empty() {
                    ws::put_ping(&mut self.output, ws::Role::Client, b"");
                    if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                        return Poll::Ready(Err(error));
                    }
                }
                self.pinged = Some(now);
                continue;
            }
            let next = self.close_due().map_or(ping, |due| due.min(ping));
            if self.timer.deadline() != next {
                self.timer.as_mut().reset(next);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }

    fn close_due(&self) -> Option<Instant> {
        let answered = self.received && !self.asked;
        let hold: Duration = if answered { WITHHOLD_ANSWERED } else { WITHHOLD_IDLE };
        self.finished.then(|| self.activity + hold)
    }
}

impl Channel for LegacyChannel {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        self.keep(cx);
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(Err(error));
        }
        let mut result = self.poll_read(cx);
        if result.is_pending() {
            // A pong may have been queued.
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                return Poll::Ready(Err(error));
            }
            result = self.poll_timer(cx);
        }
        self.over = matches!(&result, Poll::Ready(Ok(None) | Err(_)));
        result
    }

    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.keep(cx);
        if self.output.len() - self.written < STREAM_QUEUE {
            return Poll::Ready(Ok(()));
        }
        self.poll_write(cx)
    }

    fn send(&mut self, data: Bytes) {
        if data.is_empty() || self.finished {
            return;
        }
        if channel::put_data(&mut self.output, ws::Role::Client, INDEX, &data).is_err() {
            return; // not reachable: index 0 is in range
        }
        self.asked = true;
        self.activity = Instant::now();
        // Written by the next poll, which this makes sure of.
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn finish(&mut self) {
        self.finished = true;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn half_close(&self) -> HalfClose {
        HalfClose::Withheld
    }
}

fn protocol(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        Code::ConnectionLost,
        format!("the cluster's side of the port-forward does not speak the protocol: {error}"),
    )
}
