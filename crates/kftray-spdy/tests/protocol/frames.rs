//! SPDY frames: vectors recorded from Go's spdystream, stored-deflate header blocks against a real zlib, violations,
//! arbitrary portions.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use kftray_spdy::frame::{
    self, DataChunk, Encoder, Error, Frame, HeaderList, Limits, MAX_PAYLOAD, Parser, ResetStatus, StreamId,
};
use kftray_spdy::fuzzing::KUBECTL_OPEN;
use proptest::prelude::*;

fn id(id: u32) -> StreamId {
    StreamId::new(id).expect("a valid id")
}

fn parse(mut parser: Parser, wire: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut input = Bytes::copy_from_slice(wire);
    let mut frames = Vec::new();
    while let Some(frame) = parser.next(&mut input)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn server(wire: &[u8]) -> Result<Vec<Frame>, Error> {
    parse(Parser::server(Limits::default()), wire)
}

fn client(wire: &[u8]) -> Result<Vec<Frame>, Error> {
    parse(Parser::client(Limits::default()), wire)
}

fn data(stream: u32, payload: &'static [u8], fin: bool) -> Frame {
    Frame::Data(DataChunk { stream: id(stream), payload: Bytes::from_static(payload), ends_frame: true, fin })
}

fn list(headers: &[(&str, &str)]) -> HeaderList {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn borrow(headers: &HeaderList) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (&name[..], &value[..])).collect()
}

/// Adler-32 (RFC 1950 section 9), to check the dictionary without trusting the inflater that uses it.
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    (b << 16) | a
}

#[test]
fn dictionary_is_that_of_the_draft() {
    let dictionary = frame::dictionary();
    assert_eq!(dictionary.len(), 1423);
    assert_eq!(adler32(&dictionary), 0xe3c6_a7c2, "the DICTID that every SPDY/3 peer sends");
}

/// Recorded from `spdy.Framer` of moby/spdystream 0.5.1.
#[test]
fn reads_what_kubectl_writes() {
    let mut wire = KUBECTL_OPEN.concat();
    wire.extend_from_slice(b"\0\0\0\x03\0\0\0\x12GET / HTTP/1.1\r\n\r\n");
    // The second pair's SYN_STREAM refers back into the first: the decompressor's state persists.
    wire.extend_from_slice(
        b"\x80\x03\0\x01\0\0\0\x18\0\0\0\x05\0\0\0\0\0\0\x82\xea\x45\x15\x35\x24\xd2\x29\0\0\0\0\xff\xff",
    );
    let frames = server(&wire).expect("valid frames");
    let expected = [(1, "error", "0"), (3, "data", "0"), (5, "error", "1")];
    let mut opened = Vec::new();
    for frame in &frames {
        if let Frame::SynStream {
            stream,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: Some(headers),
        } = frame
        {
            let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
            assert_eq!((headers.len(), get("port")), (3, Some("8080")));
            opened.push((stream.get(), get("streamtype").unwrap(), get("requestid").unwrap()));
        }
    }
    assert_eq!(opened, expected);
    assert_eq!(frames[2], data(1, b"", true));
    assert_eq!(frames[3], data(3, b"GET / HTTP/1.1\r\n\r\n", false));
}

/// Recorded from `spdy.Framer` of moby/spdystream 0.5.1.
#[test]
fn reads_what_the_runtime_writes() {
    let wire: &[&[u8]] = &[
        b"\x80\x03\0\x02\0\0\0\x0c\0\0\0\x03\x02\x61\0\0\0\0\xff\xff",
        b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05",
        b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x07",
        b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x03\0\0\0\0",
        b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\x01\0\0\x04\0\0\0\x64",
        b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x03\0\x01\0\0",
        b"\x80\x03\0\x08\0\0\0\x15\0\0\0\x03\x02\xe9\x01\x19\x54\xa1\x0b\xca\x9f\x8c\x55\0\0\0\0\xff\xff",
    ];
    let expected = [
        Frame::SynReply { stream: id(3), fin: false, headers: None },
        Frame::RstStream { stream: id(3), status: ResetStatus::CANCEL },
        Frame::Ping { id: 7 },
        Frame::GoAway { last_good: 3, status: 0 },
        Frame::Settings { entries: 1 },
        Frame::WindowUpdate { stream: 3, delta: 65536 },
        Frame::Headers { stream: id(3), fin: false, headers: None },
    ];
    assert_eq!(client(&wire.concat()).expect("valid frames"), expected);
}

/// The bytes of our SYN_STREAM, written out: what the runtime must be able to read.
#[test]
fn header_blocks_are_stored_deflate() {
    let (mut out, mut encoder) = (Vec::new(), Encoder::new());
    encoder.syn_stream(&mut out, id(1), &[("port", "80")], false);
    let first = b"\x80\x03\0\x01\0\0\0\x28\0\0\0\x01\0\0\0\0\0\0\x78\x01\
        \0\x12\0\xed\xff\0\0\0\x01\0\0\0\x04port\0\0\0\x0280\0\0\0\xff\xff";
    assert_eq!(out, first);
    out.clear();
    encoder.syn_reply(&mut out, id(1), &[], true);
    // The zlib header comes once per connection; an empty list is a count of zero.
    assert_eq!(out, b"\x80\x03\0\x02\x01\0\0\x12\0\0\0\x01\0\x04\0\xfb\xff\0\0\0\0\0\0\0\xff\xff");
}

#[test]
fn writes_control_frames() {
    let mut out = Vec::new();
    frame::put_rst_stream(&mut out, id(3), ResetStatus::CANCEL);
    frame::put_ping(&mut out, 7);
    frame::put_goaway(&mut out, 3, 0);
    frame::put_window_update(&mut out, 3, 65536);
    let expected: [&[u8]; 4] = [
        b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05",
        b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x07",
        b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x03\0\0\0\0",
        b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x03\0\x01\0\0",
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn data_comes_as_it_arrives_and_without_a_copy() {
    let mut wire = Vec::new();
    frame::put_data(&mut wire, id(3), b"abcdefgh", true);
    let whole = Bytes::from(wire);
    let mut parser = Parser::client(Limits::default());
    assert_eq!(parser.next(&mut whole.slice(..8)), Ok(None));
    let mut part = whole.slice(8..11);
    let Ok(Some(Frame::Data(chunk))) = parser.next(&mut part) else { panic!("three bytes are there") };
    assert_eq!((&chunk.payload[..], chunk.ends_frame, chunk.fin), (&b"abc"[..], false, false));
    assert_eq!(chunk.payload.as_ptr(), whole[8..].as_ptr());
    assert!(!parser.is_between_frames());
    assert_eq!(parser.next(&mut part), Ok(None));
    let Ok(Some(Frame::Data(chunk))) = parser.next(&mut whole.slice(11..)) else {
        panic!("the rest is there")
    };
    assert_eq!((&chunk.payload[..], chunk.ends_frame, chunk.fin), (&b"defgh"[..], true, true));
    assert!(parser.is_between_frames());
}

#[test]
fn long_payloads_are_split() {
    let payload = vec![7; MAX_PAYLOAD + 1];
    let mut wire = Vec::new();
    frame::put_data(&mut wire, id(3), &payload, true);
    let frames = client(&wire).expect("valid frames");
    let sizes: Vec<_> = frames
        .iter()
        .map(
            |frame| {
                if let Frame::Data(chunk) = frame { (chunk.payload.len(), chunk.fin) } else { (0, false) }
            },
        )
        .collect();
    assert_eq!(sizes, [(MAX_PAYLOAD, false), (1, true)]);
}

#[test]
fn violations_are_typed() {
    let cases: &[(&[u8], Error)] = &[
        (b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x07", Error::Version(2)),
        (b"\0\0\0\0\0\0\0\x01", Error::ZeroId),
        (b"\x80\x03\0\x06\0\0\0\x04\0\0\0\0", Error::ZeroId),
        (b"\x80\x03\0\x06\0\0\0\x05\0\0\0\x01\0", Error::ControlLength { kind: 6, len: 5 }),
        (b"\x80\x03\0\x06\x01\0\0\x04\0\0\0\x01", Error::Flags { kind: 6, flags: 1 }),
        (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x05", Error::ZeroId),
        (b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\0", Error::ZeroStatus),
        (b"\x80\x03\0\x02\0\0\0\x03", Error::ControlLength { kind: 2, len: 3 }),
        (b"\x80\x03\0\x01\0\0\0\x09", Error::ControlLength { kind: 1, len: 9 }),
        (b"\x80\x03\0\x01\x04\0\0\x0a\0\0\0\x01\0\0\0\0\0\0", Error::Flags { kind: 1, flags: 4 }),
        (b"\x80\x03\0\x04\0\0\0\x04\0\0\0\x01", Error::ControlLength { kind: 4, len: 4 }),
    ];
    for (wire, error) in cases {
        assert_eq!(client(wire), Err(error.clone()), "{wire:02x?}");
        assert_eq!(server(wire), Err(error.clone()), "{wire:02x?}");
    }
    let limits = Limits { max_control: 100, ..Limits::default() };
    assert_eq!(
        parse(Parser::client(limits), b"\x80\x03\0\x02\0\0\0\x65"),
        Err(Error::ControlTooLong { len: 101, limit: 100 })
    );
}

/// A SYN_STREAM with a header block that is compressed by a real zlib, with or without the dictionary.
fn compressed(raw: &[u8], with_dictionary: bool) -> Vec<u8> {
    let mut zlib = Compress::new(Compression::best(), true);
    if with_dictionary {
        zlib.set_dictionary(&frame::dictionary()).expect("a fresh stream takes a dictionary");
    }
    let mut block = Vec::with_capacity(raw.len() + 1024);
    zlib.compress_vec(raw, &mut block, FlushCompress::Sync).expect("room is there");
    let mut wire = vec![0x80, 3, 0, 1];
    wire.extend_from_slice(&u32::try_from(block.len() + 10).unwrap().to_be_bytes());
    wire.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0]);
    wire.extend_from_slice(&block);
    wire
}

/// A header block before compression.
fn raw_block(count: usize, headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut raw = u32::try_from(count).unwrap().to_be_bytes().to_vec();
    for field in headers.iter().flat_map(|(name, value)| [name, value]) {
        raw.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
        raw.extend_from_slice(field);
    }
    raw
}

#[test]
fn both_kinds_of_zlib_stream_are_read() {
    let raw = raw_block(2, &[(b"content-type", b"text/html"), (b"port", b"80")]);
    for with_dictionary in [true, false] {
        let frames = server(&compressed(&raw, with_dictionary)).expect("a valid frame");
        let headers = Some(list(&[("content-type", "text/html"), ("port", "80")]));
        let expected =
            Frame::SynStream { stream: id(1), priority: 3, fin: false, unidirectional: false, headers };
        assert_eq!(frames, [expected]);
    }
}

#[test]
fn bad_header_blocks_are_refused() {
    let long = vec![b'x'; (1 << 20) + 1];
    let field = vec![b'x'; 1 << 20];
    let many: Vec<(Vec<u8>, Vec<u8>)> = (0..1001).map(|n| (format!("h{n}").into_bytes(), vec![])).collect();
    let many: Vec<(&[u8], &[u8])> = many.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let five: [(&[u8], &[u8]); 5] =
        [(b"a", &field), (b"b", &field), (b"c", &field), (b"d", &field), (b"e", &field)];
    let cases: [(Vec<u8>, Error); 10] = [
        (raw_block(1, &[(b"Port", b"80")]), Error::Header),
        (raw_block(1, &[(b"", b"80")]), Error::Header),
        (raw_block(1, &[(b"port", b"\xff")]), Error::Header),
        (raw_block(2, &[(b"port", b"80"), (b"port", b"81")]), Error::Header),
        (raw_block(2, &[(b"port", b"80")]), Error::HeaderBlock),
        (raw_block(0, &[(b"port", b"80")]), Error::HeaderBlock),
        (Vec::new(), Error::HeaderBlock),
        (raw_block(1, &[(b"port", &long)]), Error::HeadersTooLarge),
        (raw_block(1001, &many), Error::HeadersTooLarge),
        (raw_block(5, &five), Error::HeadersTooLarge),
    ];
    for (index, (raw, error)) in cases.into_iter().enumerate() {
        assert_eq!(server(&compressed(&raw, true)), Err(error), "case {index}");
    }
    // No zlib at all, and a stream that ends.
    assert_eq!(server(b"\x80\x03\0\x02\0\0\0\x08\0\0\0\x01oops"), Err(Error::HeaderBlock));
    let mut zlib = Compress::new(Compression::best(), true);
    let mut block = Vec::with_capacity(100);
    zlib.compress_vec(&raw_block(0, &[]), &mut block, FlushCompress::Finish).expect("room is there");
    let mut wire = vec![0x80, 3, 0, 2, 0, 0, 0, 4 + block.len() as u8, 0, 0, 0, 1];
    wire.extend_from_slice(&block);
    assert_eq!(server(&wire), Err(Error::HeaderBlock));
}

#[test]
fn a_limit_of_headers_may_be_used_up() {
    let headers: Vec<(String, String)> = (0..1000).map(|n| (format!("h{n}"), "v".to_owned())).collect();
    let borrowed = borrow(&headers);
    let mut wire = Vec::new();
    Encoder::new().headers(&mut wire, id(1), &borrowed, false);
    assert_eq!(
        server(&wire).expect("a valid frame"),
        [Frame::Headers { stream: id(1), fin: false, headers: Some(headers) }]
    );
}

/// Inflates our blocks one by one with a decoder of its own.
fn inflate(zlib: &mut Decompress, block: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(1 << 20);
    let before = zlib.total_in();
    zlib.decompress_vec(block, &mut raw, FlushDecompress::Sync).expect("a valid zlib stream");
    assert_eq!(zlib.total_in() - before, block.len() as u64, "the whole block is used up");
    raw
}

fn any_headers() -> impl Strategy<Value = HeaderList> {
    let value = prop_oneof![8 => "[ -~]{0,40}", 1 => "[a-z]{1,2}".prop_map(|text| text.repeat(40_000))];
    prop::collection::btree_map("[a-z][a-z0-9-]{0,15}", value, 0..6).prop_map(|map| map.into_iter().collect())
}

#[derive(Clone, Debug)]
enum Write {
    Syn(u32, HeaderList, bool),
    Reply(u32, HeaderList, bool),
    Headers(u32, HeaderList, bool),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32, u32),
    Settings(Vec<(u32, u32)>),
    Window(u32, u32),
}

fn any_write() -> impl Strategy<Value = Write> {
    let stream = 1..=StreamId::MAX.get();
    prop_oneof![
        (stream.clone(), any_headers(), any::<bool>()).prop_map(|(s, h, f)| Write::Syn(s, h, f)),
        (stream.clone(), any_headers(), any::<bool>()).prop_map(|(s, h, f)| Write::Reply(s, h, f)),
        (stream.clone(), any_headers(), any::<bool>()).prop_map(|(s, h, f)| Write::Headers(s, h, f)),
        (stream.clone(), prop::collection::vec(any::<u8>(), 0..200), any::<bool>())
            .prop_map(|(s, p, f)| Write::Data(s, p, f)),
        (stream.clone(), 1..=u32::MAX).prop_map(|(s, c)| Write::Reset(s, c)),
        (1..=u32::MAX).prop_map(Write::Ping),
        (0..=StreamId::MAX.get(), any::<u32>()).prop_map(|(s, c)| Write::GoAway(s, c)),
        prop::collection::vec((0_u32..1 << 24, any::<u32>()), 0..5).prop_map(Write::Settings),
        (stream, 0..=StreamId::MAX.get()).prop_map(|(s, d)| Write::Window(s, d)),
    ]
}

impl Write {
    fn put(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        match self {
            Self::Syn(stream, headers, fin) => encoder.syn_stream(out, id(*stream), &borrow(headers), *fin),
            Self::Reply(stream, headers, fin) => encoder.syn_reply(out, id(*stream), &borrow(headers), *fin),
            Self::Headers(stream, headers, fin) => encoder.headers(out, id(*stream), &borrow(headers), *fin),
            Self::Data(stream, payload, fin) => frame::put_data(out, id(*stream), payload, *fin),
            Self::Reset(stream, status) => {
                frame::put_rst_stream(out, id(*stream), ResetStatus::new(*status).expect("not zero"));
            }
            Self::Ping(ping) => frame::put_ping(out, *ping),
            Self::GoAway(last, status) => frame::put_goaway(out, *last, *status),
            Self::Settings(entries) => frame::put_settings(out, entries),
            Self::Window(stream, delta) => frame::put_window_update(out, *stream, *delta),
        }
    }

    fn frame(&self, decoded: bool) -> Frame {
        let keep = |headers: &HeaderList| decoded.then(|| headers.clone());
        match self {
            Self::Syn(stream, headers, fin) => Frame::SynStream {
                stream: id(*stream),
                priority: 0,
                fin: *fin,
                unidirectional: false,
                headers: keep(headers),
            },
            Self::Reply(stream, headers, fin) => {
                Frame::SynReply { stream: id(*stream), fin: *fin, headers: keep(headers) }
            }
            Self::Headers(stream, headers, fin) => {
                Frame::Headers { stream: id(*stream), fin: *fin, headers: keep(headers) }
            }
            Self::Data(stream, payload, fin) => Frame::Data(DataChunk {
                stream: id(*stream),
                payload: payload.clone().into(),
                ends_frame: true,
                fin: *fin,
            }),
            Self::Reset(stream, status) => {
                Frame::RstStream { stream: id(*stream), status: ResetStatus::new(*status).expect("not zero") }
            }
            Self::Ping(ping) => Frame::Ping { id: *ping },
            Self::GoAway(last, status) => Frame::GoAway { last_good: *last, status: *status },
            Self::Settings(entries) => Frame::Settings { entries: u32::try_from(entries.len()).unwrap() },
            Self::Window(stream, delta) => Frame::WindowUpdate { stream: *stream, delta: *delta },
        }
    }
}

/// Joins the chunks of DATA frames.
fn join(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        if let (Some(Frame::Data(earlier)), Frame::Data(later)) = (joined.last_mut(), &frame)
            && !earlier.ends_frame
        {
            earlier.payload = [&earlier.payload[..], &later.payload[..]].concat().into();
            (earlier.ends_frame, earlier.fin) = (later.ends_frame, later.fin);
        } else {
            joined.push(frame);
        }
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_frames_in_any_portions(
        writes in prop::collection::vec(any_write(), 1..12),
        portions in prop::collection::vec(1_usize..3000, 1..32),
        tiny in any::<bool>(),
    ) {
        let (mut wire, mut encoder) = (Vec::new(), Encoder::new());
        for write in &writes {
            write.put(&mut encoder, &mut wire);
        }
        for decoded in [true, false] {
            let limits = Limits::default();
            let mut parser = if decoded { Parser::server(limits) } else { Parser::client(limits) };
            let (mut rest, mut frames) = (Bytes::copy_from_slice(&wire), Vec::new());
            for portion in portions.iter().cycle() {
                if rest.is_empty() { break; }
                let portion = if tiny { portion % 13 + 1 } else { *portion };
                let mut part = rest.split_to(portion.min(rest.len()));
                while let Some(frame) = parser.next(&mut part).unwrap() {
                    frames.push(frame);
                }
                prop_assert!(part.is_empty());
            }
            prop_assert!(parser.is_between_frames());
            let expected: Vec<_> = writes.iter().map(|write| write.frame(decoded)).collect();
            prop_assert_eq!(join(frames), expected);
        }
    }

    /// The proof that stored blocks are a zlib stream: a decoder that knows nothing of SPDY reads them, one by one.
    #[test]
    fn header_blocks_inflate_with_a_real_zlib(lists in prop::collection::vec(any_headers(), 1..6)) {
        let (mut encoder, mut zlib) = (Encoder::new(), Decompress::new(true));
        for headers in lists {
            let borrowed = borrow(&headers);
            let fields: Vec<(&[u8], &[u8])> = borrowed.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            let mut wire = Vec::new();
            encoder.syn_stream(&mut wire, id(1), &borrowed, false);
            prop_assert_eq!(wire.len() - 8, usize::from(wire[5]) << 16 | usize::from(wire[6]) << 8 | usize::from(wire[7]));
            prop_assert_eq!(inflate(&mut zlib, &wire[18..]), raw_block(headers.len(), &fields));
        }
    }

    #[test]
    fn garbage_never_panics(mut input in prop::collection::vec(any::<u8>(), 0..512), steer in any::<u8>()) {
        input.insert(0, steer);
        kftray_spdy::fuzzing::spdy_server(&input);
        kftray_spdy::fuzzing::spdy_client(&input);
    }
}
