//! The stream of the state: everybody sees the same, soon, and nobody can hold it up.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kftray_commons::api::{AD_HOC_IDS, Settings, SettingsPatch, Snapshot};
use support::{Ground, LIMIT, add, entry, put, raw, until};
use tokio::time::Instant;

/// How long an edit may take to be seen on a machine that does ten other things meanwhile. The promise is 100 ms; the
/// figure is printed.
const BUSY: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_seen_by_every_client() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let (editor, watcher) = (ground.client().await, ground.client().await);
    let (mut near, mut far) = (editor.follow(), watcher.follow());
    let config = add(&editor, "db", "db", 5432).await;
    let known = |snapshot: &Snapshot| snapshot.config(config.id).is_some();
    until(&mut near, "the config", known).await;
    until(&mut far, "the config", known).await;
    let mut took = Vec::new();
    for round in 0..20 {
        let namespace = format!("round-{round}");
        let mut spec = config.spec.clone();
        spec.insert("namespace".to_owned(), namespace.clone().into());
        let begun = Instant::now();
        let edit = put(spec);
        let edited = editor.put_config(config.id, &edit);
        let is_edited = |snapshot: &Snapshot| {
            snapshot.config(config.id).is_some_and(|c| c.summary.namespace.as_deref() == Some(&namespace))
        };
        let seen = async {
            until(&mut near, "the edit, near", is_edited).await;
            until(&mut far, "the edit, far", is_edited).await;
            begun.elapsed()
        };
        let (edited, seen) = tokio::join!(edited, seen);
        edited.expect("edited");
        took.push(seen);
    }
    took.sort();
    println!(
        "an edit is seen by two other clients after {:?} (median of 20), {:?} at worst",
        took[10], took[19]
    );
    assert!(took[10] < BUSY, "{took:?}");
    host.stop().await;
}

/// Reads whole events, as lines, from a raw connection.
struct Reader(BufReader<UnixStream>);

impl Reader {
    fn open(ground: &Ground, last: Option<&str>) -> Self {
        let place = kftray_client::place(ground.path());
        let mut stream = UnixStream::connect(&place.socket).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        stream
            .write_all(format!("GET /v1/events HTTP/1.1\r\nhost: x\r\n{last}\r\n").as_bytes())
            .expect("sent");
        Self(BufReader::new(stream))
    }

    /// The next line that begins so, without that.
    fn next(&mut self, beginning: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("readable") > 0, "the stream ended");
            if let Some(rest) = line.trim_end().strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_misses_nothing() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let blocking = |work: Box<dyn FnOnce() -> String + Send>| tokio::task::spawn_blocking(work);
    let mut reader = Reader::open(&ground, None);
    let id = blocking(Box::new(move || reader.next("id: "))).await.expect("an id");
    let set = |idle| {
        let patch = SettingsPatch { idle_minutes: Some(idle), ..SettingsPatch::default() };
        let client = client.clone();
        async move { client.set_settings(&patch).await.expect("set") }
    };
    set(7).await;
    set(8).await;
    let mut reader = Reader::open(&ground, Some(&id));
    let lines = blocking(Box::new(move || {
        let names: Vec<String> = (0..3).map(|_| reader.next("event: ")).collect();
        format!("{names:?} {}", reader.next("data: "))
    }));
    let lines = lines.await.expect("events");
    assert!(lines.starts_with(r#"["resumed", "delta", "delta"]"#), "{lines}");
    assert!(lines.contains(r#""idle_minutes":8"#), "{lines}");
    let mut reader = Reader::open(&ground, Some("another-host.3"));
    let name = blocking(Box::new(move || reader.next("event: "))).await.expect("an event");
    assert_eq!(name, "snapshot");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_nobody_anything() {
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let deaf = Reader::open(&ground, None);
    let mut follow = client.follow();
    // Several megabytes of changes: far more than any buffer in between.
    let long = "x".repeat(32 * 1024);
    for round in 0..200_u32 {
        let mut patch = SettingsPatch { idle_minutes: Some(round), ..SettingsPatch::default() };
        patch.other.insert("ballast".to_owned(), Some(long.clone()));
        client.set_settings(&patch).await.expect("set");
    }
    let state = until(&mut follow, "the last change", |snapshot| snapshot.settings.idle_minutes == 199).await;
    assert_eq!(
        Settings { other: Default::default(), ..(*state.snapshot.settings).clone() },
        Settings { idle_minutes: 199, ..Settings::default() }
    );
    drop(deaf);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients() {
    const CLIENTS: usize = 1_000;
    // Raised first: both ends of every connection are in this process.
    let ground = Ground::new().await;
    let host = ground.host().await;
    let client = ground.client().await;
    let mut readers = Vec::new();
    for _ in 0..CLIENTS {
        readers.push(Reader::open(&ground, None));
    }
    let deadline = Instant::now() + LIMIT;
    while client.hello().await.expect("it answers").clients < u32::try_from(CLIENTS).expect("small") {
        assert!(Instant::now() < deadline, "not all are served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begun = Instant::now();
    let config = client.add_config(&put(entry("web", "web", 80))).await.expect("the host serves others");
    assert!(config.id.0 < AD_HOC_IDS);
    let reading = tokio::task::spawn_blocking(move || {
        for reader in &mut readers {
            while reader.next("event: ") != "delta" {}
        }
        readers
    });
    let readers = tokio::time::timeout(LIMIT, reading).await.expect("in time").expect("all hear it");
    println!("{} clients heard of an edit after {:?}", readers.len(), begun.elapsed());
    // Beyond the limit a client hears why it is not served.
    let mut more = Vec::new();
    let socket = kftray_client::place(ground.path()).socket;
    for _ in 0..400 {
        more.push(Reader::open(&ground, None));
    }
    let refused =
        tokio::task::spawn_blocking(move || raw(&socket, b"GET /v1/hello HTTP/1.1\r\nhost: x\r\n\r\n"));
    let (status, body) = refused.await.expect("an answer");
    assert_eq!(status, 429, "{body}");
    assert!(body.contains("too_many_clients"), "{body}");
    drop((readers, more));
    host.stop().await;
}
