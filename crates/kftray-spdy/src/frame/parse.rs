//! Reading SPDY/3.1 frames from bytes that come in any portions.
//!
//! Nothing is assembled: of a control frame at most 18 bytes are kept, header blocks go straight through the inflater (or
//! are skipped: the runtime's SYN_REPLY has no headers, and a client needs none), payload is handed out as it arrives.

use bytes::{Buf, Bytes};

use super::{
    DataChunk, Error, FLAG_FIN, FLAG_UNIDIRECTIONAL, Frame, HEADER, HeaderList, Limits, ResetStatus,
    StreamId, VERSION, kind,
};

/// Longest fixed part of a control frame: the header and the ten bytes in front of SYN_STREAM's header block.
const MAX_FIXED: usize = HEADER + 10;

/// What becomes of header blocks.
#[derive(Debug)]
enum Blocks {
    Skip,
    #[cfg(feature = "server")]
    Decode(Box<super::inflate::Inflater>),
}

#[derive(Debug)]
enum State {
    /// Collecting the 8 bytes of a header, then the fixed part of a control frame.
    Head,
    /// Inside the payload of a DATA frame.
    Data { stream: StreamId, left: usize, fin: bool },
    /// Inside the variable part of a control frame, `frame` is complete with its end.
    Rest { frame: Frame, left: usize, block: bool },
}

/// Incremental parser: one per connection and direction.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    blocks: Blocks,
    state: State,
    head: [u8; MAX_FIXED],
    have: usize,
}

impl Parser {
    /// For a client: header blocks are skipped undecoded.
    #[must_use]
    pub const fn client(limits: Limits) -> Self {
        Self { limits, blocks: Blocks::Skip, state: State::Head, head: [0; MAX_FIXED], have: 0 }
    }

    /// For a server: header blocks are decoded, with or without the SPDY/3 dictionary, as the peer chose.
    #[cfg(feature = "server")]
    #[must_use]
    pub fn server(limits: Limits) -> Self {
        let inflater = Box::new(super::inflate::Inflater::new(limits));
        Self { blocks: Blocks::Decode(inflater), ..Self::client(limits) }
    }

    /// The parser stands between two frames: an end of the connection here is clean.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head) && self.have == 0
    }

    /// The next frame (or part of a DATA frame), or `None` when `input` is used up.
    ///
    /// Payloads are split off `input` without a copy.
    ///
    /// # Errors
    /// Any violation of the protocol; the parser must not be used afterwards.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, Error> {
        loop {
            match &mut self.state {
                State::Head => {
                    if !self.read_head(input)? {
                        return Ok(None);
                    }
                }
                State::Data { stream, left, fin } => {
                    if input.is_empty() && *left > 0 {
                        return Ok(None);
                    }
                    let payload = input.split_to((*left).min(input.len()));
                    *left -= payload.len();
                    let ends_frame = *left == 0;
                    let chunk = DataChunk { stream: *stream, payload, ends_frame, fin: *fin && ends_frame };
                    if ends_frame {
                        self.state = State::Head;
                    }
                    return Ok(Some(Frame::Data(chunk)));
                }
                State::Rest { left, block, .. } => {
                    let part = input.split_to((*left).min(input.len()));
                    *left -= part.len();
                    let (done, block) = (*left == 0, *block);
                    match &mut self.blocks {
                        Blocks::Skip => {}
                        #[cfg(feature = "server")]
                        Blocks::Decode(inflater) if block => inflater.feed(&part)?,
                        #[cfg(feature = "server")]
                        Blocks::Decode(_) => {}
                    }
                    if !done {
                        return Ok(None);
                    }
                    return self.finish_control(block).map(Some);
                }
            }
        }
    }

    /// Collects the fixed part of a frame and decides what follows it; false if more input is needed.
    fn read_head(&mut self, input: &mut Bytes) -> Result<bool, Error> {
        if !self.fill(HEADER, input) {
            return Ok(false);
        }
        let first = self.word(0);
        let second = self.word(4);
        let flags = (second >> 24) as u8;
        let len = (second & 0x00ff_ffff) as usize;
        if first & 0x8000_0000 == 0 {
            let stream = StreamId::new(first).ok_or(Error::ZeroId)?;
            self.have = 0;
            self.state = State::Data { stream, left: len, fin: flags & FLAG_FIN != 0 };
            return Ok(true);
        }
        let version = (first >> 16) as u16 & 0x7fff;
        let kind = first as u16;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        if len > self.limits.max_control {
            return Err(Error::ControlTooLong { len, limit: self.limits.max_control });
        }
        let fixed = fixed_len(kind, len).ok_or(Error::ControlLength { kind, len })?;
        if !self.fill(HEADER + fixed, input) {
            return Ok(false);
        }
        self.have = 0;
        let (frame, block) = self.control(kind, flags, len)?;
        self.state = State::Rest { frame, left: len - fixed, block };
        Ok(true)
    }

    /// Moves bytes from `input` until `want` are there.
    fn fill(&mut self, want: usize, input: &mut Bytes) -> bool {
        if self.have >= want {
            return true;
        }
        let take = (want - self.have).min(input.len());
        if let Some(slot) = self.head.get_mut(self.have..self.have + take) {
            input.copy_to_slice(slot);
        }
        self.have += take;
        self.have == want
    }

    fn word(&self, at: usize) -> u32 {
        self.head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |raw| u32::from_be_bytes(*raw))
    }

    /// The frame as far as its fixed part says, and whether a header block follows.
    fn control(&self, kind: u16, flags: u8, len: usize) -> Result<(Frame, bool), Error> {
        let id = self.word(HEADER) & StreamId::MAX.get();
        let value = self.word(HEADER + 4);
        let allowed = match kind {
            kind::SYN_STREAM => FLAG_FIN | FLAG_UNIDIRECTIONAL,
            kind::SYN_REPLY | kind::HEADERS => FLAG_FIN,
            kind::RST_STREAM | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE => 0,
            _ => u8::MAX, // SETTINGS has a flag of its own; unknown types are ignored whole
        };
        if flags & !allowed != 0 {
            return Err(Error::Flags { kind, flags });
        }
        let fin = flags & FLAG_FIN != 0;
        let stream = StreamId::new(id).ok_or(Error::ZeroId);
        Ok(match kind {
            kind::SYN_STREAM => {
                let priority = self.head.get(HEADER + 8).copied().unwrap_or_default() >> 5;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                (Frame::SynStream { stream: stream?, priority, fin, unidirectional, headers: None }, true)
            }
            kind::SYN_REPLY => (Frame::SynReply { stream: stream?, fin, headers: None }, true),
            kind::HEADERS => (Frame::Headers { stream: stream?, fin, headers: None }, true),
            kind::RST_STREAM => {
                let status = ResetStatus::new(value).ok_or(Error::ZeroStatus)?;
                (Frame::RstStream { stream: stream?, status }, false)
            }
            kind::PING => match self.word(HEADER) {
                0 => return Err(Error::ZeroId),
                id => (Frame::Ping { id }, false),
            },
            kind::GOAWAY => (Frame::GoAway { last_good: id, status: value }, false),
            kind::SETTINGS => {
                let entries = self.word(HEADER);
                if entries as usize > (len - 4) / 8 {
                    return Err(Error::ControlLength { kind, len });
                }
                (Frame::Settings { entries }, false)
            }
            kind::WINDOW_UPDATE => {
                (Frame::WindowUpdate { stream: id, delta: value & StreamId::MAX.get() }, false)
            }
            unknown => (Frame::Unknown { kind: unknown }, false),
        })
    }

    /// Takes the finished control frame out and puts its headers in.
    fn finish_control(&mut self, block: bool) -> Result<Frame, Error> {
        let State::Rest { mut frame, .. } = std::mem::replace(&mut self.state, State::Head) else {
            return Err(Error::HeaderBlock); // not reachable: only called in this state
        };
        if block {
            let decoded: Option<HeaderList> = match &mut self.blocks {
                Blocks::Skip => None,
                #[cfg(feature = "server")]
                Blocks::Decode(inflater) => Some(inflater.take_headers()?),
            };
            if let Frame::SynStream { headers, .. }
            | Frame::SynReply { headers, .. }
            | Frame::Headers { headers, .. } = &mut frame
            {
                *headers = decoded;
            }
        }
        Ok(frame)
    }
}

/// Bytes of a control frame's payload in front of the variable part; `None` if `len` is not possible for the type.
const fn fixed_len(kind: u16, len: usize) -> Option<usize> {
    let (fixed, exact) = match kind {
        kind::SYN_STREAM => (10, false),
        kind::SYN_REPLY | kind::HEADERS | kind::SETTINGS => (4, false),
        kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE => (8, true),
        kind::PING => (4, true),
        _ => (0, false),
    };
    if len < fixed || (exact && len != fixed) { None } else { Some(fixed) }
}
