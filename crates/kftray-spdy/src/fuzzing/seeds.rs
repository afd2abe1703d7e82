//! Well-formed conversations to start the fuzzers from. The first byte of each steers the harness.

use crate::connection::Client;
use crate::frame::{self, ResetStatus, StreamId};
use crate::{channel, ws};

/// A few well-formed conversations per target, to start the fuzzers from; pairs of a file name and its content.
#[must_use]
pub fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "spdy_client" => vec![
            ("answered", client_answered()),
            ("refused", client_refused()),
            ("goaway", client_goaway()),
            ("control", control_frames()),
        ],
        "spdy_server" => {
            vec![("ours", server_ours()), ("kubectl", server_kubectl()), ("control", control_frames())]
        }
        "ws_parser" => vec![("fragments", ws_fragments()), ("masked", ws_masked()), ("medium", ws_medium())],
        "channel" => vec![("server", channel_server()), ("client", channel_client())],
        _ => Vec::new(),
    }
}

fn stream(id: u32) -> StreamId {
    StreamId::new(id).unwrap_or(StreamId::MAX)
}

fn client_answered() -> Vec<u8> {
    let mut out = vec![7];
    let mut encoder = frame::Encoder::new();
    encoder.syn_reply(&mut out, stream(1), &[], false);
    encoder.syn_reply(&mut out, stream(3), &[], false);
    frame::put_data(&mut out, stream(3), b"HTTP/1.1 200 OK\r\n\r\n", false);
    frame::put_data(&mut out, stream(3), b"body", true);
    frame::put_data(&mut out, stream(1), b"", true);
    out
}

fn client_refused() -> Vec<u8> {
    let mut out = vec![9];
    let mut encoder = frame::Encoder::new();
    encoder.syn_reply(&mut out, stream(5), &[], false);
    encoder.syn_reply(&mut out, stream(7), &[], false);
    frame::put_data(
        &mut out,
        stream(5),
        b"error forwarding port 443: failed to connect to localhost:443",
        false,
    );
    frame::put_rst_stream(&mut out, stream(7), ResetStatus::CANCEL);
    frame::put_rst_stream(&mut out, stream(5), ResetStatus::CANCEL);
    frame::put_data(&mut out, stream(7), b"late", false);
    out
}

fn client_goaway() -> Vec<u8> {
    let mut out = vec![1];
    frame::put_ping(&mut out, 1);
    frame::put_ping(&mut out, 2);
    frame::put_goaway(&mut out, 7, 0);
    frame::put_data(&mut out, stream(11), b"still here", true);
    out
}

fn control_frames() -> Vec<u8> {
    let mut out = vec![3];
    let mut encoder = frame::Encoder::new();
    frame::put_settings(&mut out, &[(4, 100), (7, 65536)]);
    frame::put_window_update(&mut out, 3, 65536);
    encoder.headers(&mut out, stream(3), &[("x", "y")], true);
    encoder.syn_stream_with(&mut out, stream(2), &[("streamtype", "data")], false, true);
    out.extend_from_slice(&[0x80, 3, 0, 5, 0, 0, 0, 0]); // NOOP of SPDY/2
    out
}

fn server_ours() -> Vec<u8> {
    let mut out = vec![5];
    let mut client = Client::new();
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b""] {
        if let Ok(pair) = client.open(8080, first, &mut out) {
            client.ping(&mut out);
            client.reset(pair, ResetStatus::CANCEL, &mut out);
        }
    }
    out
}

/// SYN_STREAM(error) and SYN_STREAM(data) as Go's spdystream 0.5.1 writes them, compressed with the dictionary.
fn server_kubectl() -> Vec<u8> {
    let mut out = vec![11];
    for part in KUBECTL_OPEN {
        out.extend_from_slice(part);
    }
    out
}

/// Recorded from `spdy.Framer` of moby/spdystream 0.5.1: streamtype, port 8080, requestid 0.
pub const KUBECTL_OPEN: [&[u8]; 3] = [
    b"\x80\x03\x00\x01\x00\x00\x00\x3e\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x78\xf9\xe3\xc6\xa7\xc2\x02\x25\x3a\x70\
      \x3a\x2b\x29\x4a\x4d\xcc\x85\x16\x25\xac\xa9\xa0\x80\x86\x14\xcb\x45\xe0\x1c\x60\x61\x60\x61\xc0\xc0\xc0\xc0\x59\
      \x04\x89\xc6\x4c\x50\xf2\x66\x34\x00\x00\x00\x00\xff\xff",
    b"\x80\x03\x00\x01\x00\x00\x00\x18\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\xc2\xaa\x19\x54\x0e\x25\x12\xd6\x0b\x00\
      \x00\x00\xff\xff",
    b"\x00\x00\x00\x01\x01\x00\x00\x00",
];

fn ws_fragments() -> Vec<u8> {
    let mut out = vec![2];
    // As gorilla sends: a large non-final frame, an empty final one; a ping between them.
    out.extend_from_slice(&ws::header(ws::Role::Server, ws::Opcode::Binary, false, 200));
    out.extend_from_slice(&[0x55; 200]);
    ws::put_ping(&mut out, ws::Role::Server, b"ping");
    out.extend_from_slice(&ws::header(ws::Role::Server, ws::Opcode::Continuation, true, 0));
    ws::put_binary(&mut out, ws::Role::Server, b"whole");
    ws::put_close(&mut out, ws::Role::Server, 1000, "bye");
    out
}

fn ws_masked() -> Vec<u8> {
    // RFC 6455 section 5.7: a masked "Hello", here binary; then ours with key zero.
    let mut out = vec![1, 0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    ws::put_binary(&mut out, ws::Role::Client, b"plain");
    ws::put_pong(&mut out, ws::Role::Client, b"ping");
    ws::put_close(&mut out, ws::Role::Client, 1001, "");
    out
}

fn ws_medium() -> Vec<u8> {
    let mut out = vec![4];
    ws::put_binary(&mut out, ws::Role::Server, &[7; 300]);
    ws::put_pong(&mut out, ws::Role::Server, b"");
    out
}

fn channel_server() -> Vec<u8> {
    let mut out = vec![2]; // a client of two ports
    let role = ws::Role::Server;
    let written = (|| {
        channel::put_greeting(&mut out, role, 0, 8080)?;
        channel::put_greeting(&mut out, role, 1, 443)?;
        channel::put_data(&mut out, role, 0, b"hello")?;
        channel::put_error(&mut out, role, 1, "failed to connect to localhost:443")
    })();
    assert_eq!(written, Ok(()));
    out
}

fn channel_client() -> Vec<u8> {
    let mut out = vec![1]; // a server of one port
    assert_eq!(channel::put_data(&mut out, ws::Role::Client, 0, b"GET /"), Ok(()));
    out
}
