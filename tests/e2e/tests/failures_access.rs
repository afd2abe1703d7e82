//! The failure catalogue's permissions, logins and servers (`docs/failures.md`) on a real cluster: what may not be done, who is
//! not let in, and what is not there; each is told, and each is served once it is mended. Plugins are in `kubeconfig.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::failure::{Failure, all_of};
use kftray_e2e::ground::NAMESPACE;
use kftray_e2e::{Ground, client};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const HOLD: Duration = Duration::from_secs(30);

/// What a forward to a Service needs; each of these users lacks one.
const SERVICES: &str = "services=get,list,watch";
const SLICES: &str = "discovery.k8s.io/endpointslices=get,list,watch";
const PODS: &str = "pods=get,list,watch";
const FORWARD: &str = "pods/portforward=get,create";

/// A user who has just these rights in [`NAMESPACE`]; made anew under the same name, in the same file.
async fn user(ground: &Ground, name: &str, rights: &[&str], more: &[&str]) -> Result<PathBuf> {
    let mut arguments = vec!["user", name, "-n", NAMESPACE];
    arguments.extend(rights.iter().flat_map(|right| ["--allow", right]));
    arguments.extend(more);
    let path = ground.xtask_cluster(&arguments).await?;
    Ok(PathBuf::from(path.lines().last().context("a path")?.trim()))
}

const WEB: &[&str] = &["svc/web", ":80"];

/// What is refused, the rights that are there, and whether more of them mend it.
fn rights() -> Vec<(Failure, &'static str, Vec<&'static str>)> {
    let failure = |name, words, says, remedy| Failure::new(name, words, "forbidden", says, remedy);
    vec![
        (
            failure(
                "get services",
                WEB,
                &["may not", "services in namespace kftest", "no-services"],
                "on services",
            ),
            "no-services",
            vec![SLICES, PODS, FORWARD],
        ),
        (
            failure(
                "list pods",
                &["app=web", ":8080"],
                &["may not list pods in namespace kftest", "no-pods"],
                "list on pods",
            ),
            "no-pods",
            vec![SERVICES, SLICES, FORWARD],
        ),
        (
            failure(
                "list endpointslices and pods",
                WEB,
                &["endpointslices", "pods", "namespace kftest"],
                "Ask for a Role",
            ),
            "no-endpoints",
            vec![SERVICES, FORWARD],
        ),
        (
            failure(
                "create pods/portforward",
                WEB,
                &["no-forward", "pods/portforward", "namespace kftest"],
                "get and create on pods/portforward",
            ),
            "no-forward",
            vec![SERVICES, SLICES, PODS],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_that_is_missing_is_named_and_its_grant_noticed() -> Result<()> {
    let ground = Ground::from_env()?;
    let mut running = JoinSet::new();
    for (failure, name, granted) in rights() {
        let ground = ground.clone();
        running.spawn(async move {
            let kubeconfig = user(&ground, name, &granted, &[]).await.context(failure.name)?;
            let failure = failure.by(&kubeconfig);
            let mend = async { user(&ground, name, &[SERVICES, SLICES, PODS, FORWARD], &[]).await.map(drop) };
            let forward = failure.is_told_and_mended(&ground, mend).await?;
            client::get(forward.port()?, "/", HOLD).await.context(failure.name).map(drop)
        });
    }
    running.spawn(without_watch(ground.clone()));
    running.spawn(namespace_missing(ground.clone()));
    all_of(running).await
}

/// "watch": needed for nothing but to notice changes at once.
async fn without_watch(ground: Ground) -> Result<()> {
    let rights = ["services=get", "discovery.k8s.io/endpointslices=list", "pods=get,list", FORWARD];
    let kubeconfig = user(&ground, "no-watch", &rights, &[]).await?;
    let mut forward = kftray_e2e::Forward::start(&ground, &kubeconfig, WEB)?;
    forward.until("all_ready", HOLD).await.context("without watch")?;
    client::get(forward.port()?, "/", HOLD).await.context("without watch").map(drop)
}

async fn namespace_missing(ground: Ground) -> Result<()> {
    let namespace = format!("later-{}", std::process::id());
    let failure = Failure::new(
        "namespace missing",
        WEB,
        "target_missing",
        &["service/web", "namespace later-", "does not exist"],
        "Check name and namespace",
    );
    let failure = failure.within(&namespace);
    let mend = async {
        ground.kubectl(&["create", "namespace", &namespace]).await?;
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": namespace },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] } });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "namespace": namespace, "labels": { "app": "web" } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [
                { "name": "main", "image": "kftray.test/fixture:1", "imagePullPolicy": "Never" }] } });
        ground
            .apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [service, pod] }).to_string())
            .await
    };
    let served = failure.is_told_and_mended(&ground, mend).await.map(drop);
    ground.kubectl(&["delete", "namespace", &namespace, "--wait=false", "--ignore-not-found"]).await?;
    served
}

/// The administrator's kubeconfig as JSON, to be changed.
async fn kubeconfig(ground: &Ground) -> Result<Value> {
    let text = ground.kubectl(&["config", "view", "--raw", "-o", "json"]).await?;
    serde_json::from_str(&text).context("kubeconfig")
}

/// Replaces it in one step, as tools that log in do.
fn replace(path: &Path, config: &Value) -> Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, config.to_string())?;
    Ok(std::fs::rename(next, path)?)
}

/// A kubeconfig that is wrong in one place, what is told, and that the right one is taken up.
async fn wrong_then_right(
    ground: Ground,
    failure: Failure,
    spoil: impl FnOnce(&mut Value) -> Result<()>,
) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("config");
    let right = kubeconfig(&ground).await?;
    let mut wrong = right.clone();
    spoil(&mut wrong).context(failure.name)?;
    replace(&path, &wrong)?;
    let failure = failure.by(&path);
    let mend = async { replace(&path, &right) };
    let forward = failure.is_told_and_mended(&ground, mend).await?;
    client::get(forward.port()?, "/", HOLD).await.context(failure.name).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_and_server_that_does_not_fit_is_told_and_its_repair_noticed() -> Result<()> {
    let ground = Ground::from_env()?;
    let mut running = JoinSet::new();
    let failure = |name, code, says, remedy| Failure::new(name, WEB, code, says, remedy);

    let expired = user(&ground, "expired", &[SERVICES, SLICES, PODS, FORWARD], &["--expired"]).await?;
    let expired: Value = serde_json::from_str(&std::fs::read_to_string(expired)?)?;
    running.spawn(wrong_then_right(
        ground.clone(),
        failure(
            "client certificate expired",
            "unauthorized",
            &["client certificate", "expired on 2021-01-01"],
            "Log in again",
        ),
        move |config| {
            config["users"][0]["user"] = expired["users"][0]["user"].clone();
            Ok(())
        },
    ));

    let other = authority().await?;
    running.spawn(wrong_then_right(
        ground.clone(),
        failure(
            "CA wrong",
            "certificate_untrusted",
            &["not issued by an authority"],
            "certificate-authority",
        ),
        move |config| {
            let cluster = &mut config["clusters"][0]["cluster"];
            cluster["certificate-authority-data"] = json!(base64(&other));
            Ok(())
        },
    ));

    let at = |address: fn(&str) -> String| {
        move |config: &mut Value| {
            let server = &mut config["clusters"][0]["cluster"]["server"];
            let host = server.as_str().and_then(|url| url.strip_prefix("https://")).context("a server")?;
            let host = host.split(':').next().context("a host")?.to_owned();
            *server = json!(address(&host));
            Ok(())
        }
    };
    running.spawn(wrong_then_right(
        ground.clone(),
        failure("wrong address: refused", "cluster_unreachable", &[":1", "refused"], "network or VPN"),
        at(|host| format!("https://{host}:1")),
    ));
    running.spawn(wrong_then_right(
        ground.clone(),
        failure(
            "wrong address: no such host",
            "cluster_unreachable",
            &["no-such-host.invalid"],
            "network or VPN",
        ),
        at(|_| "https://no-such-host.invalid:6443".to_owned()),
    ));
    // kube-proxy's health port speaks plain HTTP.
    running.spawn(wrong_then_right(
        ground.clone(),
        failure("wrong address: no TLS", "cluster_unreachable", &[":10256"], "scheme and port"),
        at(|host| format!("https://{host}:10256")),
    ));
    // The kubelet: the right authority, and no API server.
    running.spawn(wrong_then_right(
        ground.clone(),
        failure(
            "wrong address: no API server",
            "cluster_error",
            &["no API server", "404"],
            "address of the server",
        ),
        at(|host| format!("https://{host}:10250")),
    ));
    running.spawn(token_taken_back(ground.clone()));
    running.spawn(throttled(ground.clone()));
    all_of(running).await
}

/// "token expired": a token lives as long as its account; without it, the cluster knows it no more.
async fn token_taken_back(ground: Ground) -> Result<()> {
    let rights = [SERVICES, SLICES, PODS, FORWARD];
    let login = || user(&ground, "short-lived", &rights, &["--token", "600"]);
    let kubeconfig = login().await?;
    ground.kubectl(&["-n", NAMESPACE, "delete", "serviceaccount", "short-lived"]).await?;
    let failure =
        Failure::new("token expired", WEB, "unauthorized", &["does not accept", "token"], "Log in again");
    let failure = failure.by(&kubeconfig);
    let forward = failure.is_told_and_mended(&ground, async { login().await.map(drop) }).await?;
    client::get(forward.port()?, "/", HOLD).await.context(failure.name).map(drop)
}

/// A certificate of somebody else's authority, PEM.
async fn authority() -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let certificate = directory.path().join("other.crt");
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-subj", "/CN=somebody else", "-keyout", "/dev/null", "-out"]).arg(&certificate);
    kftray_e2e::ground::run(openssl).await?;
    Ok(std::fs::read(certificate)?)
}

/// "429": a user who may have one request at a time. With several forwards some are turned away; it is told, and passes by itself.
async fn throttled(ground: Ground) -> Result<()> {
    let rights = [SERVICES, SLICES, PODS, FORWARD];
    let kubeconfig = user(&ground, "throttled", &rights, &[]).await?;
    let level = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": { "name": "e2e-little" },
        "spec": { "type": "Limited", "limited": { "nominalConcurrencyShares": 0, "lendablePercent": 0,
            "borrowingLimitPercent": 0, "limitResponse": { "type": "Reject" } } },
    });
    let flow = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": { "name": "e2e-little" },
        "spec": {
            "priorityLevelConfiguration": { "name": "e2e-little" }, "matchingPrecedence": 10,
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "throttled" } }],
                "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                    "clusterScope": true }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            }],
        },
    });
    ground.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [level, flow] }).to_string()).await?;
    const MANY: &[&str] = &[
        "svc/web",
        ":80",
        "svc/single",
        ":80",
        "svc/sts",
        ":80",
        "svc/nginx",
        ":80",
        "svc/redis",
        ":6379",
        "svc/postgres",
        ":5432",
        "app=single",
        ":8080",
    ];
    let failure = Failure::new("429", MANY, "cluster_error", &["429", "Too many requests"], "Wait");
    let failure = failure.by(&kubeconfig);
    let served = async {
        let mut forward = failure.is_told(&ground).await?;
        forward.until("all_ready", Duration::from_secs(90)).await.context(failure.name)?;
        client::get(forward.port()?, "/", HOLD).await.context(failure.name)
    };
    let served = served.await;
    ground.kubectl(&["delete", "flowschema/e2e-little", "prioritylevelconfiguration/e2e-little"]).await?;
    served.map(drop)
}

/// "node lost": the kubelet is gone, and in time the cluster says so. "kubelet certificate": it is back, and the API server does
/// not trust it. Last of all it is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_or_not_trusted_is_told_and_its_return_noticed() -> Result<()> {
    let ground = Ground::from_env()?;
    let story = async {
        ground.fault("kubelet-stop").await?;
        let lost =
            Failure::new("node lost", WEB, "no_ready_pods", &["its node does not report any more"], "events");
        let mut forward = lost.is_told(&ground).await?;
        ground.fault("kubelet-untrusted").await?;
        let untrusted = Failure::new(
            "kubelet certificate",
            WEB,
            "cluster_error",
            &["500", "certificate"],
            "administrator",
        );
        untrusted.is_told_by(&mut forward).await?;
        ground.fault("kubelet-trusted").await?;
        forward.until("all_ready", Duration::from_secs(90)).await?;
        client::get(forward.port()?, "/", HOLD).await.context("with the kubelet back")
    };
    let result = story.await;
    if result.is_err() {
        ground.fault("kubelet-trusted").await?;
    }
    ground.rolled_out("web").await?;
    ensure!(!result?.is_empty(), "an empty answer");
    Ok(())
}

/// As kubeconfigs have it (RFC 4648, padded).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, at| (word << 8) | group.get(at).copied().map_or(0, u32::from));
        for at in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
