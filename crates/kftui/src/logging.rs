//! The log: to standard error, silent unless something is broken or somebody asks.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal as _;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use kftray_commons::store::Directory;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::platform::private;
use crate::reference::ReferenceArgs;
use crate::render::colours_on;

/// Sets the filter: `RUST_LOG`'s syntax under a name of our own, so that another program's setting does not flood this
/// one.
pub(crate) const VARIABLE: &str = "KFTRAY_LOG";

/// Name of the log file that `--logs-to-file` writes, in the configuration directory.
const FILE: &str = "kftui.log";

/// Starts the log. `verbose` counts the `-v`. While a `window` has the terminal, a line in between would tear it: then the
/// log goes to the file, too.
///
/// # Errors
/// The log file cannot be opened.
pub(crate) fn start(verbose: u8, flags: &ReferenceArgs, window: bool) -> Result<()> {
    let ours = |level: &str| {
        format!(
            "error,kftui={level},kftray_client={level},kftray_host={level},kftray_portforward={level},kftray_kube={level},kftray_testkit={level}"
        )
    };
    let asked = match (verbose, &flags.log_level) {
        (0, Some(level)) => match level.to_ascii_lowercase().as_str() {
            "off" => "off".to_owned(),
            level => ours(level),
        },
        // The demo's cluster complains when it is taken down, and nobody asked about it.
        (0, None) => "error,kftray_testkit=off".to_owned(),
        (1, _) => ours("info"),
        (2, _) => ours("debug"),
        _ => "trace".to_owned(),
    };
    let silent = verbose == 0 && flags.log_level.is_none();
    let from_environment = std::env::var(VARIABLE).ok().filter(|text| silent && !text.is_empty());
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::ERROR.into())
        .parse_lossy(from_environment.unwrap_or(asked));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    if flags.logs_to_file || (window && std::io::stderr().is_terminal()) {
        let file = open()?;
        log.with_writer(Mutex::new(file)).with_ansi(false).init();
    } else {
        log.with_writer(std::io::stderr).with_ansi(colours_on(std::io::stderr().is_terminal())).init();
    }
    Ok(())
}

/// The log file, for nobody else to read: it may name hosts and users.
fn open() -> Result<File> {
    let directory = Directory::of_process()?;
    directory.prepare()?;
    let path = directory.path().join(FILE);
    let mut options = OpenOptions::new();
    let options = private(options.create(true).append(true));
    options.open(&path).with_context(|| format!("the log {} cannot be opened", path.display()))
}
