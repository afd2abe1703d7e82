//! What strangers get at a relay in a real cluster: other pods, other users, other programs, floods. Each is refused and
//! counted, and whoever uses the relay notices nothing.
//!
//! A DNS answer that changes between check and dial is made in the process: `the_address_that_is_dialled_is_the_one_that_was_judged`
//! of kftray-server.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::field::{Field, SOON, direct, image, metrics, nothing_installed, proxy, proxy_udp};
use kftray_e2e::{Ground, client, ground};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_relay_get_nowhere() -> Result<()> {
    let field = Field::run("strangers", &[proxy("web", "web.kftest", 80)]).await?;
    client::get(field.ports[0], "/", SOON).await?;
    let pod = field.relay_pod().await?;
    let address = pod["status"]["podIP"].as_str().context("an address")?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;

    // Another pod: the tunnel's port is not on the pod's address, and the health port tells health only.
    let ports = [proxy("tunnel", address, 9999), proxy("health", address, 9998)];
    let mut other = Field::run("strangers-other", &ports).await?;
    let mut socket = client::connect(other.ports[0]).await?;
    socket.write_all(b"KFTRELAY").await?;
    ensure!(
        timeout(SOON, socket.read(&mut [0; 64])).await?.unwrap_or(0) == 0,
        "an answer at the tunnel port"
    );
    // Nothing listens there: had the relay taken the connection, it would have waited for the rest of the hello and then
    // closed without a byte, which looks the same from here.
    let message = other.told("remote_refused").await?;
    ensure!(message.contains("nothing listens") && message.contains(address), "{message}");
    let told = field.metrics().await?;
    for reason in ["silent", "flood", "garbage"] {
        let count = told.get(&format!("hellos_refused_total{{reason=\"{reason}\"}}"));
        ensure!(count == 0, "{count} strangers came through ({reason}):\n{}", told.0);
    }
    ensure!(client::get(other.ports[1], "/healthz", SOON).await?.starts_with("ok"));
    let mut socket = client::connect(other.ports[1]).await?;
    socket.write_all(b"\x16\x03\x01garbage\r\n\r\n").await?;
    timeout(SOON, socket.read(&mut [0; 512])).await?.ok();

    // Somebody who may port-forward to it: garbage, a token that is not its owner's, a version that is none.
    let direct = direct(&field.ground, &field.namespace, &[(name, 9999)]).await?;
    let port = direct.port()?;
    let refused = "KFTRELAY\u{2}";
    for (hello, answer, words) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "", ""),
        (vec![0xFF; 100_000], "", ""),
        (hello(1, 1), refused, "the token is not one that this relay was created for"),
        // Of a later client, and of one from before the first version: both are told what is spoken here.
        (hello(7, 9), refused, ") speaks protocol 1, the client 7 to 9"),
        (hello(0, 0), refused, ") speaks protocol 1, the client 0"),
    ] {
        let mut socket = client::connect(port).await?;
        socket.write_all(&hello).await.ok();
        let mut received = Vec::new();
        timeout(SOON, socket.read_to_end(&mut received)).await?.ok();
        let text = String::from_utf8_lossy(&received);
        ensure!(text.starts_with(answer) && text.is_empty() == answer.is_empty(), "{text:?}");
        ensure!(text.contains(words), "{text:?}");
    }
    // Whoever is the owner has noticed nothing; whoever looks at the metrics has.
    client::get(field.ports[0], "/", SOON).await?;
    let metrics = client::get(other.ports[1], "/metrics", SOON).await?;
    for line in ["{reason=\"unauthorized\"} 1", "{reason=\"version\"} 2", "{reason=\"garbage\"} 2"] {
        ensure!(metrics.contains(&format!("kftray_server_hellos_refused_total{line}")), "{line}:\n{metrics}");
    }
    other.gone().await?;
    field.gone().await
}

/// A hello with a token of zeros, by hand: what an old or foreign client sends.
fn hello(lowest: u16, highest: u16) -> Vec<u8> {
    let mut fields = vec![1, 0, 4];
    fields.extend_from_slice(&lowest.to_be_bytes());
    fields.extend_from_slice(&highest.to_be_bytes());
    fields.extend_from_slice(&[2, 0, 32]);
    fields.extend_from_slice(&[0; 32]);
    let mut hello = b"KFTRELAY\0".to_vec();
    hello.push(u8::try_from(fields.len()).unwrap_or(u8::MAX));
    hello.extend_from_slice(&fields);
    hello
}

/// Somebody with all rights of a relay's user in a namespace beside it.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_does_not_even_come_near() -> Result<()> {
    let field = Field::run("mine", &[proxy("web", "web.kftest", 80)]).await?;
    let theirs = Field::run("theirs", &[proxy("web", "web.kftest", 80)]).await?;
    let pod = field.relay_pod().await?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    let user = ["user", "relay-neighbour", "-n", &theirs.namespace, "--allow", "configmaps=get"];
    let kubeconfig = field.ground.xtask_cluster(&user).await?;
    let kubeconfig = kubeconfig.lines().last().context("a path")?.trim().to_owned();
    let mut kftui = Command::new(&field.ground.kftui);
    kftui.args(["rbac", "print", "expose", "-n", &theirs.namespace, "--user", "relay-neighbour"]);
    field.ground.apply(&ground::run(kftui).await?).await?;
    let as_neighbour = async |arguments: &[&str]| {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--kubeconfig", &kubeconfig, "-n", &field.namespace]).args(arguments);
        match ground::run(kubectl).await {
            Ok(done) => anyhow::bail!("{arguments:?} is allowed: {done}"),
            Err(error) => Ok(error.to_string()),
        }
    };
    for arguments in [
        &["port-forward", name, ":9999"][..],
        &["get", "pod", name],
        &["delete", "pod", name],
        &["get", "--raw", &format!("/api/v1/namespaces/{}/pods/{name}:9998/proxy/metrics", field.namespace)],
    ] {
        let error = as_neighbour(arguments).await?;
        ensure!(error.contains("Forbidden") || error.contains("forbidden"), "{arguments:?}: {error}");
    }
    client::get(field.ports[0], "/", SOON).await?;
    theirs.gone().await?;
    field.gone().await
}

/// Connections that say nothing, from somebody who may port-forward to the pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_at_the_tunnels_port_has_an_end() -> Result<()> {
    let field = Field::run("flood", &[proxy("web", "web.kftest", 80)]).await?;
    client::get(field.ports[0], "/", SOON).await?;
    let pod = field.relay_pod().await?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    let direct = direct(&field.ground, &field.namespace, &[(name, 9999)]).await?;
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut socket = client::connect(direct.port()?).await?;
        // Less than a hello, so that the connection exists at the relay.
        socket.write_all(b"KFT").await?;
        silent.push(socket);
    }
    let turned_away = async |reason: &str| {
        let told = metrics(&field.ground, &field.namespace, name).await?;
        anyhow::Ok(told.get(&format!("hellos_refused_total{{reason=\"{reason}\"}}")))
    };
    let until = async |reason: &str, least: u64| {
        while turned_away(reason).await? < least {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    // As many as may be silent at a time are, and are shown the door after 10 s; the others at once.
    timeout(SOON, until("flood", 32)).await.context("flood")??;
    client::get(field.ports[0], "/", SOON).await?;
    timeout(SOON, until("silent", 32)).await.context("silent")??;
    client::get(field.ports[0], "/", SOON).await?;
    drop(silent);
    field.gone().await
}

/// A relay for many with room for few flows: whoever comes then is told, the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_opens_is_told_and_counted_and_disturbs_nobody() -> Result<()> {
    let ground = Ground::from_env()?;
    let home = TempDir::new()?;
    let patch = home.path().join("patch.json");
    let few = json!([{ "name": "kftray-server", "env": [{ "name": "KFTRAY_LIMITS_FLOWS", "value": "4" }] }]);
    std::fs::write(&patch, json!({ "spec": { "template": { "spec": { "containers": few } } } }).to_string())?;
    let patch = patch.display().to_string();
    nothing_installed(&ground).await?;
    relay(&ground, &home, &["install", "--image", &image(), "--replicas", "1", "--patch", &patch]).await?;
    let outcome = flood_of_opens(&ground).await;
    relay(&ground, &home, &["uninstall", "--delete-namespace"]).await?;
    outcome
}

/// `kftui relay ARGUMENTS`, as an administrator.
async fn relay(ground: &Ground, home: &TempDir, arguments: &[&str]) -> Result<String> {
    let mut kftui = Command::new(&ground.kftui);
    kftui
        .arg("relay")
        .args(arguments)
        .env("KUBECONFIG", &ground.kubeconfig)
        .env("KFTRAY_CONFIG", home.path());
    ground::run(kftui).await
}

async fn flood_of_opens(ground: &Ground) -> Result<()> {
    let system = ["-n", "kftray-system"];
    let rolled_out = ["rollout", "status", "deployment/kftray-server", "--timeout=120s"];
    ground.kubectl(&[&system[..], &rolled_out].concat()).await?;
    let echo = proxy_udp("echo", "single.kftest", 9001);
    let mut one = Field::run("flooded-one", std::slice::from_ref(&echo)).await?;
    let other = Field::run("flooded-other", &[echo, proxy("web", "web.kftest", 80)]).await?;
    let peer = async |field: &Field| {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(("127.0.0.1", field.ports[0])).await?;
        anyhow::Ok(socket)
    };
    let exchange = async |socket: &UdpSocket| {
        socket.send(b"hello").await?;
        let mut answer = [0; 8];
        let length = timeout(SOON, socket.recv(&mut answer)).await.context("no echo")??;
        ensure!(&answer[..length] == b"hello", "{answer:?}");
        anyhow::Ok(())
    };
    let neighbour = peer(&other).await?;
    exchange(&neighbour).await?;
    let mut served = Vec::new();
    for _ in 0..3 {
        let socket = peer(&one).await?;
        exchange(&socket).await?;
        served.push(socket);
    }
    // The flood: there is room for four.
    for _ in 0..20 {
        peer(&one).await?.send(b"hello").await?;
    }
    let message = one.told("overloaded").await?;
    ensure!(message.contains("UDP flows"), "{message}");
    for socket in served.iter().chain([&neighbour]) {
        exchange(socket).await?;
    }
    client::get(other.ports[1], "/", SOON).await?;
    let pod = ground
        .kubectl(&[&system[..], &["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]].concat())
        .await?;
    let busy = metrics(ground, "kftray-system", pod.trim()).await?.get("refusals_total{reason=\"busy\"}");
    ensure!(busy >= 20, "{busy} refusals are counted");
    other.gone().await?;
    one.gone().await
}
