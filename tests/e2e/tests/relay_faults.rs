//! What breaks around a relay in a real cluster, what comes back by itself, and how fast: docs/reliability.md has the table.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kftray_e2e::field::{Field, SOON, START, proxy, proxy_udp};
use kftray_e2e::{client, ground};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A field with a TCP and a UDP forward that have been used.
async fn field(name: &str) -> Result<Field> {
    let entries = [proxy("web", "web.kftest.svc", 80), proxy_udp("echo", "single.kftest.svc", 9001)];
    let field = Field::run(name, &entries).await?;
    client::get(field.ports[0], "/", SOON).await?;
    timeout(SOON, echoed(&peer(field.ports[1]).await?)).await??;
    Ok(field)
}

async fn peer(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", port)).await?;
    Ok(socket)
}

/// Sends one after the other until an echo comes.
async fn echoed(socket: &UdpSocket) -> Result<()> {
    for number in 0_u32.. {
        // Refused while nobody has the port.
        socket.send(&number.to_be_bytes()).await.ok();
        let mut buffer = [0; 4];
        let answer = timeout(Duration::from_millis(250), async {
            // Not that of one that was sent before the fault.
            while socket.recv(&mut buffer).await.is_ok() {
                if buffer == number.to_be_bytes() {
                    return;
                }
            }
            sleep(SOON).await;
        });
        if answer.await.is_ok() {
            return Ok(());
        }
    }
    bail!("no number is left")
}

/// When, counted from `begin`, a connection that is made now has its answer, and a flow that was open before has one again.
/// Requests that were on their way to the one who died are cut: nobody knows what it has done with them.
async fn served_again(field: &Field, flow: &UdpSocket, begin: Instant, what: &str) -> Result<String> {
    let tcp = async {
        let mut cut = 0;
        while let Err(error) = client::get(field.ports[0], "/", START).await {
            cut += 1;
            ensure!(begin.elapsed() < START, "{what}: {error:#}");
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok((cut, begin.elapsed()))
    };
    let udp = async {
        timeout(START, echoed(flow)).await??;
        anyhow::Ok(begin.elapsed())
    };
    let ((cut, tcp), udp) = tokio::try_join!(tcp, udp)?;
    let told =
        format!("{cut} requests cut, then one is answered after {tcp:?}; an open UDP flow after {udp:?}");
    Ok(format!("{what}: {told}"))
}

/// The relay's process. The node is this machine.
async fn process(field: &Field) -> Result<u32> {
    let pod = field.relay_pod().await?;
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let is_relay = std::fs::read_to_string(entry.path().join("comm"))
            .is_ok_and(|name| name.trim() == "kftray-server");
        let is_ours =
            || std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|groups| groups.contains(uid));
        if is_relay && is_ours() {
            return Ok(pid);
        }
    }
    bail!("no process of the relay on this machine")
}

async fn kill(pid: u32) -> Result<()> {
    let mut command = Command::new("kill");
    command.args(["-KILL", &pid.to_string()]);
    ground::run(command).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_is_killed() -> Result<()> {
    let field = field("killed").await?;
    let flow = peer(field.ports[1]).await?;
    timeout(SOON, echoed(&flow)).await??;
    let before = field.relay_pod().await?["metadata"]["uid"].clone();
    let relay = process(&field).await?;
    let begin = Instant::now();
    kill(relay).await?;
    println!("{}", served_again(&field, &flow, begin, "kill -9 of the relay").await?);
    let pods = field.ground.kubectl(&["-n", &field.namespace, "get", "pods", "-o", "json"]).await?;
    let pods: serde_json::Value = serde_json::from_str(&pods)?;
    let running = |pod: &&serde_json::Value| pod["status"]["phase"] == "Running";
    let uids: Vec<_> = pods["items"].as_array().context("a list")?.iter().filter(running).collect();
    ensure!(
        uids.len() == 1 && uids[0]["metadata"]["uid"] != before,
        "another relay, and one only: {uids:#?}"
    );
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containers_runtime_is_restarted() -> Result<()> {
    let field = field("runtime").await?;
    let flow = peer(field.ports[1]).await?;
    timeout(SOON, echoed(&flow)).await??;
    let before = field.relay_pod().await?["metadata"]["uid"].clone();
    // Killed at the beginning of this verb; it returns when the new one answers.
    let begin = Instant::now();
    field.ground.fault("containerd-restart").await?;
    println!("containerd was back after {:?}", begin.elapsed());
    println!("{}", served_again(&field, &flow, begin, "restart of the node's runtime").await?);
    assert_eq!(field.relay_pod().await?["metadata"]["uid"], before, "the relay itself has lived on");
    field.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_is_killed_and_its_uploads_do_not_look_whole() -> Result<()> {
    let host: Ipv4Addr =
        std::env::var("KFTRAY_CLUSTER_HOST_IP").context("KFTRAY_CLUSTER_HOST_IP")?.parse()?;
    let target = TcpListener::bind((host, 0)).await?;
    let entries = [
        proxy("web", "web.kftest.svc", 80),
        proxy_udp("echo", "single.kftest.svc", 9001),
        proxy("upload", &host.to_string(), target.local_addr()?.port()),
    ];
    let mut field = Field::run("client", &entries).await?;
    let relay = field.relay_pod().await?["metadata"]["uid"].clone();
    let mut upload = client::connect(field.ports[2]).await?;
    upload.write_all(&[7; 100_000]).await?;
    let (mut received, _) = timeout(SOON, target.accept()).await??;
    let mut bytes = vec![0; 100_000];
    timeout(SOON, received.read_exact(&mut bytes)).await??;

    let begin = Instant::now();
    field.forward.signal("KILL").await?;
    // Half an upload must not be taken for a whole one: the target's connection ends with a reset.
    let end = timeout(SOON, received.read(&mut bytes)).await?;
    let error = end.err().map(|error| error.kind());
    assert_eq!(error, Some(std::io::ErrorKind::ConnectionReset));
    println!(
        "kill -9 of the client: the target of an open connection sees its reset after {:?}",
        begin.elapsed()
    );
    let again = Instant::now();
    field.run_again().await?;
    println!("kill -9 of the client: the next one is ready {:?} after its start", again.elapsed());
    let flow = peer(field.ports[1]).await?;
    println!(
        "{}",
        served_again(&field, &flow, again, "kill -9 of the client, counted from the next one's start")
            .await?
    );
    assert_eq!(
        field.relay_pod().await?["metadata"]["uid"],
        relay,
        "it has found the relay of the one before"
    );
    field.gone().await
}

/// The pod's own limit, lowered until it is one: a relay beyond its memory is killed by the kernel, told, and replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_memory_is_told_and_replaced() -> Result<()> {
    const MORE: u64 = 512 * 1024;
    let mut field = field("memory").await?;
    let relay = process(&field).await?;
    // What it has by now and a little more, which the first of many connections need.
    let (limit, used) = memory(relay)?;
    let used: u64 = std::fs::read_to_string(&used)?.trim().parse()?;
    let begin = Instant::now();
    std::fs::write(&limit, (used + MORE).to_string()).with_context(|| limit.display().to_string())?;
    let mut connections = JoinSet::new();
    let port = field.ports[0];
    for _ in 0..300 {
        connections.spawn(async move {
            let mut socket = client::connect(port).await?;
            socket.write_all(b"GET /bytes?n=10000000 HTTP/1.1\r\nHost: e2e\r\n\r\n").await?;
            sleep(Duration::from_secs(20)).await;
            anyhow::Ok(())
        });
    }
    let killed = field.forward.until_that("OOMKilled", START, |event| {
        let status = &event["status"];
        [&status["cause"], &status["waiting_for"]]
            .iter()
            .any(|why| why["message"].as_str().is_some_and(|text| text.contains("OOMKilled")))
    });
    let killed = killed.await?;
    println!("told {:?} after the limit was lowered: {killed}", begin.elapsed());
    connections.shutdown().await;
    let flow = peer(field.ports[1]).await?;
    println!("{}", served_again(&field, &flow, begin, "the relay ran out of memory").await?);
    field.gone().await
}

/// The files that hold the memory limit of a process' container, and what of it is used (cgroup v1 or v2).
fn memory(pid: u32) -> Result<(PathBuf, PathBuf)> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let of = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let found = fields.next()?.split(',').any(|name| name == controller);
            found.then(|| fields.next().map(|path| path.trim_start_matches('/').to_owned()))?
        })
    };
    let at = |root: &str, path: String, limit: &str, used: &str| {
        let group = PathBuf::from(root).join(path);
        (group.join(limit), group.join(used))
    };
    let v1 = of("memory")
        .map(|path| at("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes"));
    let v2 = of("").map(|path| at("/sys/fs/cgroup", path, "memory.max", "memory.current"));
    let found = [v1, v2].into_iter().flatten().find(|(limit, _)| limit.exists());
    found.context("no memory limit of the relay's container")
}
