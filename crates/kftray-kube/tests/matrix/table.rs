//! The table: what is broken, for how long, and what a person may notice of it.
//!
//! A line reads: *name*, what new connections feel while it lasts, what is done; then whatever differs from the usual two
//! pods, the administrator's context, traffic before the fault, one second, and an existing connection that may or may not
//! survive. Where carriers differ, [`Case::but`] says how and why.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use kftray_commons::Code;
use kftray_testkit::{ADMIN, DialFailure, Ending, Kind, Pings, Protocol, ServerCertificate, Which};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{ENDLESS, NEVER_READS, REFUSES, RESETS, Rig};

/// How port-forwards are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// SPDY in a WebSocket.
    Tunnel,
    /// SPDY directly.
    Spdy,
    /// A WebSocket for each connection.
    Legacy,
    /// Whatever works, best first.
    Auto,
}

impl Carrier {
    /// As on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "websocket",
            Self::Spdy => "spdy",
            Self::Legacy => "legacy",
            Self::Auto => "auto",
        }
    }
}

/// Where a fault is thrown; unless said otherwise on all three.
const ALL: &[Carrier] = &[Carrier::Tunnel, Carrier::Spdy, Carrier::Legacy];
/// Faults of sessions, which the legacy protocol does not have.
const SESSIONS: &[Carrier] = &[Carrier::Tunnel, Carrier::Spdy];
/// Faults of the choice between carriers.
const AUTO: &[Carrier] = &[Carrier::Auto];

/// What new connections feel of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Felt {
    /// They are served while it lasts; none fails.
    Nothing,
    /// They may have to wait until it is over; none fails.
    Delay,
    /// They are served or wait, and some fail, for these reasons only.
    Losses(&'static [Code]),
    /// Each fails at once, for one of these reasons: waiting would be in vain.
    Refusals(&'static [Code]),
}

impl Felt {
    /// Why connections may fail.
    pub(crate) fn allowed(self) -> &'static [Code] {
        match self {
            Self::Nothing | Self::Delay => &[],
            Self::Losses(codes) | Self::Refusals(codes) => codes,
        }
    }
}

/// What becomes of a connection that was open and idle before the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It goes on when the fault is over.
    Lives,
    /// It ends; the local program is told.
    Ends,
    /// It depends, for example on its pod.
    Either,
}

type Act = for<'a> fn(&'a Rig) -> BoxFuture<'a, ()>;

/// One line.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) on: &'static [Carrier],
    pub(crate) strike: Act,
    /// Beside `Faults::clear`.
    pub(crate) cure: Act,
    pub(crate) pods: u64,
    /// Of the kubeconfig.
    pub(crate) context: &'static str,
    /// No traffic for some seconds before it; else under load.
    pub(crate) idle_before: bool,
    pub(crate) lasts: Duration,
    pub(crate) existing: Existing,
    felt: Felt,
    but: Vec<(Carrier, Felt)>,
}

impl Case {
    fn new(name: &'static str, felt: Felt, strike: Act) -> Self {
        Self {
            name,
            on: ALL,
            strike,
            cure: |_| async {}.boxed(),
            pods: 2,
            context: ADMIN,
            idle_before: false,
            lasts: Duration::from_secs(1),
            existing: Existing::Either,
            felt,
            but: Vec::new(),
        }
    }

    fn on(self, on: &'static [Carrier]) -> Self {
        Self { on, ..self }
    }

    fn pods(self, pods: u64) -> Self {
        Self { pods, ..self }
    }

    fn context(self, context: &'static str) -> Self {
        Self { context, ..self }
    }

    fn after_idling(self) -> Self {
        Self { idle_before: true, ..self }
    }

    fn lasting(self, milliseconds: u64) -> Self {
        Self { lasts: Duration::from_millis(milliseconds), ..self }
    }

    fn existing(self, existing: Existing) -> Self {
        Self { existing, ..self }
    }

    fn cured_by(self, cure: Act) -> Self {
        Self { cure, ..self }
    }

    /// Another effect on one carrier, with the reason.
    fn but(mut self, carrier: Carrier, felt: Felt, _why: &'static str) -> Self {
        self.but.push((carrier, felt));
        self
    }

    pub(crate) fn felt_on(&self, carrier: Carrier) -> Felt {
        self.but.iter().find(|(on, _)| *on == carrier).map_or(self.felt, |(_, felt)| *felt)
    }
}

/// Every line on every carrier that it is for.
pub(crate) fn all() -> Vec<(Carrier, Arc<Case>)> {
    let groups = [pods(), link(), api(), sessions(), choice(), neighbours()];
    let cases = groups.into_iter().flatten().map(Arc::new);
    cases.flat_map(|case| case.on.iter().map(move |carrier| (*carrier, Arc::clone(&case)))).collect()
}

use Carrier::{Legacy, Spdy, Tunnel};
use Existing::{Ends, Lives};
use Felt::{Delay, Losses, Nothing, Refusals};

/// Written to a carrier that died before anything came back: it cannot be known whether the application has seen it, so it
/// is not sent again.
const UNKNOWN: &[Code] = &[Code::ConnectionLost];

/// Where only a terminating pod is left, new connections go there for as long as it serves, as kube-proxy has them; one
/// that is under way when its program ends, ends with it.
const ENDS_WITH_ITS_POD: &[Code] = UNKNOWN;

/// Pods come and go.
fn pods() -> Vec<Case> {
    vec![
        Case::new("one of two pods killed", Nothing, |rig| {
            async { assert!(rig.fake.kill_pod("default", &rig.pods()[0])) }.boxed()
        }),
        Case::new("the only pod killed", Delay, |rig| {
            async { assert!(rig.fake.kill_pod("default", &rig.pods()[0])) }.boxed()
        })
        .pods(1)
        .existing(Ends),
        Case::new("the only pod terminated gracefully", Losses(ENDS_WITH_ITS_POD), |rig| {
            async { assert!(rig.fake.terminate_pod("default", &rig.pods()[0])) }.boxed()
        })
        .pods(1)
        .existing(Ends),
        Case::new("rollout restart of three pods", Nothing, |rig| {
            async { assert!(rig.fake.rollout_restart(Kind::Deployment, "default", "web")) }.boxed()
        })
        .pods(3)
        .lasting(3_000)
        .cured_by(|rig| {
            async { rig.fake.wait_ready("default", "web", 3).await.expect("rolled out") }.boxed()
        }),
        Case::new("rollout restart of one pod", Nothing, |rig| {
            async { assert!(rig.fake.rollout_restart(Kind::Deployment, "default", "web")) }.boxed()
        })
        .pods(1)
        .lasting(2_000)
        .existing(Ends),
        Case::new("one of two pods unready", Nothing, |rig| {
            async { assert!(rig.fake.hold_unready("default", &rig.pods()[0], true)) }.boxed()
        })
        .existing(Lives),
        Case::new("the only pod unready", Delay, |rig| {
            async { assert!(rig.fake.hold_unready("default", &rig.pods()[0], true)) }.boxed()
        })
        .pods(1)
        .existing(Lives)
        .cured_by(|rig| async { assert!(rig.fake.hold_unready("default", &rig.pods()[0], false)) }.boxed()),
        Case::new("the program in the only pod crashes", Delay, |rig| {
            async { assert!(rig.fake.crash_pod("default", &rig.pods()[0])) }.boxed()
        })
        .pods(1)
        .existing(Ends),
        Case::new("scaled to zero and back", Losses(ENDS_WITH_ITS_POD), |rig| {
            async { assert!(rig.fake.scale(Kind::Deployment, "default", "web", 0)) }.boxed()
        })
        .existing(Ends)
        .cured_by(|rig| async { assert!(rig.fake.scale(Kind::Deployment, "default", "web", 2)) }.boxed()),
    ]
}

/// Between client and API server.
fn link() -> Vec<Case> {
    vec![
        Case::new("existing connections dead in silence, after idling", Nothing, |rig| {
            async { rig.fake.faults().freeze_existing() }.boxed()
        })
        .after_idling(),
        Case::new("carriers dead in silence, after idling", Nothing, |rig| {
            async { rig.fake.faults().freeze_carriers() }.boxed()
        })
        .after_idling(),
        Case::new("carriers dead in silence, in use", Losses(UNKNOWN), |rig| {
            async { rig.fake.faults().freeze_carriers() }.boxed()
        })
        .but(Legacy, Nothing, "each connection has its own carrier, and new ones work"),
        Case::new("everything a black hole, after idling", Delay, |rig| {
            async { rig.fake.faults().freeze_all() }.boxed()
        })
        .after_idling()
        .lasting(3_000),
        Case::new("all connections reset", Nothing, |rig| {
            async { rig.drop_connections(Which::All, Ending::Reset).await }.boxed()
        })
        .existing(Ends),
        Case::new("all connections closed", Nothing, |rig| {
            async { rig.drop_connections(Which::All, Ending::Close).await }.boxed()
        })
        .existing(Ends),
        Case::new("watches' connections reset", Nothing, |rig| {
            async { rig.fake.faults().drop_connections(Which::Rest, Ending::Reset) }.boxed()
        })
        .existing(Lives),
        Case::new("API server restarted", Delay, |rig| {
            async {
                rig.fake.faults().refuse_tcp().await;
                rig.drop_connections(Which::All, Ending::Reset).await;
            }
            .boxed()
        })
        .lasting(2_000)
        .existing(Ends),
        Case::new("new TCP connections refused", Nothing, |rig| {
            async { rig.fake.faults().refuse_tcp().await }.boxed()
        })
        .existing(Lives)
        .but(Legacy, Delay, "each connection needs a new one to the API server"),
        Case::new("100 ms each way", Nothing, |rig| {
            async {
                rig.fake.faults().latency(Duration::from_millis(100), Duration::from_millis(100));
            }
            .boxed()
        })
        .existing(Lives),
        Case::new("2 MB/s each way", Nothing, |rig| {
            async { rig.fake.faults().bandwidth(Some(2_000_000)) }.boxed()
        })
        .existing(Lives),
        Case::new(
            "the API server's certificate has expired",
            Refusals(&[Code::CertificateUntrusted]),
            |rig| {
                async {
                    rig.fake.faults().certificate(ServerCertificate::Expired);
                    rig.drop_connections(Which::Carriers, Ending::Reset).await;
                }
                .boxed()
            },
        ),
        Case::new("network changed, all is well", Nothing, |rig| {
            async { rig.engine.network_changed() }.boxed()
        })
        .existing(Lives),
        Case::new("network changed, all connections dead", Nothing, |rig| {
            async {
                rig.fake.faults().freeze_existing();
                rig.engine.network_changed();
            }
            .boxed()
        })
        .on(SESSIONS)
        .after_idling()
        .lasting(5_000)
        .existing(Ends),
    ]
}

/// The API server's answers.
fn api() -> Vec<Case> {
    vec![
        Case::new("login rejected, sessions live", Nothing, |rig| {
            async { rig.fake.faults().unauthorized(true) }.boxed()
        })
        .existing(Lives)
        .but(Legacy, Refusals(&[Code::Unauthorized]), "each connection has to log in"),
        Case::new("login rejected, sessions lost", Refusals(&[Code::Unauthorized]), |rig| {
            async {
                rig.fake.faults().unauthorized(true);
                rig.drop_connections(Which::Carriers, Ending::Reset).await;
            }
            .boxed()
        }),
        Case::new("tokens revoked, the plugin has new ones", Nothing, |rig| {
            async {
                rig.fake.revoke_tokens(ADMIN);
                let plugin = rig.fake.exec_plugin(ADMIN).expect("a plugin");
                plugin.answer(kftray_testkit::PluginAnswer::Token).expect("a token");
                rig.drop_connections(Which::All, Ending::Reset).await;
            }
            .boxed()
        })
        .context("admin-exec"),
        Case::new("port-forward forbidden, sessions lost", Refusals(&[Code::Forbidden]), |rig| {
            async {
                rig.fake.faults().forbid("*", "pods/portforward");
                rig.drop_connections(Which::Carriers, Ending::Reset).await;
            }
            .boxed()
        }),
        Case::new("slices may not be read any more", Nothing, |rig| {
            async {
                rig.fake.faults().forbid("*", "endpointslices");
                rig.fake.faults().drop_watches();
            }
            .boxed()
        })
        .existing(Lives),
        Case::new("410 on watches, then a pod killed", Nothing, |rig| {
            async {
                rig.fake.faults().gone();
                assert!(rig.fake.kill_pod("default", &rig.pods()[0]));
            }
            .boxed()
        }),
        Case::new("watches ended, then the only pod killed", Delay, |rig| {
            async {
                rig.fake.faults().drop_watches();
                assert!(rig.fake.kill_pod("default", &rig.pods()[0]));
            }
            .boxed()
        })
        .pods(1),
        Case::new("watches stalled, one of two pods killed", Nothing, |rig| {
            async {
                rig.fake.faults().stall_watches(true);
                assert!(rig.fake.kill_pod("default", &rig.pods()[0]));
            }
            .boxed()
        }),
        Case::new("watches stalled, the only pod killed", Delay, |rig| {
            async {
                rig.fake.faults().stall_watches(true);
                assert!(rig.fake.kill_pod("default", &rig.pods()[0]));
            }
            .boxed()
        })
        .pods(1)
        .existing(Ends),
        Case::new("500 to everything, connections lost", Delay, |rig| {
            async {
                let faults = rig.fake.faults();
                faults.fail_requests("*", "*", StatusCode::INTERNAL_SERVER_ERROR, "etcd is away", None);
                rig.drop_connections(Which::All, Ending::Reset).await;
            }
            .boxed()
        }),
        Case::new("429 to everything, connections lost", Delay, |rig| {
            async {
                rig.fake.faults().throttle_requests("*", "*", 1, None);
                rig.drop_connections(Which::All, Ending::Reset).await;
            }
            .boxed()
        }),
        Case::new("answers and upgrades take half a second", Nothing, |rig| {
            async {
                rig.fake.faults().delay_requests(Duration::from_millis(500));
                rig.fake.faults().delay_upgrades(Duration::from_millis(500));
                rig.drop_connections(Which::All, Ending::Reset).await;
            }
            .boxed()
        }),
    ]
}

/// Sessions and the runtime behind them.
fn sessions() -> Vec<Case> {
    vec![
        Case::new("containerd: namespace closed", Delay, |rig| {
            async { rig.fake.faults().dial_failure(Some(DialFailure::NamespaceClosed)) }.boxed()
        }),
        Case::new("containerd: sandbox not found", Delay, |rig| {
            async { rig.fake.faults().dial_failure(Some(DialFailure::SandboxNotFound)) }.boxed()
        }),
        Case::new("containerd: sandbox not running", Delay, |rig| {
            async { rig.fake.faults().dial_failure(Some(DialFailure::SandboxNotRunning)) }.boxed()
        }),
        Case::new("CRI-O: sandbox not found", Delay, |rig| {
            async { rig.fake.faults().dial_failure(Some(DialFailure::CrioSandboxNotFound)) }.boxed()
        }),
        Case::new("an unknown error of the runtime", Losses(UNKNOWN), |rig| {
            async {
                let failure = DialFailure::Other("something went wrong".to_owned());
                rig.fake.faults().dial_failure(Some(failure));
            }
            .boxed()
        })
        .existing(Lives),
        Case::new("dials take 300 ms", Nothing, |rig| {
            async { rig.fake.faults().delay_dials(Duration::from_millis(300)) }.boxed()
        })
        .existing(Lives),
        Case::new("writes of one byte", Nothing, |rig| {
            async { rig.fake.faults().split_writes(Some(1)) }.boxed()
        })
        .lasting(300)
        .existing(Lives),
        Case::new("writes of 1,371 bytes", Nothing, |rig| {
            async { rig.fake.faults().split_writes(Some(1_371)) }.boxed()
        })
        .existing(Lives),
        Case::new("carriers cut after 150 kB", Losses(UNKNOWN), |rig| {
            async { rig.fake.faults().close_carrier_after(Some(150_000)) }.boxed()
        })
        .but(Legacy, Nothing, "each connection has its own carrier, and none says as much"),
        Case::new("a frame that is none", Nothing, |rig| {
            async { rig.lose_carriers(|faults| faults.corrupt_frame()).await }.boxed()
        })
        .on(SESSIONS)
        .existing(Ends),
        Case::new("goaway", Nothing, |rig| async { rig.fake.faults().goaway() }.boxed())
            .on(SESSIONS)
            .existing(Lives),
        Case::new("pings never answered", Nothing, |rig| {
            async { rig.fake.faults().pings(Pings::Ignore) }.boxed()
        })
        .on(SESSIONS),
        Case::new("pings never answered, sessions lost", Delay, |rig| {
            async {
                rig.fake.faults().pings(Pings::Ignore);
                rig.drop_connections(Which::Carriers, Ending::Reset).await;
            }
            .boxed()
        })
        .on(SESSIONS)
        .existing(Ends),
        Case::new("pings answered 600 ms late, after idling", Nothing, |rig| {
            async {
                rig.fake.faults().pings(Pings::Late(Duration::from_millis(600)));
                rig.engine.network_changed();
            }
            .boxed()
        })
        .on(SESSIONS)
        .after_idling()
        .existing(Lives),
        // What a client says before the reply is lost then (spdystream drops it), and with it the connection, but for
        // those whose session ends.
        Case::new("streams not answered until their session is lost", Losses(UNKNOWN), |rig| {
            async { rig.fake.faults().hold_replies(true) }.boxed()
        })
        .on(SESSIONS)
        .cured_by(|rig| rig.drop_connections(Which::Carriers, Ending::Reset).boxed()),
    ]
}

/// Upgrades that are refused, and what is done instead.
fn choice() -> Vec<Case> {
    /// Refuses the tunnel and takes the sessions away, so that it matters.
    async fn without_tunnel(rig: &Rig, status: StatusCode, message: &str) {
        rig.fake.faults().refuse_upgrade(Protocol::WebSocketTunnel, status, message);
        rig.drop_connections(Which::Carriers, Ending::Reset).await;
    }
    vec![
        Case::new("tunnel refused with 400", Nothing, |rig| {
            async {
                without_tunnel(rig, StatusCode::BAD_REQUEST, "unable to upgrade: no such protocol").await;
            }
            .boxed()
        })
        .on(AUTO),
        Case::new("tunnel refused with 403 by a gateway", Nothing, |rig| {
            async { without_tunnel(rig, StatusCode::FORBIDDEN, "no WebSockets here").await }.boxed()
        })
        .on(AUTO),
        Case::new("tunnel refused with 500", Nothing, |rig| {
            async { without_tunnel(rig, StatusCode::INTERNAL_SERVER_ERROR, "oops").await }.boxed()
        })
        .on(AUTO),
        Case::new("tunnel and SPDY refused with 400", Nothing, |rig| {
            async {
                let (status, text) = (StatusCode::BAD_REQUEST, "unable to upgrade: no such protocol");
                rig.fake.faults().refuse_upgrade(Protocol::Spdy, status, text);
                without_tunnel(rig, status, text).await;
            }
            .boxed()
        })
        .on(AUTO),
        Case::new("every protocol refused with 500", Delay, |rig| {
            async {
                for protocol in [Protocol::WebSocketTunnel, Protocol::Spdy, Protocol::Legacy] {
                    rig.fake.faults().refuse_upgrade(protocol, StatusCode::INTERNAL_SERVER_ERROR, "oops");
                }
                rig.drop_connections(Which::Carriers, Ending::Reset).await;
            }
            .boxed()
        })
        .on(&[Tunnel, Spdy, Legacy, Carrier::Auto]),
    ]
}

/// Other connections that behave badly on the same sessions.
fn neighbours() -> Vec<Case> {
    vec![
        Case::new("a program that never reads", Nothing, |rig| {
            async {
                rig.neighbours(NEVER_READS, 3, |mut stream: TcpStream| async move {
                    while stream.write_all(&[0; 64 * 1024]).await.is_ok() {}
                })
                .await;
            }
            .boxed()
        })
        .lasting(2_000),
        Case::new("clients that never read", Nothing, |rig| {
            async {
                rig.neighbours(ENDLESS, 3, |stream: TcpStream| async move {
                    std::future::pending::<()>().await;
                    drop(stream);
                })
                .await;
            }
            .boxed()
        })
        .lasting(2_000)
        .existing(Lives),
        Case::new("downloads cancelled all the time", Nothing, |rig| {
            async {
                rig.neighbours(ENDLESS, 3, |mut stream: TcpStream| async move {
                    let mut some = vec![0; 300_000];
                    stream.read_exact(&mut some).await.ok();
                })
                .await;
            }
            .boxed()
        })
        .lasting(2_000)
        .existing(Lives),
        Case::new("a storm of resets", Nothing, |rig| {
            async {
                rig.neighbours(RESETS, 10, |mut stream: TcpStream| async move {
                    stream.write_all(&[0; 64]).await.ok();
                    stream.read_to_end(&mut Vec::new()).await.ok();
                })
                .await;
            }
            .boxed()
        })
        .lasting(2_000)
        .existing(Lives),
        Case::new("a port that nobody listens on", Nothing, |rig| {
            async {
                rig.neighbours(REFUSES, 10, |mut stream: TcpStream| async move {
                    stream.write_all(b"hello?").await.ok();
                    stream.read_to_end(&mut Vec::new()).await.ok();
                })
                .await;
            }
            .boxed()
        })
        .lasting(2_000)
        .existing(Lives),
    ]
}
