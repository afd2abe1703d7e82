//! What a session tells and what it refuses: names of pairs, events, errors, counters.

use bytes::Bytes;

use crate::frame::{ResetStatus, StreamId};

/// A forwarded connection: two streams. Pairs of one session are numbered from 0 in the order of their opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairId(pub(super) u32);

/// Streams of pair n have the ids 4n + 1 (error) and 4n + 3 (data): odd, rising, error first.
impl PairId {
    /// The last pair whose data stream still has a valid id.
    pub(super) const MAX: u32 = (StreamId::MAX.get() - 3) / 4;

    /// Number of the pair in its session, from 0.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The stream with the error text.
    #[must_use]
    pub fn error_stream(self) -> StreamId {
        // The fallback is unreachable: ids are bounded by `MAX` when they are made.
        StreamId::new(self.0 * 4 + 1).unwrap_or(StreamId::MAX)
    }

    /// The stream with the payload.
    #[must_use]
    pub fn data_stream(self) -> StreamId {
        StreamId::new(self.0 * 4 + 3).unwrap_or(StreamId::MAX)
    }

    /// After a GOAWAY with this `last_good` id: the peer certainly did not process this pair, it is safe to replay.
    #[must_use]
    pub fn is_beyond(self, last_good: u32) -> bool {
        self.error_stream().get() > last_good
    }

    /// The pair of a client stream, and whether it is the error stream.
    pub(super) const fn of(stream: StreamId) -> (Self, bool) {
        (Self(stream.get() / 4), stream.get() % 4 == 1)
    }
}

impl std::fmt::Display for PairId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server answered the data stream's SYN_STREAM. Says nothing about the application: the runtime dials later.
    Accepted {
        /// The pair.
        pair: PairId,
    },
    /// Bytes from the application.
    Data {
        /// The pair.
        pair: PairId,
        /// A slice of the buffer that was read into; never empty.
        payload: Bytes,
    },
    /// The application's direction has ended; no more [`Event::Data`]. Answer with [`super::Client::finish`] or
    /// [`super::Client::reset`] when the local side is done, so that the pair can be forgotten.
    RemoteEnd {
        /// The pair.
        pair: PairId,
        /// The error stream is still open, [`Event::ErrorEnd`] will follow: only that tells success from failure.
        error_pending: bool,
    },
    /// The error stream is over: once per pair, always before [`Event::Reset`] and [`Event::Ended`].
    ErrorEnd {
        /// The pair.
        pair: PairId,
        /// What the runtime wrote; `None` if nothing, which is success. Cut at [`super::MAX_ERROR_TEXT`], invalid UTF-8
        /// replaced.
        text: Option<String>,
    },
    /// The server gave the pair up; what was not delivered is lost. [`Event::Ended`] follows at once.
    Reset {
        /// The pair.
        pair: PairId,
        /// Its reason; the runtime says CANCEL after any error.
        status: ResetStatus,
    },
    /// Both directions and the error stream are over, the pair is forgotten. Also see [`super::Client::finish`].
    Ended {
        /// The pair.
        pair: PairId,
    },
    /// The answer to [`super::Client::ping`] with this id.
    Pong {
        /// The id.
        id: u32,
    },
    /// The server takes no further pairs: [`super::Client::open`] fails from now on, live pairs go on.
    GoAway {
        /// Highest stream id the server processed; see [`PairId::is_beyond`].
        last_good: u32,
        /// 0 OK, 1 protocol error, 2 internal error.
        status: u32,
    },
}

/// The events of one frame, at most three; an iterator, so that nothing is allocated.
#[derive(Debug, Default)]
pub struct Events {
    slots: [Option<Event>; 3],
    used: usize,
    next: usize,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        if let Some(slot) = self.slots.get_mut(self.used) {
            *slot = Some(event);
            self.used += 1;
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let event = self.slots.get_mut(self.next)?.take();
        self.next += 1;
        event
    }
}

/// Why no pair can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// All ids are used; replace the session (after some 536 million connections).
    #[error("all SPDY stream ids of this session are used")]
    IdsExhausted,
    /// The server said GOAWAY; replace the session.
    #[error("the server takes no further streams on this session")]
    GoingAway,
    /// Port 0 is no port.
    #[error("port 0 cannot be forwarded to")]
    PortZero,
}

/// Why nothing can be sent on a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The pair has ended, was reset, or never was.
    #[error("the forwarded connection has ended")]
    NoSuchPair,
    /// Our direction was finished before.
    #[error("the sending direction was already finished")]
    Finished,
}

/// What is left of a pair after [`super::Client::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFinish {
    /// The server's directions are open, [`Event::Ended`] will come.
    RemoteOpen,
    /// Nothing is left; the pair is forgotten and no further event comes.
    Ended,
}

/// Frames that were dropped or ignored, for diagnosis. All rise only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Parts of DATA frames for pairs that are gone, or behind a FIN.
    pub late_data: u64,
    /// Their payload in bytes.
    pub late_bytes: u64,
    /// Other frames for pairs that are gone.
    pub late_control: u64,
    /// Frames for streams that never were.
    pub unknown_stream: u64,
    /// Streams that the server tried to open; refused.
    pub refused_streams: u64,
    /// WINDOW_UPDATE frames.
    pub window_updates: u64,
    /// SETTINGS frames.
    pub settings: u64,
    /// HEADERS frames.
    pub headers: u64,
    /// Control frames of unknown type.
    pub unknown_kind: u64,
    /// Bytes of error text above [`super::MAX_ERROR_TEXT`].
    pub cut_error_bytes: u64,
}
