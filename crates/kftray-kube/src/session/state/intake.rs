//! What comes from the server: frames become bytes and ends of connections.

use bytes::Bytes;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ChannelError, Delivery};
use kftray_spdy::connection::{Client, Event, PairId};
use kftray_spdy::frame::{Frame, ResetStatus};
use tokio::time::Instant;

use super::State;
use crate::session::classify::classify;
use crate::session::limits::{ERROR_TEXT_WAIT, STREAM_BUDGET};
use crate::session::stream::{Crossing, End, Local};

impl State {
    /// Any bytes came. Call before their frames.
    pub(in crate::session) fn heard(&mut self, now: Instant) {
        self.life.heard(now);
        self.suspect = false;
        for pair in std::mem::take(&mut self.gated) {
            let Some(stream) = self.streams.get_mut(&pair) else { continue };
            stream.gated = false;
            stream.wake_reader(&mut self.wakers);
            if stream.has_output() && !stream.queued {
                stream.queued = true;
                self.round.push_back(pair);
            }
        }
    }

    pub(in crate::session) fn frame(&mut self, now: Instant, frame: Frame) {
        for event in self.client.on_frame(frame, &mut self.control) {
            match event {
                Event::Data { pair, payload } => self.received_data(now, pair, payload),
                Event::RemoteEnd { pair, error_pending } => self.remote_end(now, pair, error_pending),
                Event::ErrorEnd { pair, text } => self.error_end(pair, text.as_deref()),
                Event::Reset { pair, status } => self.remote_reset(pair, status),
                Event::Pong { id } => {
                    self.pongs += u64::from(self.life.ponged(now, id));
                }
                Event::GoAway { last_good, .. } => self.go_away(last_good),
                Event::Accepted { pair } => self.accepted(pair),
                Event::Ended { .. } => {}
            }
        }
    }

    fn accepted(&mut self, pair: PairId) {
        self.accepted = true;
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.accepted = true;
        if stream.local == Local::Open && !stream.remote_ended {
            self.disarm(pair);
        }
    }

    fn received_data(&mut self, now: Instant, pair: PairId, payload: Bytes) {
        // A stream that is released is reset in the same breath, so its late frames end in the codec.
        let Some(stream) = self.streams.get_mut(&pair).filter(|stream| stream.end.is_none()) else { return };
        let bytes = payload.len();
        self.received += bytes;
        self.budget.take(bytes);
        if stream.receive(now, payload, STREAM_BUDGET) == Crossing::Over {
            self.over += 1;
        }
        if stream.turns_bulk() {
            self.bulk += 1;
        }
        stream.wake_reader(&mut self.wakers);
    }

    fn remote_end(&mut self, now: Instant, pair: PairId, error_pending: bool) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.remote_ended = true;
        self.sending -= stream.drop_outbox();
        if stream.local != Local::Passed {
            stream.local = Local::Passed;
            // The runtime has closed the connection before it says so: nothing we could send would arrive.
            if self.client.finish(pair, &mut self.control).is_err() {
                tracing::debug!(%pair, "the pair had ended before its end");
            }
        }
        if error_pending {
            self.arm(pair, now + ERROR_TEXT_WAIT);
        } else {
            self.conclude(pair);
        }
    }

    fn error_end(&mut self, pair: PairId, text: Option<&str>) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if let Some(text) = text {
            let error = classify(text, &self.pod, stream.port, stream.received);
            if error.problem.code == Code::PodGone {
                self.pod_gone.get_or_insert_with(|| error.problem.clone());
            }
            stream.error = Some(error);
        }
        if stream.remote_ended || stream.error.is_some() {
            self.conclude(pair);
        }
    }

    fn remote_reset(&mut self, pair: PairId, status: ResetStatus) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        let pod = &self.pod;
        stream.error.get_or_insert_with(|| ChannelError {
            problem: Problem::new(
                Code::ConnectionLost,
                format!("the cluster reset the connection to port {} of pod {pod} ({status})", stream.port),
            ),
            delivery: Delivery::Unknown,
        });
        self.conclude(pair);
    }

    /// The remote side is over; the client may still take what came.
    pub(super) fn conclude(&mut self, pair: PairId) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if stream.end.is_none() {
            stream.end = Some(stream.error.take().map_or(End::Orderly, End::Broken));
            if let Some(permit) = &mut stream.permit {
                permit.remote_ended();
            }
            // The node's thread is gone, whatever the client does with the rest; and that grows no more.
            stream.permit = None;
            self.over -= usize::from(std::mem::take(&mut stream.over));
        }
        self.sending -= stream.drop_outbox();
        stream.wake_reader(&mut self.wakers);
        stream.wake_writer(&mut self.wakers);
        self.disarm(pair);
    }

    fn go_away(&mut self, last_good: u32) {
        self.retired = true;
        let beyond: Vec<PairId> =
            self.streams.keys().copied().filter(|pair| pair.is_beyond(last_good)).collect();
        // Some servers say 0 whatever they did: that is only believed of one that has never answered an opening. A stream
        // that has answered was processed in any case.
        let believed = last_good > 0 || !self.accepted;
        for pair in beyond {
            if believed && self.streams.get(&pair).is_some_and(|stream| !stream.received) {
                let problem = Problem::new(Code::ConnectionLost, "the cluster closes this transport");
                self.break_stream(pair, ChannelError { problem, delivery: Delivery::Nothing });
            }
        }
    }

    pub(super) fn break_stream(&mut self, pair: PairId, error: ChannelError) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.error.get_or_insert(error);
        self.client.reset(pair, ResetStatus::CANCEL, &mut self.control);
        // We ended it, so the runtime's thread lingers: the permit must not hear of an end by the remote.
        stream.permit = None;
        self.conclude(pair);
    }

    /// The carrier is gone: every stream breaks.
    pub(in crate::session) fn lose(&mut self, problem: &Problem) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(problem.clone());
        self.written();
        for stream in self.streams.values_mut().filter(|stream| stream.end.is_none()) {
            let delivery = if stream.on_wire { Delivery::Unknown } else { Delivery::Nothing };
            let error = stream.error.take();
            stream.end = Some(End::Broken(
                error.unwrap_or_else(|| ChannelError { problem: problem.clone(), delivery }),
            ));
            self.sending -= stream.drop_outbox();
            stream.permit = None;
            stream.wake_reader(&mut self.wakers);
            stream.wake_writer(&mut self.wakers);
        }
        self.client = Client::new();
        self.control = Vec::new();
        self.round.clear();
        self.timers.clear();
        self.budget.leave(self.number);
    }
}
