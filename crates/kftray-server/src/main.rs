//! The program of the relay's image: reads its environment and serves; `healthcheck` asks the one that serves.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program speaks to its terminal"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kftray_server::legacy::{Contract, OneTarget};
use kftray_server::relay::{Relay, SOFTWARE};
use kftray_server::resolve::Names;
use kftray_server::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Where the kubelet puts the pod's DNS settings.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// For each step of a health check; the kubelet's own limit is 1 s by default.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is logged unless said otherwise.
const LOG: &str = "info";

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => serve(),
        Some("healthcheck") => healthcheck(),
        Some("--version" | "-V") => {
            println!("{SOFTWARE}");
            Ok(())
        }
        Some(other) => {
            eprintln!("{SOFTWARE}: {other:?} is not known; usage: kftray-server [healthcheck | --version]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn serve() -> Result<()> {
    let filter = variable("KFTRAY_LOG").or_else(|| variable("RUST_LOG"));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(layer).with(log_filter(filter.as_deref().unwrap_or(LOG))).init();
    // One thread: the relay moves bytes, and its pod has a few milli-CPU. It never waits for anything but sockets.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // First of all: a signal that comes before is ignored.
        let stop = stop()?;
        let names = Names::from_file(Path::new(RESOLV_CONF))?;
        let ours = std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("KFTRAY_TOKEN"));
        if !ours && let Some(contract) = Contract::read(&variable)? {
            OneTarget::bind(contract, names)?.run(stop).await;
            return Ok(());
        }
        let settings = Settings::read(&variable)?;
        let relay = Relay::bind(settings, names).await?;
        info!("{SOFTWARE}: tunnels at {}, health at {}", relay.tunnel_address()?, relay.health_address()?);
        let ended = relay.run(stop).await;
        info!(?ended, "bye");
        Ok(())
    })
}

/// What is logged. A level alone means this program: at "debug", which other clients' manifests set, the resolver would tell
/// every packet.
fn log_filter(text: &str) -> Targets {
    let text = text.trim().to_lowercase();
    match text.parse::<LevelFilter>() {
        Ok(level) => Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("kftray", level),
        Err(_) => text.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO)),
    }
}

/// Done at SIGTERM or SIGINT. As process 1 of a container the program has no default reaction to either.
fn stop() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// For an exec probe or a container runtime: the image has no shell and no curl.
fn healthcheck() -> Result<()> {
    let port = match variable("KFTRAY_HEALTH_PORT") {
        Some(text) => {
            text.trim().parse().with_context(|| format!("KFTRAY_HEALTH_PORT={text:?} is no port"))?
        }
        None => 9998,
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = TcpStream::connect_timeout(&address, CHECK_TIMEOUT)
        .with_context(|| format!("nothing answers at {address}"))?;
    socket.set_read_timeout(Some(CHECK_TIMEOUT))?;
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(4096).read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("{address} answers {status:?}");
    }
    println!("ok");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_this_programs() {
        let logs =
            |filter: &str, target: &str| log_filter(filter).would_enable(target, &tracing::Level::DEBUG);
        assert!(logs("DEBUG", "kftray_server::legacy"));
        assert!(!logs("DEBUG", "hickory_net"));
        assert!(logs("hickory_net=debug", "hickory_net"));
        assert!(!logs("kftray=loud", "kftray_server") && !logs(LOG, "kftray_server"));
        assert!(log_filter("kftray=loud").would_enable("kftray_server", &tracing::Level::INFO));
    }
}
