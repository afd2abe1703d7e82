//! A cut at any moment loses nothing that was acknowledged and leaves a file that opens.
//!
//! Two ways: a program that writes is killed again and again, and the journal of a file is cut off at every byte.

#![cfg(all(feature = "store", unix))]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Scratch, incoming, scratch, service};
use kftray_commons::store::{Directory, MergeOptions, Store};
use rand::RngExt as _;
use rusqlite::{Connection, OpenFlags};

/// How often the writer is killed.
const ROUNDS: u32 = 500;
/// After so many rounds it begins with a new file, so that looking at all of it stays cheap.
const ROUNDS_PER_FILE: u32 = 50;
/// Tells the writing process its directory.
const DIRECTORY: &str = "KFTRAY_TEST_POWER_DIRECTORY";
/// Tells the writing process the number of its first change.
const FIRST: &str = "KFTRAY_TEST_POWER_FIRST";

/// What is there after the changes before `next`: name and port of each forward.
fn expected(next: u32) -> BTreeSet<(String, u16)> {
    let mut there = BTreeSet::new();
    for number in 0..next {
        match number % 4 {
            0 => {
                there.insert((format!("s{number}"), 80));
            }
            1 => {
                there.remove(&(format!("s{}", number - 1), 80));
                there.insert((format!("s{}", number - 1), 81));
            }
            2 => there.extend((0..3).map(|part| (format!("i{number}-{part}"), 80))),
            _ => {
                there.remove(&(format!("i{}-0", number - 1), 80));
            }
        }
    }
    there
}

fn change(store: &mut Store, number: u32) {
    let id_of = |store: &Store, name: &str| {
        let configs = store.configs().expect("read");
        let found = configs.iter().find(|config| config.entry["service"] == name);
        found.unwrap_or_else(|| panic!("{name} is not there")).id
    };
    match number % 4 {
        0 => {
            store.add(&[service(&format!("s{number}"), 1, 80)]).expect("added");
        }
        1 => {
            let name = format!("s{}", number - 1);
            let id = id_of(store, &name);
            store.update(id, &service(&name, 1, 81), None).expect("changed");
        }
        2 => {
            let entries: Vec<String> = (0..3)
                .map(|part| {
                    format!(
                        r#"{{"service":"i{number}-{part}","remote_port":80,"alias":"{}"}}"#,
                        "x".repeat(200)
                    )
                })
                .collect();
            let report =
                store.import(&incoming(&entries.join("\n")), MergeOptions::default()).expect("imported");
            assert_eq!(report.added.len(), 3);
        }
        _ => {
            let id = id_of(store, &format!("i{}-0", number - 1));
            store.append_history(&[(id, 1, "about to go".into())]).expect("added");
            store.remove(&[id]).expect("removed");
        }
    }
}

/// Not a test by itself: what is killed.
#[test]
fn writer() {
    let (Ok(directory), Ok(first)) = (std::env::var(DIRECTORY), std::env::var(FIRST)) else { return };
    let mut store = Store::open(&Directory::at(directory)).expect("the file opens");
    let mut out = std::io::stdout();
    for number in first.parse::<u32>().expect("a number").. {
        change(&mut store, number);
        writeln!(out, "\nack {number}").expect("the parent reads");
        out.flush().expect("the parent reads");
    }
}

struct Writer {
    child: Child,
    acks: Receiver<u32>,
}

impl Writer {
    fn start(directory: &Path, first: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory)
            .env(FIRST, first.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, acks) = channel();
        // Ends with the pipe, and the pipe with the child.
        thread::spawn(move || {
            let numbers =
                lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("ack ")?.parse().ok());
            numbers.for_each(|number| sender.send(number).unwrap_or_default());
        });
        Self { child, acks }
    }

    /// Kills it after `acks` acknowledgements and a while; the number of the last change that it has acknowledged.
    fn kill(mut self, acks: u32, after: Duration) -> Option<u32> {
        let mut last = None;
        for _ in 0..acks {
            last = Some(self.acks.recv_timeout(Duration::from_secs(60)).expect("it acknowledges"));
        }
        if let Ok(number) = self.acks.recv_timeout(after) {
            last = Some(number);
        }
        self.child.kill().expect("killed");
        self.child.wait().expect("it ends");
        self.acks.iter().last().or(last)
    }
}

fn there(store: &Store) -> BTreeSet<(String, u16)> {
    let configs = store.configs().expect("read");
    let pair = |config: &kftray_commons::store::StoredConfig| {
        let port = config.entry["remote_port"].as_u64().and_then(|port| u16::try_from(port).ok());
        (config.entry["service"].as_str().expect("a name").to_owned(), port.expect("a port"))
    };
    configs.iter().map(pair).collect()
}

#[test]
fn killed_five_hundred_times() {
    let mut random = rand::rng();
    let mut place = tempfile::tempdir().expect("a directory");
    let mut next = 0;
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_FILE == 0 {
            place = tempfile::tempdir().expect("a directory");
            next = 0;
        }
        let directory = place.path().join("kftray");
        let writer = Writer::start(&directory, next);
        let acks = random.random_range(0..6);
        let last = writer.kill(acks, Duration::from_micros(random.random_range(0..20_000)));

        // Every second time the next writer finds the journal as it was left.
        let copy = tempfile::tempdir().expect("a directory");
        let looked_at = if round % 2 == 0 { directory.clone() } else { copy.path().to_owned() };
        for name in ["kftray.db", "kftray.db-wal"] {
            if looked_at != directory && directory.join(name).exists() {
                fs::copy(directory.join(name), looked_at.join(name)).expect("copied");
            }
        }
        let store = Store::open(&Directory::at(looked_at)).expect("the file opens");
        assert_eq!(store.integrity().expect("read"), Vec::<String>::new(), "round {round}");
        let acknowledged = last.map_or(next, |last| last + 1);
        let found = there(&store);
        // What was under way may have been done, as a whole, or not at all.
        let done = [acknowledged, acknowledged + 1].into_iter().find(|next| expected(*next) == found);
        next = done.unwrap_or_else(|| {
            panic!("round {round}: {acknowledged} changes were acknowledged, found {found:?}")
        });
    }
}

/// A file with small pages, so that its journal is small, and its journal after each of three changes.
fn small_journal() -> (Scratch, Vec<usize>) {
    let mut it = scratch();
    it.store.add(&[service("first", 1, 1)]).expect("added");
    drop(it.store);
    let raw = Connection::open(it.directory.database()).expect("opened");
    raw.execute_batch(
        "PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM; PRAGMA journal_mode = WAL;",
    )
    .expect("smaller pages");
    drop(raw);
    it.store = Store::open(&it.directory).expect("opened");
    let journal = it.directory.path().join("kftray.db-wal");
    let mut sizes = Vec::new();
    for name in ["second", "third", "fourth"] {
        it.store.add(&[service(name, 1, 1)]).expect("added");
        sizes.push(usize::try_from(fs::metadata(&journal).expect("a journal").len()).expect("small"));
    }
    (it, sizes)
}

#[test]
fn the_journal_cut_off_at_every_byte() {
    let (it, sizes) = small_journal();
    let database = fs::read(it.directory.database()).expect("read");
    let journal = fs::read(it.directory.path().join("kftray.db-wal")).expect("read");
    assert_eq!(Some(&journal.len()), sizes.last());
    assert!(journal.len() < 20_000, "{} bytes are too many to try each", journal.len());
    let place = tempfile::tempdir().expect("a directory");
    let directory = Directory::at(place.path());
    let log = place.path().join("kftray.db-wal");
    for cut in 0..=journal.len() {
        let whole = sizes.iter().filter(|size| **size <= cut).count();
        // Behind the cut: nothing, or what was in the file before.
        let tails: &[usize] = if cut % 16 == 0 { &[0, 300] } else { &[0] };
        for tail in tails {
            let mut rest = journal[..cut].to_vec();
            rest.extend((0..*tail).map(|n| u8::try_from(n * 7 % 256).expect("a byte")));
            fs::write(directory.database(), &database).expect("written");
            fs::write(&log, rest).expect("written");
            drop(fs::remove_file(place.path().join("kftray.db-shm")));
            // The whole of ours now and then: it writes, and waits for the disk.
            if cut % 500 == 0 {
                let store = Store::open(&directory).expect("the file opens");
                assert_eq!(store.configs().expect("read").len(), 1 + whole, "cut at {cut}");
                assert_eq!(store.integrity().expect("read"), Vec::<String>::new(), "cut at {cut}");
            } else {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
                let raw = Connection::open_with_flags(directory.database(), flags).expect("opened");
                let sql = "SELECT count(*), (SELECT * FROM pragma_quick_check LIMIT 1) FROM configs";
                let found: (usize, String) = raw
                    .query_row(sql, [], |row| {
                        Ok((row.get::<_, i64>(0)?.unsigned_abs() as usize, row.get(1)?))
                    })
                    .expect("read");
                assert_eq!(found, (1 + whole, "ok".to_owned()), "cut at {cut}");
            }
        }
    }
}
