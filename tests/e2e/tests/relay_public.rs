//! Programs of this machine, called from the internet and from other pods: through a real Ingress controller over HTTPS, with
//! a certificate that an issuer of the test signs when it sees the annotations; through a Service by its name.
//!
//! Needs the relay's image and the Ingress controller in the cluster (`cargo xtask cluster up --relay`, `cluster load
//! --ingress`, or what `cargo xtask test --e2e` does).
//!
//! One file, though a large one: every test here needs the same callers from both sides, issuer and program.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use kftray_e2e::exposer::waits_for;
use kftray_e2e::field::{SOON, START, metrics, proxy};
use kftray_e2e::ground::NAMESPACE;
use kftray_e2e::https::Caller;
use kftray_e2e::program::{Body, bytes, hex};
use kftray_e2e::stream::{first_difference, period};
use kftray_e2e::{Exposer, Issuer, Program, client, grpc};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;

/// Both examples of the documents, word for word but for the context.
const PUBLIC: &str = r#"{
    "alias": "myapp.example.com",
    "namespace": "production",
    "local_port": 3000,
    "local_address": "localhost",
    "context": "@current",
    "workload_type": "expose",
    "protocol": "tcp",
    "domain_enabled": true,
    "exposure_type": "public",
    "cert_manager_enabled": true,
    "cert_issuer": "letsencrypt-prod",
    "cert_issuer_kind": "ClusterIssuer",
    "ingress_class": "nginx"
}"#;
const INTERNAL: &str = r#"{
    "alias": "internal-api",
    "namespace": "development",
    "local_port": 8080,
    "local_address": "localhost",
    "context": "@current",
    "workload_type": "expose",
    "protocol": "tcp",
    "domain_enabled": true,
    "exposure_type": "internal"
}"#;
/// What documents and mission call a large body.
const LARGE: u64 = 100_000_000;

/// An address that the cluster has, as `cargo xtask cluster env` says.
fn address(variable: &str) -> Result<IpAddr> {
    let text = std::env::var(variable).with_context(|| variable.to_owned())?;
    Ok(text.parse()?)
}

/// Calls a host by way of the Ingress controller.
fn caller(host: &str, issuer: &Issuer) -> Result<Caller> {
    let node = SocketAddr::new(address("KFTRAY_CLUSTER_NODE_IP")?, 443);
    Caller::new(node, host, &issuer.certificate)
}

/// A public expose whose certificate comes from the issuer of this name.
fn public(alias: &str, issuer: &str, port: u16) -> Value {
    json!({
        "alias": alias, "workload_type": "expose", "exposure_type": "public", "local_port": port,
        "ingress_class": "traefik", "cert_manager_enabled": true, "cert_issuer": issuer,
    })
}

fn internal(alias: &str, port: u16) -> Value {
    json!({ "alias": alias, "workload_type": "expose", "exposure_type": "internal", "local_port": port })
}

fn body(bytes: impl Into<bytes::Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_public_expose_over_https() -> Result<()> {
    let exposer = Exposer::new("production").await?;
    let program = Program::listen(3000).await?;
    let mut forward = exposer.start(&[serde_json::from_str(PUBLIC)?])?;

    // Nobody issues certificates yet, and that is told with what to look at.
    let (message, remedy) = waits_for(&mut forward, "certificate_pending").await?;
    ensure!(message.starts_with("the certificate of myapp.example.com is not issued yet"), "{message}");
    ensure!(remedy.contains("ClusterIssuer letsencrypt-prod"), "{remedy}");
    let issuer = Issuer::start(&exposer.ground, "letsencrypt-prod")?;
    forward.until("all_ready", START).await?;
    let caller = caller("myapp.example.com", &issuer)?;
    caller.until_answered(200, SOON).await?;

    webhooks(&caller).await?;
    large_bodies(&caller).await?;
    events(&caller, &program).await?;
    web_socket(&caller).await?;
    two_hundred_at_once(&caller).await?;

    // The program goes and comes back.
    drop(program);
    let (status, page) = caller.get("/").await?;
    ensure!(status == 502 && page.contains("localhost:3000"), "{status}: {page}");
    ensure!(page.to_lowercase().contains("start"), "what to do: {page}");
    let failed = |event: &Value| event["problem"]["code"] == "local_program_down";
    forward.until_that("local_program_down", SOON, failed).await?;
    let _program = Program::listen(3000).await?;
    caller.until_answered(200, SOON).await?;

    forward.interrupt().await?;
    exposer.until_gone("ingress", "myapp").await?;
    exposer.gone().await
}

/// POST bodies arrive as they were sent, on a connection that is kept, and the program learns who called.
async fn webhooks(caller: &Caller) -> Result<()> {
    let here = address("KFTRAY_CLUSTER_HOST_IP")?.to_string();
    let mut connection = caller.open().await?;
    for number in 0..50_usize {
        let sent: Vec<u8> = (0..number * 997).map(|at| (at * 7 + number) as u8).collect();
        let request = caller
            .request("POST", &format!("/hooks/{number}?x=%20y"))
            .header("X-Hub-Signature-256", hex(&Sha256::digest(&sent)))
            // What callers claim about themselves is not believed.
            .header("X-Forwarded-For", "192.0.2.66")
            .header("Forwarded", "for=192.0.2.66")
            .body(body(sent.clone()))?;
        let report = connection.report(request).await?;
        let headers = &report["headers"];
        ensure!(
            report["method"] == "POST" && report["path"] == format!("/hooks/{number}?x=%20y"),
            "{report}"
        );
        ensure!(report["count"] == sent.len() && report["sha256"] == hex(&Sha256::digest(&sent)), "{report}");
        ensure!(headers["x-hub-signature-256"] == report["sha256"], "{report}");
        ensure!(headers["x-forwarded-for"] == *here && headers["x-forwarded-for (count)"] == 1, "{report}");
        ensure!(
            headers["x-forwarded-proto"] == "https" && headers["x-forwarded-host"] == *caller.host,
            "{report}"
        );
        let forwarded = format!("for={here};host=\"{}\";proto=https", caller.host);
        ensure!(headers["forwarded"] == *forwarded && headers["forwarded (count)"] == 1, "{report}");
        ensure!(headers["host"] == *caller.host, "{report}");
    }
    Ok(())
}

/// 100 MB there, in chunks since nobody says how many, and 100 MB back.
async fn large_bodies(caller: &Caller) -> Result<()> {
    let mut connection = caller.open().await?;
    let upload = caller.request("PUT", "/large").body(bytes(LARGE))?;
    let report = timeout(START, connection.report(upload)).await??;
    let mut sum = Sha256::new();
    let mut left = usize::try_from(LARGE)?;
    while left > 0 {
        let length = left.min(period().len());
        sum.update(&period()[..length]);
        left -= length;
    }
    ensure!(report["count"] == LARGE && report["sha256"] == hex(&sum.finalize()), "{report}");
    ensure!(report["headers"]["transfer-encoding"] == "chunked", "{report}");

    let download = caller.request("GET", &format!("/bytes?n={LARGE}")).body(Body::default())?;
    let mut answer = connection.send(download).await?.into_body();
    let mut offset = 0;
    while let Some(frame) = timeout(SOON, answer.frame()).await? {
        let frame = frame.with_context(|| format!("cut after {offset} bytes"))?;
        let data = frame.data_ref().context("data")?;
        ensure!(first_difference(offset, data).is_none(), "wrong bytes behind {offset}");
        offset += data.len() as u64;
    }
    ensure!(offset == LARGE, "{offset} bytes");
    Ok(())
}

/// Each event is there before the next one is made.
async fn events(caller: &Caller, program: &Program) -> Result<()> {
    let mut connection = caller.open().await?;
    let request = caller.request("GET", "/events?n=5").header("Accept", "text/event-stream");
    let mut answer = timeout(SOON, connection.send(request.body(Body::default())?)).await??.into_body();
    let mut received = Vec::new();
    for number in 0..5 {
        let event = format!("data: {number}\n\n").into_bytes();
        while !received.ends_with(&event) {
            let frame = timeout(SOON, answer.frame()).await.with_context(|| format!("event {number}"))?;
            let frame = frame.context("the events ended")??;
            received.extend_from_slice(frame.data_ref().context("data")?);
        }
        program.emit();
    }
    ensure!(timeout(SOON, answer.frame()).await?.is_none(), "the events end");
    Ok(())
}

async fn web_socket(caller: &Caller) -> Result<()> {
    let url = format!("wss://{}/socket", caller.host);
    let connecting = tokio_tungstenite::client_async(url, caller.connect("http/1.1").await?);
    let (mut socket, _) = timeout(SOON, connecting).await??;
    for round in 0..100_usize {
        let message = match round % 2 {
            0 => Message::text(format!("message {round}")),
            _ => Message::binary(vec![round as u8; round * 997]),
        };
        socket.send(message.clone()).await?;
        let back = timeout(SOON, socket.next()).await?.context("the socket ended")??;
        ensure!(back == message, "round {round}: {} bytes back", back.len());
    }
    socket.close(None).await?;
    Ok(())
}

async fn two_hundred_at_once(caller: &Caller) -> Result<()> {
    let mut callers = JoinSet::new();
    for number in 0..200 {
        let caller = caller.clone();
        callers.spawn(async move {
            let path = format!("/at-once/{number}?ms=500");
            let (status, text) = timeout(START, caller.get(&path)).await??;
            let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            ensure!(status == 200 && report["path"] == *path, "{number}: {status}: {text}");
            anyhow::Ok(())
        });
    }
    while let Some(called) = callers.join_next().await {
        called??;
    }
    Ok(())
}

/// gRPC from the internet, over the Ingress controller's HTTP/2, and without TLS from another pod.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_through_the_ingress_controller_and_from_another_pod() -> Result<()> {
    let exposer = Exposer::new("relay-public-grpc").await?;
    let issuer = Issuer::start(&exposer.ground, "grpc-issuer")?;
    let (port, _program) = grpc::serve().await?;
    let mut outside = public("grpc.example.com", "grpc-issuer", port);
    outside["exposure_protocol"] = "grpc".into();
    let mut inside = internal("echo", port);
    inside["exposure_protocol"] = "h2c".into();
    let forward = exposer.run(&[outside, inside]).await?;
    let service = exposer.object("service", "grpc").await?;
    ensure!(service["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c", "{service}");

    let messages: Vec<Vec<u8>> = (0..20_usize).map(|number| vec![number as u8; number * 5_003]).collect();
    let caller = caller("grpc.example.com", &issuer)?;
    let begin = Instant::now();
    loop {
        let call =
            async { grpc::call(caller.connect("h2").await?, "https://grpc.example.com", &messages).await };
        match timeout(SOON, call).await? {
            Ok(()) => break,
            // Until the controller has taken notice of it all.
            Err(error) => ensure!(begin.elapsed() < SOON, "{error:#}"),
        }
        sleep(Duration::from_millis(200)).await;
    }

    let pod = exposer.other()?.run(&[proxy("from-a-pod", "echo", 80)]).await?;
    let socket = client::connect(pod.port()?).await?;
    timeout(SOON, grpc::call(socket, "http://echo", &messages)).await??;
    drop((forward, pod));
    exposer.gone().await
}

/// Credentials, an address list that sees the true caller behind the controller, and a time that ends.
#[tokio::test(flavor = "multi_thread")]
async fn rules_hold_behind_the_ingress_controller() -> Result<()> {
    let exposer = Exposer::new("relay-public-rules").await?;
    let issuer = Issuer::start(&exposer.ground, "rules-issuer")?;
    let program = Program::listen(0).await?;
    let here = address("KFTRAY_CLUSTER_HOST_IP")?;
    let with = |alias: &str, field: &str, value: Value| {
        let mut entry = public(alias, "rules-issuer", program.port);
        entry[field] = value;
        entry
    };
    let mut guarded = with("guarded.example.com", "exposure_allow", json!([here.to_string()]));
    guarded["exposure_basic_auth"] = "jane:secret".into();
    guarded["exposure_bearer_token"] = "token-1".into();
    let entries = [
        guarded,
        with("closed.example.com", "exposure_allow", json!(["192.0.2.0/24"])),
        with("short.example.com", "exposure_expires_after", "30s".into()),
    ];
    let mut forward = exposer.run(&entries).await?;

    let guarded = caller("guarded.example.com", &issuer)?;
    guarded.until_answered(401, SOON).await?;
    let ask = async |caller: &Caller, field: &str, value: &str| {
        let request = caller.request("GET", "/").header(field, value).body(Body::default())?;
        caller.open().await?.text(request).await
    };
    // jane:secret, jane:wrong
    for (credentials, status) in [
        ("Basic amFuZTpzZWNyZXQ=", 200),
        ("Bearer token-1", 200),
        ("Basic amFuZTp3cm9uZw==", 401),
        ("Bearer x", 401),
    ] {
        let (found, text) = ask(&guarded, "Authorization", credentials).await?;
        ensure!(found == status, "{credentials}: {found}: {text}");
        ensure!(!text.contains("authorization"), "the program does not get them: {text}");
    }
    let closed = caller("closed.example.com", &issuer)?;
    closed.until_answered(403, SOON).await?;
    for (field, claim) in
        [("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.1"), ("X-Real-IP", "192.0.2.1")]
    {
        let (status, text) = ask(&closed, field, claim).await?;
        ensure!(status == 403, "{field}: {claim} is believed: {text}");
    }
    let refused = |event: &Value| event["problem"]["code"] == "caller_refused";
    let event = forward.until_that("caller_refused", SOON, refused).await?;
    ensure!(event["problem"]["message"].to_string().contains(&here.to_string()), "{event}");

    let (message, _) = waits_for(&mut forward, "expose_expired").await?;
    ensure!(message.contains("30 s"), "{message}");
    exposer.until_gone("ingress", "short").await?;
    forward.interrupt().await?;
    exposer.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_class_that_is_missing_is_told_and_waited_for() -> Result<()> {
    let exposer = Exposer::new("relay-public-class").await?;
    let class = ["delete", "ingressclass", "not-there", "--ignore-not-found"];
    exposer.ground.kubectl(&class).await?;
    let program = Program::listen(0).await?;
    let entry = json!({
        "alias": "classless.example.com", "workload_type": "expose", "exposure_type": "public",
        "local_port": program.port, "ingress_class": "not-there",
    });
    let mut forward = exposer.start(&[entry])?;
    let (message, remedy) = waits_for(&mut forward, "ingress_class_missing").await?;
    ensure!(message.contains("no ingress class `not-there`"), "{message}");
    ensure!(message.contains("nginx") && message.contains("traefik"), "those that are there: {message}");
    ensure!(remedy.contains("ingress_class"), "{remedy}");
    let made = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: { name: not-there }\n\
                spec: { controller: traefik.io/ingress-controller }\n";
    exposer.ground.apply(made).await?;
    let served = async {
        forward.until("all_ready", START).await?;
        let node = SocketAddr::new(address("KFTRAY_CLUSTER_NODE_IP")?, 80);
        let begin = Instant::now();
        loop {
            let mut socket = tokio::net::TcpStream::connect(node).await?;
            socket
                .write_all(b"GET / HTTP/1.1\r\nHost: classless.example.com\r\nConnection: close\r\n\r\n")
                .await?;
            let mut answer = String::new();
            timeout(SOON, socket.read_to_string(&mut answer)).await??;
            if answer.starts_with("HTTP/1.1 200 ") {
                return anyhow::Ok(());
            }
            ensure!(begin.elapsed() < SOON, "{answer}");
            sleep(Duration::from_millis(200)).await;
        }
    };
    let served = served.await;
    exposer.ground.kubectl(&class).await?;
    served?;
    exposer.gone().await
}

/// The documents' internal expose by `http://ALIAS` from another pod of the namespace; TCP with its ends; a program behind TLS.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_internal_expose_and_tcp_from_another_pod() -> Result<()> {
    let exposer = Exposer::new("development").await?;
    let _program = Program::listen(8080).await?;
    let secret = Program::listen_tls().await?;
    let counter = TcpListener::bind("127.0.0.1:0").await?;
    let mut raw = internal("raw", counter.local_addr()?.port());
    raw["exposure_protocol"] = "tcp".into();
    let mut tls = internal("tls", secret.port);
    tls["local_address"] = "https://localhost".into();
    let forward = exposer.run(&[serde_json::from_str(INTERNAL)?, raw.clone(), tls]).await?;
    let from_a_pod = [
        proxy("by-name", "http://internal-api", 80),
        proxy("by-port", "internal-api.development:8080", 1),
        proxy("raw-caller", "raw", u16::try_from(raw["local_port"].as_u64().context("a port")?)?),
        proxy("tls-caller", "tls", 80),
    ];
    let pod = exposer.other()?.run(&from_a_pod).await?;
    let ports = pod.ports()?;
    for port in [ports[0], ports[1], ports[3]] {
        let report: Value = serde_json::from_str(&client::get(port, "/hello", SOON).await?)?;
        ensure!(report["path"] == "/hello", "{report}");
        let who = report["headers"]["x-forwarded-for"].as_str().context("who calls")?;
        ensure!(who.parse::<IpAddr>()?.to_string().starts_with("10."), "a pod's address: {report}");
    }
    client::download(ports[0], LARGE).await?;

    // It answers once the caller has finished, and only then: 200 of them at once.
    let mut answers = JoinSet::new();
    answers.spawn(async move {
        let mut served = JoinSet::new();
        while let Ok((mut socket, _)) = counter.accept().await {
            served.spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await?;
                socket.write_all(format!("{} {}", all.len(), hex(&Sha256::digest(&all))).as_bytes()).await
            });
        }
    });
    let mut callers = JoinSet::new();
    for number in 0..200_usize {
        let port = ports[2];
        callers.spawn(async move {
            let mut socket = client::connect(port).await?;
            let sent = vec![number as u8; number * 501];
            socket.write_all(&sent).await?;
            socket.shutdown().await?;
            let mut answer = String::new();
            timeout(START, socket.read_to_string(&mut answer)).await??;
            ensure!(
                answer == format!("{} {}", sent.len(), hex(&Sha256::digest(&sent))),
                "{number}: {answer}"
            );
            anyhow::Ok(())
        });
    }
    while let Some(called) = callers.join_next().await {
        called??;
    }
    drop((forward, pod));
    exposer.gone().await
}

/// What became of the requests of one kind of callers.
#[derive(Default)]
struct Calls {
    served: usize,
    slowest: Duration,
    /// When they were begun, and why they failed.
    failed: Vec<(Instant, String)>,
}

/// Calls again and again until it is over.
async fn keep_calling<F: Future<Output = Result<()>>>(over: Arc<AtomicBool>, call: impl Fn() -> F) -> Calls {
    let mut calls = Calls::default();
    while !over.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match call().await {
            Ok(()) => calls.served += 1,
            Err(error) => calls.failed.push((begin, format!("{error:#}"))),
        }
        calls.slowest = calls.slowest.max(begin.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    calls
}

/// 24 callers, a third of them from the internet and a third with requests that may not be sent twice, while the client is
/// killed with `kill -9` and started again at once.
#[tokio::test(flavor = "multi_thread")]
async fn callers_while_the_client_is_killed_and_returns() -> Result<()> {
    let exposer = Exposer::new("relay-public-killed").await?;
    let issuer = Issuer::start(&exposer.ground, "killed-issuer")?;
    let program = Program::listen(0).await?;
    let entries =
        [internal("inside", program.port), public("outside.example.com", "killed-issuer", program.port)];
    let forward = exposer.run(&entries).await?;
    // The callers' way into the cluster is another process, which lives on.
    let pod = exposer.other()?.run(&[proxy("from-a-pod", "inside", 80)]).await?;
    let port = pod.port()?;
    let outside = caller("outside.example.com", &issuer)?;
    outside.until_answered(200, SOON).await?;
    // The node's rules for a new Service may come after its first callers.
    while client::get(port, "/", START).await.is_err() {}

    let over = Arc::new(AtomicBool::new(false));
    let (mut idempotent, mut posts) = (JoinSet::new(), JoinSet::new());
    for number in 0..8 {
        let from_a_pod = move || async move {
            let answer = client::get(port, &format!("/{number}"), START).await?;
            ensure!(answer.contains(&format!("\"/{number}\"")), "another's answer: {answer}");
            Ok(())
        };
        idempotent.spawn(keep_calling(Arc::clone(&over), from_a_pod));
        let outside = outside.clone();
        let from_outside = move || {
            let outside = outside.clone();
            async move {
                let (status, text) = timeout(START, outside.get("/")).await??;
                ensure!(status == 200, "{status}: {text}");
                Ok(())
            }
        };
        idempotent.spawn(keep_calling(Arc::clone(&over), from_outside));
        let post = move || async move {
            let answer = timeout(START, client::upload(port, 1_000)).await??;
            ensure!(answer["count"] == 1_000, "{answer}");
            Ok(())
        };
        posts.spawn(keep_calling(Arc::clone(&over), post));
    }
    sleep(Duration::from_millis(500)).await;
    // One at least waits for its answer when the client dies.
    let mut waiting = JoinSet::new();
    waiting.spawn(client::get(port, "/slow?ms=2000", START));
    sleep(Duration::from_millis(500)).await;
    forward.signal("KILL").await?;
    let killed = Instant::now();
    let forward = exposer.run(&entries).await?;
    println!("the client was back after {:?}", killed.elapsed());
    sleep(Duration::from_secs(2)).await;
    over.store(true, Ordering::Relaxed);

    let answer = waiting.join_next().await.context("a caller that waits")???;
    ensure!(answer.contains("/slow"), "another's answer: {answer}");
    let gets = sum(idempotent).await?;
    let posts = sum(posts).await?;
    let again = offered_again(&exposer, "inside").await?;
    println!(
        "GET: {} served, slowest {:?}, {} failed; POST: {} served, slowest {:?}, {} failed; offered again: {again}",
        gets.served,
        gets.slowest,
        gets.failed.len(),
        posts.served,
        posts.slowest,
        posts.failed.len()
    );
    ensure!(gets.failed.is_empty(), "{:?}", gets.failed);
    // Only what the dead client had already been given is lost: it may have been executed.
    let late: Vec<_> = posts.failed.iter().filter(|(begun, _)| *begun > killed).collect();
    ensure!(late.is_empty(), "begun after the client's death: {late:?}");
    ensure!(posts.failed.len() <= 8, "more than were in flight: {:?}", posts.failed);
    ensure!(again > 0, "the one that waited was not offered again");
    drop((forward, pod));
    exposer.gone().await
}

/// The relay's own answer to a plain GET, whatever its status: head and body.
async fn answer_of(port: u16) -> Result<String> {
    let call = async {
        let mut socket = client::connect(port).await?;
        socket.write_all(b"GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(SOON, call).await.context("no answer")?
}

/// The client is killed and nobody comes back: callers are told so by the relay as long as it is there, and then nothing of the
/// exposes is left in the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn what_callers_get_when_the_client_is_gone_for_good() -> Result<()> {
    // When callers call: the relay has just given up to hold them (10 s), and long after that, when a pod that is not ready
    // would have left its Service.
    const CALLS: [Duration; 2] = [Duration::from_secs(12), Duration::from_secs(40)];
    const NOTHING_LEFT: Duration = Duration::from_secs(150);
    let exposer = Exposer::new("relay-public-gone").await?;
    let issuer = Issuer::start(&exposer.ground, "gone-issuer")?;
    let program = Program::listen(0).await?;
    let entries =
        [internal("inside", program.port), public("outside.example.com", "gone-issuer", program.port)];
    let forward = exposer.run(&entries).await?;
    // The callers' way into the cluster is another process, with a relay in another namespace: it shall not be counted.
    let mut way = proxy("from-a-pod", &format!("inside.{}.svc.cluster.local", exposer.namespace), 80);
    way["namespace"] = NAMESPACE.into();
    let pod = exposer.other()?.run(&[way]).await?;
    let port = pod.port()?;
    let outside = caller("outside.example.com", &issuer)?;
    outside.until_answered(200, SOON).await?;
    // The node's rules for a new Service, and the DNS' knowledge of it, may come after its first callers.
    let begin = Instant::now();
    while let Err(error) = client::get(port, "/", SOON).await {
        ensure!(begin.elapsed() < START, "{error:#}");
        sleep(Duration::from_millis(200)).await;
    }

    forward.signal("KILL").await?;
    let killed = Instant::now();
    let is_told = |alias: &str, text: &str| text.contains(&format!("{alias} is exposed by a kftray client"));
    for after in CALLS {
        sleep_until(killed + after).await;
        let answer = answer_of(port).await.with_context(|| format!("from a pod, {after:?} after"))?;
        ensure!(answer.starts_with("HTTP/1.1 503 ") && is_told("inside", &answer), "{after:?}: {answer}");
        let called = timeout(SOON, outside.get("/")).await;
        let (status, text) = called.with_context(|| format!("from outside, {after:?} after"))??;
        ensure!(status == 503 && is_told("outside.example.com", &text), "{after:?}: {status}: {text}");
    }

    let kinds = "jobs,pods,services,ingresses";
    let look = ["-n", exposer.namespace.as_str(), "get", kinds, "-o", "name"];
    loop {
        let left = exposer.ground.kubectl(&look).await?;
        if left.trim().is_empty() {
            break;
        }
        ensure!(killed.elapsed() < NOTHING_LEFT, "left {:?} after the kill:\n{left}", killed.elapsed());
        sleep(Duration::from_millis(500)).await;
    }
    println!("nothing was left {:?} after the client was killed", killed.elapsed());
    drop((forward, pod));
    exposer.gone().await
}

async fn sum(mut callers: JoinSet<Calls>) -> Result<Calls> {
    let mut all = Calls::default();
    while let Some(calls) = callers.join_next().await {
        let Calls { served, slowest, failed } = calls?;
        all.served += served;
        all.slowest = all.slowest.max(slowest);
        all.failed.extend(failed);
    }
    Ok(all)
}

/// Callers that the relay behind a Service has offered to a second client.
async fn offered_again(exposer: &Exposer, service: &str) -> Result<u64> {
    let service = exposer.object("service", service).await?;
    let selector = service["spec"]["selector"].as_object().context("a selector")?;
    let labels: Vec<String> =
        selector.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let labels = labels.join(",");
    let pods = ["-n", exposer.namespace.as_str(), "get", "pods", "-l", &labels];
    let name = ["-o", "jsonpath={.items[0].metadata.name}"];
    let name = exposer.ground.kubectl(&[&pods[..], &name[..]].concat()).await?;
    let metrics = metrics(&exposer.ground, &exposer.namespace, name.trim()).await?;
    Ok(metrics.get("expose_connections_total{result=\"offered_again\"}"))
}
