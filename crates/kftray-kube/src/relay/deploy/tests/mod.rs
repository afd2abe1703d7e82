//! Relays on the in-process cluster: found, started, shared, replaced, refused, withdrawn.

use std::num::NonZeroU16;
use std::time::Duration;

use kftray_commons::spec::{Certificate, Expose, ExposeProtocol, Exposure, IssuerKind};
use kftray_commons::{Access as Callers, ClusterRef, Code, ContextRef};
use kftray_portforward::ports::Offer;
use kftray_testkit::{FakeCluster, Kind, Rule, User};
use serde_json::{Value, json};

use super::*;
use crate::config::Environment;
use crate::connect::{TransportChoice, TransportMemory};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "shop";

/// A cluster with the namespaces of these tests and a person who may do what sheet (b) says.
async fn cluster() -> FakeCluster {
    let own = |verbs: &[&str], resources: &[&str]| Rule::new(verbs, resources).in_namespace(NAMESPACE);
    let jane = User::new("jane")
        .may(own(&["get", "list", "watch"], &["pods", "services", "events"]))
        .may(own(&["create", "get", "list", "watch", "delete"], &["jobs"]));
    FakeCluster::builder()
        .namespace(NAMESPACE)
        .namespace(RelaySettings::SYSTEM_NAMESPACE)
        .user(jane)
        .start()
        .await
        .unwrap()
}

fn deploy(cluster: &FakeCluster, key: &InstallationKey) -> Deploy {
    let config = cluster.kubeconfig_path().display().to_string();
    let environment = Environment::new([("KUBECONFIG", config.as_str()), ("HOME", "/nonexistent")], "/");
    let clusters = Clusters::new(environment, TransportChoice::Auto, TransportMemory::default());
    Deploy::new(
        clusters,
        RelayOptions {
            key: key.clone(),
            owner: "Jane".to_owned(),
            created_by: "jane@laptop".to_owned(),
            settings: RelaySettings { image: Some("r.example/x:1".to_owned()), ..RelaySettings::default() },
        },
    )
}

fn follow(deploy: &Deploy, need: Need) -> watch::Receiver<RelayState> {
    deploy.follow(&ClusterRef::default(), Some(NAMESPACE), need)
}

async fn until<T: Clone>(receiver: &mut watch::Receiver<T>, what: &str, is: impl FnMut(&T) -> bool) -> T {
    match tokio::time::timeout(PATIENCE, receiver.wait_for(is)).await {
        Ok(Ok(state)) => state.clone(),
        Ok(Err(_)) => panic!("{what}: the relay's task has ended"),
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

async fn up(receiver: &mut watch::Receiver<RelayState>) -> Vec<RelayPod> {
    let state = until(receiver, "up", |state| matches!(state, RelayState::Up(_))).await;
    let RelayState::Up(pods) = state else { panic!("{state:?}") };
    pods.to_vec()
}

async fn failed(receiver: &mut watch::Receiver<RelayState>) -> Problem {
    let state = until(receiver, "failed", |state| matches!(state, RelayState::Failed(_))).await;
    let RelayState::Failed(problem) = state else { panic!("{state:?}") };
    problem
}

fn jobs(cluster: &FakeCluster) -> Vec<Value> {
    cluster.list(Kind::Job, NAMESPACE)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_relay_serves_all_and_a_restarted_program_finds_it() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let first = deploy(&cluster, &key);
    let (mut a, mut b) = (follow(&first, Need::Create), follow(&first, Need::Create));
    let (pods, same) = (up(&mut a).await, up(&mut b).await);
    assert_eq!(pods, same);
    assert_eq!(pods.len(), 1);
    assert!(pods[0].pod.starts_with("kftray-relay-jane-"), "{}", pods[0].pod);
    assert!(!pods[0].installed);
    let all = jobs(&cluster);
    assert_eq!(all.len(), 1);
    let hash = manifest::env_of(&all[0], manifest::env::TOKEN_SHA256).unwrap();
    assert_eq!(
        hash,
        pods[0].token.hash().to_string(),
        "the token that clients get is the one the relay knows"
    );

    // kill -9: nothing is withdrawn, and the next process derives the same token.
    drop((a, b, first));
    let second = deploy(&cluster, &key);
    assert_eq!(up(&mut follow(&second, Need::Create)).await, pods);
    assert_eq!(jobs(&cluster).len(), 1);

    // Somebody else of the same name does not take it.
    let other = deploy(&cluster, &InstallationKey::ephemeral());
    let own = up(&mut follow(&other, Need::Create)).await;
    assert_ne!(own[0].uid, pods[0].uid);
    assert_eq!(jobs(&cluster).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_label_is_not_adopted() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let first = deploy(&cluster, &key);
    up(&mut follow(&first, Need::Create)).await;
    // As an impostor would: our labels, a hash of their own token.
    let mut forged = jobs(&cluster).remove(0);
    drop(first);
    cluster.delete(Kind::Job, NAMESPACE, name(&forged));
    forged["metadata"]["name"] = json!("forged");
    forged["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!("00".repeat(32));
    cluster.create(forged).unwrap();
    let second = deploy(&cluster, &key);
    let pods = up(&mut follow(&second, Need::Create)).await;
    assert!(pods[0].pod.starts_with("kftray-relay-"), "{}", pods[0].pod);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_settings_make_a_new_relay_beside_the_old_one() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut relay = follow(&deploy, Need::Create);
    let old = up(&mut relay).await;
    deploy.set_settings(RelaySettings { image: Some("r.example/x:2".to_owned()), ..deploy.settings() });
    until(&mut relay, "another", |state| matches!(state, RelayState::Up(pods) if pods[0].uid != old[0].uid))
        .await;
    assert_eq!(jobs(&cluster).len(), 2, "the old one drains: it ends by itself after its last tunnel");
    // And back: the old one is still there and fits again.
    deploy.set_settings(RelaySettings { image: Some("r.example/x:1".to_owned()), ..deploy.settings() });
    until(
        &mut relay,
        "the old one",
        |state| matches!(state, RelayState::Up(pods) if pods[0].uid == old[0].uid),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_relay_is_started_again() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut relay = follow(&deploy, Need::Create);
    let old = up(&mut relay).await;
    let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}});
    assert!(cluster.patch(Kind::Pod, NAMESPACE, &old[0].pod, &evicted));
    until(&mut relay, "told", |state| {
        matches!(state, RelayState::Starting(problem) if problem.message.contains("Evicted"))
            || matches!(state, RelayState::Up(pods) if pods[0].uid != old[0].uid)
    })
    .await;
    until(&mut relay, "another", |state| matches!(state, RelayState::Up(pods) if pods[0].uid != old[0].uid))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_cannot_be_used_is_replaced() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut relay = follow(&deploy, Need::Create);
    let old = up(&mut relay).await;
    deploy.doubt(&old[0], &Problem::new(Code::ConnectionLost, "it speaks another language"));
    until(&mut relay, "another", |state| matches!(state, RelayState::Up(pods) if pods[0].uid != old[0].uid))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_uses_what_is_there_starts_none() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut wish = follow(&deploy, Need::IfThere);
    until(&mut wish, "absent", |state| *state == RelayState::Absent).await;
    assert!(jobs(&cluster).is_empty());
    let pods = up(&mut follow(&deploy, Need::Create)).await;
    assert_eq!(up(&mut wish).await, pods, "told when somebody else has started one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_relay_comes_first_and_all_its_pods_are_used() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let admin = connected(&deploy).await;
    let wanted = Installation { settings: deploy.settings(), ..Installation::default() };
    let done = deploy.install(&admin, &wanted).await.unwrap();
    assert!(done.iter().all(|one| one.what == "created" || one.object.starts_with("Namespace")), "{done:?}");
    let mut relay = follow(&deploy, Need::Create);
    let both =
        until(&mut relay, "both", |state| matches!(state, RelayState::Up(pods) if pods.len() == 2)).await;
    let RelayState::Up(pods) = both else { panic!("{both:?}") };
    assert!(pods.iter().all(|pod| pod.installed && &*pod.namespace == RelaySettings::SYSTEM_NAMESPACE));
    assert!(jobs(&cluster).is_empty());

    // Another administrator is told whose it is.
    let other = self::deploy(&cluster, &InstallationKey::ephemeral());
    for refused in [
        other.install(&admin, &wanted).await.unwrap_err(),
        other.uninstall(&admin, &wanted, true).await.unwrap_err(),
    ] {
        assert_eq!(refused.code, Code::NameTaken);
        assert!(refused.message.contains("installed by jane@laptop"), "{refused}");
    }
    other.install(&admin, &Installation { takeover: true, ..wanted.clone() }).await.unwrap();

    // Again changes nothing that matters; away, an own one is started.
    let wanted = Installation { takeover: true, ..wanted };
    let again = deploy.install(&admin, &wanted).await.unwrap();
    assert!(again.iter().all(|one| one.what == "changed" || one.what == "left as it is"), "{again:?}");
    let gone = deploy.uninstall(&admin, &wanted, false).await.unwrap();
    assert!(
        gone.iter()
            .any(|one| one.object == "Deployment kftray-system/kftray-server" && one.what == "deleted")
    );
    assert!(
        gone.iter().any(|one| one.object.starts_with("Namespace") && one.what == "left as it is"),
        "{gone:?}"
    );
    until(&mut relay, "an own one", |state| matches!(state, RelayState::Up(pods) if !pods[0].installed))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_secret_the_token_is_the_secrets() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let admin = connected(&deploy).await;
    let wanted =
        Installation { settings: deploy.settings(), access: Access::Secret, ..Installation::default() };
    deploy.install(&admin, &wanted).await.unwrap();
    // The API server turns stringData into data; this one does not.
    let secret = cluster.get(Kind::Secret, RelaySettings::SYSTEM_NAMESPACE, "kftray-server").unwrap();
    let text = secret["stringData"]["token"].as_str().unwrap();
    let wrapped = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let data = json!({"data": {"token": wrapped}});
    assert!(cluster.patch(Kind::Secret, RelaySettings::SYSTEM_NAMESPACE, "kftray-server", &data));
    let pods = up(&mut follow(&deploy, Need::Create)).await;
    assert!(pods[0].installed);
    assert_eq!(pods[0].token, text.parse().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kftrays_stops_an_installation_before_it_begins() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let admin = connected(&deploy).await;
    let foreign = json!({"apiVersion": "v1", "kind": "Service", "spec": {},
        "metadata": {"name": "kftray-server", "namespace": RelaySettings::SYSTEM_NAMESPACE}});
    cluster.create(foreign).unwrap();
    let wanted = Installation { settings: deploy.settings(), ..Installation::default() };
    let problem = deploy.install(&admin, &wanted).await.unwrap_err();
    assert_eq!(problem.code, Code::NameTaken);
    assert!(cluster.list(Kind::Deployment, RelaySettings::SYSTEM_NAMESPACE).is_empty());
    deploy.uninstall(&admin, &wanted, true).await.unwrap();
    assert!(cluster.get(Kind::Service, RelaySettings::SYSTEM_NAMESPACE, "kftray-server").is_some());
    assert!(cluster.get(Kind::Namespace, "", RelaySettings::SYSTEM_NAMESPACE).is_some(), "it was not ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_of_the_sheet_are_enough_and_what_is_missing_is_named() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let jane = ClusterRef { context: ContextRef::Named("jane".to_owned()), ..ClusterRef::default() };
    let pods = up(&mut deploy.follow(&jane, Some(NAMESPACE), Need::Create)).await;
    assert_eq!(pods.len(), 1);
    let mut relay = deploy.follow(&jane, Some("default"), Need::Create);
    let problem = failed(&mut relay).await;
    assert_eq!(problem.code, Code::Forbidden);
    assert!(problem.message.contains("jobs.batch in namespace default"), "{problem}");
    assert!(problem.remedy.contains("rbac print"), "{}", problem.remedy);

    // An administrator helps, and a person asks for another try: nobody waits for the next one.
    cluster.set_rules("jane", vec![Rule::anything()]);
    deploy.try_again();
    let soon = tokio::time::timeout(Duration::from_secs(4), up(&mut relay)).await;
    assert_eq!(soon.expect("before the first pause of 5 s is over").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_pods_are_explained_by_the_events_of_the_job() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    // As if the Job's controller could not create the pod.
    let none = Some(json!({"spec": {"parallelism": 0}}));
    deploy.set_settings(RelaySettings { patch: none, ..deploy.settings() });
    let mut relay = follow(&deploy, Need::Create);
    cluster.wait_for("a job", |cluster| !jobs(cluster).is_empty()).await.unwrap();
    let job = jobs(&cluster).remove(0);
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": NAMESPACE},
        "involvedObject": {"kind": "Job", "name": name(&job), "uid": job["metadata"]["uid"]},
        "reason": "FailedCreate", "type": "Warning", "lastTimestamp": "2026-01-01T00:00:00Z",
        "message": "Error creating: pods \"x\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0"});
    cluster.create(event).unwrap();
    let told = until(
        &mut relay,
        "the quota",
        |state| matches!(state, RelayState::Failed(problem) if problem.code == Code::RelayQuota),
    )
    .await;
    let RelayState::Failed(problem) = told else { panic!("{told:?}") };
    assert!(problem.message.contains("exceeded quota: small"), "{problem}");
    // Nobody waits any more: what never came up does not stay.
    drop(relay);
    cluster.wait_for("no job", |cluster| jobs(cluster).is_empty()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expose_is_made_moved_and_removed_with_its_relay() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let offer = offer("internal-api");
    let mut relay = follow(&deploy, Need::Expose("internal-api".into()));
    let pod = up(&mut relay).await.remove(0);
    let made = deploy.expose(&pod, &offer).await.map_err(|problem| problem.to_string()).ok().unwrap();
    assert_eq!(made.port, EXPOSE_PORT);
    assert_eq!(made.urls, ["http://internal-api.shop", "http://internal-api.shop:8080"]);
    let service = cluster.get(Kind::Service, NAMESPACE, "internal-api").unwrap();
    let job = jobs(&cluster).remove(0);
    assert_eq!(service["metadata"]["ownerReferences"][0]["uid"], job["metadata"]["uid"]);

    // A program restarted after kill -9 finds relay and Service and changes them in place.
    std::mem::forget(made);
    let again = self::deploy(&cluster, &key);
    let mut found = follow(&again, Need::Expose("internal-api".into()));
    assert_eq!(up(&mut found).await[0].uid, pod.uid);
    let made = again.expose(&pod, &offer).await.map_err(|problem| problem.to_string()).ok().unwrap();
    let changed = cluster.get(Kind::Service, NAMESPACE, "internal-api").unwrap();
    assert_eq!(changed["metadata"]["uid"], service["metadata"]["uid"]);

    drop((relay, found));
    // A task that was told to end and has not yet still holds it: it is waited for, or the program would leave it behind.
    let early = tokio::time::timeout(Duration::from_millis(300), again.withdrawn()).await;
    assert!(early.is_err(), "the expose is still there");
    drop(made);
    again.withdrawn().await;
    cluster
        .wait_for("nothing is left", |cluster| {
            jobs(cluster).is_empty() && cluster.get(Kind::Service, NAMESPACE, "internal-api").is_none()
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_public_expose_lacks_is_told_as_the_objects_show_it() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut offer = offer("app.example.com");
    offer.expose.exposure = Exposure::Public {
        protocol: ExposeProtocol::Http,
        ingress_class: Some("nginx".to_owned()),
        annotations: std::collections::BTreeMap::new(),
        certificate: Some(Certificate { issuer: "letsencrypt".to_owned(), kind: IssuerKind::ClusterIssuer }),
    };
    let mut relay = follow(&deploy, Need::Expose("app.example.com".into()));
    let pod = up(&mut relay).await.remove(0);
    let made = deploy.expose(&pod, &offer).await.map_err(|problem| problem.to_string()).ok().unwrap();
    let mut outside = made.outside.clone();
    let mut lacks = async |code: Option<Code>| {
        let told = outside.wait_for(|problem| problem.as_ref().map(|problem| problem.code) == code);
        let told =
            tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{code:?}: not told"));
        told.unwrap().as_ref().map(|problem| problem.message.clone()).unwrap_or_default()
    };
    let message = lacks(Some(Code::IngressClassMissing)).await;
    assert!(message.contains("no ingress class `nginx`"), "{message}");

    let class =
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "nginx"}});
    cluster.create(class).unwrap();
    let message = lacks(Some(Code::CertificatePending)).await;
    assert!(message.contains("is not there; this cluster does not serve certificates"), "{message}");

    let ingress = cluster.get(Kind::Ingress, NAMESPACE, "app").unwrap();
    let secret = ingress["spec"]["tls"][0]["secretName"].as_str().unwrap();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": NAMESPACE}});
    cluster.create(secret).unwrap();
    assert_eq!(lacks(None).await, "");
    drop((relay, made));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_somebody_else_is_refused_before_anything_is_made() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let foreign = json!({"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"app": "x"}}, "metadata": {
        "name": "internal-api", "namespace": NAMESPACE, "annotations": {"meta.helm.sh/release-name": "shop"}}});
    cluster.create(foreign).unwrap();
    let problem = failed(&mut follow(&deploy, Need::Expose("internal-api".into()))).await;
    assert_eq!(problem.code, Code::NameTaken);
    assert!(problem.message.contains("Helm release shop"), "{problem}");
    // The Service's name is free, the Ingress' is not.
    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {},
        "metadata": {"name": "app", "namespace": NAMESPACE}});
    cluster.create(foreign).unwrap();
    let problem = failed(&mut follow(&deploy, Need::Expose("app.example.com".into()))).await;
    assert_eq!(problem.code, Code::NameTaken);
    assert!(jobs(&cluster).is_empty());

    // Another installation's expose of that name is somebody else's, too.
    let (bob, jane) = (self::deploy(&cluster, &InstallationKey::ephemeral()), deploy);
    let pod = up(&mut follow(&bob, Need::Expose("api".into()))).await.remove(0);
    let _made = bob.expose(&pod, &offer("api")).await.map_err(|problem| problem.to_string()).ok().unwrap();
    let problem = failed(&mut follow(&jane, Need::Expose("api".into()))).await;
    assert!(problem.message.contains("jane@laptop, who exposes"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_that_is_refused_leaves_no_service_behind() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let deploy = deploy(&cluster, &key);
    let mut offer = offer("app.example.com");
    offer.expose.exposure = Exposure::Public {
        protocol: ExposeProtocol::Http,
        ingress_class: None,
        annotations: std::collections::BTreeMap::new(),
        certificate: None,
    };
    let mut relay = follow(&deploy, Need::Expose("app.example.com".into()));
    let pod = up(&mut relay).await.remove(0);
    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {},
        "metadata": {"name": "app", "namespace": NAMESPACE}});
    cluster.create(foreign.clone()).unwrap();
    let problem = deploy.expose(&pod, &offer).await.err().unwrap();
    assert_eq!(problem.code, Code::NameTaken);
    assert!(cluster.get(Kind::Service, NAMESPACE, "app").is_none());
    assert!(cluster.delete(Kind::Ingress, NAMESPACE, "app"));
    let made = deploy.expose(&pod, &offer).await.map_err(|problem| problem.to_string()).ok().unwrap();
    // What was there before stays when it cannot be changed.
    let service = cluster.get(Kind::Service, NAMESPACE, "app").unwrap();
    assert!(cluster.delete(Kind::Ingress, NAMESPACE, "app"));
    cluster.create(foreign).unwrap();
    deploy.expose(&pod, &offer).await.err().unwrap();
    let kept = cluster.get(Kind::Service, NAMESPACE, "app").unwrap();
    assert_eq!(kept["metadata"]["uid"], service["metadata"]["uid"]);
    drop(made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_takes_only_own_relays_that_are_over() {
    let (cluster, key) = (cluster().await, InstallationKey::ephemeral());
    let (own, other) = (deploy(&cluster, &key), deploy(&cluster, &InstallationKey::ephemeral()));
    let (mut a, mut b) = (follow(&own, Need::Create), follow(&other, Need::Create));
    up(&mut a).await;
    up(&mut b).await;
    let admin = connected(&own).await;
    let listed = own.list(&admin, None).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed.iter().filter(|relay| relay.own).count(), 1);
    assert!(own.sweep(&admin, None, false).await.unwrap().is_empty(), "both run");
    let swept = own.sweep(&admin, None, true).await.unwrap();
    assert_eq!(swept.len(), 1);
    let left = other.list(&admin, Some(NAMESPACE)).await.unwrap();
    assert!(left.iter().any(|relay| relay.own), "the other one's is untouched");
}

fn offer(alias: &str) -> Offer {
    Offer {
        cluster: ClusterRef::default(),
        namespace: Some(NAMESPACE.to_owned()),
        name: alias.to_owned(),
        expose: Expose {
            local_host: "localhost".to_owned(),
            local_port: NonZeroU16::new(8080).unwrap(),
            local_tls: false,
            exposure: Exposure::Internal { protocol: ExposeProtocol::Http },
            access: Callers::default(),
        },
    }
}

/// The cluster as the current context has it.
async fn connected(deploy: &Deploy) -> Arc<Cluster> {
    let mut states = deploy.inner.clusters.follow(&ClusterRef::default());
    let state = until(&mut states, "a cluster", |state| matches!(state, ClusterState::Up(_))).await;
    let ClusterState::Up(cluster) = state else { panic!("{state:?}") };
    cluster
}
