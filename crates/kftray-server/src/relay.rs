//! The relay as a whole: its ports, its end.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kftray_relay_proto::handshake::Admission;
use kftray_relay_proto::version::SUPPORTED;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::expose::Exposures;
use crate::limits::{self, Bounds};
use crate::metrics::Metrics;
use crate::resolve::Names;
use crate::settings::Settings;
use crate::tcp::Scratch;
use crate::udp::ReceiveBuffer;
use crate::{carrier, health};

/// Program and version, as the hello and the log say it.
pub const SOFTWARE: &str = concat!("kftray-server/", env!("CARGO_PKG_VERSION"));

/// Connections that wait for the accept loop. Bursts of callers, not of tunnels, are what fills it.
pub(crate) const BACKLOG: u32 = 1024;

/// Rest after an accept that failed for want of files or memory: what is open must end first.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What all parts share.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) admission: Admission,
    pub(crate) bounds: Bounds,
    pub(crate) metrics: Metrics,
    pub(crate) exposures: Exposures,
    pub(crate) scratch: Scratch,
    pub(crate) receive: ReceiveBuffer,
    /// Tunnels that are up; the end of the last one starts the clock of the idle exit.
    pub(crate) tunnels: watch::Sender<usize>,
    /// No new opens; what is open goes on.
    pub(crate) draining: CancellationToken,
    /// Everything ends now.
    pub(crate) closing: CancellationToken,
}

/// A relay with its ports bound.
pub struct Relay {
    core: Arc<Core>,
    tunnel: TcpListener,
    health: TcpListener,
}

/// Why a relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nobody had a tunnel for as long as the settings say.
    Idle,
    /// It was told to stop, and everything that was open ended in time.
    Drained,
    /// It was told to stop, and cut off what did not end in time.
    Cut,
}

impl Relay {
    /// Binds the tunnel port on 127.0.0.1 (only a port-forward reaches it) and the health port on all addresses.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn bind(settings: Settings, names: Names) -> anyhow::Result<Self> {
        let tunnel: SocketAddr = (Ipv4Addr::LOCALHOST, settings.tunnel_port).into();
        let tunnel = TcpListener::bind(tunnel)
            .await
            .with_context(|| format!("cannot listen for tunnels on {tunnel}"))?;
        let health = listen_everywhere(settings.health_port)
            .with_context(|| format!("cannot listen for health checks on port {}", settings.health_port))?;
        let admission = Admission {
            versions: SUPPORTED,
            tokens: settings.tokens.clone(),
            software: SOFTWARE.to_owned(),
            instance: rand::random(),
            max_streams: u32::try_from(settings.limits.streams).unwrap_or(u32::MAX),
        };
        let core = Core {
            bounds: Bounds::new(&settings.limits, Instant::now()),
            exposures: Exposures::new(settings.expose_ports.clone(), settings.expose_hold),
            metrics: Metrics::new(),
            scratch: Scratch::default(),
            receive: ReceiveBuffer::default(),
            tunnels: watch::Sender::new(0),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            settings,
            names,
            admission,
        };
        Ok(Self { core: Arc::new(core), tunnel, health })
    }

    /// Where tunnels are accepted.
    ///
    /// # Errors
    /// As the system's `getsockname`.
    pub fn tunnel_address(&self) -> io::Result<SocketAddr> {
        self.tunnel.local_addr()
    }

    /// Where health is told.
    ///
    /// # Errors
    /// As the system's `getsockname`.
    pub fn health_address(&self) -> io::Result<SocketAddr> {
        self.health.local_addr()
    }

    /// Serves until `stop` is done and everything has drained, or until nobody needs it.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Ended {
        let Self { core, tunnel, health } = self;
        let mut beside = JoinSet::new();
        beside.spawn(health::serve(Arc::clone(&core), health));
        let exposing = Arc::clone(&core);
        beside.spawn(async move { exposing.exposures.run(&exposing).await });
        let mut carriers = JoinSet::new();
        let ended = {
            let accept = accept(&core, &tunnel, &mut carriers);
            let idle = idle(&core);
            tokio::pin!(accept, idle, stop);
            tokio::select! {
                () = &mut accept => None,
                () = &mut idle => Some(Ended::Idle),
                () = &mut stop => None,
            }
        };
        if let Some(ended) = ended {
            info!("no tunnel for {:?}: leaving", core.settings.idle_exit.unwrap_or_default());
            return ended;
        }
        drop(tunnel);
        drain(&core, carriers).await
    }
}

/// Lets what is open come to its end, for a while; then ends it.
async fn drain(core: &Core, mut carriers: JoinSet<()>) -> Ended {
    info!("stopping: {} tunnels may finish what is open within {:?}", carriers.len(), core.settings.drain);
    core.draining.cancel();
    let all_done = async { while carriers.join_next().await.is_some() {} };
    if timeout(core.settings.drain, all_done).await.is_ok() {
        return Ended::Drained;
    }
    warn!("cutting off {} tunnels", carriers.len());
    core.closing.cancel();
    let all_done = async { while carriers.join_next().await.is_some() {} };
    // The carriers close by themselves within moments; a socket that takes nothing is not waited for.
    timeout(carrier::CLOSE_TIMEOUT * 2, all_done).await.ok();
    Ended::Cut
}

async fn accept(core: &Arc<Core>, listener: &TcpListener, carriers: &mut JoinSet<()>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => match limits::take(&core.bounds.strangers, "connections without a hello") {
                    Ok(permit) => {
                        carriers.spawn(carrier::serve(Arc::clone(core), socket, peer, permit));
                    }
                    Err(_) => core.metrics.stranger("flood"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept a tunnel");
                    sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = carriers.join_next() => {}
        }
    }
}

/// Done when there was no tunnel for as long as the settings say.
async fn idle(core: &Core) {
    let Some(limit) = core.settings.idle_exit else { return std::future::pending().await };
    let mut tunnels = core.tunnels.subscribe();
    loop {
        // The sender lives in `core`: neither wait fails.
        tunnels.wait_for(|&count| count == 0).await.ok();
        if timeout(limit, tunnels.wait_for(|&count| count > 0)).await.is_err() {
            return;
        }
    }
}

/// Listens on all addresses of both families, or of IPv4 where there is no IPv6.
pub(crate) fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let bind = |domain, address: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG.cast_signed())?;
        TcpListener::from_std(socket.into())
    };
    bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error| {
        // A port in use is in use in either family.
        if error.kind() == io::ErrorKind::AddrInUse {
            return Err(error);
        }
        bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
    })
}
