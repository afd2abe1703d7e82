//! What must not harm a host: broken and oversized requests, peers of other versions, other users.

mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use kftray_client::Client;
use kftray_commons::Code;
use kftray_commons::api::{Mode, PROTOCOL};
use kftray_commons::store::Directory;
use kftray_host::{Host, HostOptions};
use support::{LIMIT, raw, read_answer, told};
use tempfile::TempDir;

/// A host without any cluster.
async fn lonely() -> (TempDir, Host) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = HostOptions::new(Directory::at(directory.path().join("kftray")), Mode::Embedded);
    let host = Host::start(options).await.expect("the host starts");
    (directory, host)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("done")
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_requests_are_told_what_is_wrong() {
    let (_directory, host) = lonely().await;
    let socket = host.place().socket.clone();
    let cases: [(&str, &str, u16, &str); 7] = [
        ("POST /v1/configs", "{\"spec\": {", 400, "request_invalid"),
        ("POST /v1/configs", "[]", 400, "request_invalid"),
        ("POST /v1/configs", "{\"spec\": {\"service\": \"web\"}}", 400, "spec_invalid"),
        ("GET /v1/nothing", "", 404, "not_found"),
        ("DELETE /v1/hello", "", 400, "request_invalid"),
        ("GET /v1/configs/seven", "", 400, "request_invalid"),
        ("POST /v1/forwards/start", "", 400, "request_invalid"),
    ];
    for (line, body, status, code) in cases {
        let request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let socket = socket.clone();
        let (found, answer) = blocking(move || raw(&socket, request.as_bytes())).await;
        assert_eq!(found, status, "{line} {body}: {answer}");
        let error: kftray_commons::api::Error = serde_json::from_str(&answer).expect("an error of ours");
        assert_eq!(error.code.as_str(), code, "{line} {body}: {answer}");
        assert!(!error.message.is_empty() && !error.remedy.is_empty());
    }
    let (status, _) = {
        let socket = socket.clone();
        blocking(move || raw(&socket, b"this is no HTTP\r\n\r\n")).await
    };
    assert_eq!(status, 400);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_are_refused_and_cost_no_memory() {
    const SIZE: usize = 100 * 1024 * 1024;
    let (_directory, host) = lonely().await;
    let socket = host.place().socket.clone();
    let before = resident();
    for head in [format!("content-length: {SIZE}"), "transfer-encoding: chunked".to_owned()] {
        let chunked = head.starts_with("transfer");
        let socket = socket.clone();
        let (status, body) = blocking(move || {
            let mut stream = UnixStream::connect(&socket).expect("connect");
            stream.set_read_timeout(Some(LIMIT)).expect("set");
            let head =
                format!("POST /v1/configs/import HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("sent");
            let chunk = vec![b' '; 1024 * 1024];
            for _ in 0..SIZE / chunk.len() {
                if chunked {
                    write!(stream, "{:x}\r\n", chunk.len()).expect("sent");
                }
                stream.write_all(&chunk).expect("taken");
                if chunked {
                    stream.write_all(b"\r\n").expect("sent");
                }
            }
            if chunked {
                stream.write_all(b"0\r\n\r\n").expect("sent");
            }
            read_answer(&mut stream)
        })
        .await;
        assert_eq!(status, 413, "{body}");
        assert!(body.contains("request_too_large"), "{body}");
    }
    let grown = resident().saturating_sub(before);
    println!("memory after two bodies of 100 MB: {grown} KiB more");
    assert!(grown < 64 * 1024, "{grown} KiB more");
    host.stop().await;
}

/// Kibibytes of memory that this process uses; 0 where the system does not say.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_other_versions() {
    let (_directory, host) = lonely().await;
    let socket = host.place().socket.clone();
    let ask = |path: &'static str, versions: String| {
        let socket = socket.clone();
        blocking(move || {
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nkftray-protocol: {versions}\r\n\r\n"
            );
            raw(&socket, request.as_bytes())
        })
    };
    let newer = format!("{}-{}", PROTOCOL.max + 1, PROTOCOL.max + 4);
    let (status, body) = ask("/v1/configs", newer.clone()).await;
    assert_eq!(status, 426);
    assert!(body.contains("version_mismatch") && body.contains("remedy"), "{body}");
    let (status, _) = ask("/v1/hello", newer).await;
    assert_eq!(status, 200, "everybody may ask who it is");
    let fits = format!("0-{}", PROTOCOL.max);
    let (status, _) = ask("/v1/configs", fits).await;
    assert_eq!(status, 200);
    host.stop().await;
}

/// A host of another version, as far as a client looks before it decides.
fn strange_host(protocol: (u32, u32), version: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = kftray_client::place(directory.path()).socket;
    let listener = tokio::net::UnixListener::bind(socket).expect("bound");
    let (min, max) = protocol;
    let hello = format!(
        r#"{{"protocol":{{"min":{min},"max":{max}}},"version":"{version}","instance":"i","pid":1,"started_at":0,
        "mode":"levitating","config_dir":"","something_new":true}}"#
    );
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut head = [0; 1024];
            drop(stream.read(&mut head).await);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{hello}", hello.len());
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    serving.detach_all();
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_other_versions() {
    let old = strange_host((0, 0), "0.0.1");
    let error = Client::connect(old.path()).await.expect_err("too old");
    assert_eq!(error.code, Code::VersionMismatch);
    assert!(error.message.contains("version 0.0.1") && error.remedy.contains("host stop"), "{error:?}");
    let new = strange_host((PROTOCOL.max + 1, PROTOCOL.max + 1), "99.0.0");
    let error = Client::connect(new.path()).await.expect_err("too new");
    assert_eq!(error.code, Code::VersionMismatch);
    assert!(error.remedy.contains("Update this program"), "{error:?}");
    // A newer one that still speaks our protocol serves us; what it says more is passed over.
    let newer = strange_host((PROTOCOL.min, PROTOCOL.max + 1), "99.0.0");
    let client = Client::connect(newer.path()).await.expect("understood");
    assert_eq!(client.host().mode, Mode::Other);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_user_comes_in() {
    let (directory, host) = lonely().await;
    let place = host.place().clone();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.socket), 0o600);
    assert_eq!(mode(&place.directory), 0o700);
    let other = Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "true"]).status();
    let privileged = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    if !privileged || !other.is_ok_and(|status| status.success()) {
        println!("SKIPPED: only root can become another user, by setpriv");
        host.stop().await;
        return;
    }
    // With every door of the file system open the kernel's word about the peer still keeps others out.
    for (path, bits) in [(directory.path(), 0o755), (&*place.directory, 0o755), (&*place.socket, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).expect("opened");
    }
    let socket = place.socket.clone();
    let output = blocking(move || {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--clear-groups",
            "curl",
            "-s",
            "-i",
            "--max-time",
            "20",
            "--unix-socket",
        ]);
        command.arg(socket).arg("http://kftray/v1/configs").output().expect("runs")
    })
    .await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.is_empty() {
        println!("SKIPPED: no curl for the other user: {}", String::from_utf8_lossy(&output.stderr));
    } else {
        assert!(said.starts_with("HTTP/1.1 403") && said.contains("peer_refused"), "{said}");
    }
    assert!(Client::connect(&place.directory).await.is_ok(), "its own user is served");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_per_directory() {
    let (_directory, host) = lonely().await;
    let options = HostOptions::new(Directory::at(host.place().directory.clone()), Mode::Embedded);
    let second = Host::start(options).await.expect_err("there is one");
    assert_eq!(second.code, Code::Conflict);
    assert!(second.message.contains("pid"), "{}", second.message);
    let directory = host.place().directory.clone();
    host.stop().await;
    let third = Host::start(HostOptions::new(Directory::at(directory), Mode::Embedded)).await;
    third.expect("the lock was given back").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_a_long_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let long = directory.path().join("d".repeat(60)).join("e".repeat(60));
    let host = Host::start(HostOptions::new(Directory::at(&long), Mode::Embedded)).await.expect("starts");
    assert!(!host.place().socket.starts_with(&long));
    let client = Client::connect(&long).await.expect("found");
    assert_eq!(client.host().config_dir, long.display().to_string());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tcp_only_who_knows_the_token_comes_in() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = HostOptions::new(Directory::at(directory.path().join("kftray")), Mode::Embedded);
    options.tcp = true;
    let host = Host::start(options).await.expect("the host starts");
    let file = host.place().tcp.clone();
    let mode = std::fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (address, token) = told(&file);
    let port = address.rsplit(':').next().expect("a port").to_owned();
    let bearer = format!("authorization: Bearer {token}\r\n");
    let guessed = format!("authorization: Bearer {}\r\n", "0".repeat(token.len()));
    let cases = [
        (address.clone(), bearer.clone(), 200),
        (format!("localhost:{port}"), bearer.clone(), 200),
        (address.clone(), String::new(), 403),
        (address.clone(), guessed, 403),
        (address.clone(), format!("{bearer}origin: http://{address}\r\n"), 403),
        (format!("evil.example:{port}"), bearer.clone(), 403),
    ];
    for (name, headers, status) in cases {
        let request = format!("GET /v1/hello HTTP/1.1\r\nhost: {name}\r\n{headers}connection: close\r\n\r\n");
        let address = address.clone();
        let (found, answer) = blocking(move || {
            let mut stream = std::net::TcpStream::connect(&address).expect("connect");
            stream.set_read_timeout(Some(LIMIT)).expect("set");
            stream.write_all(request.as_bytes()).expect("sent");
            read_answer(&mut stream)
        })
        .await;
        assert_eq!(found, status, "{name} {headers}: {answer}");
        assert_eq!(answer.contains("peer_refused"), status == 403, "{answer}");
    }
    host.stop().await;
    assert!(!file.exists(), "the token outlives its port");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_by_tcp_take_no_room_from_the_socket() {
    /// Connections by TCP, as the documents have it.
    const BY_TCP: usize = 64;
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = HostOptions::new(Directory::at(directory.path().join("kftray")), Mode::Embedded);
    options.tcp = true;
    let host = Host::start(options).await.expect("the host starts");
    let (address, _) = told(&host.place().tcp);
    let (strangers, status, answer) = blocking(move || {
        let connect = || std::net::TcpStream::connect(&address).expect("connect");
        let strangers: Vec<_> = (0..BY_TCP).map(|_| connect()).collect();
        let mut stream = connect();
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.write_all(b"GET /v1/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
        let (status, answer) = read_answer(&mut stream);
        (strangers, status, answer)
    })
    .await;
    assert_eq!(status, 429, "{answer}");
    assert!(answer.contains("too_many_clients") && answer.contains("64 connections"), "{answer}");
    assert!(Client::connect(&host.place().directory).await.is_ok(), "the socket has room of its own");
    drop(strangers);
    host.stop().await;
}
