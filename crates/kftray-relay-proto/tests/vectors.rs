//! The wire of each version, byte for byte: `vectors/vN.txt`. See "Growth" in the crate's documentation.
//!
//! `KFTRAY_WRITE_VECTORS=1 cargo test -p kftray-relay-proto --test vectors` writes the newest version's file, which is right
//! only while that version is not released; the hash in `vectors/frozen.txt` changes with it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use kftray_relay_proto::WireError;
use kftray_relay_proto::fuzzing::samples;
use kftray_relay_proto::hello::{Answer, ClientHello};
use kftray_relay_proto::open::{Open, Reply};
use kftray_relay_proto::record::{Decoder, Record};
use kftray_relay_proto::version::SUPPORTED;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Names and bytes of one file.
fn read(name: &str) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, bytes)| (name.to_owned(), unhex(bytes)))
        .collect()
}

#[test]
fn the_newest_version_is_encoded_as_its_vectors_say() {
    let name = format!("v{}.txt", SUPPORTED.highest);
    if std::env::var_os("KFTRAY_WRITE_VECTORS").is_some() {
        let mut text =
            format!("# Version {} of the relay's wire. Never changed once released.\n", SUPPORTED.highest);
        for (name, bytes) in samples::all() {
            writeln!(text, "{name} {}", hex(&bytes)).unwrap();
        }
        std::fs::write(folder().join(&name), text).unwrap();
    }
    assert_eq!(read(&name), samples::all());
}

/// Decodes one vector and shows what it is.
fn decoded(name: &str, bytes: &[u8]) -> String {
    fn message<T: std::fmt::Debug>(
        bytes: &[u8],
        decode: fn(&mut BytesMut) -> Result<Option<T>, WireError>,
    ) -> String {
        let mut input = BytesMut::from(bytes);
        let value = decode(&mut input).unwrap().expect("a whole message");
        assert!(input.is_empty(), "the whole message");
        format!("{value:?}")
    }
    match name.split_once('/').unwrap().0 {
        "hello" => message(bytes, ClientHello::decode),
        "answer" => message(bytes, Answer::decode),
        "open" => message(bytes, Open::decode),
        "reply" => message(bytes, Reply::decode),
        "record" => {
            let mut decoder = Decoder::datagrams();
            let mut input = Bytes::copy_from_slice(bytes);
            let records: Vec<Record> = std::iter::from_fn(|| decoder.next(&mut input).unwrap()).collect();
            assert!(decoder.is_between_records());
            format!("{records:?}")
        }
        other => panic!("{other} is no kind of message"),
    }
}

#[test]
fn every_supported_version_is_understood() {
    for version in SUPPORTED.lowest..=SUPPORTED.highest {
        let vectors = read(&format!("v{version}.txt"));
        assert!(vectors.len() >= 20, "version {version} has its vectors");
        for (name, bytes) in vectors {
            decoded(&name, &bytes);
        }
    }
}

#[test]
fn vectors_mean_what_they_meant() {
    let meaning: Vec<String> = read("v1.txt").iter().map(|(name, bytes)| decoded(name, bytes)).collect();
    let expected: Vec<String> = samples::hellos()
        .iter()
        .map(|(_, value)| format!("{value:?}"))
        .chain(samples::answers().iter().map(|(_, value)| format!("{value:?}")))
        .chain(samples::opens().iter().map(|(_, value)| format!("{value:?}")))
        .chain(samples::replies().iter().map(|(_, value)| format!("{value:?}")))
        .chain(samples::records().iter().map(|(_, value)| format!("{:?}", [value])))
        .collect();
    assert_eq!(meaning, expected);
}

/// What a later version 1.x may send: the same messages with fields, records and reasons that this build does not know.
#[test]
fn later_additions_are_skipped() {
    let plain = read("v1.txt");
    let find = |name: &str| plain.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let additions = read("v1-additions.txt");
    assert!(additions.len() >= 5);
    for (name, bytes) in additions {
        assert_eq!(decoded(&name, &bytes), decoded(&name, &find(&name)), "{name}");
    }
}
