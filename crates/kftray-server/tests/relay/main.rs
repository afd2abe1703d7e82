//! The relay in this process, with real sockets on the loopback, and a client of the test's own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod client;
mod dns;
mod expose;
mod legacy;
mod life;
mod memory;
mod names;
mod program;
mod refusals;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::time::Duration;

use kftray_relay_proto::token::Token;
use kftray_server::reach::Reach;
use kftray_server::relay::{Ended, Relay};
use kftray_server::resolve::Names;
use kftray_server::settings::{Limits, Settings};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// Ample for anything that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

fn token() -> Token {
    Token::new([7; 32])
}

/// Everything on the loopback may be reached.
fn settings() -> Settings {
    Settings {
        tokens: Some(vec![token().hash(), Token::new([8; 32]).hash()]),
        reach: reach(&["127.0.0.0/8", "::1"], &[]),
        tunnel_port: 0,
        health_port: 0,
        expose_ports: vec![0..=u16::MAX],
        expose_hold: Duration::from_secs(10),
        idle_exit: None,
        drain: Duration::from_secs(20),
        limits: Limits::default(),
    }
}

fn reach(allow: &[&str], deny: &[&str]) -> Reach {
    let list = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>();
    Reach::new(&list(allow), &list(deny)).unwrap()
}

/// A relay that runs.
struct Running {
    tunnel: SocketAddr,
    health: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: AbortOnDropHandle<Ended>,
}

impl Running {
    async fn start(settings: Settings) -> Self {
        Self::with_names(settings, dns::no_names()).await
    }

    async fn with_names(settings: Settings, names: Names) -> Self {
        let relay = Relay::bind(settings, names).await.unwrap();
        let tunnel = relay.tunnel_address().unwrap();
        let health = SocketAddr::from(([127, 0, 0, 1], relay.health_address().unwrap().port()));
        let (stop, stopped) = oneshot::channel();
        let handle = tokio::runtime::Handle::current().spawn(relay.run(async {
            stopped.await.ok();
        }));
        Self { tunnel, health, stop: Some(stop), task: AbortOnDropHandle::new(handle) }
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn ended(self) -> Ended {
        // Dropping the sender would stop it, too.
        let _stop = self.stop;
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap()
    }

    /// One answer of the health port.
    async fn health(&self, path: &str) -> String {
        health(self.health, path).await
    }

    /// Waits until a line of the metrics has that value.
    async fn settles(&self, line: &str, value: u64) {
        let settled = async {
            while self.metric(line).await != value {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, settled).await.unwrap_or_else(|_| panic!("{line} is not {value}"));
    }

    /// The value of one line of the metrics; 0 if it is not there.
    async fn metric(&self, line: &str) -> u64 {
        let metrics = self.health("/metrics").await;
        let found =
            metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or(0)
    }
}

/// A listener at that address that never accepts, with its backlog full: the kernel drops further SYNs. As long as the
/// result is held.
async fn silent(address: SocketAddr) -> (socket2::Socket, Vec<tokio::net::TcpStream>) {
    let domain = socket2::Domain::for_address(address);
    let full = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    full.bind(&address.into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    let a_while = Duration::from_millis(200);
    while let Ok(filler) = tokio::time::timeout(a_while, tokio::net::TcpStream::connect(address)).await {
        fillers.push(filler.unwrap());
        assert!(fillers.len() < 16, "its backlog has no end");
    }
    (full, fillers)
}

/// One answer of a health port.
async fn health(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}
