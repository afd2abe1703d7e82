//! The legacy channel protocol `v4.channel.k8s.io`, the last resort among the carriers.
//!
//! One WebSocket carries a fixed list of ports, given in the URL. Every message is one channel byte and payload: channel
//! `2i` is the data and `2i + 1` the error text of the i-th port. The first message of the server on each channel is the
//! port, two bytes little endian. There is no way to end a direction or a channel: the end is the end of the socket
//! (kubernetes/cri-streaming `pkg/streaming/portforward/websocket.go`, apimachinery `wsstream/conn.go`).

use bytes::{Buf, BufMut, Bytes};

use crate::ws;

/// Most ports of one socket: two channels each must fit the channel byte, and 255 is taken by later versions (v5 CLOSE).
pub const MAX_PORTS: usize = 127;

/// Longest error text that is kept per port, in bytes; more is dropped. The runtime's messages are a few hundred bytes.
pub const MAX_ERROR_TEXT: usize = 64 * 1024;

/// Appends one WebSocket message with `payload` for the data channel of port number `index` (in the order of the URL).
///
/// # Errors
/// [`Error::NoSuchPort`] if `index` is not below [`MAX_PORTS`].
pub fn put_data(out: &mut impl BufMut, role: ws::Role, index: usize, payload: &[u8]) -> Result<(), Error> {
    put_channel(out, role, channel_byte(index, false)?, payload);
    Ok(())
}

/// Appends one WebSocket message with error text for port number `index` (server only).
///
/// # Errors
/// [`Error::NoSuchPort`] if `index` is not below [`MAX_PORTS`].
pub fn put_error(out: &mut impl BufMut, role: ws::Role, index: usize, text: &str) -> Result<(), Error> {
    put_channel(out, role, channel_byte(index, true)?, text.as_bytes());
    Ok(())
}

/// Appends the server's greeting: the port number on both channels of port number `index`.
///
/// # Errors
/// [`Error::NoSuchPort`] if `index` is not below [`MAX_PORTS`].
pub fn put_greeting(out: &mut impl BufMut, role: ws::Role, index: usize, port: u16) -> Result<(), Error> {
    put_channel(out, role, channel_byte(index, false)?, &port.to_le_bytes());
    put_channel(out, role, channel_byte(index, true)?, &port.to_le_bytes());
    Ok(())
}

fn channel_byte(index: usize, error: bool) -> Result<u8, Error> {
    if index >= MAX_PORTS {
        return Err(Error::NoSuchPort(index));
    }
    u8::try_from(index * 2 + usize::from(error)).map_err(|_| Error::NoSuchPort(index))
}

fn put_channel(out: &mut impl BufMut, role: ws::Role, channel: u8, payload: &[u8]) {
    out.put_slice(&ws::header(role, ws::Opcode::Binary, true, payload.len() + 1));
    out.put_u8(channel);
    out.put_slice(payload);
}

/// What arrived on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server announced the channel; both channels of a port do so once. Only seen by clients.
    Port {
        /// Position of the port in the URL.
        index: usize,
        /// The port number.
        port: u16,
        /// It is the error channel's greeting.
        error: bool,
    },
    /// Bytes of the forwarded connection, as much as has arrived.
    Data {
        /// Position of the port in the URL.
        index: usize,
        /// The bytes.
        payload: Bytes,
    },
    /// Error text of the runtime, a whole message. Only seen by clients.
    Error {
        /// Position of the port in the URL.
        index: usize,
        /// The text; invalid UTF-8 is replaced, cut at [`MAX_ERROR_TEXT`].
        text: String,
    },
}

/// Why the messages do not follow the protocol. The connection is lost after any of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More ports than the channel byte can name, or none.
    #[error("a channel connection carries 1 to 127 ports, not {0}")]
    PortCount(usize),
    /// An index outside of the agreed ports.
    #[error("no port number {0} on this channel connection")]
    NoSuchPort(usize),
    /// A message for a channel that was not agreed.
    #[error("a message on unknown channel {0}")]
    UnknownChannel(u8),
    /// A channel's first message was not a port.
    #[error("the first message on channel {0} is not a port number")]
    Greeting(u8),
    /// A client wrote to an error channel.
    #[error("a client's message on error channel {0}")]
    ReadOnly(u8),
}

/// Where one channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    /// So many bytes of the port have come.
    Awaited { port: [u8; 2], have: u8 },
    /// Everything from now on is payload.
    Done,
}

/// Takes the WebSocket parser's data events apart into channels.
#[derive(Clone, Debug)]
pub struct Parser {
    /// One per channel; all `Done` from the start for a server's parser.
    greetings: Vec<Greeting>,
    server: bool,
    /// The channel of the message that is arriving; `None` before its channel byte.
    current: Option<u8>,
    /// Error text of the message that is arriving.
    text: Vec<u8>,
}

impl Parser {
    /// A parser for `ports` ports, 1 to [`MAX_PORTS`]; `role` is ours.
    ///
    /// # Errors
    /// [`Error::PortCount`].
    pub fn new(role: ws::Role, ports: usize) -> Result<Self, Error> {
        if ports == 0 || ports > MAX_PORTS {
            return Err(Error::PortCount(ports));
        }
        let (first, server) = match role {
            ws::Role::Client => (Greeting::Awaited { port: [0; 2], have: 0 }, false),
            ws::Role::Server => (Greeting::Done, true),
        };
        Ok(Self { greetings: vec![first; ports * 2], server, current: None, text: Vec::new() })
    }

    /// Feeds one [`ws::Event::Data`]: its payload and whether it ends a message.
    ///
    /// At most one event comes of it. Data bytes are handed out at once, error text when its message is complete. An empty
    /// message is ignored, as the server does.
    ///
    /// # Errors
    /// Any violation of the protocol; the parser must not be used afterwards.
    pub fn next(&mut self, mut payload: Bytes, ends: bool) -> Result<Option<Event>, Error> {
        if self.current.is_none() && payload.has_remaining() {
            let channel = payload.get_u8();
            if usize::from(channel) >= self.greetings.len() {
                return Err(Error::UnknownChannel(channel));
            }
            self.current = Some(channel);
        }
        let Some(channel) = self.current else { return Ok(None) };
        if ends {
            self.current = None;
        }
        let index = usize::from(channel / 2);
        let error = channel % 2 == 1;
        if error && self.server {
            return Err(Error::ReadOnly(channel));
        }
        if let Some(port) = self.greet(channel, &mut payload, ends)? {
            return Ok(port.map(|port| Event::Port { index, port, error }));
        }
        if error {
            let room = MAX_ERROR_TEXT.saturating_sub(self.text.len()).min(payload.len());
            self.text.extend_from_slice(payload.get(..room).unwrap_or_default());
            if !ends {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&self.text).into_owned();
            self.text.clear();
            return Ok((!text.is_empty()).then_some(Event::Error { index, text }));
        }
        Ok((!payload.is_empty()).then_some(Event::Data { index, payload }))
    }

    /// Handles the first message of a channel. `None`: the greeting is long done, the payload is data.
    /// `Some(None)`: the greeting is still arriving.
    fn greet(&mut self, channel: u8, payload: &mut Bytes, ends: bool) -> Result<Option<Option<u16>>, Error> {
        let Some(state) = self.greetings.get_mut(usize::from(channel)) else {
            return Err(Error::UnknownChannel(channel));
        };
        let Greeting::Awaited { mut port, mut have } = *state else { return Ok(None) };
        for slot in port.iter_mut().skip(usize::from(have)) {
            let Ok(byte) = payload.try_get_u8() else { break };
            *slot = byte;
            have += 1;
        }
        // The port is a message of its own: two bytes, nothing more, nothing less.
        if !payload.is_empty() || (ends && have < 2) {
            return Err(Error::Greeting(channel));
        }
        *state = if ends { Greeting::Done } else { Greeting::Awaited { port, have } };
        Ok(Some(ends.then_some(u16::from_le_bytes(port))))
    }
}
