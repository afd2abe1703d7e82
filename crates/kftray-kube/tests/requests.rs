//! What goes over the wire, byte for byte, and what strange answers are taken for: a listener that shows and says anything.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::sync::Arc;

use kftray_commons::Code;
use kftray_kube::{Cluster, Protocol};
use support::{clusters, current, settled};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Answers every connection with the same bytes and keeps what it was asked.
struct Teller {
    port: u16,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
    _task: JoinSet<()>,
    folder: tempfile::TempDir,
}

impl Teller {
    async fn start(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, asked) = tokio::sync::mpsc::unbounded_channel();
        let answer = answer.into();
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                sender.send(String::from_utf8(head).unwrap()).ok();
                stream.write_all(&answer).await.ok();
            }
        });
        Self { port, asked, _task: task, folder: tempfile::tempdir().unwrap() }
    }

    async fn cluster(&self, user: serde_json::Value) -> Arc<Cluster> {
        let config = serde_json::json!({
            "current-context": "x",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://127.0.0.1:{}/k8s/clusters/c-1/", self.port) } }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        });
        let path = self.folder.path().join("config");
        std::fs::write(&path, config.to_string()).unwrap();
        settled(&clusters(), &current(&path)).await.unwrap()
    }

    async fn head(&mut self) -> (String, Vec<String>) {
        let text = tokio::time::timeout(support::PATIENCE, self.asked.recv()).await.unwrap().unwrap();
        let mut lines = text.lines().map(str::to_owned);
        let first = lines.next().unwrap();
        (first, lines.filter(|line| !line.is_empty()).collect())
    }
}

fn no_user() -> serde_json::Value {
    serde_json::json!({})
}

#[tokio::test]
async fn requests_are_written_as_documented() {
    let mut teller = Teller::start("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await;
    let cluster = teller.cluster(serde_json::json!({ "token": "t0ken" })).await;
    let path = "/k8s/clusters/c-1/api/v1/namespaces/shop/pods/web-0/portforward";
    let common = [format!("Host: 127.0.0.1:{}", teller.port), "authorization: Bearer t0ken".to_owned()];
    let expected = [
        (
            Protocol::WebSocketTunnel,
            format!("GET {path} HTTP/1.1"),
            vec![
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io",
            ],
        ),
        (
            Protocol::Spdy,
            format!("POST {path} HTTP/1.1"),
            vec!["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io"],
        ),
        (
            Protocol::Legacy,
            format!("GET {path}?ports=80&ports=443 HTTP/1.1"),
            vec!["Upgrade: websocket", "Sec-WebSocket-Protocol: v4.channel.k8s.io"],
        ),
    ];
    for (protocol, first, lines) in expected {
        let problem = cluster.upgrade("shop", "web-0", protocol, &[80, 443]).await.unwrap_err().problem;
        assert_eq!(problem.code, Code::TransportRefused, "{problem}");
        let (request, headers) = teller.head().await;
        assert_eq!(request, first);
        for line in lines.into_iter().map(str::to_owned).chain(common.clone()) {
            assert!(headers.contains(&line), "{protocol} lacks {line:?}: {headers:?}");
        }
    }
    // Requests for objects go below the same prefix, with the same login.
    support::version(&cluster).await.unwrap_err();
    let (request, headers) = teller.head().await;
    assert_eq!(request, "GET /k8s/clusters/c-1/version HTTP/1.1");
    assert!(headers.contains(&common[1]), "{headers:?}");
}

#[tokio::test]
async fn impersonation_and_basic_logins() {
    let mut teller = Teller::start("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let user = serde_json::json!({
        "username": "me", "password": "p:w",
        "as": "jane", "as-uid": "42", "as-groups": ["devs", "ops"], "as-user-extra": { "Acme.com/Project%": ["x"] },
    });
    let cluster = teller.cluster(user).await;
    drop(cluster.upgrade("shop", "web-0", Protocol::Spdy, &[]).await);
    support::version(&cluster).await.unwrap_err();
    for _ in 0..2 {
        let (_, headers) = teller.head().await;
        for line in [
            "authorization: Basic bWU6cDp3",
            "impersonate-user: jane",
            "impersonate-uid: 42",
            "impersonate-group: devs",
            "impersonate-group: ops",
            "impersonate-extra-acme.com%2fproject%25: x",
        ] {
            assert!(headers.iter().any(|header| header == line), "lacks {line:?}: {headers:?}");
        }
    }
}

#[tokio::test]
async fn names_are_escaped() {
    let mut teller = Teller::start("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let cluster = teller.cluster(no_user()).await;
    drop(cluster.upgrade("a/b", "x?y HTTP/1.1\r\nHost: evil", Protocol::Spdy, &[]).await);
    let (request, _) = teller.head().await;
    assert_eq!(
        request,
        "POST /k8s/clusters/c-1/api/v1/namespaces/a%2Fb/pods/x%3Fy%20HTTP%2F1.1%0D%0AHost%3A%20evil/portforward HTTP/1.1"
    );
}

#[tokio::test]
async fn strange_answers() {
    let wrong_key = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\
                     Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n\r\n";
    let endless = format!("HTTP/1.1 400 Bad Request\r\nx: {}", "y".repeat(100_000));
    for (answer, code, part) in [
        (
            "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\n\r\n",
            Code::TransportRefused,
            "https://login.example/",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Code::TransportRefused, "strips upgrades"),
        (wrong_key, Code::TransportRefused, "no WebSocket of ours"),
        ("SSH-2.0-OpenSSH_9\r\n\r\n", Code::TransportRefused, "does not answer with HTTP"),
        ("", Code::ClusterUnreachable, "closed without an answer"),
        (endless.as_str(), Code::TransportRefused, "32 KiB"),
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html><h1>Blocked</h1></html>",
            Code::TransportRefused,
            "HTML page",
        ),
    ] {
        let teller = Teller::start(answer).await;
        let cluster = teller.cluster(no_user()).await;
        let problem =
            cluster.upgrade("shop", "web-0", Protocol::WebSocketTunnel, &[]).await.unwrap_err().problem;
        assert_eq!(problem.code, code, "{:.60}: {problem:?}", answer);
        assert!(problem.message.contains(part), "{:.60}: {problem}", answer);
    }
}

#[tokio::test]
async fn legacy_auth_providers() {
    let mut teller = Teller::start("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let provider = |name: &str, config: serde_json::Value| serde_json::json!({ "auth-provider": { "name": name, "config": config } });
    let gcp = serde_json::json!({ "access-token": "of-google", "expiry": "2100-01-01T00:00:00Z" });
    let cluster = teller.cluster(provider("gcp", gcp)).await;
    drop(cluster.upgrade("shop", "web-0", Protocol::Spdy, &[]).await);
    let (_, headers) = teller.head().await;
    assert!(headers.iter().any(|header| header == "authorization: Bearer of-google"), "{headers:?}");
    let cluster = teller.cluster(provider("azure", serde_json::json!({}))).await;
    let problem = cluster.upgrade("shop", "web-0", Protocol::Spdy, &[]).await.unwrap_err().problem;
    assert_eq!(problem.code, Code::PluginFailed);
    assert!(problem.message.contains("azure"), "{problem}");
}
