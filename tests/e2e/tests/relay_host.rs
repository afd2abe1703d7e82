//! What needs a relay, as stored forwards of the background host: imported from the documents' JSON, started, used, looked
//! at, back after a restart of the host, stopped, and nothing left.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::Ground;
use kftray_e2e::client::{connect, get, get_kept};
use kftray_e2e::field::{image, metrics, proxy};
use kftray_e2e::ground::run;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// For a pod to be scheduled, started and tunnelled to.
const START: Duration = Duration::from_secs(90);
/// For anything that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// A namespace, and a user of this machine with a host.
struct User {
    ground: Ground,
    namespace: &'static str,
    home: TempDir,
}

impl User {
    async fn new(namespace: &'static str) -> Result<Self> {
        let ground = Ground::from_env()?;
        ground.kubectl(&["delete", "namespace", namespace, "--ignore-not-found"]).await?;
        ground.kubectl(&["create", "namespace", namespace]).await?;
        Ok(Self { ground, namespace, home: TempDir::new()? })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.ground.kftui);
        command
            .env("KFTRAY_CONFIG", self.home.path())
            .env("KUBECONFIG", &self.ground.kubeconfig)
            .env_remove("KFTRAY_RELAY_IMAGE")
            .args(arguments);
        command
    }

    async fn kftui(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(arguments)).await
    }

    /// What `kftui status --output json` says of a forward.
    async fn status(&self, name: &str) -> Result<Value> {
        let all: Value = serde_json::from_str(&self.kftui(&["status", name, "--output", "json"]).await?)?;
        all.get(0).cloned().with_context(|| format!("{name} is not told"))
    }

    async fn port(&self, name: &str) -> Result<u16> {
        let told = self.status(name).await?;
        let address = told["addresses"][0].as_str().with_context(|| format!("{name}: no address: {told}"))?;
        Ok(address.rsplit(':').next().unwrap_or_default().parse()?)
    }

    /// Names of everything that the namespace has of these kinds.
    async fn there(&self, kinds: &str) -> Result<String> {
        self.ground.kubectl(&["-n", self.namespace, "get", kinds, "-o", "name"]).await
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Also where a test has failed: the host must not outlive it.
        drop(self.command(&["host", "stop"]).into_std().status());
    }
}

/// Answers every request with its head.
async fn program() -> Result<(u16, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move { drop(answer(stream).await) });
        }
    });
    Ok((port, tasks))
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let begin = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", head.len());
    stream.write_all(begin.as_bytes()).await?;
    stream.write_all(&head).await?;
    Ok(stream.shutdown().await?)
}

/// Sends until an answer comes; the first datagrams may find the way not open yet.
async fn datagrams_return(port: u16) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", port)).await?;
    let mut buffer = [0; 64];
    let echoed = async {
        loop {
            socket.send(b"question").await?;
            if let Ok(Ok(length)) = timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await {
                return anyhow::Ok(length);
            }
        }
    };
    ensure!(timeout(START, echoed).await.context("no datagram came back")?? == 8);
    Ok(())
}

/// The forms of the documents, in this cluster.
fn entries(namespace: &str, program: u16) -> Value {
    json!([
        {"service": "single", "namespace": "kftest", "local_port": 0, "remote_port": 9001,
         "workload_type": "service", "protocol": "udp", "alias": "dns"},
        {"workload_type": "proxy", "namespace": namespace, "local_port": 0, "remote_port": 80,
         "remote_address": "web.kftest.svc.cluster.local", "protocol": "tcp", "alias": "internal-proxy"},
        {"workload_type": "proxy", "namespace": namespace, "local_port": 0, "remote_port": 9001,
         "remote_address": "single.kftest.svc.cluster.local", "protocol": "udp", "alias": "udp-proxy"},
        {"alias": "internal-api", "namespace": namespace, "local_port": program, "local_address": "localhost",
         "workload_type": "expose", "protocol": "tcp", "exposure_type": "internal"},
        // A caller as a pod would be one.
        {"workload_type": "proxy", "namespace": namespace, "local_port": 0, "remote_port": 80,
         "remote_address": format!("internal-api.{namespace}.svc.cluster.local"), "alias": "caller"},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_lives_in_the_host() -> Result<()> {
    let user = User::new("relay-host").await?;
    let (program, _tasks) = program().await?;
    let file = user.home.path().join("forwards.json");
    std::fs::write(&file, entries(user.namespace, program).to_string())?;
    user.kftui(&["settings", "set", &format!("relay_image={}", image())]).await?;
    user.kftui(&["import", &file.display().to_string()]).await?;
    user.kftui(&["start", "--all", "--no-wait"]).await?;
    user.kftui(&["wait", "--ready", "--timeout", "90"]).await?;
    used(&user, "/before").await?;

    // What is exposed does not outlive the host; everything comes back with the next.
    user.kftui(&["host", "stop"]).await?;
    ensure!(user.there("service").await?.trim().is_empty(), "{}", user.there("service").await?);
    user.kftui(&["wait", "--ready", "--timeout", "90"]).await?;
    used(&user, "/after").await?;

    // Nothing is left when all have been stopped.
    let port = user.port("internal-proxy").await?;
    user.kftui(&["stop", "--all"]).await?;
    ensure!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "somebody still listens");
    let begin = Instant::now();
    while !user.there("service").await?.trim().is_empty() {
        ensure!(begin.elapsed() < SOON, "{}", user.there("service").await?);
        sleep(Duration::from_millis(200)).await;
    }
    user.kftui(&["relay", "sweep", "-n", user.namespace, "--all"]).await?;
    user.kftui(&["relay", "sweep", "-n", "kftest", "--all"]).await?;
    let begin = Instant::now();
    while !user.there("job,pod").await?.trim().is_empty() {
        ensure!(begin.elapsed() < START, "{}", user.there("job,pod").await?);
        sleep(Duration::from_millis(500)).await;
    }
    user.ground.kubectl(&["delete", "namespace", user.namespace, "--wait=false"]).await.map(drop)
}

/// Calls the exposed program by its name in the cluster, whose DNS may know the address of the Service before for some seconds.
async fn called(port: u16, path: &str) -> Result<String> {
    let begin = Instant::now();
    loop {
        match get(port, path, START).await {
            Err(_) if begin.elapsed() < START => sleep(Duration::from_millis(200)).await,
            body => return body,
        }
    }
}

/// Each is used, and says so.
async fn used(user: &User, path: &str) -> Result<()> {
    datagrams_return(user.port("dns").await?).await?;
    datagrams_return(user.port("udp-proxy").await?).await?;
    get(user.port("internal-proxy").await?, "/", SOON).await?;
    let body = called(user.port("caller").await?, &format!("{path}?secret=1")).await?;
    ensure!(body.starts_with(&format!("GET {path}?secret=1 ")), "{body}");

    for name in ["dns", "internal-proxy", "udp-proxy"] {
        let told = user.status(name).await?;
        ensure!(told["state"] == "ready", "{told}");
        ensure!(told["forward"]["ready_via"]["transport"] == "relay", "{told}");
        ensure!(told["forward"]["counters"]["bytes_down"].as_u64() > Some(0), "{told}");
    }
    let told = user.status("internal-api").await?;
    let exposed = &told["forward"]["exposed"];
    ensure!(
        told["addresses"][0].as_str().is_some_and(|url| url.starts_with("http://internal-api")),
        "{told}"
    );
    ensure!(exposed["public"] == false && exposed["calls"]["total"] == 1, "{told}");
    let call = &exposed["calls"]["last"][0];
    ensure!(call["request"] == format!("GET {path}") && call["status"] == 200, "{call}");
    ensure!(call["caller"].as_str().is_some_and(|caller| !caller.is_empty()), "{call}");
    // The same for people.
    let text = user.kftui(&["status", "internal-api"]).await?;
    ensure!(text.contains(&format!("GET {path}  200")) && text.contains("inside the cluster"), "{text}");
    Ok(())
}

/// Settings hold at once: the relay is replaced under a forward that goes on, and the old one lasts as long as what is open on it.
#[tokio::test(flavor = "multi_thread")]
async fn another_image_replaces_the_relay_and_breaks_nothing() -> Result<()> {
    let user = User::new("relay-host-image").await?;
    let mut entry = proxy("web", "web.kftest.svc.cluster.local", 80);
    entry["namespace"] = user.namespace.into();
    entry["local_port"] = 0.into();
    let file = user.home.path().join("forwards.json");
    std::fs::write(&file, json!([entry]).to_string())?;
    user.kftui(&["settings", "set", "relay_idle_exit=15", &format!("relay_image={}", image())]).await?;
    user.kftui(&["import", &file.display().to_string()]).await?;
    user.kftui(&["start", "web", "--no-wait"]).await?;
    user.kftui(&["wait", "--ready", "--timeout", "90"]).await?;
    let port = user.port("web").await?;
    let old = user.there("pod").await?;
    let (mut held, mut rest) = (connect(port).await?, Vec::new());
    let body = get_kept(&mut held, &mut rest, "/").await?;

    // The same program under another name is another relay.
    let other = format!("relay_image=docker.io/library/{}", image());
    user.kftui(&["settings", "set", &other]).await?;
    let begin = Instant::now();
    let new = loop {
        // Whoever connects meanwhile is served, by the one or the other.
        let mut beside = connect(port).await?;
        get_kept(&mut beside, &mut Vec::new(), "/").await?;
        let pods = user.there("pod").await?;
        let new = pods.lines().find(|pod| !old.contains(*pod));
        if let Some(new) = new
            && streams(&user, new).await.unwrap_or(0) == 1
        {
            break format!("{new}\n");
        }
        ensure!(begin.elapsed() < START, "new connections are not on the new relay: {pods}");
        sleep(Duration::from_millis(200)).await;
    };
    println!("the new relay served {:?} after the setting", begin.elapsed());

    // Longer than an idle relay is left.
    sleep(Duration::from_secs(20)).await;
    ensure!(get_kept(&mut held, &mut rest, "/").await? == body, "the same server");
    ensure!(streams(&user, old.trim()).await? == 1, "it is still on the old relay");
    drop(held);
    let begin = Instant::now();
    while user.there("pod").await? != new {
        ensure!(begin.elapsed() < START, "{}", user.there("pod").await?);
        get(port, "/", SOON).await?;
        sleep(Duration::from_millis(500)).await;
    }
    println!("the old relay was gone {:?} after its last connection", begin.elapsed());
    get(port, "/", SOON).await?;
    user.kftui(&["stop", "--all"]).await?;
    user.ground.kubectl(&["delete", "namespace", user.namespace, "--wait=false"]).await.map(drop)
}

/// TCP streams that a relay's pod (`pod/NAME`) has open.
async fn streams(user: &User, pod: &str) -> Result<u64> {
    let pod = pod.trim_start_matches("pod/");
    Ok(metrics(&user.ground, user.namespace, pod).await?.get("streams{kind=\"tcp\"}"))
}
