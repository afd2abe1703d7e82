//! What the fuzz targets run, shared with the test that replays the committed corpus. Each panics on a broken promise.

use bytes::{Bytes, BytesMut};

use crate::WireError;
use crate::hello::{Answer, ClientHello, Purpose, ServerHello};
use crate::open::{Family, Incoming, Listen, Mode, Open, Policy, Reply, Target};
use crate::reason::{EndKind, Refusal, RefusalKind};
use crate::record::{Decoder, Record};
use crate::token::Token;
use crate::version::Versions;

/// The fuzz targets' names.
pub const TARGETS: [&str; 3] = ["relay_hello", "relay_open", "relay_record"];

/// The first messages of a carrier: what decodes encodes to something that decodes to the same.
pub fn relay_hello(input: &[u8]) {
    message(input, ClientHello::decode, ClientHello::encode);
    message(input, Answer::decode, Answer::encode);
}

/// The first messages of a stream.
pub fn relay_open(input: &[u8]) {
    message(input, Open::decode, Open::encode);
    message(input, Reply::decode, Reply::encode);
}

fn message<T: PartialEq + std::fmt::Debug>(
    input: &[u8],
    decode: fn(&mut BytesMut) -> Result<Option<T>, WireError>,
    encode: fn(&T, &mut BytesMut),
) {
    let mut buffer = BytesMut::from(input);
    match decode(&mut buffer) {
        Ok(Some(value)) => {
            assert!(buffer.len() < input.len(), "a message takes bytes");
            let mut again = BytesMut::new();
            encode(&value, &mut again);
            assert_eq!(decode(&mut again), Ok(Some(value)), "it encodes to what it decodes from");
            assert!(again.is_empty(), "nothing is left");
        }
        Ok(None) => assert_eq!(buffer, input, "nothing is consumed before all is there"),
        Err(_) => {}
    }
}

/// Records: cutting the input into chunks, steered by the first byte, changes nothing but where TCP payload is cut.
pub fn relay_record(input: &[u8]) {
    let Some((&steer, input)) = input.split_first() else { return };
    for decoder in [Decoder::stream, Decoder::datagrams] {
        let whole = records(decoder(), input, input.len().max(1));
        let cut = records(decoder(), input, usize::from(steer % 16) + 1);
        if matches!(whole.1, Ok(true)) {
            let mut again = BytesMut::new();
            whole.0.iter().for_each(|record| record.encode(&mut again));
            assert_eq!(
                records(decoder(), &again, again.len().max(1)),
                whole,
                "what decodes encodes to the same"
            );
        }
        assert_eq!(joined(whole.0), joined(cut.0));
        assert_eq!(whole.1.is_ok(), cut.1.is_ok());
    }
}

/// All records, and whether the input ended between two of them.
fn records(mut decoder: Decoder, input: &[u8], chunk: usize) -> (Vec<Record>, Result<bool, WireError>) {
    let mut found = Vec::new();
    for part in input.chunks(chunk) {
        let mut part = Bytes::copy_from_slice(part);
        loop {
            match decoder.next(&mut part) {
                Ok(Some(record)) => found.push(record),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
        assert!(part.is_empty(), "a chunk is used up");
    }
    (found, Ok(decoder.is_between_records()))
}

/// A dump in which neighbouring payload is one.
fn joined(records: Vec<Record>) -> Vec<Record> {
    let mut out: Vec<Record> = Vec::new();
    for record in records {
        match (out.last_mut(), record) {
            (Some(Record::Data(before)), Record::Data(after)) => {
                *before = [&before[..], &after[..]].concat().into();
            }
            (_, record) => out.push(record),
        }
    }
    out
}

/// Well-formed messages to start the fuzzers from, and the golden messages of the version: names and values.
pub mod samples {
    use super::*;

    /// Hellos of clients.
    #[must_use]
    pub fn hellos() -> Vec<(&'static str, ClientHello)> {
        let hello = ClientHello {
            versions: Versions { lowest: 1, highest: 1 },
            token: Token::new([0xA5; 32]),
            client: "kftui/1.0.0 jane@laptop".into(),
            purpose: Purpose::Tcp,
        };
        vec![
            ("tcp", hello.clone()),
            ("udp", ClientHello { purpose: Purpose::Udp, client: String::new(), ..hello.clone() }),
            (
                "expose",
                ClientHello {
                    purpose: Purpose::Expose,
                    versions: Versions { lowest: 1, highest: 7 },
                    ..hello
                },
            ),
        ]
    }

    /// Answers of relays.
    #[must_use]
    pub fn answers() -> Vec<(&'static str, Answer)> {
        let refused = |kind, message: &str| Answer::Refused {
            refusal: Refusal::new(kind, message),
            versions: Versions { lowest: 2, highest: 3 },
        };
        vec![
            (
                "accepted",
                Answer::Accepted(ServerHello {
                    version: 1,
                    software: "kftray-server/1.0.0".into(),
                    instance: *b"instance",
                    max_streams: 4096,
                }),
            ),
            ("version", refused(RefusalKind::Version, "the relay speaks protocol 2 to 3, the client 1")),
            ("unauthorized", refused(RefusalKind::Unauthorized, "")),
        ]
    }

    /// First messages of streams.
    #[must_use]
    pub fn opens() -> Vec<(&'static str, Open)> {
        let target = |host: &str, port| Target { host: host.into(), port };
        let seconds = |seconds| Some(std::time::Duration::from_secs(seconds));
        vec![
            (
                "tcp-name",
                Open::Tcp { target: target("db.prod.svc.cluster.local", 5432), policy: Policy::default() },
            ),
            (
                "tcp-policy",
                Open::Tcp {
                    target: target("2001:db8::1", 443),
                    policy: Policy { connect_timeout: seconds(3), family: Some(Family::V6), idle: None },
                },
            ),
            (
                "udp",
                Open::Udp {
                    target: target("10.96.0.10", 53),
                    policy: Policy { idle: seconds(15), family: Some(Family::V4), connect_timeout: None },
                },
            ),
            (
                "listen-http",
                Open::Listen(Listen {
                    name: "shop".into(),
                    port: 8080,
                    mode: Mode::Http,
                    callers: Vec::new(),
                }),
            ),
            (
                "listen-callers",
                Open::Listen(Listen {
                    name: "webhook.example.com".into(),
                    port: 8081,
                    mode: Mode::Tcp,
                    callers: vec!["10.0.0.0/8".into(), "fd00::/8".into()],
                }),
            ),
            (
                "incoming",
                Open::Incoming(Incoming {
                    name: "shop".into(),
                    port: 8080,
                    peer: "10.244.0.17:41234".into(),
                }),
            ),
        ]
    }

    /// Replies.
    #[must_use]
    pub fn replies() -> Vec<(&'static str, Reply)> {
        vec![
            ("pending", Reply::Pending),
            ("opened", Reply::Opened { address: "10.0.0.7".into(), port: 5432 }),
            ("opened-incoming", Reply::Opened { address: String::new(), port: 0 }),
            ("denied", Reply::Refused(Refusal::new(RefusalKind::Denied, "169.254.169.254 is not allowed"))),
            ("busy", Reply::Refused(Refusal::new(RefusalKind::Busy, ""))),
        ]
    }

    /// Records.
    #[must_use]
    pub fn records() -> Vec<(&'static str, Record)> {
        let end = |kind, message: &str| Record::End { kind, message: message.into() };
        vec![
            ("data", Record::Data(Bytes::from_static(b"hello"))),
            ("empty-datagram", Record::Data(Bytes::new())),
            ("finished", Record::finished()),
            ("reset", end(EndKind::Reset, "")),
            ("refused", end(EndKind::Refused, "10.0.0.7 has nothing on UDP port 8125")),
            ("dropped", Record::Dropped(1 << 33)),
        ]
    }

    /// Every message as bytes: a name with the kind of message in front, in a fixed order.
    #[must_use]
    pub fn all() -> Vec<(String, Vec<u8>)> {
        fn put<T>(
            all: &mut Vec<(String, Vec<u8>)>,
            kind: &str,
            samples: Vec<(&'static str, T)>,
            encode: fn(&T, &mut BytesMut),
        ) {
            for (name, value) in samples {
                let mut out = BytesMut::new();
                encode(&value, &mut out);
                all.push((format!("{kind}/{name}"), out.to_vec()));
            }
        }
        let mut all = Vec::new();
        put(&mut all, "hello", hellos(), ClientHello::encode);
        put(&mut all, "answer", answers(), Answer::encode);
        put(&mut all, "open", opens(), Open::encode);
        put(&mut all, "reply", replies(), Reply::encode);
        put(&mut all, "record", records(), Record::encode);
        all
    }
}

/// Seeds of a fuzz target: names and contents.
#[must_use]
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let kinds: &[&str] = match target {
        "relay_hello" => &["hello/", "answer/"],
        "relay_open" => &["open/", "reply/"],
        "relay_record" => {
            let mut conversation = vec![6];
            samples::all()
                .iter()
                .filter(|(name, _)| name.starts_with("record/"))
                .for_each(|(_, bytes)| conversation.extend_from_slice(bytes));
            return vec![("conversation".into(), conversation)];
        }
        _ => &[],
    };
    let of_target = |name: &str| kinds.iter().any(|kind| name.starts_with(kind));
    let seeds = samples::all().into_iter().filter(|(name, _)| of_target(name));
    seeds.map(|(name, bytes)| (name.replace('/', "-"), bytes)).collect()
}
