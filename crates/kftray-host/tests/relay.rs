//! What needs a relay, through the host: UDP, proxies, exposes; started, used, stopped, handed over, and back with the next
//! host. The relay is the true one, in this process, behind the pods that the host has made in the cluster of this process.
//!
//! How an exposed program is called is shown on a real cluster (`tests/e2e/tests/relay_host.rs`): a relay listens for
//! callers on a port of its pod, which this machine has no room for.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use kftray_client::{Client, HeldLease};
use kftray_commons::api::{Action, ActionRequest, Config, ImportRequest, Mode, Selection, SettingsPatch};
use kftray_commons::store::Directory;
use kftray_commons::{Code, ForwardId};
use kftray_host::{Host, HostOptions};
use kftray_kube::Environment;
use kftray_server::relay::{Ended, Relay};
use kftray_server::resolve::Names;
use kftray_server::settings::Settings;
use kftray_testkit::{FakeCluster, Inbound, Kind, PodIdentity};
use serde_json::{Value, json};
use support::{LIMIT, act, echoes, ready, until};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The relay's tunnel port.
const TUNNEL: u16 = 9999;
const IMAGE: &str = "relay.test/kftray-server:1";

/// A cluster whose relay pods work, a program in it, and a directory.
struct Ground {
    cluster: Arc<FakeCluster>,
    relays: Arc<Relays>,
    directory: TempDir,
    /// Answers TCP and UDP with what it gets, on the same port of 127.0.0.1.
    echo: u16,
    _programs: JoinSet<()>,
}

/// The relays of this process, one for each pod that asks for it.
#[derive(Default)]
struct Relays {
    cluster: OnceLock<Weak<FakeCluster>>,
    running: tokio::sync::Mutex<HashMap<String, SocketAddr>>,
    tasks: Mutex<JoinSet<Ended>>,
}

impl Relays {
    /// The relay of a pod; started with the pod's environment when it is reached for the first time.
    async fn of(&self, pod: &PodIdentity) -> SocketAddr {
        let mut running = self.running.lock().await;
        if let Some(at) = running.get(&pod.name) {
            return *at;
        }
        let cluster = self.cluster.get().and_then(Weak::upgrade).expect("the cluster is there");
        let object = cluster.get(Kind::Pod, &pod.namespace, &pod.name).expect("the pod is there");
        let given: BTreeMap<String, String> = object["spec"]["containers"][0]["env"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| (text(&one["name"]), text(&one["value"])))
            .collect();
        let variable = |name: &str| match name {
            "KFTRAY_TUNNEL_PORT" | "KFTRAY_HEALTH_PORT" => Some("0".to_owned()),
            // Its listener would be on every address of this machine.
            "KFTRAY_EXPOSE_PORTS" => None,
            _ => given.get(name).cloned(),
        };
        let names = Names::from_file(std::path::Path::new("/etc/resolv.conf")).expect("a resolver");
        let relay = Relay::bind(Settings::read(&variable).expect("settings"), names).await.expect("bound");
        let at = relay.tunnel_address().expect("an address");
        self.tasks.lock().expect("no panic").spawn(relay.run(std::future::pending()));
        running.insert(pod.name.clone(), at);
        at
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Ground {
    async fn new() -> Self {
        let cluster = Arc::new(FakeCluster::start().await.expect("a cluster"));
        let relays = Arc::new(Relays::default());
        relays.cluster.set(Arc::downgrade(&cluster)).expect("once");
        let of_it = Arc::clone(&relays);
        let tunnel = move |mut inbound: Inbound| {
            let relays = Arc::clone(&of_it);
            async move {
                let Ok(mut there) = TcpStream::connect(relays.of(&inbound.pod).await).await else { return };
                tokio::io::copy_bidirectional(&mut inbound.stream, &mut there).await.ok();
            }
        };
        cluster.set_handler("default", "relay", TUNNEL, Arc::new(tunnel));
        let (echo, programs) = echo().await;
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "dns-0", "namespace": "default", "labels": {"app": "dns"}},
            "spec": {
                "nodeName": "fake-node",
                "containers": [{"name": "main", "image": "dns:1", "ports": [{"containerPort": echo, "protocol": "UDP"}]}],
            },
            // Its network is this machine's.
            "status": {"phase": "Pending", "podIP": "127.0.0.1"},
        });
        cluster.create(pod).expect("created");
        let service = json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"name": "dns-service", "namespace": "default"},
            "spec": {"selector": {"app": "dns"}, "ports": [{"port": 53, "targetPort": echo, "protocol": "UDP"}]},
        });
        cluster.create(service).expect("created");
        let directory = tempfile::tempdir().expect("a directory");
        Self { cluster, relays, directory, echo, _programs: programs }
    }

    fn options(&self, more: &[(&str, &str)]) -> HostOptions {
        let kubeconfig = self.cluster.kubeconfig_path().display().to_string();
        let variables = [("PATH", "/usr/bin:/bin"), ("KUBECONFIG", &*kubeconfig), ("HOME", "/nonexistent")];
        let mut options = HostOptions::new(Directory::at(self.directory.path()), Mode::Embedded);
        options.environment = Environment::new(variables.iter().chain(more).copied(), "/");
        options
    }

    async fn host(&self) -> (Host, Client) {
        let host = Host::start(self.options(&[])).await.expect("the host starts");
        let client = Client::connect(self.directory.path()).await.expect("the host is there");
        (host, client)
    }

    /// By the host's own settings: pods of relays run the relay, and may reach this machine.
    async fn set_up(&self, client: &Client) {
        let relay = [
            ("image", json!(IMAGE)),
            ("annotations", json!({"testkit.kftray/program": "default/relay"})),
            ("allow", json!(["127.0.0.1"])),
        ];
        set_relay(client, &relay).await.expect("set");
    }

    fn jobs(&self) -> Vec<Value> {
        self.cluster.list(Kind::Job, "default")
    }

    /// Those that nobody has asked to be deleted.
    fn remaining_jobs(&self) -> Vec<Value> {
        self.jobs().into_iter().filter(|job| job["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// Waits for what the cluster shall have.
    async fn until<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let found = timeout(LIMIT, async {
            loop {
                if let Some(found) = look(self) {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what} did not come: {:#?}", self.jobs()))
    }
}

/// What is sent comes back, by TCP and by UDP.
async fn echo() -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let at = listener.local_addr().expect("an address");
    let socket = UdpSocket::bind(at).await.expect("the same port is free");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    tasks.spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.ok();
        }
    });
    (at.port(), tasks)
}

async fn set_relay(
    client: &Client,
    relay: &[(&str, Value)],
) -> Result<kftray_commons::api::Settings, kftray_commons::api::Error> {
    let relay = relay.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    client.set_settings(&SettingsPatch { relay, ..SettingsPatch::default() }).await
}

async fn import(client: &Client, entries: Value) -> Vec<Arc<Config>> {
    let request = ImportRequest { text: entries.to_string(), ..ImportRequest::default() };
    let report = client.import(&request).await.expect("imported");
    assert!(report.faults.is_empty(), "{report:?}");
    client.configs().await.expect("listed").configs
}

async fn start(client: &Client, ids: impl IntoIterator<Item = ForwardId>) {
    let report = act(client, Action::Start, Selection::ids(ids)).await;
    assert!(report.results.iter().all(|result| result.problem.is_none()), "{report:?}");
}

/// Sends datagrams until one comes back: the first may find no relay yet.
async fn datagram_returns(address: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.connect(address).await.expect("connected");
    let mut buffer = [0; 64];
    for _ in 0..30 {
        socket.send(b"question").await.expect("sent");
        if let Ok(Ok(length)) = timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await {
            assert_eq!(&buffer[..length], b"question");
            return;
        }
    }
    panic!("no datagram came back from {address}");
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_and_proxies_run_and_return_with_the_next_host() {
    let ground = Ground::new().await;
    let (host, client) = ground.host().await;
    ground.set_up(&client).await;
    // As the documents have them, but for the places.
    let configs = import(
        &client,
        json!([
            {"service": "dns-service", "namespace": "default", "local_port": 0, "remote_port": 53,
             "workload_type": "service", "protocol": "udp", "alias": "dns"},
            {"workload_type": "proxy", "namespace": "default", "remote_address": "127.0.0.1", "local_port": 0,
             "remote_port": ground.echo, "protocol": "tcp", "alias": "internal-proxy"},
            {"workload_type": "proxy", "namespace": "default", "remote_address": "127.0.0.1", "local_port": 0,
             "remote_port": ground.echo, "protocol": "udp", "alias": "udp-proxy"},
        ]),
    )
    .await;
    let ids: Vec<ForwardId> = configs.iter().map(|config| config.id).collect();
    assert_eq!(configs[0].summary.protocol, "udp");
    start(&client, ids.iter().copied()).await;
    used(&client, &ids).await;
    assert_eq!(ground.jobs().len(), 1, "one relay for all");

    // It goes by the file that it left: the same relay, and no other.
    host.stop().await;
    let (host, client) = ground.host().await;
    used(&client, &ids).await;
    assert_eq!(ground.jobs().len(), 1, "the relay was found again");

    let addresses: Vec<String> = client.forward(ids[1]).await.expect("it runs").addresses.clone();
    let report = act(&client, Action::Stop, Selection::all()).await;
    assert_eq!(report.results.len(), 3, "{report:?}");
    assert!(TcpStream::connect(&addresses[0]).await.is_err(), "nothing listens any more");
    host.stop().await;
}

/// All three are ready by a relay, carry something, and tell it.
async fn used(client: &Client, ids: &[ForwardId]) {
    let mut follow = client.follow();
    let mut states = Vec::new();
    for id in ids {
        states.push(ready(&mut follow, *id).await);
    }
    let via = |number: usize| states[number].ready_via.as_ref().map(|via| via.transport.clone());
    assert_eq!(via(0).as_deref(), Some("relay"), "{:?}", states[0]);
    datagram_returns(&states[0].addresses[0]).await;
    echoes(&states[1].addresses[0]).await;
    datagram_returns(&states[2].addresses[0]).await;
    drop(follow);
    // Whoever asks once is told what is so now, although nobody follows.
    let counted = client.snapshot().await.expect("told");
    for id in ids {
        let counters = counted.forward(*id).expect("it runs").counters;
        assert!(counters.bytes_down > 0, "{counters:?}");
    }
}

fn exposed(alias: &str) -> Value {
    json!([{"alias": alias, "namespace": "default", "local_port": 3000, "local_address": "localhost",
        "workload_type": "expose", "protocol": "tcp", "exposure_type": "internal"}])
}

fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exposed_is_withdrawn_before_the_host_has_ended() {
    let ground = Ground::new().await;
    let (host, client) = ground.host().await;
    ground.set_up(&client).await;
    let configs = import(&client, exposed("internal-api")).await;
    start(&client, [configs[0].id]).await;
    let service = |ground: &Ground| ground.cluster.get(Kind::Service, "default", "internal-api");
    ground.until("the Service", service).await;
    assert_eq!(ground.jobs().len(), 1);
    // All objects are there as soon as the relay is asked to listen, which this one refuses.
    let mut follow = client.follow();
    let asked = |snapshot: &kftray_commons::api::Snapshot| {
        let problem = snapshot.forward(configs[0].id).and_then(|forward| forward.status.problem());
        problem.is_some_and(|problem| problem.code != Code::RelayStarting)
    };
    until(&mut follow, "the relay's refusal", asked).await;
    let state = client.forward(configs[0].id).await.expect("it runs");
    let exposed = state.exposed.clone().expect("it is an expose");
    assert!(!exposed.public && exposed.open && exposed.calls.total == 0, "{exposed:?}");
    host.stop().await;
    assert_eq!(ground.remaining_jobs(), Vec::<Value>::new(), "the owner of all objects is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_objects_are_being_made_leaves_none() {
    let ground = Ground::new().await;
    let (host, client) = ground.host().await;
    ground.set_up(&client).await;
    let configs = import(&client, exposed("internal-api")).await;
    start(&client, [configs[0].id]).await;
    let service = |ground: &Ground| ground.cluster.get(Kind::Service, "default", "internal-api");
    ground.until("the Service", service).await;
    host.stop().await;
    assert_eq!(ground.remaining_jobs(), Vec::<Value>::new(), "the owner of all objects is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_takes_over_keeps_what_is_exposed() {
    keeps_what_is_exposed(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_takes_over_keeps_what_is_exposed_for_a_client() {
    keeps_what_is_exposed(true).await;
}

async fn keeps_what_is_exposed(leased: bool) {
    let ground = Ground::new().await;
    let (old, client) = ground.host().await;
    ground.set_up(&client).await;
    let configs = import(&client, exposed("internal-api")).await;
    let lease = if leased { Some(client.hold_lease().await.expect("held")) } else { None };
    let request = ActionRequest {
        selection: Selection::ids([configs[0].id]),
        lease: lease.as_ref().map(HeldLease::id),
        ..ActionRequest::default()
    };
    client.act(Action::Start, &request).await.expect("started");
    let service = |ground: &Ground| ground.cluster.get(Kind::Service, "default", "internal-api");
    let before = ground.until("the Service", service).await;
    let job = uid(&ground.jobs()[0]);

    let mut ending = JoinSet::new();
    ending.spawn(old.wait(true));
    let mut options = ground.options(&[]);
    options.take_over = true;
    let new = timeout(LIMIT, Host::start(options)).await.expect("in time").expect("takes over");
    timeout(LIMIT, ending.join_next())
        .await
        .expect("the old host ends")
        .expect("one")
        .expect("joined")
        .expect("ended");
    let client = Client::connect(ground.directory.path()).await.expect("the new host is there");
    let mut follow = client.follow();
    until(&mut follow, "the expose", |snapshot| snapshot.forward(configs[0].id).is_some()).await;
    assert_eq!(ground.remaining_jobs().iter().map(uid).collect::<Vec<_>>(), [job], "the same relay");
    let after = service(&ground).expect("the Service is still there");
    assert_eq!(uid(&after), uid(&before));
    drop(lease);
    new.stop().await;
}

fn image(job: &Value) -> String {
    text(&job["spec"]["template"]["spec"]["containers"][0]["image"])
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_become_what_the_settings_say_without_a_restart() {
    let ground = Ground::new().await;
    let (host, client) = ground.host().await;
    ground.set_up(&client).await;
    let entries = json!([{"workload_type": "proxy", "namespace": "default", "remote_address": "127.0.0.1",
        "local_port": 0, "remote_port": ground.echo, "alias": "db"}]);
    let configs = import(&client, entries).await;
    start(&client, [configs[0].id]).await;
    let mut follow = client.follow();
    let state = ready(&mut follow, configs[0].id).await;
    assert_eq!(ground.jobs().iter().map(image).collect::<Vec<_>>(), [IMAGE]);

    let tolerations = json!([{"key": "dedicated", "operator": "Exists"}]);
    let settings = set_relay(
        &client,
        &[
            ("image", json!("mirror.test/kftray-server:2")),
            ("pull_secrets", json!(["mirror", "other"])),
            ("tolerations", tolerations.clone()),
            ("resources", json!({"limits": {"memory": "64Mi"}})),
            ("patch", json!({"metadata": {"labels": {"team": "blue"}}})),
        ],
    )
    .await
    .expect("set");
    assert_eq!(settings.relay.pull_secrets, ["mirror", "other"]);
    let is_new = |job: &&Value| image(job) == "mirror.test/kftray-server:2";
    let job = ground.until("a new relay", |ground| ground.jobs().iter().find(is_new).cloned()).await;
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "mirror"}, {"name": "other"}]));
    assert!(pod["tolerations"].as_array().is_some_and(|all| all.contains(&tolerations[0])), "{pod}");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "64Mi");
    assert_eq!(job["metadata"]["labels"]["team"], "blue");
    // The forward goes on, in time by the new one.
    echoes(&state.addresses[0]).await;

    for (name, value, said) in [
        ("image", json!("two words"), "image"),
        ("idle_exit", json!(1), "relay_idle_exit"),
        ("tolerations", json!(["x"]), "relay_tolerations"),
        ("colour", json!("blue"), "colour"),
    ] {
        let refused = set_relay(&client, &[(name, value)]).await.expect_err("refused");
        assert_eq!(refused.code, Code::RequestInvalid);
        assert!(format!("{} {}", refused.message, refused.remedy).contains(said), "{refused:?}");
    }
    let settings = set_relay(&client, &[("image", Value::Null)]).await.expect("back to the default");
    assert_eq!(settings.relay.image, None);
    assert_eq!(settings.relay.tolerations, [tolerations[0].clone()], "what is absent stays");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_wins_over_the_settings_image() {
    let ground = Ground::new().await;
    let variables = [("KFTRAY_RELAY_IMAGE", "env.test/relay:9")];
    let host = Host::start(ground.options(&variables)).await.expect("the host starts");
    let client = Client::connect(ground.directory.path()).await.expect("the host is there");
    ground.set_up(&client).await;
    let entries = json!([{"workload_type": "proxy", "namespace": "default", "remote_address": "127.0.0.1",
        "local_port": 0, "remote_port": ground.echo, "alias": "db"}]);
    let configs = import(&client, entries).await;
    start(&client, [configs[0].id]).await;
    let job = ground.until("a relay", |ground| ground.jobs().first().cloned()).await;
    assert_eq!(image(&job), "env.test/relay:9");
    assert!(ground.relays.cluster.get().is_some());
    host.stop().await;
}
