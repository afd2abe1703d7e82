//! The client's side of a port-forward session: stream ids, stream states, what to write and what came.
//!
//! A forwarded connection is a *pair* of streams, tied by the `requestid` header: an error stream, on which the runtime
//! writes a sentence when it fails, and a data stream (kubernetes/cri-streaming `portforward/httpstream.go`). All pairs
//! of a pod, for all its ports, share one session.
//!
//! A pair opens without waiting for the server: SYN_STREAM(error), SYN_STREAM(data), an empty DATA+FIN on the error stream
//! and the first bytes go out in one write, in kubectl's order. That is safe because the server (moby/spdystream) hands
//! all frames of a stream to the same worker, which answers SYN_STREAM before it takes the next one.
//!
//! There is no flow control; WINDOW_UPDATE is counted and ignored, as by every peer there is.

mod event;

pub use event::{AfterFinish, Counters, Event, Events, OpenError, PairId, SendError};

use std::collections::HashMap;

use crate::frame::{self, DataChunk, Encoder, Frame, HEADER, ResetStatus, StreamId};

/// Payload bytes per DATA frame that [`Client::data`] writes: what Go's `io.Copy` uses. Larger frames enlarge the
/// server's queues (50 frames per worker) without gaining speed.
pub const FRAME_PAYLOAD: usize = 32 * 1024;

/// Longest error text that is kept per pair, in bytes; more is dropped. The runtime's messages are a few hundred bytes.
pub const MAX_ERROR_TEXT: usize = 64 * 1024;

/// State of a pair. Our half of the error stream is closed from the start.
#[derive(Debug, Default)]
struct Pair {
    local_done: bool,
    remote_done: bool,
    error_done: bool,
    accepted: bool,
    error_text: Vec<u8>,
}

impl Pair {
    const fn is_over(&self) -> bool {
        self.local_done && self.remote_done && self.error_done
    }

    fn take_text(&mut self) -> Option<String> {
        let text = std::mem::take(&mut self.error_text);
        (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

/// The client's state of one session. Everything that goes to the wire is appended to the caller's `out`, in the order in
/// which it must be written: hold one lock over a call and the queueing of its output.
#[derive(Debug)]
pub struct Client {
    encoder: Encoder,
    pairs: HashMap<PairId, Pair>,
    next_pair: u32,
    next_ping: u32,
    going_away: bool,
    counters: Counters,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// For a new connection, right after the upgrade.
    #[must_use]
    pub fn new() -> Self {
        Self {
            encoder: Encoder::new(),
            pairs: HashMap::new(),
            next_pair: 0,
            next_ping: 1, // a client's pings are odd
            going_away: false,
            counters: Counters::default(),
        }
    }

    /// Opens a pair to `port` in the pod and sends `first`, which may be empty, in frames of [`FRAME_PAYLOAD`] bytes.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is written then.
    pub fn open(&mut self, port: u16, first: &[u8], out: &mut Vec<u8>) -> Result<PairId, OpenError> {
        if port == 0 {
            return Err(OpenError::PortZero);
        }
        if self.going_away {
            return Err(OpenError::GoingAway);
        }
        if self.next_pair > PairId::MAX {
            return Err(OpenError::IdsExhausted);
        }
        let pair = PairId(self.next_pair);
        self.next_pair += 1;
        let (mut port_digits, mut request_digits) = (Decimal::default(), Decimal::default());
        let (port, request) = (port_digits.write(port.into()), request_digits.write(pair.0));
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
        self.encoder.syn_stream(out, pair.error_stream(), &headers("error"), false);
        self.encoder.syn_stream(out, pair.data_stream(), &headers("data"), false);
        frame::put_data(out, pair.error_stream(), &[], true);
        self.pairs.insert(pair, Pair::default());
        put_payload(out, pair, first);
        Ok(pair)
    }

    /// Appends `payload` in frames of [`FRAME_PAYLOAD`] bytes; nothing if it is empty.
    ///
    /// # Errors
    /// [`SendError`]; nothing is written then.
    pub fn data(&mut self, pair: PairId, payload: &[u8], out: &mut Vec<u8>) -> Result<(), SendError> {
        self.sendable(pair)?;
        put_payload(out, pair, payload);
        Ok(())
    }

    /// The header for a DATA frame of `len` bytes, for writers that send the payload from where it lies. `len` is at most
    /// [`frame::MAX_PAYLOAD`]; [`FRAME_PAYLOAD`] is a good choice.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn data_header(&self, pair: PairId, len: usize) -> Result<[u8; HEADER], SendError> {
        match self.pairs.get(&pair) {
            None => Err(SendError::NoSuchPair),
            Some(state) if state.local_done => Err(SendError::Finished),
            Some(_) => Ok(frame::data_header(pair.data_stream(), len, false)),
        }
    }

    /// Ends our direction with an empty DATA+FIN. Without the relay, call it only after [`Event::RemoteEnd`]: the runtime
    /// cuts the answer off one second after it (containerd `sandbox_portforward_linux.go`).
    ///
    /// # Errors
    /// [`SendError`]; nothing is written then.
    pub fn finish(&mut self, pair: PairId, out: &mut Vec<u8>) -> Result<AfterFinish, SendError> {
        let state = self.sendable(pair)?;
        state.local_done = true;
        let over = state.is_over();
        frame::put_data(out, pair.data_stream(), &[], true);
        if over {
            self.pairs.remove(&pair);
            return Ok(AfterFinish::Ended);
        }
        Ok(AfterFinish::RemoteOpen)
    }

    /// Gives a pair up: RST_STREAM on both streams, and it is forgotten. No further event of it comes; what is still
    /// under way is dropped. Does nothing for a pair that is gone.
    pub fn reset(&mut self, pair: PairId, status: ResetStatus, out: &mut Vec<u8>) {
        let Some(state) = self.pairs.remove(&pair) else { return };
        frame::put_rst_stream(out, pair.data_stream(), status);
        if !state.error_done {
            frame::put_rst_stream(out, pair.error_stream(), status);
        }
    }

    /// Appends a PING and returns its id; [`Event::Pong`] brings it back. It tests every hop but the pod.
    pub fn ping(&mut self, out: &mut Vec<u8>) -> u32 {
        let id = self.next_ping;
        self.next_ping = id.wrapping_add(2); // odd for ever
        frame::put_ping(out, id);
        id
    }

    /// Says goodbye before an orderly close of the connection.
    pub fn goaway(&mut self, out: &mut Vec<u8>) {
        self.going_away = true;
        frame::put_goaway(out, 0, 0);
    }

    /// Takes in a frame from [`frame::Parser`]. Answers (to the server's PING and SYN_STREAM) are appended to `out`.
    pub fn on_frame(&mut self, frame: Frame, out: &mut Vec<u8>) -> Events {
        let mut events = Events::default();
        match frame {
            Frame::Data(chunk) => self.on_data(chunk, &mut events),
            Frame::SynReply { stream, fin, .. } => self.on_reply(stream, fin, &mut events),
            Frame::Headers { stream, fin, .. } => {
                self.counters.headers += 1;
                if fin {
                    self.on_fin(stream, &mut events);
                }
            }
            Frame::RstStream { stream, status } => self.on_reset(stream, status, out, &mut events),
            // A ping of our parity is an answer, any other is to be answered.
            Frame::Ping { id } if id % 2 == 1 => events.push(Event::Pong { id }),
            Frame::Ping { id } => frame::put_ping(out, id),
            Frame::GoAway { last_good, status } => {
                self.going_away = true;
                events.push(Event::GoAway { last_good, status });
            }
            // With an id of our parity it would name one of our own pairs: a reset would hit that.
            Frame::SynStream { stream, .. } if stream.is_client() => self.counters.unknown_stream += 1,
            Frame::SynStream { stream, .. } => {
                self.counters.refused_streams += 1;
                frame::put_rst_stream(out, stream, ResetStatus::REFUSED_STREAM);
            }
            Frame::Settings { .. } => self.counters.settings += 1,
            Frame::WindowUpdate { .. } => self.counters.window_updates += 1,
            Frame::Unknown { .. } => self.counters.unknown_kind += 1,
        }
        events
    }

    /// Number of pairs that are not over.
    #[must_use]
    pub fn live(&self) -> usize {
        self.pairs.len()
    }

    /// Number of pairs ever opened.
    #[must_use]
    pub const fn opened(&self) -> u32 {
        self.next_pair
    }

    /// The pair is not over.
    #[must_use]
    pub fn contains(&self, pair: PairId) -> bool {
        self.pairs.contains_key(&pair)
    }

    /// Whether [`Client::open`] can succeed.
    #[must_use]
    pub const fn can_open(&self) -> bool {
        !self.going_away && self.next_pair <= PairId::MAX
    }

    /// What was dropped or ignored so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn sendable(&mut self, pair: PairId) -> Result<&mut Pair, SendError> {
        match self.pairs.get_mut(&pair) {
            None => Err(SendError::NoSuchPair),
            Some(state) if state.local_done => Err(SendError::Finished),
            Some(state) => Ok(state),
        }
    }

    /// The live pair of a stream; counts why there is none.
    fn live_pair(&mut self, stream: StreamId) -> Option<(PairId, bool, &mut Pair)> {
        let (pair, error) = PairId::of(stream);
        if !stream.is_client() || pair.0 >= self.next_pair {
            self.counters.unknown_stream += 1;
            return None;
        }
        match self.pairs.get_mut(&pair) {
            Some(state) => Some((pair, error, state)),
            None => {
                self.counters.late_control += 1;
                None
            }
        }
    }

    fn on_data(&mut self, chunk: DataChunk, events: &mut Events) {
        let DataChunk { stream, payload, fin, .. } = chunk;
        let (pair, error) = PairId::of(stream);
        if !stream.is_client() || pair.0 >= self.next_pair {
            self.counters.unknown_stream += 1;
            return;
        }
        let state = self
            .pairs
            .get_mut(&pair)
            .filter(|state| !if error { state.error_done } else { state.remote_done });
        let Some(state) = state else {
            self.counters.late_data += 1;
            self.counters.late_bytes += payload.len() as u64;
            return;
        };
        if error {
            let room = MAX_ERROR_TEXT.saturating_sub(state.error_text.len()).min(payload.len());
            state.error_text.extend_from_slice(payload.get(..room).unwrap_or_default());
            self.counters.cut_error_bytes += (payload.len() - room) as u64;
        } else if !payload.is_empty() {
            events.push(Event::Data { pair, payload });
        }
        if fin {
            self.on_fin(stream, events);
        }
    }

    fn on_reply(&mut self, stream: StreamId, fin: bool, events: &mut Events) {
        let Some((pair, error, state)) = self.live_pair(stream) else { return };
        if !error && !std::mem::replace(&mut state.accepted, true) {
            events.push(Event::Accepted { pair });
        }
        if fin {
            self.on_fin(stream, events);
        }
    }

    fn on_fin(&mut self, stream: StreamId, events: &mut Events) {
        let Some((pair, error, state)) = self.live_pair(stream) else { return };
        let done = if error { &mut state.error_done } else { &mut state.remote_done };
        if std::mem::replace(done, true) {
            self.counters.late_control += 1;
            return;
        }
        events.push(if error {
            Event::ErrorEnd { pair, text: state.take_text() }
        } else {
            Event::RemoteEnd { pair, error_pending: !state.error_done }
        });
        if state.is_over() {
            self.pairs.remove(&pair);
            events.push(Event::Ended { pair });
        }
    }

    fn on_reset(&mut self, stream: StreamId, status: ResetStatus, out: &mut Vec<u8>, events: &mut Events) {
        let Some((pair, error, state)) = self.live_pair(stream) else { return };
        if error {
            // Only the sentence ends here; the data stream speaks for itself.
            self.on_fin(stream, events);
            return;
        }
        if !std::mem::replace(&mut state.error_done, true) {
            events.push(Event::ErrorEnd { pair, text: state.take_text() });
            // The runtime writes its sentence before it resets, so nothing is lost; let the server forget it, too.
            frame::put_rst_stream(out, pair.error_stream(), ResetStatus::CANCEL);
        }
        self.pairs.remove(&pair);
        events.push(Event::Reset { pair, status });
        events.push(Event::Ended { pair });
    }
}

fn put_payload(out: &mut Vec<u8>, pair: PairId, payload: &[u8]) {
    out.reserve(payload.len() + HEADER * payload.len().div_ceil(FRAME_PAYLOAD));
    for frame in payload.chunks(FRAME_PAYLOAD) {
        frame::put_data(out, pair.data_stream(), frame, false);
    }
}

/// Decimal digits of a number without an allocation.
#[derive(Default)]
struct Decimal {
    /// `u32::MAX` has ten digits.
    digits: [u8; 10],
}

impl Decimal {
    fn write(&mut self, mut number: u32) -> &str {
        let mut begin = self.digits.len();
        for slot in self.digits.iter_mut().rev() {
            *slot = b'0' + (number % 10) as u8;
            number /= 10;
            begin -= 1;
            if number == 0 {
                break;
            }
        }
        self.digits.get(begin..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_run_out_with_a_typed_error() {
        let (mut client, mut out) = (Client::new(), Vec::new());
        client.next_pair = PairId::MAX;
        let last = client.open(80, b"", &mut out).unwrap();
        assert_eq!(last.data_stream(), StreamId::MAX, "the last id is used");
        assert_eq!(PairId::of(last.error_stream()), (last, true));
        assert_eq!(PairId::of(last.data_stream()), (last, false));
        assert_eq!(client.open(80, b"", &mut out), Err(OpenError::IdsExhausted));
        assert!(!client.can_open());
    }

    #[test]
    fn ping_ids_stay_odd_when_they_wrap() {
        let (mut client, mut out) = (Client::new(), Vec::new());
        client.next_ping = u32::MAX;
        assert_eq!((client.ping(&mut out), client.ping(&mut out)), (u32::MAX, 1));
    }

    #[test]
    fn decimal_digits() {
        for number in [0, 7, 10, 65535, u32::MAX] {
            assert_eq!(Decimal::default().write(number), number.to_string());
        }
    }
}
