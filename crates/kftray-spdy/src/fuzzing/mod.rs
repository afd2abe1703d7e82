//! The harness functions of the fuzz targets, shared with the test that replays the committed corpus.
//!
//! Each takes arbitrary bytes and panics when a promise of the crate is broken: that the portions in which bytes arrive
//! make no difference, that memory stays bounded, that events follow their grammar, that what we write is valid. The first
//! byte steers the harness (portions, roles, what the local side does in between), the rest is the peer's traffic.

mod seeds;

pub use seeds::{KUBECTL_OPEN, seeds};

use std::collections::{HashMap, HashSet};

use bytes::{BufMut, Bytes, BytesMut};

use crate::connection::{AfterFinish, Client, Event, MAX_ERROR_TEXT, PairId};
use crate::frame::{self, DataChunk, Frame, Limits, ResetStatus};
use crate::{channel, ws};

/// Small bounds, so that the fuzzer reaches them with short inputs.
const LIMITS: Limits = Limits {
    max_control: 1 << 20,
    max_header_count: 16,
    max_header_field: 4096,
    max_header_block: 16 * 1024,
};

/// A stream of numbers from a seed (xorshift, Marsaglia 2003): deterministic, so that every finding replays.
struct Dice(u32);

impl Dice {
    const fn new(seed: u8) -> Self {
        Self(0x9e37_79b9 ^ ((seed as u32) << 8) | 1)
    }

    const fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % bound
    }

    /// Cuts the next portion off, mostly a few bytes.
    fn portion<'a>(&mut self, rest: &mut &'a [u8]) -> &'a [u8] {
        let bound = if self.below(4) == 0 { 4096 } else { 12 };
        let (now, later) = rest.split_at(rest.len().min(1 + self.below(bound) as usize));
        *rest = later;
        now
    }
}

/// The steering byte and the traffic.
fn steer(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}

/// All frames of the portions, DATA chunks of one frame joined, up to the first error.
fn frames<'a>(
    mut parser: frame::Parser,
    portions: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Frame>, Option<frame::Error>) {
    let mut all: Vec<Frame> = Vec::new();
    let mut open = false;
    for portion in portions {
        let mut input = Bytes::copy_from_slice(portion);
        loop {
            match parser.next(&mut input) {
                Err(error) => return (all, Some(error)),
                Ok(None) => {
                    assert!(input.is_empty(), "a parser that wants more must have used up its input");
                    break;
                }
                Ok(Some(Frame::Data(chunk))) => {
                    assert!(!chunk.fin || chunk.ends_frame, "FIN belongs to the last chunk");
                    let ends = chunk.ends_frame;
                    match all.last_mut() {
                        Some(Frame::Data(earlier)) if open => {
                            assert_eq!(earlier.stream, chunk.stream, "chunks of a frame share its stream");
                            assert!(!chunk.payload.is_empty(), "only an empty frame has an empty chunk");
                            earlier.payload = [&earlier.payload[..], &chunk.payload[..]].concat().into();
                            earlier.ends_frame = chunk.ends_frame;
                            earlier.fin = chunk.fin;
                        }
                        _ => all.push(Frame::Data(chunk)),
                    }
                    open = !ends;
                }
                Ok(Some(other)) => {
                    assert!(!open, "nothing comes between the chunks of a frame");
                    all.push(other);
                }
            }
        }
    }
    (all, None)
}

/// Portions of the traffic as the dice fall.
fn portions(seed: u8, traffic: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut dice = Dice::new(seed);
    let mut rest = traffic;
    std::iter::from_fn(move || (!rest.is_empty()).then(|| dice.portion(&mut rest)))
}

/// The server's parser: portions do not matter, header lists respect the limits.
pub fn spdy_server(input: &[u8]) {
    let (seed, traffic) = steer(input);
    let whole = frames(frame::Parser::server(LIMITS), std::iter::once(traffic));
    let split = frames(frame::Parser::server(LIMITS), portions(seed, traffic));
    assert_eq!(whole, split);
    for frame in &whole.0 {
        if let Frame::SynStream { headers, .. }
        | Frame::SynReply { headers, .. }
        | Frame::Headers { headers, .. } = frame
        {
            let headers = headers.as_deref().unwrap_or_default();
            assert!(headers.len() <= LIMITS.max_header_count);
            let total: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!(total <= LIMITS.max_header_block);
            assert!(headers.iter().all(|(name, _)| !name.is_empty()));
        }
    }
}

/// What the events of one pair have said so far.
#[derive(Default)]
struct Seen {
    accepted: bool,
    remote_end: bool,
    error_end: bool,
    finished: bool,
}

/// Plays the client against arbitrary traffic while the local side acts, too.
struct Play {
    client: Client,
    dice: Dice,
    out: Vec<u8>,
    live: HashMap<PairId, Seen>,
    order: Vec<PairId>,
    pings: HashSet<u32>,
}

impl Play {
    fn act(&mut self) {
        let pick = self.dice.below(16) as usize;
        let pair = self.order.get(pick % self.order.len().max(1)).copied();
        match (self.dice.below(6), pair) {
            (0, _) => {
                if let Ok(pair) = self.client.open(8080, b"hello", &mut self.out) {
                    assert!(
                        self.live.insert(pair, Seen::default()).is_none(),
                        "pairs are never numbered twice"
                    );
                    self.order.push(pair);
                }
            }
            (1, _) => {
                let fresh = self.pings.insert(self.client.ping(&mut self.out));
                assert!(fresh, "pings are never numbered twice");
            }
            (2, Some(pair)) => {
                let sendable = self.live.get(&pair).is_some_and(|seen| !seen.finished);
                assert_eq!(self.client.data(pair, b"more", &mut self.out).is_ok(), sendable);
            }
            (3, Some(pair)) => match self.client.finish(pair, &mut self.out) {
                Err(_) => assert!(self.live.get(&pair).is_none_or(|seen| seen.finished)),
                Ok(after) => {
                    let seen = self.live.entry(pair).or_default();
                    seen.finished = true;
                    assert_eq!(after == AfterFinish::Ended, seen.remote_end && seen.error_end);
                    if after == AfterFinish::Ended {
                        self.live.remove(&pair);
                    }
                }
            },
            (4, Some(pair)) => {
                self.client.reset(pair, ResetStatus::CANCEL, &mut self.out);
                self.live.remove(&pair);
            }
            _ => {}
        }
    }

    fn see(&mut self, event: Event) {
        let Some(pair) = pair_of(&event) else { return };
        let Some(seen) = self.live.get_mut(&pair) else { panic!("{event:?} for a pair that is over") };
        match event {
            Event::Accepted { .. } => assert!(!std::mem::replace(&mut seen.accepted, true)),
            Event::Data { payload, .. } => assert!(!seen.remote_end && !payload.is_empty()),
            Event::RemoteEnd { error_pending, .. } => {
                assert!(!std::mem::replace(&mut seen.remote_end, true));
                assert_eq!(error_pending, !seen.error_end);
            }
            Event::ErrorEnd { text, .. } => {
                assert!(!std::mem::replace(&mut seen.error_end, true));
                // Each invalid byte becomes a replacement character of three bytes.
                assert!(text.is_none_or(|text| !text.is_empty() && text.len() <= 3 * MAX_ERROR_TEXT));
            }
            Event::Reset { .. } => assert!(seen.error_end, "the error text comes before the reset"),
            Event::Ended { .. } => {
                assert!(seen.error_end);
                self.live.remove(&pair);
            }
            Event::Pong { .. } | Event::GoAway { .. } => {}
        }
    }
}

const fn pair_of(event: &Event) -> Option<PairId> {
    match event {
        Event::Accepted { pair }
        | Event::Data { pair, .. }
        | Event::RemoteEnd { pair, .. }
        | Event::ErrorEnd { pair, .. }
        | Event::Reset { pair, .. }
        | Event::Ended { pair } => Some(*pair),
        Event::Pong { .. } | Event::GoAway { .. } => None,
    }
}

/// The client: its parser does not care for portions, its events follow their grammar, all it writes is valid SPDY.
pub fn spdy_client(input: &[u8]) {
    let (seed, traffic) = steer(input);
    let whole = frames(frame::Parser::client(LIMITS), std::iter::once(traffic));
    assert_eq!(whole, frames(frame::Parser::client(LIMITS), portions(seed, traffic)));

    let mut play = Play {
        client: Client::new(),
        dice: Dice::new(seed),
        out: Vec::new(),
        live: HashMap::new(),
        order: Vec::new(),
        pings: HashSet::new(),
    };
    for port in [80, 443, 5432, 65535] {
        let pair = play.client.open(port, b"", &mut play.out).unwrap_or_else(|error| panic!("{error}"));
        play.live.insert(pair, Seen::default());
        play.order.push(pair);
    }
    for frame in whole.0 {
        let events = play.client.on_frame(frame, &mut play.out);
        events.for_each(|event| play.see(event));
        assert_eq!(play.client.live(), play.live.len(), "client and model agree on what lives");
        play.act();
    }
    check_written(&play.out);
}

/// What a client wrote parses, opens streams in order and never sends behind the end of a stream.
fn check_written(out: &[u8]) {
    let (written, error) = frames(frame::Parser::server(Limits::default()), std::iter::once(out));
    assert_eq!(error, None);
    let mut open = HashSet::new();
    let mut last = 0;
    for frame in written {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => {
                assert!(stream.is_client() && stream.get() > last && !fin);
                last = stream.get();
                open.insert(stream);
                assert_eq!(headers.map(|list| list.len()), Some(3));
            }
            Frame::Data(DataChunk { stream, fin, ends_frame, .. }) => {
                assert!(ends_frame && open.contains(&stream));
                if fin {
                    open.remove(&stream);
                }
            }
            Frame::RstStream { stream, .. } => {
                open.remove(&stream);
            }
            Frame::Ping { .. } => {}
            Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::GoAway { .. }
            | Frame::Settings { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown { .. } => panic!("a client does not write {frame:?}"),
        }
    }
}

/// All events of the portions, data joined per message, up to the first error.
fn ws_events<'a>(
    role: ws::Role,
    portions: impl Iterator<Item = &'a [u8]>,
) -> (Vec<ws::Event>, Option<ws::Error>) {
    let mut parser = ws::Parser::new(role, 1 << 20);
    let mut buffer = BytesMut::new();
    let mut all: Vec<ws::Event> = Vec::new();
    // Control frames may come between the fragments of a message: data is joined across them.
    let mut message: Option<usize> = None;
    for portion in portions {
        buffer.put_slice(portion);
        loop {
            match parser.next(&mut buffer) {
                Err(error) => return (all, Some(error)),
                Ok(None) => {
                    assert!(
                        buffer.len() < ws::MAX_HEADER + ws::MAX_CONTROL,
                        "only an unfinished header or control frame"
                    );
                    break;
                }
                Ok(Some(ws::Event::Data { payload, begins, ends })) => {
                    assert_eq!(begins, message.is_none());
                    let index = *message.get_or_insert(all.len());
                    match all.get_mut(index) {
                        Some(ws::Event::Data { payload: joined, ends: last, .. }) => {
                            *joined = [&joined[..], &payload[..]].concat().into();
                            *last = ends;
                        }
                        _ => all.push(ws::Event::Data { payload, begins, ends }),
                    }
                    if ends {
                        message = None;
                    }
                }
                Ok(Some(other)) => {
                    if let ws::Event::Ping(payload) | ws::Event::Pong(payload) = &other {
                        assert!(payload.len() <= ws::MAX_CONTROL);
                    }
                    all.push(other);
                }
            }
        }
    }
    (all, None)
}

/// The WebSocket parser in both roles: portions do not matter, what is left behind is bounded, what is read can be written
/// and read again.
pub fn ws_parser(input: &[u8]) {
    let (seed, traffic) = steer(input);
    let (role, peer) = if seed % 2 == 0 {
        (ws::Role::Client, ws::Role::Server)
    } else {
        (ws::Role::Server, ws::Role::Client)
    };
    let whole = ws_events(role, std::iter::once(traffic));
    assert_eq!(whole, ws_events(role, portions(seed, traffic)));

    let mut again = Vec::new();
    let complete: Vec<_> =
        whole.0.into_iter().filter(|event| !matches!(event, ws::Event::Data { ends: false, .. })).collect();
    for event in &complete {
        match event {
            ws::Event::Data { payload, .. } => ws::put_binary(&mut again, peer, payload),
            ws::Event::Ping(payload) => ws::put_ping(&mut again, peer, payload),
            ws::Event::Pong(payload) => ws::put_pong(&mut again, peer, payload),
            ws::Event::Close { .. } => {}
        }
    }
    let written = complete.into_iter().filter(|event| !matches!(event, ws::Event::Close { .. })).collect();
    assert_eq!(ws_events(role, std::iter::once(&again[..])), (written, None));
}

/// What a channel connection delivered: ports announced, payload per port, error texts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Delivered {
    ports: Vec<(usize, u16, bool)>,
    data: HashMap<usize, Vec<u8>>,
    errors: Vec<(usize, String)>,
    failed: Option<channel::Error>,
}

fn channels<'a>(role: ws::Role, ports: usize, portions: impl Iterator<Item = &'a [u8]>) -> Delivered {
    let mut carrier = ws::Parser::new(role, 1 << 20);
    let mut parser = channel::Parser::new(role, ports).unwrap_or_else(|error| panic!("{error}"));
    let mut buffer = BytesMut::new();
    let mut delivered = Delivered::default();
    for portion in portions {
        buffer.put_slice(portion);
        while let Ok(Some(event)) = carrier.next(&mut buffer) {
            let ws::Event::Data { payload, ends, .. } = event else { continue };
            match parser.next(payload, ends) {
                Ok(None) => {}
                Ok(Some(channel::Event::Port { index, port, error })) => {
                    delivered.ports.push((index, port, error));
                }
                Ok(Some(channel::Event::Data { index, payload })) => {
                    assert!(index < ports && !payload.is_empty());
                    delivered.data.entry(index).or_default().extend_from_slice(&payload);
                }
                Ok(Some(channel::Event::Error { index, text })) => {
                    assert!(index < ports && !text.is_empty() && text.len() <= 3 * channel::MAX_ERROR_TEXT);
                    delivered.errors.push((index, text));
                }
                Err(error) => {
                    delivered.failed = Some(error);
                    return delivered;
                }
            }
        }
    }
    delivered
}

/// The channel protocol behind a WebSocket parser: portions do not matter, indices stay in range.
pub fn channel(input: &[u8]) {
    let (seed, traffic) = steer(input);
    let role = if seed % 2 == 0 { ws::Role::Client } else { ws::Role::Server };
    let ports = 1 + usize::from(seed >> 1) % 3;
    let whole = channels(role, ports, std::iter::once(traffic));
    assert_eq!(whole, channels(role, ports, portions(seed, traffic)));
}
