//! The tunnel against a true relay: the server's library in this process, behind a pod of the fake cluster, reached by the
//! true port-forward.

mod expose;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kftray_commons::spec::Protocol;
use kftray_commons::{ClusterRef, Code, ContextRef, Problem, RemotePort, Target, TargetObject, Via};
use kftray_portforward::ports::{
    Channel, ChannelError, Dial as _, DialError, Endpoint, Offer, Resolution, Route, Wanted,
};
use kftray_relay_proto::token::Token;
use kftray_server::relay::{Ended, Relay};
use kftray_server::resolve::Names;
use kftray_server::settings::Settings;
use kftray_testkit::{ADMIN, FakeCluster, handlers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Routes, Tunnels};
use crate::config::Environment;
use crate::connect::{TransportChoice, TransportMemory};
use crate::pool::Pool;
use crate::relay::{Exposed, Need, RelayPod, RelayState, Relays};
use crate::{Clusters, Resolver};

/// More than anything here takes on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(30);
const TUNNEL: u16 = 9999;
const HOST: &str = "127.0.0.1";

/// Everything of a process, and a relay.
struct Rig {
    fake: FakeCluster,
    relays: Arc<FakeRelays>,
    tunnels: Tunnels,
    routes: Routes,
    pool: Pool,
    tunnel_at: Arc<Mutex<SocketAddr>>,
    /// Connections to the tunnel port so far.
    carriers: Arc<AtomicUsize>,
    token: Token,
    relay: JoinSet<Ended>,
    tasks: JoinSet<()>,
    pod: watch::Receiver<Resolution>,
    /// Forwards that run: without any nobody keeps a tunnel.
    following: Mutex<Vec<watch::Receiver<Resolution>>>,
}

/// Relays that are what the test says.
struct FakeRelays {
    state: watch::Sender<RelayState>,
    doubts: watch::Sender<Vec<Problem>>,
    expose_port: Mutex<u16>,
    /// Counts objects of exposes that exist.
    objects: watch::Sender<usize>,
    /// What keeps the callers of exposes away.
    outside: watch::Sender<Option<Problem>>,
}

struct Withdrawal(watch::Sender<usize>);

impl Drop for Withdrawal {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Relays for FakeRelays {
    fn follow(&self, _: &ClusterRef, _: Option<&str>, _: Need) -> watch::Receiver<RelayState> {
        self.state.subscribe()
    }

    fn doubt(&self, _: &RelayPod, problem: &Problem) {
        self.doubts.send_modify(|doubts| doubts.push(problem.clone()));
    }

    fn expose(&self, _: &RelayPod, offer: &Offer) -> BoxFuture<'static, Result<Exposed, Problem>> {
        self.objects.send_modify(|count| *count += 1);
        let exposed = Exposed {
            port: *self.expose_port.lock().unwrap(),
            urls: vec![format!("http://{}", offer.name)],
            notes: Vec::new(),
            outside: self.outside.subscribe(),
            guard: Box::new(Withdrawal(self.objects.clone())),
        };
        async move { Ok(exposed) }.boxed()
    }
}

/// A relay of this process; ends when the set is dropped.
async fn start_relay(token: &Token, more: &[(&str, &str)]) -> (JoinSet<Ended>, SocketAddr) {
    let hash = token.hash().to_string();
    let variable = |name: &str| {
        let given = more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        given.or_else(|| match name {
            "KFTRAY_TOKEN_SHA256" => Some(hash.clone()),
            "KFTRAY_TUNNEL_PORT" | "KFTRAY_HEALTH_PORT" => Some("0".to_owned()),
            "KFTRAY_ALLOW" => Some("127.0.0.1,192.0.2.0/24,*.test,*.invalid".to_owned()),
            _ => None,
        })
    };
    let names = Names::from_file(std::path::Path::new("/etc/resolv.conf")).unwrap();
    let relay = Relay::bind(Settings::read(&variable).unwrap(), names).await.unwrap();
    let address = relay.tunnel_address().unwrap();
    let mut running = JoinSet::new();
    running.spawn(relay.run(std::future::pending()));
    (running, address)
}

impl Rig {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(variables: &[(&str, &str)]) -> Self {
        let token = Token::new([7; 32]);
        let (relay, address) = start_relay(&token, variables).await;
        let tunnel_at = Arc::new(Mutex::new(address));
        let fake = FakeCluster::start().await.unwrap();
        let (to, carriers) = (Arc::clone(&tunnel_at), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&carriers);
        let tunnel = handlers::passed_on(move || {
            count.fetch_add(1, Ordering::SeqCst);
            *to.lock().unwrap()
        });
        fake.pod("relay").port("tunnel", TUNNEL, tunnel).create().unwrap();
        fake.wait_ready("default", "relay", 1).await.unwrap();
        let clusters = Clusters::new(environment(), TransportChoice::Auto, TransportMemory::default());
        let resolver = Arc::new(Resolver::new(clusters.clone()));
        let pool = Pool::new(Arc::new(clusters.clone()));
        let relays = Arc::new(FakeRelays {
            state: watch::Sender::new(RelayState::Pending),
            doubts: watch::Sender::new(Vec::new()),
            expose_port: Mutex::new(0),
            objects: watch::Sender::new(0),
            outside: watch::Sender::new(None),
        });
        let dial: Arc<dyn kftray_portforward::ports::Dial> = Arc::new(pool.clone());
        let tunnels = Tunnels::new(dial, Arc::clone(&relays) as Arc<dyn Relays>, "test".to_owned());
        let routes = Routes::new(
            clusters,
            Arc::clone(&resolver),
            Arc::clone(&relays) as Arc<dyn Relays>,
            tunnels.clone(),
        );
        let pod = resolver.follow(&target(&fake, TargetObject::Pod("relay".to_owned())), &port(TUNNEL));
        let mut rig = Self {
            fake,
            relays,
            tunnels,
            routes,
            pool,
            tunnel_at,
            carriers,
            token,
            relay,
            tasks: JoinSet::new(),
            pod,
            following: Mutex::default(),
        };
        rig.relay_up().await;
        rig
    }

    /// The relay's pod, as it is now.
    async fn relay_pod(&mut self) -> RelayPod {
        let endpoint = loop {
            let known = self.pod.borrow_and_update().clone();
            if let Resolution::Endpoints { endpoints, .. } = known
                && let Some(endpoint) = endpoints.first()
            {
                break endpoint.clone();
            }
            timeout(PATIENCE, self.pod.changed()).await.unwrap().unwrap();
        };
        RelayPod {
            cluster: endpoint.cluster,
            namespace: endpoint.namespace,
            pod: endpoint.pod,
            uid: endpoint.uid,
            node: endpoint.node,
            port: TUNNEL,
            token: self.token.clone(),
            installed: false,
        }
    }

    async fn relay_up(&mut self) {
        let pod = self.relay_pod().await;
        self.relays.state.send_replace(RelayState::Up([pod].into()));
    }

    /// Another relay process takes the place of the one before, which ends at once.
    async fn restart_relay(&mut self) {
        let (relay, address) = start_relay(&self.token, &[]).await;
        *self.tunnel_at.lock().unwrap() = address;
        self.relay = relay;
    }

    fn wanted(&self, protocol: Protocol, to: u16) -> Wanted {
        Wanted {
            target: target(&self.fake, TargetObject::Host(HOST.to_owned())),
            port: port(to),
            protocol,
            via: Via::Direct,
        }
    }

    /// What is wanted, once it can be connected to.
    async fn endpoint(&self, protocol: Protocol, to: u16) -> Endpoint {
        let mut following = self.routes.follow(&self.wanted(protocol, to));
        let endpoint = ready(&mut following).await;
        self.following.lock().unwrap().push(following);
        endpoint
    }

    async fn dial(&self, host: &str, to: u16, first: &[u8]) -> Result<Box<dyn Channel>, DialError> {
        let endpoint = self.endpoint(Protocol::Tcp, to).await;
        let dialled = self.tunnels.dial(&endpoint, host, Bytes::copy_from_slice(first));
        timeout(PATIENCE, dialled).await.unwrap()
    }

    /// A TCP server of this machine.
    async fn serve<F, T>(&mut self, serve: F) -> u16
    where
        F: Fn(TcpStream) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        port
    }

    async fn echo(&mut self) -> u16 {
        self.serve(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
            write.shutdown().await.ok();
        })
        .await
    }

    /// Reads to the end, then answers with the number of bytes: only right with half-close.
    async fn count(&mut self) -> u16 {
        self.serve(|mut stream| async move {
            let mut sink = tokio::io::sink();
            let total = tokio::io::copy(&mut stream, &mut sink).await.unwrap_or_default();
            stream.write_all(total.to_string().as_bytes()).await.ok();
            stream.shutdown().await.ok();
        })
        .await
    }
}

/// Nothing of the machine: no proxy, no other kubeconfig.
fn environment() -> Environment {
    Environment::new([("HOME", "/nonexistent")], "/")
}

fn target(fake: &FakeCluster, object: TargetObject) -> Target {
    let cluster = ClusterRef {
        kubeconfig: Some(fake.kubeconfig_path().to_string_lossy().into_owned()),
        context: ContextRef::Named(ADMIN.to_owned()),
    };
    Target { cluster, namespace: Some("default".to_owned()), object }
}

fn port(number: u16) -> RemotePort {
    RemotePort::Number(number.try_into().unwrap())
}

async fn ready(following: &mut watch::Receiver<Resolution>) -> Endpoint {
    let found = timeout(PATIENCE, async {
        loop {
            if let Resolution::Endpoints { endpoints, why_none: None } = &*following.borrow_and_update()
                && let Some(endpoint) = endpoints.first()
            {
                return endpoint.clone();
            }
            following.changed().await.unwrap();
        }
    });
    found.await.unwrap()
}

async fn recv(channel: &mut dyn Channel) -> Result<Option<Bytes>, ChannelError> {
    timeout(PATIENCE, std::future::poll_fn(|cx| channel.poll_recv(cx))).await.expect("something within 30 s")
}

async fn send(channel: &mut dyn Channel, bytes: &[u8]) -> Result<(), ChannelError> {
    timeout(PATIENCE, std::future::poll_fn(|cx| channel.poll_send_ready(cx)))
        .await
        .expect("room within 30 s")?;
    channel.send(Bytes::copy_from_slice(bytes));
    Ok(())
}

async fn take(channel: &mut dyn Channel, length: usize) -> Result<Vec<u8>, ChannelError> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let Some(piece) = recv(channel).await? else {
            panic!("ended after {} of {length} bytes", bytes.len())
        };
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn rest(channel: &mut dyn Channel) -> Result<Vec<u8>, ChannelError> {
    let mut bytes = Vec::new();
    while let Some(piece) = recv(channel).await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// `length` bytes in which a shift or a swap shows.
fn pattern(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

/// A port on which nothing listens.
async fn closed_port() -> u16 {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}
