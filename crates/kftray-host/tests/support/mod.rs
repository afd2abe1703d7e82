//! A host over a cluster in this process, and clients that talk to it over its socket.
#![allow(dead_code, unreachable_pub, reason = "not every test needs all of it")]
#![allow(clippy::allow_attributes, reason = "an expectation would fail in those that do")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kftray_client::{Client, Follow, State};
use kftray_commons::api::{
    Action, ActionReport, ActionRequest, Config, ConfigPut, ForwardState, Mode, Selection, Snapshot,
};
use kftray_commons::store::Directory;
use kftray_commons::{ForwardId, Status};
use kftray_host::{Host, HostOptions};
use kftray_kube::Environment;
use kftray_testkit::{FakeCluster, handlers};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A busy machine may be slow; a test that hangs must end.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A cluster with `web` (HTTP, two pods) and `db` (echo), and a directory.
pub struct Ground {
    pub cluster: FakeCluster,
    pub directory: TempDir,
}

impl Ground {
    pub async fn new() -> Self {
        Self::on(FakeCluster::start().await.expect("a cluster")).await
    }

    pub async fn on(cluster: FakeCluster) -> Self {
        let web = cluster.deployment("web").replicas(2).port("http", 8080, handlers::http_hello());
        web.create().expect("created");
        cluster.service("web").port(80, "http").create().expect("created");
        cluster.stateful_set("db").port("pg", 5432, handlers::echo()).create().expect("created");
        cluster.service("db").port(5432, "pg").create().expect("created");
        cluster.wait_ready("default", "web", 2).await.expect("ready");
        cluster.wait_ready("default", "db", 1).await.expect("ready");
        Self { cluster, directory: tempfile::tempdir().expect("a directory") }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn options(&self) -> HostOptions {
        let kubeconfig = self.cluster.kubeconfig_path().display().to_string();
        let variables = [("PATH", "/usr/bin:/bin"), ("KUBECONFIG", &*kubeconfig), ("HOME", "/nonexistent")];
        let mut options = HostOptions::new(Directory::at(self.path()), Mode::Embedded);
        options.environment = Environment::new(variables, "/");
        options
    }

    pub async fn host(&self) -> Host {
        Host::start(self.options()).await.expect("the host starts")
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.path()).await.expect("the host is there")
    }
}

/// An entry of a file.
pub fn entry(alias: &str, service: &str, remote_port: u16) -> Map<String, Value> {
    let text = format!(r#"{{"alias": "{alias}", "service": "{service}", "remote_port": {remote_port}}}"#);
    serde_json::from_str(&text).expect("JSON")
}

pub fn put(spec: Map<String, Value>) -> ConfigPut {
    ConfigPut { spec, ..ConfigPut::default() }
}

pub async fn add(client: &Client, alias: &str, service: &str, port: u16) -> Config {
    client.add_config(&put(entry(alias, service, port))).await.expect("added")
}

pub async fn act(client: &Client, action: Action, selection: Selection) -> ActionReport {
    let request = ActionRequest { selection, ..ActionRequest::default() };
    client.act(action, &request).await.expect("done")
}

pub async fn start(client: &Client, ids: &[ForwardId]) -> ActionReport {
    act(client, Action::Start, Selection::ids(ids.iter().copied())).await
}

/// Waits for a state.
pub async fn until(follow: &mut Follow, what: &str, condition: impl Fn(&Snapshot) -> bool) -> State {
    let found = timeout(LIMIT, follow.wait_for(|state| condition(&state.snapshot))).await;
    found.unwrap_or_else(|_| panic!("{what} did not come: {:#?}", follow.state()))
}

/// Waits until a forward is ready; its state.
pub async fn ready(follow: &mut Follow, id: ForwardId) -> ForwardState {
    let is_ready = |snapshot: &Snapshot| {
        snapshot
            .forward(id)
            .is_some_and(|forward| forward.status == Status::Ready && forward.ready_via.is_some())
    };
    let state = until(follow, "ready", is_ready).await;
    ForwardState::clone(state.snapshot.forward(id).expect("it is ready"))
}

/// Sends text through an echo forward and back.
pub async fn echoes(address: &str) {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.write_all(b"hello").await.expect("sent");
    let mut answer = [0; 5];
    timeout(LIMIT, stream.read_exact(&mut answer)).await.expect("in time").expect("an echo");
    assert_eq!(&answer, b"hello");
}

/// One raw request by a blocking socket, as `curl` would send it; status and body.
pub fn raw(socket: &Path, request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    stream.write_all(request).expect("sent");
    read_answer(&mut stream)
}

pub fn read_answer(stream: &mut impl std::io::Read) -> (u16, String) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).expect("an answer");
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, body.to_owned())
}

/// Address and token of a host's TCP port, from its file.
pub fn told(file: &Path) -> (String, String) {
    let text = std::fs::read_to_string(file).expect("the file");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let (url, token) = (told["url"].as_str().expect("a URL"), told["token"].as_str().expect("a token"));
    (url.strip_prefix("http://").expect("HTTP").to_owned(), token.to_owned())
}
