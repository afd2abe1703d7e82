//! The log: to standard error, silent unless something is broken or somebody asks.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::render::colours_on;

/// Sets the filter: `RUST_LOG`'s syntax under a name of our own, so that another program's setting does not flood this
/// one.
const VARIABLE: &str = "KFTRAY_LOG";

/// Starts the log. `verbose` counts the `-v`.
pub(crate) fn start(verbose: u8) {
    let ours = |level: &str| {
        format!("error,kftui={level},kftray_portforward={level},kftray_kube={level},kftray_testkit={level}")
    };
    let asked = match verbose {
        // The demo's cluster complains when it is taken down, and nobody asked about it.
        0 => "error,kftray_testkit=off".to_owned(),
        1 => ours("info"),
        2 => ours("debug"),
        _ => "trace".to_owned(),
    };
    let from_environment = std::env::var(VARIABLE).ok().filter(|text| verbose == 0 && !text.is_empty());
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::ERROR.into())
        .parse_lossy(from_environment.unwrap_or(asked));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours_on(std::io::stderr().is_terminal()))
        .init();
}
