//! The failure catalogue's targets (`docs/failures.md`) on a real cluster: Services and pods that cannot be forwarded to, in
//! every way in which the cluster makes them so; each is told, and each is served once it is mended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::failure::{Failure, all_of};
use kftray_e2e::{Forward, Ground, client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const HOLD: Duration = Duration::from_secs(30);

/// The fixture, as `cargo xtask cluster load` brings it.
const FIXTURE: &str = "kftray.test/fixture:1";
/// Servers with a shell in their images.
const NGINX: &str = "kftray.test/nginx:1";
const REDIS: &str = "kftray.test/redis:1";

/// A namespace of its own for each run, so that a second try does not meet the remains of the first.
fn namespace(of: &str) -> String {
    format!("{of}-{}", std::process::id())
}

/// A Deployment of one pod; `container` and `pod` are laid over a fixture that is ready when it listens.
fn program(name: &str, container: Value, pod: Value) -> Value {
    let mut one = json!({
        "name": "main", "image": FIXTURE, "imagePullPolicy": "Never",
        "env": [{ "name": "TERM_DELAY_MS", "value": "0" }],
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
    });
    overlay(&mut one, container);
    let mut spec = json!({ "terminationGracePeriodSeconds": 1 });
    overlay(&mut spec, pod);
    spec["containers"] = json!([one]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            // At once: the pod that does not get ready must not keep its successor waiting for room.
            "strategy": { "type": "Recreate" },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

fn overlay(base: &mut Value, over: Value) {
    let (Value::Object(base), Value::Object(over)) = (base, over) else { return };
    base.extend(over);
}

fn service(name: &str, spec: Value) -> Value {
    let mut all = json!({ "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] });
    overlay(&mut all, spec);
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": all })
}

/// Environment of the fixture that never opens its ports, and that goes on when it should end.
fn never() -> Value {
    json!([{ "name": "START_DELAY_MS", "value": "-1" }, { "name": "TERM_DELAY_MS", "value": "0" }])
}

/// Everything that is broken, at once.
fn broken(namespace: &str) -> Value {
    let room = json!({ "nodeSelector": { "kftray.test/room": namespace } });
    let eater = json!({
        "image": NGINX, "command": ["/bin/sh", "-c", "x=x; while :; do x=$x$x; done"],
        "resources": { "limits": { "memory": "32Mi" } }, "ports": [{ "name": "http", "containerPort": 80 }],
        "readinessProbe": { "tcpSocket": { "port": 80 }, "periodSeconds": 1 },
    });
    let linger = json!([{ "name": "TERM_DELAY_MS", "value": "60000" }]);
    let mut items = vec![
        service("bare", json!({})),
        service("empty", json!({ "selector": { "app": "nobody" } })),
        service("outside", json!({ "type": "ExternalName", "externalName": "db.example.com" })),
        service("good", json!({ "selector": { "app": "good" } })),
        program("good", json!({}), json!({})),
        program("pending", json!({}), room),
        program("crashing", json!({ "args": ["no-such-command"] }), json!({})),
        program("eater", eater, json!({})),
        program(
            "unpullable",
            json!({ "image": "registry.invalid/x:1", "imagePullPolicy": "IfNotPresent" }),
            json!({}),
        ),
        program("unready", json!({ "env": never() }), json!({})),
        program("leaving", json!({ "env": linger }), json!({ "terminationGracePeriodSeconds": 90 })),
        program("deaf", json!({ "env": never(), "readinessProbe": null }), json!({})),
        program(
            "six",
            json!({ "image": REDIS, "command": ["redis-server", "--bind", "::1", "--dir", "/tmp"],
                "ports": [{ "name": "redis", "containerPort": 6379 }], "readinessProbe": null }),
            json!({}),
        ),
        program("hostly", json!({}), json!({ "hostNetwork": true })),
        // For a scheduler that does not exist, so that nobody else writes its status.
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "evicted" }, "spec": {
            "schedulerName": "nobody", "containers": [{ "name": "main", "image": FIXTURE }] } }),
    ];
    for item in &mut items {
        item["metadata"]["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// What is told, and the `kubectl` that mends it.
fn targets() -> Vec<(Failure, Vec<&'static str>)> {
    let to_good = r#"{"spec":{"selector":{"app":"good"}}}"#;
    let named = r#"{"spec":{"ports":[{"name":"metrics","port":81,"targetPort":8080}]}}"#;
    let inside = r#"{"spec":{"type":"ClusterIP","externalName":null,"selector":{"app":"good"}}}"#;
    let container = "/spec/template/spec/containers/0";
    let patch = |operations: &[&str]| -> &'static str {
        let operations: Vec<String> =
            operations.iter().map(|operation| operation.replace("CONTAINER", container)).collect();
        // A few strings of a test that ends.
        Box::leak(format!("[{}]", operations.join(",")).into_boxed_str())
    };
    let without_args = patch(&[r#"{"op":"remove","path":"CONTAINER/args"}"#]);
    let without_limit = patch(&[
        r#"{"op":"remove","path":"CONTAINER/command"}"#,
        r#"{"op":"remove","path":"CONTAINER/resources"}"#,
    ]);
    let with_image = patch(&[
        r#"{"op":"replace","path":"CONTAINER/image","value":"kftray.test/fixture:1"}"#,
        r#"{"op":"replace","path":"CONTAINER/imagePullPolicy","value":"Never"}"#,
    ]);
    vec![
        (
            Failure::new(
                "service missing",
                &["svc/absent", ":80"],
                "target_missing",
                &["service/absent", "does not exist", "; there are"],
                "Check name and namespace",
            ),
            vec!["expose", "deployment", "good", "--name=absent", "--port=80", "--target-port=8080"],
        ),
        (
            Failure::new(
                "service without selector",
                &["svc/bare", ":80"],
                "no_ready_pods",
                &["has no selector"],
                "Give the Service a selector",
            ),
            vec!["patch", "service", "bare", "-p", to_good],
        ),
        (
            Failure::new(
                "service without endpoints",
                &["svc/empty", ":80"],
                "no_ready_pods",
                &["no pod matches the selector", "app=nobody"],
                "Compare the Service's selector",
            ),
            vec!["patch", "service", "empty", "-p", to_good],
        ),
        (
            Failure::new(
                "ExternalName",
                &["svc/outside", ":80"],
                "target_not_forwardable",
                &["db.example.com"],
                "relay",
            ),
            vec!["patch", "service", "outside", "-p", inside],
        ),
        (
            Failure::new(
                "named port absent",
                &["svc/good", ":metrics"],
                "target_port_missing",
                &["metrics", "http"],
                "Use one of the ports listed",
            ),
            vec!["patch", "service", "good", "-p", named],
        ),
        (
            Failure::new(
                "pod pending",
                &["deploy/pending", ":http"],
                "no_ready_pods",
                &["it cannot be scheduled", "node affinity/selector"],
                "events",
            ),
            vec!["label", "node", "--all", "--overwrite", "kftray.test/room=NAMESPACE"],
        ),
        (
            Failure::new(
                "crash looping",
                &["deploy/crashing", ":http"],
                "no_ready_pods",
                &["is in CrashLoopBackOff", "last exit code 2"],
                "events",
            ),
            vec!["patch", "deployment", "crashing", "--type=json", "-p", without_args],
        ),
        (
            Failure::new(
                "out of memory",
                &["deploy/eater", ":http"],
                "no_ready_pods",
                &["is in CrashLoopBackOff", "137, OOMKilled"],
                "events",
            ),
            vec!["patch", "deployment", "eater", "--type=json", "-p", without_limit],
        ),
        (
            Failure::new(
                "image pull failure",
                &["deploy/unpullable", ":http"],
                "no_ready_pods",
                &["ImagePull", "registry.invalid/x:1"],
                "events",
            ),
            vec!["patch", "deployment", "unpullable", "--type=json", "-p", with_image],
        ),
        (
            Failure::new(
                "not ready",
                &["deploy/unready", ":http"],
                "no_ready_pods",
                &["runs but does not pass its readiness probe"],
                "events",
            ),
            vec!["set", "env", "deployment/unready", "START_DELAY_MS=0"],
        ),
    ]
}

/// Runs `kubectl` in the namespace.
async fn kubectl(ground: &Ground, namespace: &str, words: &[&str]) -> Result<()> {
    let words: Vec<String> = words.iter().map(|word| word.replace("NAMESPACE", namespace)).collect();
    let mut all = vec!["-n", namespace];
    all.extend(words.iter().map(String::as_str));
    ground.kubectl(&all).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_target_that_cannot_be_forwarded_to_is_told_and_served_once_mended() -> Result<()> {
    let ground = Ground::from_env()?;
    let namespace = namespace("failures");
    ground.kubectl(&["create", "namespace", &namespace]).await?;
    ground.apply(&broken(&namespace).to_string()).await?;
    let mut running = JoinSet::new();
    for (failure, mend) in targets() {
        let (ground, namespace) = (ground.clone(), namespace.clone());
        let failure = failure.within(&namespace);
        running.spawn(async move {
            let mended = kubectl(&ground, &namespace, &mend);
            let forward = failure.is_told_and_mended(&ground, mended).await?;
            client::get(forward.port()?, "/", HOLD).await.with_context(|| failure.name.to_owned())?;
            Ok(())
        });
    }
    running.spawn(terminating(ground.clone(), namespace.clone()));
    running.spawn(evicted(ground.clone(), namespace.clone()));
    running.spawn(deaf(ground.clone(), namespace.clone()));
    running.spawn(listens_on_the_other_loopback(ground.clone(), namespace.clone()));
    running.spawn(on_the_node_s_network(ground.clone(), namespace.clone()));
    let result = all_of(running).await;
    // Not waited for: nothing that comes later has this name. Pods that linger are ended at once.
    ground
        .kubectl(&[
            "-n",
            &namespace,
            "delete",
            "pods",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ])
        .await?;
    ground.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await?;
    result
}

/// "terminating": the only pod is on its way out, and takes its time.
async fn terminating(ground: Ground, namespace: String) -> Result<()> {
    kubectl(&ground, &namespace, &["rollout", "status", "deployment/leaving", "--timeout=60s"]).await?;
    kubectl(&ground, &namespace, &["scale", "deployment/leaving", "--replicas=0"]).await?;
    let failure = Failure::new(
        "terminating",
        &["deploy/leaving", ":http"],
        "no_ready_pods",
        &["it is terminating"],
        "events",
    );
    let failure = failure.within(&namespace);
    let mend = kubectl(&ground, &namespace, &["scale", "deployment/leaving", "--replicas=1"]);
    let forward = failure.is_told_and_mended(&ground, mend).await?;
    client::get(forward.port()?, "/", HOLD).await.context(failure.name).map(drop)
}

/// "evicted": the kubelet's words, written by us where no kubelet does (a real eviction needs a full node).
async fn evicted(ground: Ground, namespace: String) -> Result<()> {
    let status = r#"{"status":{"phase":"Failed","reason":"Evicted","message":"The node was low on resource: memory."}}"#;
    let patch = ["patch", "pod", "evicted", "--subresource=status", "--type=merge", "-p", status];
    kubectl(&ground, &namespace, &patch).await?;
    let failure = Failure::new(
        "evicted",
        &["pod/evicted", ":8080"],
        "no_ready_pods",
        &["it has failed (Evicted: The node was low on resource: memory)"],
        "events",
    );
    failure.within(&namespace).is_told(&ground).await?;
    Ok(())
}

/// A forward that is ready.
async fn ready(ground: &Ground, namespace: &str, words: &[&str]) -> Result<Forward> {
    let mut command = tokio::process::Command::new(&ground.kftui);
    command.arg("forward").args(words).args(["-n", namespace, "--output", "json", "--kubeconfig"]);
    let mut forward = Forward::spawn({
        command.arg(&ground.kubeconfig);
        command
    })?;
    forward.until("all_ready", Duration::from_secs(60)).await?;
    Ok(forward)
}

/// "container not listening": the forward is ready, since the pod is; each connection is told, and the first after the program
/// has started is served.
async fn deaf(ground: Ground, namespace: String) -> Result<()> {
    let words = &["deploy/deaf", ":http"];
    let failure = Failure::new(
        "container not listening",
        words,
        "remote_refused",
        &["nothing listens on port 8080"],
        "on 127.0.0.1 or on all addresses",
    );
    let failure = failure.within(&namespace);
    let mut forward = ready(&ground, &namespace, words).await.context(failure.name)?;
    let port = forward.port()?;
    let refused = client::get(port, "/", HOLD).await;
    ensure!(refused.is_err(), "{}: {refused:?}", failure.name);
    failure.is_told_by(&mut forward).await?;
    kubectl(&ground, &namespace, &["set", "env", "deployment/deaf", "START_DELAY_MS=0"]).await?;
    kubectl(&ground, &namespace, &["rollout", "status", "deployment/deaf", "--timeout=60s"]).await?;
    // The pod is as good as ready before its program listens: it has no probe.
    let served = async {
        while client::get(port, "/", HOLD).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(HOLD, served).await.context("container not listening: not served after it listens")
}

/// "listens on ::1 only": the runtime looks `localhost` up in the node's hosts file, which knows ::1 on some machines only.
/// There it is served; elsewhere the remedy says where to listen, and listening there cures it.
async fn listens_on_the_other_loopback(ground: Ground, namespace: String) -> Result<()> {
    let words = &["deploy/six", ":redis"];
    let failure = Failure::new(
        "listens on ::1 only",
        words,
        "remote_refused",
        &["nothing listens on port 6379"],
        "on 127.0.0.1 or on all addresses",
    );
    let failure = failure.within(&namespace);
    let place = failure.name;
    kubectl(&ground, &namespace, &["rollout", "status", "deployment/six", "--timeout=60s"]).await?;
    let mut forward = ready(&ground, &namespace, words).await.context(place)?;
    let port = forward.port()?;
    if ping(port).await.is_ok() {
        return Ok(());
    }
    failure.is_told_by(&mut forward).await?;
    let everywhere = r#"[{"op":"remove","path":"/spec/template/spec/containers/0/command"}]"#;
    kubectl(&ground, &namespace, &["patch", "deployment", "six", "--type=json", "-p", everywhere]).await?;
    kubectl(&ground, &namespace, &["rollout", "status", "deployment/six", "--timeout=60s"]).await?;
    let served = async {
        while ping(port).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(HOLD, served).await.context("listens on ::1 only: not served on all addresses")
}

/// Asks Redis whether it is there.
async fn ping(port: u16) -> Result<()> {
    let asked = async {
        let mut stream = client::connect(port).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == b"+PONG\r\n", "{answer:?}");
        Ok(())
    };
    tokio::time::timeout(HOLD, asked).await.context("no answer")?
}

/// "hostNetwork pod": forwarded as every other.
async fn on_the_node_s_network(ground: Ground, namespace: String) -> Result<()> {
    let place = "hostNetwork pod";
    let forward = ready(&ground, &namespace, &["deploy/hostly", ":http"]).await.context(place)?;
    client::get(forward.port()?, "/", HOLD).await.context(place).map(drop)
}
