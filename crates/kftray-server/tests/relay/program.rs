//! The built program, for what only a process has: memory, signals, an exit code.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::{SOON, health};

/// It runs. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) tunnel: SocketAddr,
    pub(crate) health: SocketAddr,
}

impl Program {
    /// With these variables beside those it needs.
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (tunnel, health) = (free(), free());
        let child = Command::new(env!("CARGO_BIN_EXE_kftray-server"))
            .env_clear()
            .env("KFTRAY_TOKEN_SHA256", "any")
            .env("KFTRAY_ALLOW", "127.0.0.0/8")
            .env("KFTRAY_TUNNEL_PORT", tunnel.port().to_string())
            .env("KFTRAY_HEALTH_PORT", health.port().to_string())
            .envs(variables.iter().copied())
            .spawn()
            .unwrap();
        let program = Self { child, tunnel, health };
        let begun = tokio::time::Instant::now();
        while TcpStream::connect(tunnel).await.is_err() {
            assert!(begun.elapsed() < SOON, "the program does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        program
    }

    pub(crate) async fn mib(&self) -> u64 {
        let metrics = health(self.health, "/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("kftray_server_resident_memory_bytes "));
        line.unwrap().parse::<u64>().unwrap() >> 20
    }

    /// What the kubelet sends to a pod that is to go.
    pub(crate) fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Waits until it leaves by itself.
    pub(crate) async fn left(&mut self) -> ExitStatus {
        let left = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, left).await.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
