//! One TCP connection by way of the relay: the engine's [`Channel`] over a stream of records, with true half-close.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use kftray_commons::Problem;
use kftray_portforward::ports::{Channel, ChannelError, Delivery, HalfClose};
use kftray_relay_proto::open::Reply;
use kftray_relay_proto::reason::{EndKind, Refusal};
use kftray_relay_proto::record::{Decoder, Record};

use super::explain;
use super::lane::Lane;

/// The records of a stream, behind the relay's reply if one is due.
#[derive(Debug)]
pub(super) struct Records {
    /// The beginning of the reply, until it is there.
    reply: Option<BytesMut>,
    decoder: Decoder,
    chunk: Bytes,
}

/// What comes of a stream.
#[derive(Debug)]
pub(super) enum Next {
    Record(Record),
    Refused(Refusal),
    /// The stream has ended without an end record, or breaks the protocol.
    CutOff,
}

impl Records {
    /// Of a stream that this side has opened.
    pub(super) fn after_reply(decoder: Decoder) -> Self {
        Self { reply: Some(BytesMut::new()), decoder, chunk: Bytes::new() }
    }

    /// Of a stream that the relay has opened; `left` was read behind its first message.
    pub(super) fn accepted(decoder: Decoder, left: Bytes) -> Self {
        Self { reply: None, decoder, chunk: left }
    }

    /// Whether the relay has said that the target is connected.
    pub(super) fn is_open(&self) -> bool {
        self.reply.is_none()
    }

    /// Waits until anything has come; false if nothing will.
    pub(super) async fn heard(&mut self, lane: &Lane) -> bool {
        let Some(partial) = &mut self.reply else { return true };
        match std::future::poll_fn(|cx| lane.poll_read(cx)).await {
            Some(bytes) => {
                partial.extend_from_slice(&bytes);
                true
            }
            None => false,
        }
    }

    pub(super) fn poll_next(&mut self, lane: &Lane, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if let Some(partial) = &mut self.reply {
                match Reply::decode(partial) {
                    Ok(Some(Reply::Pending)) => continue,
                    Ok(Some(Reply::Opened { .. })) => {
                        self.chunk = std::mem::take(partial).freeze();
                        self.reply = None;
                        continue;
                    }
                    Ok(Some(Reply::Refused(refusal))) => return Poll::Ready(Next::Refused(refusal)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the relay's reply");
                        return Poll::Ready(Next::CutOff);
                    }
                }
            } else {
                match self.decoder.next(&mut self.chunk) {
                    Ok(Some(record)) => return Poll::Ready(Next::Record(record)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the relay's records");
                        return Poll::Ready(Next::CutOff);
                    }
                }
            }
            match (ready!(lane.poll_read(cx)), &mut self.reply) {
                (Some(bytes), Some(partial)) => partial.extend_from_slice(&bytes),
                (Some(bytes), None) => self.chunk = bytes,
                (None, _) => return Poll::Ready(Next::CutOff),
            }
        }
    }
}

/// A connection. Dropping it before both ends have finished resets it.
pub(super) struct RelayChannel {
    lane: Lane,
    records: Records,
    /// `host:port`, for people.
    target: Arc<str>,
    sent_end: bool,
    received_end: bool,
}

impl RelayChannel {
    pub(super) fn new(lane: Lane, records: Records, target: Arc<str>) -> Self {
        Self { lane, records, target, sent_end: false, received_end: false }
    }

    fn cut_off(&self) -> Problem {
        self.lane.carrier().problem().unwrap_or_else(|| explain::cut_off(&self.target))
    }
}

impl Channel for RelayChannel {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        loop {
            let next = ready!(self.records.poll_next(&self.lane, cx));
            return Poll::Ready(match next {
                Next::Record(Record::Data(bytes)) => Ok(Some(bytes)),
                Next::Record(Record::End { kind: EndKind::Finished, .. }) => {
                    self.received_end = true;
                    Ok(None)
                }
                Next::Record(Record::End { kind, message }) => {
                    let problem = explain::broken(&self.target, kind, &message);
                    Err(ChannelError { problem, delivery: Delivery::Unknown })
                }
                Next::Record(Record::Dropped(_)) => continue,
                Next::Refused(refusal) => {
                    // A relay that refuses has dropped what followed the opening.
                    let problem = explain::refusal(&self.target, &refusal);
                    Err(ChannelError { problem, delivery: Delivery::Nothing })
                }
                Next::CutOff => Err(ChannelError { problem: self.cut_off(), delivery: Delivery::Unknown }),
            });
        }
    }

    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        // A stream that takes no more is ready: what is wrong with it comes out of `poll_recv`, in words.
        self.lane.poll_room(cx).map(Ok)
    }

    fn send(&mut self, data: Bytes) {
        if !self.sent_end && !data.is_empty() {
            self.lane.write(|out| Record::Data(data).encode(out));
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.sent_end, true) {
            self.lane.write(|out| Record::finished().encode(out));
        }
    }

    fn half_close(&self) -> HalfClose {
        HalfClose::Passed
    }

    fn close(&mut self) -> bool {
        self.finish();
        self.lane.leave(self.received_end);
        true
    }
}

impl Drop for RelayChannel {
    fn drop(&mut self) {
        if self.sent_end && self.received_end {
            self.lane.leave(true);
        }
    }
}
