//! The command after `--`: started when every forward is ready, told where they listen, and its end is ours.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitStatus;

use tokio::process::{Child, Command};

use crate::signals::Signal;

/// The command could not be started: the code that shells use for it, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("cannot run `{program}`: {why}")]
pub(crate) struct NotStarted {
    program: String,
    why: io::Error,
    /// 127 not found, 126 found but not executable.
    pub(crate) code: u8,
}

/// Starts the command. It is killed if the returned handle is dropped before its end.
pub(crate) fn start(words: &[OsString], environment: Vec<(String, String)>) -> Result<Child, NotStarted> {
    let mut words = words.iter();
    let program = words.next().cloned().unwrap_or_default();
    let started = Command::new(&program).args(words).envs(environment).kill_on_drop(true).spawn();
    started.map_err(|why| NotStarted {
        program: program.to_string_lossy().into_owned(),
        code: if why.kind() == io::ErrorKind::NotFound { 127 } else { 126 },
        why,
    })
}

/// Its exit code as shells tell it: 128 and the signal's number if a signal ended it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128));
    }
    // Windows codes beyond a byte have no equal here.
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Passes a signal on, unless the terminal has sent it to the command already.
#[cfg(unix)]
pub(crate) fn pass_on(child: &Child, signal: Signal) {
    use std::io::IsTerminal as _;

    use nix::sys::signal::{self, Signal as Unix};

    let signal = match signal {
        // Ctrl-C goes from the terminal to every process of the foreground group, the command included.
        Signal::Interrupt if io::stdin().is_terminal() => return,
        Signal::Interrupt => Unix::SIGINT,
        Signal::Terminate => Unix::SIGTERM,
        Signal::Hangup => Unix::SIGHUP,
        Signal::Resumed => return,
    };
    let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    // It may have ended in this moment; its end is noticed elsewhere.
    if let Err(error) = signal::kill(nix::unistd::Pid::from_raw(id), signal) {
        tracing::debug!(%error, "the signal could not be passed on");
    }
}

/// Ctrl-C reaches every process of the console by itself.
#[cfg(not(unix))]
pub(crate) fn pass_on(_child: &Child, _signal: Signal) {}

/// The part of a variable's name that stands for a forward: `my-db` becomes `MY_DB`.
pub(crate) fn variable(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    letters.collect()
}

/// `KFTRAY_<NAME>_HOST` and `_PORT` for a forward that listens on these addresses.
pub(crate) fn environment(name: &str, addresses: &[SocketAddr]) -> Vec<(String, String)> {
    // IPv4 first: more programs understand it, and `localhost` has both.
    let Some(address) = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) else {
        return Vec::new();
    };
    let host = match address.ip() {
        // "Every address" is none that can be connected to everywhere.
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    vec![
        (format!("KFTRAY_{name}_HOST"), host.to_string()),
        (format!("KFTRAY_{name}_PORT"), address.port().to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        assert_eq!(variable("my-db.example"), "MY_DB_EXAMPLE");
        assert_eq!(variable("été 1"), "_T__1");
        let told = |addresses: &[&str]| {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|text| text.parse().expect("address")).collect();
            environment("DB", &addresses)
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(&["[::1]:5432", "127.0.0.1:5432"]),
            ["KFTRAY_DB_HOST=127.0.0.1", "KFTRAY_DB_PORT=5432"]
        );
        assert_eq!(told(&["0.0.0.0:80"]), ["KFTRAY_DB_HOST=127.0.0.1", "KFTRAY_DB_PORT=80"]);
        assert_eq!(told(&["[::]:80"]), ["KFTRAY_DB_HOST=::1", "KFTRAY_DB_PORT=80"]);
        assert_eq!(told(&[]), Vec::<String>::new());
    }
}
