//! The relay's life in a real cluster: it comes up in narrow namespaces with few rights, says why when it cannot, is
//! adopted, replaced, installed, and leaves nothing behind.
//!
//! Needs the relay's image in the cluster (`cargo xtask cluster up --relay`, or what `cargo xtask test --e2e` does).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kftray_e2e::field::{SOON, START, image, metrics, nothing_installed};
use kftray_e2e::place::{eventually, told};
use kftray_e2e::{Forward, Ground, Place, client, ground};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn in_a_restricted_namespace_with_quota_and_limits() -> Result<()> {
    let labels =
        "pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted";
    let quota = "---\napiVersion: v1\nkind: ResourceQuota\nmetadata: { name: small, namespace: relay-narrow }\n\
                 spec: { hard: { pods: \"1\", requests.cpu: 10m, requests.memory: 32Mi, limits.memory: 128Mi } }\n\
                 ---\napiVersion: v1\nkind: LimitRange\nmetadata: { name: narrow, namespace: relay-narrow }\n\
                 spec: { limits: [{ type: Container, min: { memory: 8Mi }, max: { memory: 128Mi } }] }\n";
    let place = Place::new("narrow", labels, quota).await?;
    let forward = place.serves().await?;
    let pods = place.objects("pods").await?;
    ensure!(pods.len() == 1, "one relay: {pods:?}");
    let spec = &pods[0]["spec"];
    ensure!(spec["automountServiceAccountToken"] == false, "{spec}");
    ensure!(spec["volumes"].is_null() || spec["volumes"] == serde_json::json!([]), "{spec}");
    ensure!(spec["containers"][0]["resources"]["limits"].get("cpu").is_none(), "{spec}");
    let variables = spec["containers"][0]["env"].to_string();
    ensure!(variables.contains("KFTRAY_TOKEN_SHA256"), "{variables}");
    let key = std::fs::read_to_string(place.home.path().join("relay.key"))?;
    ensure!(!pods[0].to_string().contains(key.trim()), "the key is in no object");
    // The Job's controller counts a moment after the pod is ready.
    eventually("listed as running", SOON, async || {
        let list = place.run(&["relay", "list", "-n", &place.namespace]).await?;
        Ok(list.contains("running") && list.contains("(this installation)"))
    })
    .await?;
    let log = place.run(&["relay", "logs", "-n", &place.namespace]).await?;
    ensure!(log.contains("tunnel") && log.contains("up"), "{log}");
    drop(forward);
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_is_told_and_waited_for() -> Result<()> {
    let quota = |pods: u8| {
        format!(
            "---\napiVersion: v1\nkind: ResourceQuota\nmetadata: {{ name: full, namespace: relay-quota }}\n\
             spec: {{ hard: {{ pods: \"{pods}\" }} }}\n"
        )
    };
    let place = Place::new("quota", "", &quota(0)).await?;
    // The quota is enforced from when its controller has counted.
    eventually("the quota counts", SOON, async || {
        Ok(place.objects("resourcequota").await?.iter().any(|quota| quota["status"]["hard"]["pods"] == "0"))
    })
    .await?;
    let mut forward = place.forward()?;
    let message = told(&mut forward, "relay_quota").await?;
    ensure!(message.contains("exceeded quota: full"), "{message}");
    ensure!(message.contains("relay-quota/kftray-relay-jane-"), "{message}");
    place.ground.apply(quota(1).trim_start_matches("---\n")).await?;
    // The Job's controller tries again by itself, with pauses of its own.
    forward.until("all_ready", Duration::from_secs(180)).await?;
    drop(forward);
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_is_told_with_pod_and_cause() -> Result<()> {
    let mut place = Place::new("image", "", "").await?;
    place.image = "registry.invalid/kftray-server:none".to_owned();
    let mut forward = place.forward()?;
    let message = told(&mut forward, "relay_image_pull").await?;
    ensure!(
        message.contains("image registry.invalid/kftray-server:none of pod relay-image/kftray-relay-"),
        "{message}"
    );
    ensure!(message.contains("ErrImagePull") || message.contains("ImagePullBackOff"), "{message}");
    // Nobody waits for it any more: it does not stay.
    forward.interrupt().await?;
    eventually("no Job", SOON, async || Ok(place.jobs().await?.is_empty())).await?;
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_refuses_the_pod_is_told_and_waited_for() -> Result<()> {
    let place = Place::new("policy", "", "").await?;
    let policy = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\n\
         metadata: { name: relay-policy }\nspec:\n  failurePolicy: Fail\n  matchConstraints:\n    resourceRules:\n\
         \x20   - { apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods] }\n\
         \x20 validations: [{ expression: \"false\", message: no pods today }]\n---\n\
         apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\n\
         metadata: { name: relay-policy }\nspec:\n  policyName: relay-policy\n  validationActions: [Deny]\n\
         \x20 matchResources: { namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: relay-policy } } }\n";
    place.ground.apply(policy).await?;
    let outcome = async {
        // The API server takes policies up after a moment.
        let dry = ["-n", "relay-policy", "run", "probe", "--image=x", "--restart=Never", "--dry-run=server"];
        eventually("the policy counts", SOON, async || Ok(place.ground.kubectl(&dry).await.is_err())).await?;
        let mut forward = place.forward()?;
        let message = told(&mut forward, "relay_admission").await?;
        ensure!(
            message.contains("no pods today") && message.contains("relay-policy/kftray-relay-"),
            "{message}"
        );
        Ok(forward)
    }
    .await;
    let both = "validatingadmissionpolicy,validatingadmissionpolicybinding";
    place.ground.kubectl(&["delete", both, "relay-policy"]).await?;
    outcome?.until("all_ready", Duration::from_secs(180)).await?;
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_made_by_hand_is_listed_and_swept() -> Result<()> {
    let place = Place::new("by-hand", "", "").await?;
    let patch = place.home.path().join("patch.json");
    std::fs::write(&patch, r#"{"spec": {"template": {"spec": {"nodeSelector": {"no": "such"}}}}}"#)?;
    // As an administrator vets it. Printed without a cluster, so that no forward takes it for its own.
    let job = place
        .run(&["relay", "manifest", "--job", "-n", &place.namespace, "--patch", &patch.display().to_string()])
        .await?;
    ensure!(job.contains("kind: Job") && job.contains("nodeSelector"), "{job}");
    place.ground.apply(&job).await?;
    eventually("listed as starting", SOON, async || {
        let list = place.run(&["relay", "list", "-n", &place.namespace]).await?;
        Ok(list.contains("starting") && list.contains("(this installation)"))
    })
    .await?;
    let swept = place.run(&["relay", "sweep", "-n", &place.namespace]).await?;
    ensure!(swept.contains("Nothing to remove"), "it may still start: {swept}");
    let swept = place.run(&["relay", "sweep", "--all", "-n", &place.namespace]).await?;
    ensure!(swept.contains("removed"), "{swept}");
    ensure!(place.jobs().await?.is_empty());
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn adopted_after_a_kill_replaced_by_another_version_and_gone_in_time() -> Result<()> {
    let mut place = Place::new("adopt", "", "").await?;
    let forward = place.serves().await?;
    let first = place.jobs().await?;
    ensure!(first.len() == 1, "{first:?}");
    // Dropped is killed, as by `kill -9`.
    drop(forward);
    let forward = place.serves().await?;
    ensure!(place.jobs().await? == first, "the relay was adopted");
    drop(forward);

    // The same program under another name of the image is another relay; the old one drains.
    place.image = format!("docker.io/library/{}", image());
    let forward = place.serves().await?;
    let both = place.jobs().await?;
    ensure!(both.len() == 2 && both.contains(&first[0]), "{both:?}");

    // Another installation has its own, and sweeps nothing of ours.
    let other = Place {
        ground: place.ground.clone(),
        namespace: place.namespace.clone(),
        home: TempDir::new()?,
        image: image(),
    };
    let swept = other.run(&["relay", "sweep", "--all", "-n", &other.namespace]).await?;
    ensure!(swept.contains("Nothing to remove"), "{swept}");
    ensure!(place.jobs().await?.len() == 2);

    drop(forward);
    let took = eventually("nothing is left", Duration::from_secs(160), async || {
        Ok(place.jobs().await?.is_empty() && place.objects("pods").await?.is_empty())
    })
    .await?;
    println!("nothing was left {took:?} after the client was gone");
    ensure!(took < Duration::from_secs(150), "gone only after {took:?}");
    place.gone().await
}

/// What somebody still uses is not taken away when the same installation starts with another version.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_relay_serves_on_and_ends_after_its_last_user() -> Result<()> {
    let mut place = Place::new("drain", "", "").await?;
    place.set(&["relay_idle_exit=15"]).await?;
    let first = place.serves().await?;
    let old = place.names("pods").await?;
    ensure!(old.len() == 1, "{old:?}");
    let (mut held, mut rest) = (client::connect(first.port()?).await?, Vec::new());
    client::get_kept(&mut held, &mut rest, "/").await?;

    place.image = format!("docker.io/library/{}", image());
    let second = place.serves().await?;
    let both = place.names("pods").await?;
    ensure!(both.len() == 2 && both.contains(&old[0]), "{both:?}");
    let new = both.iter().find(|pod| **pod != old[0]).context("the new one")?;
    let streams = async |pod: &str| {
        anyhow::Ok(metrics(&place.ground, &place.namespace, pod).await?.get("streams{kind=\"tcp\"}"))
    };
    ensure!(streams(&old[0]).await? == 1, "the held connection is on the old one");
    let body = client::get_kept(&mut held, &mut rest, "/").await?;
    ensure!(body.starts_with(b"web-"), "{body:?}");
    // Whoever began with the old one has it for new connections, too.
    client::get(first.port()?, "/", SOON).await?;
    let mut beside = client::connect(second.port()?).await?;
    client::get_kept(&mut beside, &mut Vec::new(), "/").await?;
    ensure!(streams(new).await? == 1, "the second forward is on the new one");

    // Well above what an idle relay is left for: it is not idle.
    sleep(Duration::from_secs(20)).await;
    let body = client::get_kept(&mut held, &mut rest, "/").await?;
    ensure!(body.starts_with(b"web-"), "{body:?}");
    first.interrupt().await?;
    let took = eventually("the old relay is gone", START, async || {
        Ok(place.names("pods").await? == [new.as_str()] && place.jobs().await?.len() == 1)
    })
    .await?;
    println!("the old relay was gone {took:?} after its last user");
    client::get(second.port()?, "/", SOON).await?;
    drop(second);
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_relay_is_started_again() -> Result<()> {
    let place = Place::new("evict", "", "").await?;
    let forward = place.serves().await?;
    let pods = place.objects("pods").await?;
    let name = pods[0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    let eviction = place.home.path().join("eviction.json");
    std::fs::write(
        &eviction,
        serde_json::json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": place.namespace}})
        .to_string(),
    )?;
    let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", place.namespace);
    place.ground.kubectl(&["create", "--raw", &path, "-f", &eviction.display().to_string()]).await?;
    let port = forward.port()?;
    let start = Instant::now();
    loop {
        let body = client::get(port, "/", SOON).await;
        let now: Vec<Value> = place.objects("pods").await?;
        let other = now
            .iter()
            .any(|pod| pod["metadata"]["name"] != name.as_str() && pod["status"]["phase"] == "Running");
        if other && body.is_ok() {
            break;
        }
        ensure!(start.elapsed() < START, "no other relay serves: {body:?}");
        sleep(Duration::from_millis(500)).await;
    }
    println!("another relay served {:?} after the eviction", start.elapsed());
    place.gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_sheet_is_enough_and_nothing_more_is_needed() -> Result<()> {
    let place = Place::new("sheets", "", "").await?;
    let starter = place.user("relay-starter", "relay", &place.namespace).await?;
    drop(place.serves_as(&starter).await?);

    let forwarder = place.user("only-forwards", "forward", &place.namespace).await?;
    let mut forward = place.forward_as(&forwarder)?;
    let message = told(&mut forward, "forbidden").await?;
    ensure!(message.contains("jobs.batch in namespace relay-sheets (as user only-forwards)"), "{message}");
    drop(forward);

    let exposer = place.user("exposer", "expose", &place.namespace).await?;
    expose(&place, &exposer).await?;

    let fixture = place.user("direct", "forward", ground::NAMESPACE).await?;
    let mut direct = Forward::start(&place.ground, &fixture, &["svc/web", ":80"])?;
    direct.until("all_ready", START).await?;
    ensure!(client::get(direct.port()?, "/", SOON).await?.starts_with("web-"));
    place.gone().await
}

/// Makes an internal and a public expose with these rights, and withdraws them.
async fn expose(place: &Place, kubeconfig: &Path) -> Result<()> {
    let entries = place.home.path().join("exposes.json");
    let common = serde_json::json!({
        "namespace": place.namespace, "workload_type": "expose", "protocol": "tcp", "local_address": "localhost",
        "local_port": 1,
    });
    let mut internal = common.clone();
    internal["alias"] = "internal-api".into();
    internal["exposure_type"] = "internal".into();
    let mut public = common;
    public["alias"] = "my-app.example.com".into();
    public["exposure_type"] = "public".into();
    public["ingress_class"] = "none".into();
    std::fs::write(&entries, serde_json::json!([internal, public]).to_string())?;
    let mut command = place.kftui(kubeconfig);
    command.args(["run", "--output", "json", "--keep-trying", &entries.display().to_string()]);
    let mut forward = Forward::spawn(command)?;
    forward.until("all_ready", START).await?;
    ensure!(place.names("services").await? == ["internal-api", "my-app"]);
    ensure!(place.names("ingresses").await? == ["my-app"]);
    forward.interrupt().await?;
    eventually("the objects of the exposes are gone", SOON, async || {
        Ok(place.names("services").await?.is_empty() && place.names("ingresses").await?.is_empty())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_for_all_and_the_documented_commands_work_as_printed() -> Result<()> {
    let place = Place::new("users", "", "").await?;
    nothing_installed(&place.ground).await?;
    let installed =
        place.run(&["relay", "install", "--image", &image(), "--group", "nobody-in-particular"]).await?;
    ensure!(installed.contains("Deployment kftray-system/kftray-server: created"), "{installed}");
    let outcome = documented(&place).await;
    let removed = place.run(&["relay", "uninstall", "--delete-namespace"]).await?;
    ensure!(removed.contains("Deployment kftray-system/kftray-server: deleted"), "{removed}");
    ensure!(removed.contains("Namespace kftray-system: deleted"), "{removed}");
    outcome?;
    place.gone().await
}

async fn documented(place: &Place) -> Result<()> {
    let ground = &place.ground;
    ground
        .kubectl(&["-n", "kftray-system", "rollout", "status", "deployment/kftray-server", "--timeout=120s"])
        .await?;
    // docs: networking and connectivity, "proxy server troubleshooting"
    let deployments = ground.kubectl(&["get", "deployments", "-n", "kftray-system"]).await?;
    ensure!(deployments.contains("kftray-server") && deployments.contains("2/2"), "{deployments}");
    ground.kubectl(&["logs", "-n", "kftray-system", "deployment/kftray-server"]).await?;
    let _printed = port_forward(ground)?;
    eventually("svc/kftray-server 8080:8080", SOON, async || {
        Ok(client::get(8080, "/healthz", SOON).await.is_ok())
    })
    .await?;
    ensure!(client::get(8080, "/metrics", SOON).await?.contains("# TYPE"), "metrics");

    // A user who may do nothing but use it, and whose own namespace has no relay.
    let user = place.user("relay-user", "installed", "kftray-system").await?;
    let forward = place.serves_as(&user).await?;
    ensure!(place.jobs().await?.is_empty(), "the installed one was used");

    both_share(&forward, ground).await?;

    // One of two pods goes: the other carries on.
    let pods = ground.kubectl(&["-n", "kftray-system", "get", "pods", "-o", "name"]).await?;
    ensure!(pods.lines().count() == 2, "{pods}");
    let one = pods.lines().next().context("a pod")?;
    ground.kubectl(&["-n", "kftray-system", "delete", one, "--wait=false"]).await?;
    let port = forward.port()?;
    for _ in 0..20 {
        client::get(port, "/", SOON).await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Connections that are open at the same time are on both pods.
async fn both_share(forward: &Forward, ground: &Ground) -> Result<()> {
    let mut open = Vec::new();
    for _ in 0..24 {
        let mut stream = client::connect(forward.port()?).await?;
        client::get_kept(&mut stream, &mut Vec::new(), "/").await?;
        open.push(stream);
    }
    let path = "jsonpath={.items[*].metadata.name}";
    let pods = ground.kubectl(&["-n", "kftray-system", "get", "pods", "-o", path]).await?;
    let mut streams = Vec::new();
    for pod in pods.split_whitespace() {
        streams.push(metrics(ground, "kftray-system", pod).await?.get("streams{kind=\"tcp\"}"));
    }
    ensure!(streams.len() == 2 && streams.iter().sum::<u64>() >= 24, "24 streams: {streams:?}");
    ensure!(streams.iter().all(|&count| count >= 4), "shared by both: {streams:?}");
    Ok(())
}

/// Where position is not enough: a token that only some may read.
#[tokio::test(flavor = "multi_thread")]
async fn installed_with_a_token_for_those_who_may_read_it() -> Result<()> {
    let place = Place::new("token", "", "").await?;
    // The user's part is in what is installed.
    let holder = place.user("token-holder", "forward", &place.namespace).await?;
    let outsider = place.user("token-outsider", "installed", "kftray-system");
    let image = image();
    let install =
        ["relay", "install", "--image", &image, "--replicas", "1", "--token", "--user", "token-holder"];
    nothing_installed(&place.ground).await?;
    let installed = place.run(&install).await?;
    let outcome = async {
        ensure!(installed.contains("Secret kftray-system/kftray-server: created"), "{installed}");
        let rolled_out = ["rollout", "status", "deployment/kftray-server", "--timeout=120s"];
        place.ground.kubectl(&[&["-n", "kftray-system"][..], &rolled_out].concat()).await?;
        drop(place.serves_as(&holder).await?);
        ensure!(place.jobs().await?.is_empty(), "the installed one was used");
        // May port-forward to it, but not read the token, and not start a relay either.
        let mut forward = place.forward_as(&outsider.await?)?;
        let message = told(&mut forward, "forbidden").await?;
        ensure!(message.contains("jobs.batch"), "{message}");
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    place.run(&["relay", "uninstall", "--delete-namespace"]).await?;
    outcome?;
    place.gone().await
}

/// The command of the document, as printed.
fn port_forward(ground: &Ground) -> Result<Child> {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(&ground.kubeconfig);
    command.args(["port-forward", "-n", "kftray-system", "svc/kftray-server", "8080:8080"]);
    command.stdout(std::process::Stdio::null()).kill_on_drop(true).spawn().context("kubectl port-forward")
}
