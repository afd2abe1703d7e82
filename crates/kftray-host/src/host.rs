//! The host's life: start, serve, end.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kftray_commons::api::{EndedBy, LeaseId, Mode, Origin, Place};
use kftray_commons::store::{Directory, Draft};
use kftray_commons::{Code, ForwardId, ForwardSpec, Problem};
use kftray_kube::deploy::RelayOptions;
use kftray_kube::{Environment, KubeOptions, KubePorts, TransportChoice};
use kftray_portforward::{Engine, Limits};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::archive::Archive;
use crate::board::Board;
use crate::core::{Core, Ending, Parts};
use crate::forwards::{Fleet, Wanted};
use crate::handover::{DRAIN, Offered, Taken};
use crate::history::Chronicle;
use crate::leases::Leases;
use crate::lock::Lock;
use crate::platform::{self, Listener, Terminations};
use crate::serve::{self, Clients, TcpEntrance};
use crate::{actions, clock, configs, foreign, handover, memory, network, reference, routes, settings};

/// How long an old host may take to give the lock back after it has handed over or was told to end.
const SUCCESSION: Duration = Duration::from_secs(15);

/// How long the store may take to write down the last histories.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// How a host is started.
#[derive(Debug)]
pub struct HostOptions {
    /// Whose forwards it owns.
    pub directory: Directory,
    /// What it lives in.
    pub mode: Mode,
    /// Environment of kubeconfig look-up, credential plugins and proxies.
    pub environment: Environment,
    /// The port-forward protocol.
    pub transport: TransportChoice,
    /// Take over from the host that serves the directory now, if there is one.
    pub take_over: bool,
    /// Use the socket that systemd has opened, if it has.
    pub use_given_socket: bool,
    /// End when there is no forward and no client for as long as the settings say.
    pub leaves_when_idle: bool,
    /// Serve a TCP port of 127.0.0.1, too, for programs that cannot open a local socket: address and bearer token stand
    /// in the file `host.tcp`.
    pub tcp: bool,
}

impl HostOptions {
    /// A host of this process's environment.
    #[must_use]
    pub fn new(directory: Directory, mode: Mode) -> Self {
        Self {
            directory,
            mode,
            environment: Environment::from_process(),
            transport: TransportChoice::Auto,
            take_over: false,
            use_given_socket: false,
            leaves_when_idle: false,
            tcp: false,
        }
    }
}

/// A running host. Dropping it ends it at once; [`Host::stop`] does it in order.
#[derive(Debug)]
pub struct Host {
    core: Arc<Core>,
    place: Place,
    /// Everything that runs beside the forwards.
    tasks: JoinSet<()>,
    /// The clients' side, ended before the forwards.
    serving: JoinSet<()>,
    /// host --true--> serving: say goodbye
    closing: watch::Sender<bool>,
    /// Given back last, or at once when another host waits for it.
    lock: Option<Lock>,
    /// The socket is not systemd's.
    own_socket: bool,
}

impl Host {
    /// Starts a host. Must be called on a tokio runtime with I/O and time, and with a TLS provider installed.
    ///
    /// # Errors
    /// `conflict` if another host serves the directory, `host_unreachable` if the socket cannot be opened, what the
    /// directory and the store say.
    pub async fn start(options: HostOptions) -> Result<Self, Problem> {
        let HostOptions {
            directory,
            mode,
            environment,
            transport,
            take_over,
            use_given_socket,
            leaves_when_idle,
            tcp,
        } = options;
        platform::raise_limits();
        directory.prepare()?;
        let place = platform::place(directory.path());
        let (lock, taken) =
            if take_over { succeed(&place).await? } else { (Lock::take(&place.lock)?, Taken::default()) };
        let archive = Archive::open(directory.clone()).await?;
        let board = Arc::new(Board::new(format!("{:016x}", rand::random::<u64>())));
        let chronicle = Chronicle::new(archive.clone());
        let (ended_tx, ended_rx) = mpsc::unbounded_channel();
        let (lease_tx, lease_rx) = mpsc::unbounded_channel();
        // Without the file relays work all the same; only the next host does not find those of this one.
        let relay = RelayOptions::of(&environment, directory.path()).unwrap_or_else(|error| {
            tracing::warn!(%error, "the key of relays");
            RelayOptions::ephemeral()
        });
        let kube = KubePorts::new(KubeOptions {
            environment: environment.clone(),
            transport,
            memory: memory::load(&archive).await?,
            relay,
        });
        let engine = Engine::new(Arc::new(kube.clone()), Arc::new(kube.clone()), Limits::detect());
        let fleet = Fleet::new(engine, kube, Arc::clone(&board), chronicle.clone(), ended_tx);
        let leases = Leases::new(lease_tx);
        // Before anybody can ask for one.
        leases.inherit(&taken.leases);
        let core = Arc::new(Core::new(Parts {
            directory,
            mode,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            board,
            archive,
            chronicle,
            fleet: Arc::new(fleet),
            leases,
            environment,
        }));
        let published = Arc::clone(core.board());
        core.archive().call(move |store| configs::publish_all(store, &published)).await?;
        settings::apply_relay_settings(&core);
        reference::adopt(&core).await;
        let (listener, own_socket) = open(&place, use_given_socket)?;
        let tcp = if tcp { Some(TcpEntrance::open(&place).await?) } else { None };
        let mut host = Self {
            core,
            place,
            tasks: JoinSet::new(),
            serving: JoinSet::new(),
            closing: watch::Sender::new(false),
            lock: Some(lock),
            own_socket,
        };
        host.run(listener, tcp, ended_rx, lease_rx, leaves_when_idle);
        restore(&host.core, taken).await;
        Ok(host)
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Until somebody asks for the end, or nobody needs it any more; then [`Self::stop`]. `signals` ends it by SIGINT and
    /// SIGTERM, too; `ignore_hangup` makes it deaf to the end of its terminal.
    ///
    /// # Errors
    /// `internal` if signals cannot be heard.
    pub async fn wait(self, ignore_hangup: bool) -> Result<(), Problem> {
        let mut signals = Terminations::install(ignore_hangup)
            .map_err(|error| Problem::new(Code::Internal, format!("signals cannot be heard: {error}")))?;
        let mut ending = self.core.ending();
        tokio::select! {
            _ = ending.wait_for(Option::is_some) => {}
            () = signals.next() => self.core.end(Ending::Stop),
        }
        // A second signal does not wait for anything.
        tokio::select! {
            () = self.stop() => Ok(()),
            () = signals.next() => Ok(()),
        }
    }

    /// Ends it in order: clients hear it, forwards end, what was exposed is withdrawn from the clusters, the store is
    /// written, the lock is given back.
    pub async fn stop(mut self) {
        self.core.end(Ending::Stop);
        let how = *self.core.ending().borrow();
        let handed_over = how == Some(Ending::HandOver);
        tracing::info!(handed_over, "the host ends");
        let remembered = memory::save(self.core.archive(), self.core.fleet().kube().clusters());
        if !matches!(timeout(LAST_WRITES, remembered).await, Ok(Ok(()))) {
            tracing::warn!("what was learned about the clusters is lost");
        }
        self.core.board().end(handed_over);
        self.closing.send_replace(true);
        self.tasks.abort_all();
        while self.serving.join_next().await.is_some() {}
        if handed_over {
            self.retire().await;
            return;
        }
        self.core.fleet().stop_all(EndedBy::Other).await;
        self.core.fleet().kube().finish().await;
        self.core.tasks().abort();
        drop(timeout(LAST_WRITES, self.core.archive().flush()).await);
        // What is there now is nobody's: no host can start before the lock is given back.
        if self.own_socket {
            drop(std::fs::remove_file(&self.place.socket));
        }
        drop(self.lock.take());
    }

    /// Makes room for the next host at once, and lets open connections go on for a while.
    async fn retire(mut self) {
        let passengers = self.core.fleet().passengers();
        let retiring = join_all(passengers.iter().map(|passenger| passenger.forward.retire(DRAIN)));
        tokio::pin!(retiring);
        // The first poll closes the listeners of this process; the other one's stay open.
        if futures::poll!(&mut retiring).is_ready() {
            tracing::debug!("no connection was open");
        }
        drop(timeout(LAST_WRITES, self.core.archive().flush()).await);
        drop(self.lock.take());
        retiring.await;
    }

    fn run(
        &mut self,
        listener: Listener,
        tcp: Option<TcpEntrance>,
        mut ended: mpsc::UnboundedReceiver<(ForwardId, EndedBy)>,
        mut leases: mpsc::UnboundedReceiver<LeaseId>,
        leaves_when_idle: bool,
    ) {
        let (clients, app) = (Clients::new(), routes::app(Arc::clone(&self.core)));
        if let Some(tcp) = tcp {
            let app = tcp.guarded(app.clone(), &clients);
            self.serving.spawn(serve::serve(tcp, app, Clients::by_tcp(), self.closing.subscribe()));
        }
        let connections = clients.count();
        self.serving.spawn(serve::serve(listener, app, clients, self.closing.subscribe()));
        let fleet = Arc::clone(self.core.fleet());
        self.tasks.spawn(async move { fleet.count().await });
        self.tasks.spawn(network::watch(Arc::clone(&self.core)));
        self.tasks.spawn(foreign::watch(Arc::clone(&self.core)));
        self.tasks.spawn(settings::follow_relay_settings(Arc::clone(&self.core)));
        let core = Arc::clone(&self.core);
        self.tasks.spawn(async move {
            while let Some((id, _)) = ended.recv().await {
                // It has had its time: the next host shall not start it again.
                if let Err(problem) = core.set_desired(vec![id], false).await {
                    tracing::warn!(%problem, "the end of a forward could not be written down");
                }
            }
        });
        let core = Arc::clone(&self.core);
        self.tasks.spawn(async move {
            while let Some(lease) = leases.recv().await {
                core.end_lease(lease).await;
            }
        });
        if leaves_when_idle {
            self.tasks.spawn(leave_when_idle(Arc::clone(&self.core), connections));
        }
    }
}

/// The socket, and whether it is our own and not systemd's.
fn open(place: &Place, use_given: bool) -> Result<(Listener, bool), Problem> {
    if use_given {
        match platform::given_listener() {
            Ok(Some(listener)) => return Ok((listener, false)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the socket that was handed over cannot be used"),
        }
    }
    platform::listen(place).map(|listener| (listener, true))
}

/// Takes everything over from the host that serves a place; where that is not possible, asks it to end.
async fn succeed(place: &Place) -> Result<(Lock, Taken), Problem> {
    if let Ok(lock) = Lock::take(&place.lock) {
        return Ok((lock, Taken::default()));
    }
    let taken = match handover::take(place).await {
        Ok(taken) => taken,
        Err(problem) => {
            tracing::warn!(%problem, "the old host is asked to end instead");
            handover::dismiss(place).await?;
            Taken::default()
        }
    };
    let path = place.lock.clone();
    let waiting = tokio::task::spawn_blocking(move || Lock::wait(&path));
    match timeout(SUCCESSION, waiting).await {
        Ok(lock) => Ok((lock.map_err(|error| Problem::new(Code::Internal, error.to_string()))??, taken)),
        Err(_) => Err(Problem::new(Code::HostUnreachable, "the old host does not end")),
    }
}

/// Starts what was taken over with its listeners, and what shall run without.
async fn restore(core: &Arc<Core>, taken: Taken) {
    for (offered, listeners) in taken.forwards {
        let Some((wanted, holders)) = resumed(core, offered, listeners) else { continue };
        let id = wanted.id;
        match core.fleet().start(wanted).await {
            Ok(_) => core.fleet().hold(id, holders),
            Err(problem) => tracing::warn!(%problem, "a forward that was handed over cannot run"),
        }
    }
    for lease in taken.leases {
        core.recheck(Some(lease.id)).await;
    }
    if !core.board().settings().restore {
        return;
    }
    let desired: Vec<ForwardId> = core
        .board()
        .configs()
        .iter()
        .filter(|config| config.desired && !core.fleet().is_running(config.id))
        .map(|config| config.id)
        .collect();
    for result in actions::start(core, &desired, None).await {
        if let Some(problem) = result.problem {
            tracing::warn!(forward = result.label, %problem, "a forward that shall run does not");
        }
    }
}

/// What was taken over as it shall go on, and the leases that want it; none if nobody does any more.
fn resumed(core: &Core, mut offered: Offered, listeners: Vec<TcpListener>) -> Option<(Wanted, Vec<LeaseId>)> {
    // A client that went away meanwhile has been heard of, but there was nothing yet to end.
    offered.holders.retain(|lease| core.leases().is_held(*lease));
    if offered.origin.lease().is_some() {
        offered.origin = offered.origin.with_lease(Some(*offered.holders.first()?));
    }
    let Ok((Draft { spec, extra }, _)) = Draft::read(&offered.entry) else {
        tracing::warn!(id = offered.id.0, "a forward that was handed over is not understood");
        return None;
    };
    let id = match offered.origin {
        Origin::Config { .. } => offered.id,
        Origin::AdHoc { .. } => core.fleet().ad_hoc_id(),
    };
    let lifetime = match (offered.origin, configs::limits(&extra)) {
        // Older hosts do not tell.
        (Origin::Config { .. }, (None, None)) => core.lifetime(id),
        (Origin::Config { .. } | Origin::AdHoc { .. }, (idle, ttl)) => {
            settings::lifetime(idle, ttl, &core.board().settings())
        }
    };
    let wanted = Wanted { id, spec: ForwardSpec { id, ..spec }, origin: offered.origin, lifetime, listeners };
    Some((wanted, offered.holders))
}

/// Ends a background host that nobody needs: no forward and no client for as long as the settings say.
async fn leave_when_idle(core: Arc<Core>, mut connections: watch::Receiver<usize>) {
    let mut active = core.board().active();
    loop {
        drop(active.wait_for(|count| *count == 0).await);
        drop(connections.wait_for(|count| *count == 0).await);
        if *active.borrow() > 0 {
            continue;
        }
        let Some(limit) = clock::minutes(core.board().settings().host_idle_minutes) else {
            // It may be set to another value, by a client.
            drop(connections.wait_for(|count| *count > 0).await);
            continue;
        };
        tokio::select! {
            () = sleep(limit) => {
                tracing::info!("nobody needs this host any more");
                core.end(Ending::Stop);
                return;
            }
            _ = active.wait_for(|count| *count > 0) => {}
            _ = connections.wait_for(|count| *count > 0) => {}
        }
    }
}

/// The directory of a host's files, for those who only look.
#[must_use]
pub fn place(directory: &Path) -> Place {
    platform::place(directory)
}
