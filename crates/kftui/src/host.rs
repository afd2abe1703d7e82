//! `kftui host`: the process that owns all forwards, and what one asks about it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use kftray_client::Client;
use kftray_commons::Code;
use kftray_commons::api::{Error, Hello, Mode};
use kftray_commons::store::Directory;
use kftray_host::log::{LogFile, LogTail};
use kftray_host::{Host, HostOptions, systemd};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::Output;
use crate::connect;
use crate::documents::{complain, print};
use crate::exit::Exit;
use crate::signals::Signals;

/// How long a host may take to end: connections have a grace, the store its last writes.
const END: Duration = Duration::from_secs(15);

/// Lines of the log that are shown unless said otherwise.
const LINES: usize = 100;

/// The line by which a background host says that it serves (`kftray-client` waits for it).
const SERVING: &str = "serving";

pub(crate) const HOST_HELP: &str = "\
Examples:
  kftui host                      run the host here, to see what it says; Ctrl-C ends it
  kftui host --embedded           the same without ever leaving by itself: containers, CI
  kftui host --tcp                the same, on a TCP port of 127.0.0.1, too (see docs/host.md)
  kftui host status               who it is, since when, how much runs
  kftui host stop                 end it; what runs comes back with the next one
  kftui host logs                 the end of its log; --follow goes on
  kftui host install --systemd    units by which systemd starts it with the first client

Every command that needs the host starts it, so that none of this is ever required. It leaves
by itself when no forward runs and nobody uses it for some minutes (setting host_idle_minutes).";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct HostArgs {
    #[command(subcommand)]
    what: Option<HostCommand>,
    #[command(flatten)]
    run: HostRunArgs,
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Run the host in this process
    Run(HostRunArgs),
    /// Show who the host is and how much runs
    Status {
        /// What is printed: lines for people, or one JSON object
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// End the host; what runs comes back with the next one
    Stop,
    /// Show the end of the host's log
    Logs {
        /// So many lines
        #[arg(short = 'n', long, value_name = "N", default_value_t = LINES)]
        lines: usize,
        /// Go on as it is written, until Ctrl-C
        #[arg(short, long, conflicts_with = "path")]
        follow: bool,
        /// Only the path of the file
        #[arg(long)]
        path: bool,
    },
    /// Let the system start the host with the first client
    Install(InstallArgs),
}

#[derive(Debug, Clone, Default, Args)]
struct HostRunArgs {
    /// Never leave by itself, and log to stderr: for containers and CI
    #[arg(long)]
    embedded: bool,
    /// Serve a TCP port of 127.0.0.1, too; address and token are written to host.tcp in the directory
    #[arg(long)]
    tcp: bool,
    /// Leave the terminal and log to the file; how commands start it
    #[arg(long, hide = true)]
    background: bool,
    /// Take over from the host that runs
    #[arg(long, hide = true)]
    take_over: bool,
    /// Use the socket that systemd has opened
    #[arg(long, hide = true)]
    systemd: bool,
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// As units of systemd for this user, with socket activation
    #[arg(long, required = true)]
    systemd: bool,
    /// Write them to ~/.config/systemd/user instead of printing them
    #[arg(long)]
    write: bool,
}

impl HostArgs {
    /// Whether this process leaves its terminal, so that its log goes to the file.
    pub(crate) fn in_background(&self) -> bool {
        match &self.what {
            Some(HostCommand::Run(args)) => args.background,
            None => self.run.background,
            Some(_) => false,
        }
    }
}

/// Starts the log of a background host: in its directory, bounded, what happens and nothing more unless asked.
///
/// # Errors
/// The directory or the file cannot be used; told on standard output, where who started the host listens.
pub(crate) fn start_log(verbose: u8) -> Result<()> {
    let started = open_log(verbose);
    if let Err(error) = &started {
        report(&Error::new(Code::HostUnreachable, format!("{error:#}")));
    }
    started
}

fn open_log(verbose: u8) -> Result<()> {
    let directory = Directory::of_process()?;
    directory.prepare()?;
    let path = kftray_host::place(directory.path()).log;
    let log = LogFile::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let level = match verbose {
        0 | 1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let asked = std::env::var(crate::logging::VARIABLE).ok().filter(|text| !text.is_empty());
    let usual =
        format!("warn,kftui={level},kftray_host={level},kftray_portforward={level},kftray_kube={level}");
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse_lossy(asked.unwrap_or(usual));
    let writer = move || log.clone();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).init();
    Ok(())
}

/// Does what is asked.
pub(crate) async fn host(args: HostArgs) -> Result<Exit> {
    match args.what {
        None => run(args.run).await,
        Some(HostCommand::Run(args)) => run(args).await,
        Some(HostCommand::Status { output }) => status(output).await,
        Some(HostCommand::Stop) => stop().await,
        Some(HostCommand::Logs { lines, follow, path }) => logs(lines, follow, path).await,
        Some(HostCommand::Install(args)) => install(&args),
    }
}

async fn run(args: HostRunArgs) -> Result<Exit> {
    let background = args.background;
    if background {
        kftray_host::leave_terminal();
    }
    let started = start(&args).await;
    let host = match (started, background) {
        (Ok(host), _) => host,
        (Err(error), true) => {
            tracing::error!(%error, "the host cannot start");
            report(&error);
            return Ok(Exit::HostUnreachable);
        }
        (Err(error), false) => return Err(error.into()),
    };
    if background {
        announce(SERVING);
    } else {
        complain(&format!("serving {}; Ctrl-C ends it", host.place().socket.display()));
    }
    host.wait(background).await?;
    Ok(Exit::Clean)
}

async fn start(args: &HostRunArgs) -> Result<Host, Error> {
    let mode = if args.embedded { Mode::Embedded } else { Mode::Background };
    let mut options = HostOptions::new(Directory::of_process()?, mode);
    options.take_over = args.take_over;
    options.use_given_socket = args.systemd;
    options.tcp = args.tcp;
    // Somebody who looks at it in a terminal ends it when they want.
    options.leaves_when_idle = args.background;
    Ok(Host::start(options).await?)
}

/// Tells whoever started this host why it does not serve.
fn report(error: &Error) {
    announce(&serde_json::to_string(error).unwrap_or_default());
}

/// One line to whoever started this host. They may be gone.
fn announce(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

async fn status(output: Output) -> Result<Exit> {
    let Some(client) = connect::running().await? else {
        if output == Output::Json {
            print(b"null\n")?;
        } else {
            complain("no host runs; the next command that needs one starts it");
        }
        return Ok(Exit::HostUnreachable);
    };
    let snapshot = client.snapshot().await?;
    let hello = client.host();
    if output == Output::Json {
        print(format!("{}\n", serde_json::to_string(hello)?).as_bytes())?;
        return Ok(Exit::Clean);
    }
    let active = snapshot.forwards.iter().filter(|forward| forward.is_active()).count();
    print(described(hello, active, snapshot.configs.len(), &client.place().socket).as_bytes())
}

fn described(hello: &Hello, active: usize, stored: usize, socket: &Path) -> String {
    let mode = match hello.mode {
        Mode::Background => "in the background",
        Mode::Embedded => "embedded",
        Mode::Other => "in a way of its own",
    };
    let since =
        i64::try_from(hello.started_at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let since = since.map(|at| at.strftime("%F %T UTC").to_string()).unwrap_or_default();
    format!(
        "host       {version} (pid {pid}), {mode}, since {since}\n\
         protocol   {protocol}\n\
         directory  {directory}\n\
         socket     {socket}\n\
         clients    {clients}\n\
         forwards   {active} running, {stored} stored\n",
        version = hello.version,
        pid = hello.pid,
        protocol = hello.protocol,
        directory = hello.config_dir,
        socket = socket.display(),
        clients = hello.clients,
    )
}

/// Ends the host and waits until it has ended.
async fn stop() -> Result<Exit> {
    let directory = Directory::of_process()?;
    let place = kftray_client::place(directory.path());
    match Client::connect(directory.path()).await {
        Ok(client) => client.shutdown().await?,
        Err(error) if error.code == Code::HostUnreachable => {
            complain("no host runs");
            return Ok(Exit::Clean);
        }
        // One of another version understands this, too.
        Err(error) if error.code == Code::VersionMismatch => kftray_client::dismiss(directory.path()).await?,
        Err(error) => return Err(error.into()),
    }
    let lock = place.lock;
    let ended = tokio::task::spawn_blocking(move || std::fs::File::open(&lock).and_then(|file| file.lock()));
    match timeout(END, ended).await {
        Ok(ended) => ended?.context("the host's lock")?,
        Err(_) => bail!("the host does not end; see `kftui host logs`"),
    }
    Ok(Exit::Clean)
}

async fn logs(lines: usize, follow: bool, only_path: bool) -> Result<Exit> {
    let directory = Directory::of_process()?;
    let path = kftray_client::place(directory.path()).log;
    if only_path {
        return print(format!("{}\n", path.display()).as_bytes());
    }
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // It may come.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && follow => Vec::new(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            complain(&format!("there is no log yet: {}", path.display()));
            return Ok(Exit::BadInput);
        }
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    print(last_lines(&text, lines))?;
    if follow { go_on(&path, text.len() as u64).await } else { Ok(Exit::Clean) }
}

/// Prints what is written from here on, until a signal.
async fn go_on(path: &Path, from: u64) -> Result<Exit> {
    let mut signals = Signals::install()?;
    let mut tail =
        LogTail::open(path, from).with_context(|| format!("{} cannot be followed", path.display()))?;
    loop {
        tokio::select! {
            _ = crate::session::ending(&mut signals) => return Ok(Exit::Clean),
            more = tail.more() => {
                let more = more?;
                let mut out = std::io::stdout().lock();
                if let Err(error) = out.write_all(&more).and_then(|()| out.flush()) {
                    // Whoever has read enough goes away.
                    let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
                    return if gone { Ok(Exit::Clean) } else { Err(error.into()) };
                }
            }
        }
    }
}

/// The last lines of a text.
fn last_lines(text: &[u8], count: usize) -> &[u8] {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = match count {
        0 => text.len(),
        count => breaks.nth(count - 1).unwrap_or(0),
    };
    text.get(start..).unwrap_or_default()
}

fn install(args: &InstallArgs) -> Result<Exit> {
    let directory = Directory::of_process()?;
    let place = kftray_client::place(directory.path());
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let (socket, service) = systemd::units(&program, directory.path(), &place.socket);
    let names = [("socket", socket), ("service", service)];
    if !args.write {
        let named = names.map(|(kind, text)| format!("# {}.{kind}\n{text}", systemd::UNIT));
        return print(named.join("\n").as_bytes());
    }
    let folder = units_folder().context("neither XDG_CONFIG_HOME nor the home directory is known")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    for (kind, text) in names {
        let path = folder.join(format!("{}.{kind}", systemd::UNIT));
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        print(format!("{}\n", path.display()).as_bytes())?;
    }
    let unit = systemd::UNIT;
    complain(&format!("now: systemctl --user daemon-reload && systemctl --user enable --now {unit}.socket"));
    Ok(Exit::Clean)
}

fn units_folder() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let config = config.or_else(|| std::env::home_dir().map(|home| home.join(".config")));
    config.map(|config| config.join("systemd").join("user"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text() {
        let text = b"a\nb\nc\n";
        assert_eq!(last_lines(text, 2), b"b\nc\n");
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(b"a\nb", 1), b"b");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
