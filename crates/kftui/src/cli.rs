//! The command line as a person writes it. Every text here is read by newcomers first: examples before rules.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::{ArgValueCompleter, Shell};

use crate::commands::{act, add, doctor, edit, env, group, import, list, logs, remove, settings, up, wait};
use crate::complete;
use crate::reference::ReferenceArgs;

/// How long a connection waits for a pod unless told otherwise; the engine's own default, spelled for the help.
const HOLD: &str = "30";

/// Widest line of the help texts, in columns: longer lines are hard to read even where the terminal has room.
const HELP_WIDTH: usize = 100;

/// Forwards Kubernetes ports to this machine. They stay up: through pod restarts, rollouts, sleep and network changes.
#[derive(Debug, Parser)]
#[command(name = "kftui", version, max_term_width = HELP_WIDTH, after_help = EXAMPLES, after_long_help = LONG_END)]
#[command(propagate_version = true, infer_long_args = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Without a command: hold the forwards in this window instead of the background; they end with it
    #[arg(long)]
    pub(crate) embedded: bool,

    /// Log to stderr: -v what happens, -vv how, -vvv everything (or set KFTRAY_LOG, for example kftray_kube=debug)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    // Last: its heading would go on over what comes after it.
    #[command(flatten)]
    pub(crate) reference: ReferenceArgs,
}

macro_rules! examples {
    () => {
        "\
Examples:
  kftui                                       the window: everything at a glance, by keys
  kftui demo                                  see it work: no cluster, no root, no network needed
  kftui forward svc/web 8080:80               localhost:8080 to port 80 of web, until Ctrl-C
  kftui add svc/web 8080:80 --start           the same, kept and run in the background
  kftui list                                  what there is, and how it stands
  kftui up                                    the forwards of the project you are in (.kftray.yaml)
  kftui run team.json -- npm test             all forwards of a file, then a command that uses them"
    };
}

macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0  ended cleanly, by Ctrl-C or SIGTERM too
  1  a fault of this program (demo: a request failed)
  2  the command line is not understood
  3  nothing in the input can be used, or it names what is not there
  4  a forward needs you before it can start: port in use, unknown context, login, permission
  5  the time was over before every forward was ready
  6  the host, which runs stored forwards, cannot be reached or started
  with -- CMD: the command's own code (127 not found, 126 not executable, 128+N ended by signal N)"
    };
}

const EXAMPLES: &str = examples!();
const LONG_END: &str = concat!(examples!(), "\n\n", exit_codes!());

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Forward local ports to Services, pods and workloads
    #[command(visible_alias = "port-forward", after_help = FORWARD_HELP)]
    Forward(ForwardArgs),
    /// Run all forwards of files, or stored ones by name, and a command that uses them
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// List forwards
    #[command(visible_alias = "ls", after_help = list::LIST_HELP)]
    List(list::ListArgs),
    /// Show what runs, by which pod, and what it carries
    #[command(after_help = list::STATUS_HELP)]
    Status(list::StatusArgs),
    /// Start stored forwards; they run in the background
    #[command(after_help = act::START_HELP)]
    Start(act::StartArgs),
    /// Stop forwards
    #[command(after_help = act::STOP_HELP)]
    Stop(act::StopArgs),
    /// Stop and start forwards
    #[command(after_help = act::RESTART_HELP)]
    Restart(act::StartArgs),
    /// Wait until forwards are ready
    #[command(after_help = wait::WAIT_HELP)]
    Wait(wait::WaitArgs),
    /// Show what happened to forwards
    #[command(after_help = logs::LOGS_HELP)]
    Logs(logs::LogsArgs),
    /// Add forwards
    #[command(after_help = add::ADD_HELP)]
    Add(add::AddArgs),
    /// Change a forward in your editor
    #[command(after_help = edit::EDIT_HELP)]
    Edit(edit::EditArgs),
    /// Remove forwards
    #[command(visible_alias = "remove", after_help = remove::RM_HELP)]
    Rm(remove::RmArgs),
    /// Put forwards into groups
    #[command(after_help = group::GROUP_HELP)]
    Group(group::GroupArgs),
    /// Import forwards from files and databases of kftray
    #[command(after_help = import::IMPORT_HELP)]
    Import(import::ImportArgs),
    /// Export forwards
    #[command(after_help = import::EXPORT_HELP)]
    Export(import::ExportArgs),
    /// Start the forwards of the project you are in
    #[command(after_help = up::UP_HELP)]
    Up(up::UpArgs),
    /// Stop the forwards of the project you are in
    #[command(after_help = up::DOWN_HELP)]
    Down(up::DownArgs),
    /// Print the addresses of running forwards as environment variables
    #[command(after_help = env::ENV_HELP)]
    Env(env::EnvArgs),
    /// Show and change the settings
    #[command(after_help = settings::SETTINGS_HELP)]
    Settings(settings::SettingsArgs),
    /// Find out what stands in the way of forwards
    #[command(after_help = doctor::DOCTOR_HELP)]
    Doctor(doctor::DoctorArgs),
    /// The process that owns all forwards: run it, look at it, end it
    #[command(after_help = crate::host::HOST_HELP)]
    Host(crate::host::HostArgs),
    /// Show it on a web shop in a cluster inside this process, while pods are killed
    #[command(after_help = DEMO_HELP)]
    Demo(DemoArgs),
    /// Look after the relays in a cluster
    #[command(subcommand, after_help = crate::relay::HELP)]
    Relay(crate::relay::RelayCommand),
    /// Print the rights that people need, ready to apply
    #[command(subcommand, after_help = crate::rbac::HELP)]
    Rbac(crate::rbac::RbacCommand),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the JSON Schema of project files
    Schema,
    /// Print the manual page
    #[command(after_help = "Examples:\n  kftui man | man -l -\n  kftui man forward > kftui-forward.1")]
    Man {
        /// The page of one command instead of the overview
        command: Option<String>,
    },
}

const FORWARD_HELP: &str = concat!(
    "\
Examples:
  kftui forward svc/web 8080:80                  localhost:8080 to the Service's port 80
  kftui forward svc/web 80                       the same port here as there
  kftui forward svc/web :http                    a free local port, printed; the remote port by name
  kftui forward svc/web 8080:80 svc/db 5432      several targets
  kftui forward svc/web 8080:80 8443:443         several ports of one
  kftui forward -n shop deploy/api 9000          a pod of a Deployment (also sts/, ds/, rs/, job/)
  kftui forward app=web,tier=front 8080          pods by label
  kftui forward web-7d9f-x2x 8080                one pod by name, as kubectl has it (or pod/NAME)
  kftui forward svc/web 8080:80 --address 0.0.0.0     for other machines too
  kftui forward svc/db 5432 -- psql -h localhost      a command that uses it; ends with its code
  kftui forward svc/kube-dns 5353:53/udp -n kube-system     UDP, by way of a relay in the cluster
  kftui forward proxy/db.corp.example 5432       a host that only the cluster reaches

It says `ready` when a connection to a ready pod is up and has answered. From then on the local
port stays open whatever happens to the pods: new connections wait (--hold) until one is ready.\n\n",
    exit_codes!()
);

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// Target, then its ports, then the next target: svc/web 8080:80 svc/db 5432
    ///
    /// A target is svc/NAME, pod/NAME, deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME, a label selector such as
    /// app=web, or a bare name (a pod); proxy/HOST is a host or address as the cluster sees it. A port is LOCAL:REMOTE,
    /// PORT (the same on both sides) or :REMOTE (any free local port), with /udp behind it for UDP. REMOTE is a number
    /// or a port's name; for a Service it is the Service's port.
    #[arg(value_name = "TARGET PORT", required = true, num_args = 1..)]
    pub(crate) words: Vec<String>,

    /// Which way TCP takes to pods; `auto` is by the relay if one is there. UDP and proxy/ always go by the relay
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub(crate) via: Way,

    #[command(flatten)]
    pub(crate) common: CommonArgs,

    /// A command to run when all are ready, after `--`
    ///
    /// It finds KFTRAY_NAME_HOST and KFTRAY_NAME_PORT in its environment, NAME being the target's name in capitals.
    #[arg(value_name = "CMD", last = true)]
    pub(crate) command: Vec<OsString>,
}

const RUN_HELP: &str = concat!(
    "\
Examples:
  kftui run team.json
  kftui run team.json mine.yaml -- npm test      the command runs when all are ready; ends with its code
  kftui run db web -- npm test                   stored forwards, for as long as the command runs
  generate | kftui run - --output json

A file (JSON, YAML, TOML) has one entry, a list of entries, or entries one after another:
  [{\"alias\": \"db\", \"service\": \"postgres\", \"namespace\": \"shop\", \"local_port\": 5432, \"remote_port\": 5432}]

The command finds KFTRAY_DB_HOST and KFTRAY_DB_PORT in its environment. An entry with a fault is
told with line, column and remedy; the others run.\n\n",
    exit_codes!()
);

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Files (JSON, YAML, TOML), `-` is standard input; or names of stored forwards
    ///
    /// A word with a dot, slash or `-`, or that is a file here, is a file; names run in the host, files in this process.
    #[arg(value_name = "FILE|NAME", required = true, num_args = 1.., add = ArgValueCompleter::new(complete::runnable))]
    pub(crate) files: Vec<String>,

    #[command(flatten)]
    pub(crate) common: CommonArgs,

    /// A command to run when all are ready, after `--`
    ///
    /// It finds KFTRAY_ALIAS_HOST and KFTRAY_ALIAS_PORT in its environment: the alias in capitals, everything but
    /// letters and digits as `_`.
    #[arg(value_name = "CMD", last = true)]
    pub(crate) command: Vec<OsString>,
}

/// Which way TCP takes to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Way {
    /// A port-forward to the pod
    #[default]
    Direct,
    /// The relay, which is started if none is there
    Relay,
    /// The relay if one is there, else direct
    Auto,
}

impl From<Way> for kftray_commons::Via {
    fn from(way: Way) -> Self {
        match way {
            Way::Direct => Self::Direct,
            Way::Relay => Self::Relay,
            Way::Auto => Self::Auto,
        }
    }
}

/// Where the far end is and where this machine listens.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Namespace [default: the context's; for entries of a file that name none: `default`]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// Context of the kubeconfig; without it the current one is followed
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Kubeconfig file or list of files [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<String>,

    /// Local address to listen on, repeatable or comma-separated [default: localhost, that is 127.0.0.1 and ::1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) address: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CommonArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// What is printed: lines for people, or one JSON object per line for scripts
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,

    /// How connections are carried; `auto` takes the best that the cluster and what lies between allow
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub(crate) transport: Transport,

    /// Image of the relay, where one is needed, for example from a mirror [env: KFTRAY_RELAY_IMAGE]
    /// [default: the setting relay_image, else this version's]
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) relay_image: Option<String>,

    /// Seconds that a new connection waits while no pod is ready; 0 refuses at once
    #[arg(long, value_parser = duration, default_value = HOLD, value_name = "SECONDS")]
    pub(crate) hold: Duration,

    /// Give up with code 5 if not all are ready after so many seconds [default: wait]
    #[arg(long, alias = "pod-running-timeout", value_parser = duration, value_name = "SECONDS")]
    pub(crate) ready_timeout: Option<Duration>,

    /// Stay when kubeconfig, context, login or permission is wrong at the start, and go on when it is mended
    #[arg(long)]
    pub(crate) keep_trying: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Transport {
    /// The best that works
    #[default]
    Auto,
    /// SPDY tunnelled in a WebSocket (Kubernetes 1.30 and later)
    Websocket,
    /// SPDY over an upgraded connection
    Spdy,
    /// The old channel protocol, one connection per WebSocket
    Legacy,
}

const DEMO_HELP: &str = "\
Examples:
  kftui demo                      until Ctrl-C; open the printed addresses in a browser
  kftui demo --seconds 20         ends by itself; code 1 if any request failed

Everything happens inside this process: a Kubernetes API with three Services, the forwards to them,
clients that open a new connection for every request, and somebody who deletes a pod every few
seconds. Nothing is left behind.";

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// End after so many seconds [default: at Ctrl-C]
    #[arg(long, value_parser = duration, value_name = "SECONDS")]
    pub(crate) seconds: Option<Duration>,

    /// Requests per second to each Service
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub(crate) rate: u32,

    /// Plain lines even on a terminal
    #[arg(long)]
    pub(crate) plain: bool,
}

const COMPLETION_HELP: &str = "\
Names of stored forwards, groups and tags complete as well.

Examples:
  kftui completion bash > ~/.local/share/bash-completion/completions/kftui
  kftui completion zsh > \"${fpath[1]}/_kftui\"
  kftui completion fish > ~/.config/fish/completions/kftui.fish";

/// Seconds (`30`, `0.5`) or Go's form as kubectl takes it (`1m30s`, `500ms`).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("`{text}` is no duration; write seconds, or 30s, 2m, 1m30s, 500ms");
    let text_part = text.trim();
    if text_part.is_empty() {
        return Err(fault());
    }
    let seconds = |number: f64| Duration::try_from_secs_f64(number).map_err(|_| fault());
    if text_part.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return seconds(text_part.parse().map_err(|_| fault())?);
    }
    let mut total = Duration::ZERO;
    let mut rest = text_part;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(fault)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(fault()),
        };
        let number: f64 = number.parse().map_err(|_| fault())?;
        total = total.checked_add(seconds(number * unit)?).ok_or_else(fault)?;
        rest = next;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        let good = [
            ("30", 30_000),
            ("0", 0),
            ("0.5", 500),
            ("30s", 30_000),
            ("1m0s", 60_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("500ms", 500),
            ("1.5m", 90_000),
        ];
        for (text, milliseconds) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "x", "1x", "s", "-1", "1m 3s", "1..2", "1e3", "99999999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn kubectl_spelling() {
        let words = ["kftui", "port-forward", "-n", "ns", "svc/web", "8080:80", "--address", "0.0.0.0,::1"];
        let cli =
            Cli::try_parse_from(words.into_iter().chain(["--pod-running-timeout=1m0s"])).expect("parses");
        let Some(Command::Forward(forward)) = cli.command else { panic!("no forward") };
        assert_eq!(forward.words, ["svc/web", "8080:80"]);
        assert_eq!(forward.common.place.address, ["0.0.0.0", "::1"]);
        assert_eq!(forward.common.place.namespace.as_deref(), Some("ns"));
        assert_eq!(forward.common.ready_timeout, Some(Duration::from_secs(60)));
    }

    #[test]
    fn verbosity_stands_anywhere() {
        for words in [["kftui", "-v", "list"], ["kftui", "list", "-v"]] {
            assert_eq!(Cli::try_parse_from(words).expect("parses").verbose, 1);
        }
    }

    #[test]
    fn words_and_flags_mix() {
        let words =
            ["kftui", "forward", "svc/a", "1:2", "--hold", "5", "svc/b", ":http", "--", "psql", "-h", "x"];
        let Some(Command::Forward(forward)) = Cli::try_parse_from(words).expect("parses").command else {
            panic!("no forward")
        };
        assert_eq!(forward.words, ["svc/a", "1:2", "svc/b", ":http"]);
        assert_eq!(forward.command, ["psql", "-h", "x"]);
        assert_eq!(forward.common.hold, Duration::from_secs(5));
    }
}
