//! The units by which systemd starts a host for a user when the first client connects. Offered, never required.

use std::path::Path;

/// Name of both units, without ending.
pub const UNIT: &str = "kftray-host";

/// The two units of a directory: the socket's and the service's text.
#[must_use]
pub fn units(program: &Path, directory: &Path, socket: &Path) -> (String, String) {
    let (program, directory, socket) = (quoted(program), quoted(directory), escaped(socket));
    let socket_unit = format!(
        "[Unit]\nDescription=Socket of the kftray host\n\n\
        [Socket]\nListenStream={socket}\nSocketMode=0600\nDirectoryMode=0700\n\n\
        [Install]\nWantedBy=sockets.target\n"
    );
    let service_unit = format!(
        "[Unit]\nDescription=kftray host: owns the port forwards of this user\nRequires={UNIT}.socket\n\
        After={UNIT}.socket\n\n\
        [Service]\nType=simple\nExecStart={program} host run --background --systemd\n\
        Environment={}\nRestart=on-failure\nRestartSec=1\n\
        # Connections get the grace of a stop, not the axe.\nKillMode=mixed\nTimeoutStopSec=10\n",
        format_args!("\"KFTRAY_CONFIG={}\"", directory.trim_matches('"'))
    );
    (socket_unit, service_unit)
}

/// As one word of a command line of systemd.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", escaped(path).replace('\\', "\\\\").replace('"', "\\\""))
}

/// `%` begins a specifier in every unit.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_blanks_and_signs() {
        let (socket, service) =
            units(Path::new("/opt/my kftui"), Path::new("/home/u/100%"), Path::new("/home/u/100%/host.sock"));
        assert!(socket.contains("ListenStream=/home/u/100%%/host.sock\n"), "{socket}");
        assert!(
            service.contains("ExecStart=\"/opt/my kftui\" host run --background --systemd\n"),
            "{service}"
        );
        assert!(service.contains("Environment=\"KFTRAY_CONFIG=/home/u/100%%\"\n"), "{service}");
    }
}
