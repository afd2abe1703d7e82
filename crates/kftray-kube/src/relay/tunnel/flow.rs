//! One UDP flow by way of the relay: the engine's [`DatagramChannel`] over a stream of records.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use kftray_portforward::ports::{ChannelError, DatagramChannel, Delivery};
use kftray_relay_proto::reason::EndKind;
use kftray_relay_proto::record::{Decoder, MAX_PAYLOAD, Record};

use super::channel::{Next, Records};
use super::explain;
use super::lane::Lane;

/// A flow. Dropping it ends it.
pub(super) struct Flow {
    lane: Lane,
    records: Records,
    /// `host:port`, for people.
    target: Arc<str>,
    /// What the relay has dropped.
    dropped_there: u64,
    /// What no datagram can hold.
    too_large: u64,
}

impl Flow {
    pub(super) fn new(lane: Lane, target: Arc<str>) -> Self {
        let records = Records::after_reply(Decoder::datagrams());
        Self { lane, records, target, dropped_there: 0, too_large: 0 }
    }
}

impl DatagramChannel for Flow {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        loop {
            let problem = match ready!(self.records.poll_next(&self.lane, cx)) {
                Next::Record(Record::Data(datagram)) => return Poll::Ready(Ok(Some(datagram))),
                Next::Record(Record::Dropped(total)) => {
                    self.dropped_there = total;
                    continue;
                }
                Next::Record(Record::End {
                    kind: EndKind::Finished | EndKind::Idle | EndKind::Draining,
                    ..
                }) => return Poll::Ready(Ok(None)),
                Next::Record(Record::End { kind, message }) => explain::broken(&self.target, kind, &message),
                Next::Refused(refusal) => explain::refusal(&self.target, &refusal),
                Next::CutOff => {
                    self.lane.carrier().problem().unwrap_or_else(|| explain::cut_off(&self.target))
                }
            };
            let delivery = if self.records.is_open() { Delivery::Unknown } else { Delivery::Nothing };
            return Poll::Ready(Err(ChannelError { problem, delivery }));
        }
    }

    fn send(&mut self, datagram: Bytes) {
        if datagram.len() > MAX_PAYLOAD {
            self.too_large += 1;
        } else {
            self.lane.write_datagram(datagram);
        }
    }

    fn dropped(&self) -> u64 {
        self.lane.datagrams_dropped() + self.dropped_there + self.too_large
    }
}
