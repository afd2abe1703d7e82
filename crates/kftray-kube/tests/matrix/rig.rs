//! One cluster, one forward into it, and clients that check every byte.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kftray_commons::{Code, RemotePort, Status, Target, TargetObject};
use kftray_kube::{KubeOptions, KubePorts, TransportMemory};
use kftray_portforward::{Engine, Event, Forward, ForwardConfig, Limits, LocalAddress};
use kftray_testkit::{Ending, FakeCluster, Faults, Handler, Timings, Which, handlers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockWriteGuard, broadcast};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{entry, environment};
use crate::table::{Carrier, Case};

/// For everything that should be quick, on machines that are not.
pub(crate) const BOUND: Duration = Duration::from_secs(15);
/// How long a connection may wait for a pod: longer than any fault here.
const HOLD: Duration = Duration::from_secs(25);
/// Distance of new connections under load.
const EVERY: Duration = Duration::from_millis(40);
/// Sizes of what they say: one byte, one segment, one frame, several frames. Below the 64 KiB that the engine keeps to be
/// able to say it again: a connection that has said more without an answer cannot move to another pod.
const SIZES: [usize; 4] = [1, 700, 9_000, 60_000];

/// The Service's ports, by what is behind them.
pub(crate) const ECHO: u16 = 80;
pub(crate) const NEVER_READS: u16 = 81;
pub(crate) const RESETS: u16 = 82;
pub(crate) const ENDLESS: u16 = 83;
pub(crate) const REFUSES: u16 = 84;

/// Why a connection was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Reset, or ended too early.
    Cut(String),
    /// Other bytes came back than were sent.
    Corrupt(usize),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(how) => f.write_str(how),
            Self::Corrupt(at) => write!(f, "WRONG BYTES from {at} on"),
        }
    }
}

pub(crate) struct Rig {
    pub(crate) fake: FakeCluster,
    pub(crate) engine: Engine,
    pub(crate) forward: Forward,
    target: Target,
    address: SocketAddr,
    events: Mutex<broadcast::Receiver<Event>>,
    /// Held for reading by each connection of the load.
    gate: Arc<RwLock<()>>,
    failed: Arc<Mutex<Vec<Broken>>>,
    load: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Local programs of a case's own, until its end.
    pub(crate) others: Mutex<JoinSet<()>>,
    stop_load: tokio_util::sync::CancellationToken,
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}; pods {:?}", self.forward.snapshot(), self.fake.pods("default", "web"))
    }
}

impl Rig {
    pub(crate) async fn start(carrier: Carrier, case: &Case) -> Self {
        // Long enough for the news of a termination to arrive before the program ends, on a busy machine too.
        let timings = Timings { pod_stop: Duration::from_millis(2_500), ..Timings::default() };
        let fake = FakeCluster::builder().timings(timings).start().await.expect("a cluster");
        web(&fake, case.pods);
        fake.wait_ready("default", "web", usize::try_from(case.pods).expect("few")).await.expect("pods");
        let options = KubeOptions {
            environment: environment(&[]),
            transport: carrier.as_str().parse().expect("a transport"),
            memory: TransportMemory::default(),
            ..KubeOptions::from_process()
        };
        let ports = KubePorts::new(options);
        let engine =
            Engine::new(Arc::new(ports.clone()), Arc::new(ports.clone()), Limits::for_open_files(4096));
        let target = Target {
            cluster: entry(&fake.kubeconfig_path(), case.context),
            namespace: Some("default".to_owned()),
            object: TargetObject::Service("web".to_owned()),
        };
        let forward = engine.start(config(&target, ECHO));
        let events = Mutex::new(forward.events());
        let address = ready(&forward).await.expect("ready at the start");
        Self {
            fake,
            engine,
            forward,
            target,
            address,
            events,
            gate: Arc::default(),
            failed: Arc::default(),
            load: Mutex::default(),
            others: Mutex::default(),
            stop_load: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// Another forward to the same pods.
    pub(crate) async fn second_forward(&self) -> Forward {
        let forward = self.engine.start(config(&self.target, ECHO));
        ready(&forward).await.expect("ready at the start");
        forward
    }

    /// Another forward to a port of the same pods, with `clients` clients at once that each do `what`, over and over, until
    /// the case ends.
    pub(crate) async fn neighbours<F>(&self, port: u16, clients: usize, what: fn(TcpStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let forward = self.engine.start(config(&self.target, port));
        let address = ready(&forward).await.expect("a neighbour's forward");
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..clients {
            others.spawn(async move {
                while let Ok(stream) = TcpStream::connect(address).await {
                    what(stream).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        others.spawn(async move {
            std::future::pending::<()>().await;
            drop(forward);
        });
    }

    pub(crate) async fn connect(&self) -> Result<TcpStream, Broken> {
        connect(self.address).await
    }

    /// One new connection that has `len` bytes echoed.
    pub(crate) async fn probe(&self, seed: usize, len: usize) -> Result<(), Broken> {
        echo(&mut self.connect().await?, seed, len).await
    }

    /// New connections all the time, from now on.
    pub(crate) fn run_load(&self) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        if load.is_some() {
            return;
        }
        let (address, gate, failed) = (self.address, Arc::clone(&self.gate), Arc::clone(&self.failed));
        let stop = self.stop_load.clone();
        let run = async move {
            let mut open = JoinSet::new();
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for seed in 5.. {
                let pass = tokio::select! {
                    () = stop.cancelled() => break,
                    pass = async { ticks.tick().await; Arc::clone(&gate).read_owned().await } => pass,
                };
                open.spawn(one_of_many(address, seed, pass, Arc::clone(&failed)));
            }
            while open.join_next().await.is_some() {}
        };
        *load = Some(AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(run)));
    }

    /// No connection of the load is under way while this is held, for the clients as for the forward.
    pub(crate) async fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        let quiet = self.gate.write().await;
        until("only the kept connection is open", || self.forward.counters().open <= 1).await;
        quiet
    }

    /// Ends connections, and waits until no carrier of before is left.
    pub(crate) async fn drop_connections(&self, which: Which, ending: Ending) {
        self.lose_carriers(|faults| faults.drop_connections(which, ending)).await;
    }

    /// Does what ends all carriers, and waits until they have ended.
    pub(crate) async fn lose_carriers(&self, fault: impl FnOnce(&Faults)) {
        let sessions = &self.fake.counters().sessions;
        let before = sessions.total();
        fault(self.fake.faults());
        until("the carriers have gone", || sessions.now() <= sessions.total() - before).await;
        // The other end has to hear of it: a byte written before that is one of which nothing can be known.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    /// Waits for the connections of the load that are under way.
    pub(crate) async fn end_load(&self) {
        self.stop_load.cancel();
        let load = self.load.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(load) = load {
            load.await.expect("the load does not panic");
        }
    }

    /// Whether the forward says so in time.
    pub(crate) async fn becomes_ready(&self) -> Result<(), ()> {
        ready(&self.forward).await.map(drop)
    }

    /// What went wrong that must not: wrong bytes ever, and failures but for the reasons allowed.
    pub(crate) fn verdict(&self, allowed: &[Code], existing: &TcpStream) -> Result<(), String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let corrupt = failed.iter().find(|broken| matches!(broken, Broken::Corrupt(_)));
        let existing = existing.local_addr().ok();
        let mut reasons = Vec::new();
        let mut listenings = 0;
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match events.try_recv() {
                Ok(Event::ConnectionFailed { peer, problem })
                    if Some(peer) != existing && !allowed.contains(&problem.code) =>
                {
                    reasons.push(format!("{}: {problem}", problem.code));
                }
                Ok(Event::Listening { .. }) => listenings += 1,
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => listenings = 1,
                Err(_) => break,
            }
        }
        reasons.dedup();
        if let Some(corrupt) = corrupt {
            return Err(corrupt.to_string());
        }
        if listenings != 1 {
            return Err(format!("it began to listen {listenings} times"));
        }
        if !reasons.is_empty() || (allowed.is_empty() && !failed.is_empty()) {
            return Err(format!("{} failed: {:?}; {reasons:#?}", failed.len(), failed.first()));
        }
        Ok(())
    }

    /// The pods that are not terminating.
    pub(crate) fn pods(&self) -> Vec<String> {
        self.fake.pods("default", "web")
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(BOUND, reached).await.is_ok(), "not within {BOUND:?}: {what}");
}

/// A Deployment `web` with every kind of program, and its Service.
fn web(fake: &FakeCluster, pods: u64) {
    let programs: [(u16, &str, Handler); 5] = [
        (ECHO, "echo", handlers::echo()),
        (NEVER_READS, "never-reads", handlers::never_read()),
        (RESETS, "resets", handlers::reset(10)),
        (ENDLESS, "endless", handlers::chargen(None)),
        (REFUSES, "refuses", handlers::refuse()),
    ];
    let mut deployment = fake.deployment("web").replicas(pods);
    let mut service = fake.service("web");
    for (port, name, program) in programs {
        deployment = deployment.port(name, port + 8000, program);
        service = service.named_port(name, port, name);
    }
    deployment.create().expect("a deployment");
    service.create().expect("a service");
}

fn config(target: &Target, port: u16) -> ForwardConfig {
    let port = RemotePort::Number(port.try_into().expect("a port"));
    ForwardConfig {
        addresses: vec![LocalAddress::Ip([127, 0, 0, 1].into())],
        hold: HOLD,
        ..ForwardConfig::new("web", target.clone(), port)
    }
}

async fn ready(forward: &Forward) -> Result<SocketAddr, ()> {
    let mut status = forward.status();
    let ready = timeout(BOUND, status.wait_for(|status| matches!(status, Status::Ready))).await;
    match ready {
        Ok(Ok(_)) => forward.addresses().first().copied().ok_or(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

async fn one_of_many(
    address: SocketAddr,
    seed: usize,
    _pass: OwnedRwLockReadGuard<()>,
    failed: Arc<Mutex<Vec<Broken>>>,
) {
    let served = async { echo(&mut connect(address).await?, seed, SIZES[seed % SIZES.len()]).await };
    if let Err(broken) = served.await {
        failed.lock().unwrap_or_else(PoisonError::into_inner).push(broken);
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Broken> {
    TcpStream::connect(address).await.map_err(|error| Broken::Cut(format!("not accepted: {error}")))
}

/// Bytes that differ by seed and place.
fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31 + at / 251 + seed * 7) % 251) as u8).collect()
}

/// Sends and receives at once, and compares.
pub(crate) async fn echo(stream: &mut TcpStream, seed: usize, len: usize) -> Result<(), Broken> {
    let sent = bytes(seed, len);
    let (mut read, mut write) = stream.split();
    let receive = async {
        let mut received = vec![0; len];
        let mut count = 0;
        while count < len {
            match read.read(&mut received[count..]).await {
                Ok(0) => return Err(Broken::Cut(format!("ended after {count} of {len} bytes"))),
                Ok(more) => count += more,
                Err(error) => return Err(Broken::Cut(format!("{error} after {count} of {len} bytes"))),
            }
        }
        match received.iter().zip(&sent).position(|(received, sent)| received != sent) {
            None => Ok(()),
            Some(at) => Err(Broken::Corrupt(at)),
        }
    };
    // A failure shows in what comes back.
    let (_, received) = tokio::join!(write.write_all(&sent), receive);
    received
}

/// Whether a connection ends in time.
pub(crate) async fn ends(stream: &mut TcpStream) -> Result<(), ()> {
    let end = async {
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(BOUND, end).await.map(drop).map_err(drop)
}
