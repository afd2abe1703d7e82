//! Faults: what breaks between a client and a real cluster, and within the cluster, each to be broken and mended on command.

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use nix::sys::signal::Signal;

use super::{API_PORT, Cluster, NODE};
use crate::command::{command, feed, run};

/// Packets of existing connections are dropped in this chain of the node's namespace.
const CHAIN: &str = "KFT-BLACKHOLE";

/// One fault, or its end.
#[derive(Subcommand)]
pub(crate) enum Fault {
    /// Take the host's end of the link down: packets get "no route to host"
    LinkDown,
    /// Bring the link up again
    LinkUp,
    /// Drop all packets between host and node, both directions, without a word
    Drop,
    /// End of drop
    Undrop,
    /// Drop the packets of the connections that the API server has from the host right now; new connections work (a NAT or VPN
    /// that forgot them)
    BlackholeExisting,
    /// End of blackhole-existing
    Clear,
    /// Shape the node's answers to the host to this rate (tc syntax, for example 20mbit)
    Shape {
        /// The rate
        rate: String,
    },
    /// End of shape
    Unshape,
    /// Kill the API server
    ApiserverStop {
        /// Let it end in its own time instead (SIGTERM)
        #[arg(long)]
        graceful: bool,
    },
    /// Start the API server again and wait until it is ready
    ApiserverStart,
    /// apiserver-stop, then apiserver-start
    ApiserverRestart,
    /// Suspend the API server's process: connections stay open and nothing answers
    ApiserverFreeze,
    /// End of apiserver-freeze
    ApiserverThaw,
    /// Give the API server a new certificate of the same authority; it is in use within a minute, existing connections stay
    RotateCertificate,
    /// Kill the kubelet: pods run on, port-forward through it does not
    KubeletStop,
    /// Start the kubelet again
    KubeletStart,
    /// Start the kubelet anew with a serving certificate of an authority that the API server does not know: it reports as
    /// ever, and port-forward through it does not work
    KubeletUntrusted,
    /// End of kubelet-untrusted
    KubeletTrusted,
    /// Kill and start containerd; containers run on
    ContainerdRestart,
    /// Let no new pod onto the node
    Cordon,
    /// Evict all pods but those of DaemonSets (they stay pending until uncordon)
    Drain,
    /// End of cordon and drain
    Uncordon,
    /// End every fault: link, packets, shape, processes, cordon
    Mend,
}

impl Fault {
    /// Breaks or mends.
    pub(super) fn apply(&self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::LinkDown => link(cluster, "down"),
            Self::LinkUp => link(cluster, "up"),
            Self::Drop => drop_packets(cluster),
            Self::Undrop => undrop(cluster),
            Self::BlackholeExisting => blackhole_existing(cluster),
            Self::Clear => clear(cluster),
            Self::Shape { rate } => shape(cluster, rate),
            Self::Unshape => unshape(cluster),
            Self::ApiserverStop { graceful } => {
                cluster.process("apiserver").end(if *graceful { Signal::SIGTERM } else { Signal::SIGKILL })
            }
            Self::ApiserverStart => start_api_server(cluster),
            Self::ApiserverRestart => {
                cluster.process("apiserver").end(Signal::SIGKILL)?;
                start_api_server(cluster)
            }
            Self::ApiserverFreeze => cluster.process("apiserver").signal(Signal::SIGSTOP).map(drop),
            Self::ApiserverThaw => cluster.process("apiserver").signal(Signal::SIGCONT).map(drop),
            Self::RotateCertificate => cluster.issue_server_certificate(),
            Self::KubeletStop => cluster.process("kubelet").end(Signal::SIGKILL),
            Self::KubeletStart => cluster.process("kubelet").start_again(),
            Self::KubeletUntrusted => kubelet_with_certificate(cluster, true),
            Self::KubeletTrusted => kubelet_with_certificate(cluster, false),
            Self::ContainerdRestart => {
                cluster.process("containerd").end(Signal::SIGKILL)?;
                cluster.process("containerd").start_again()?;
                cluster.wait_for_containerd()
            }
            Self::Cordon => run(&mut cluster.kubectl(&["cordon", NODE])),
            Self::Drain => run(&mut cluster.kubectl(&[
                "drain",
                NODE,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
                "--force",
                "--timeout=120s",
            ])),
            Self::Uncordon => run(&mut cluster.kubectl(&["uncordon", NODE])),
            Self::Mend => mend(cluster),
        }
    }
}

fn mend(cluster: &Cluster) -> Result<()> {
    link(cluster, "up")?;
    undrop(cluster)?;
    clear(cluster)?;
    unshape(cluster)?;
    cluster.process("apiserver").signal(Signal::SIGCONT)?;
    kubelet_with_certificate(cluster, false)?;
    for name in super::node::PROCESSES {
        cluster.process(name).start_again()?;
    }
    cluster.wait_for_api()?;
    run(&mut cluster.kubectl(&["uncordon", NODE]))
}

fn link(cluster: &Cluster, state: &str) -> Result<()> {
    run(&mut command("ip", ["link", "set", &cluster.network.interface(), state]))
}

/// The same rule for both directions.
const DROPS: [[&str; 3]; 2] = [["INPUT", "-i", "eth0"], ["OUTPUT", "-o", "eth0"]];

fn drop_packets(cluster: &Cluster) -> Result<()> {
    undrop(cluster)?;
    for [chain, flag, interface] in DROPS {
        cluster.network.run_inside(&["iptables", "-w", "-I", chain, flag, interface, "-j", "DROP"])?;
    }
    Ok(())
}

fn undrop(cluster: &Cluster) -> Result<()> {
    for [chain, flag, interface] in DROPS {
        while cluster
            .network
            .run_inside(&["iptables", "-w", "-C", chain, flag, interface, "-j", "DROP"])
            .is_ok()
        {
            cluster.network.run_inside(&["iptables", "-w", "-D", chain, flag, interface, "-j", "DROP"])?;
        }
    }
    Ok(())
}

fn blackhole_existing(cluster: &Cluster) -> Result<()> {
    let api_server = cluster.process("apiserver").pid()?.context("the API server does not run")?;
    let host = cluster.network.host().octets();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let connections = fs::read_to_string(format!("/proc/{api_server}/net/{table}"))?;
        ports.extend(connections.lines().filter_map(|line| remote_port(line, API_PORT, host)));
    }
    if ports.is_empty() {
        bail!("the API server has no connection from the host");
    }
    clear(cluster)?;
    let mut rules = format!("*filter\n:{CHAIN} - [0:0]\n");
    for port in &ports {
        rules.push_str(&format!("-A {CHAIN} -i eth0 -p tcp --sport {port} --dport {API_PORT} -j DROP\n"));
        rules.push_str(&format!("-A {CHAIN} -o eth0 -p tcp --sport {API_PORT} --dport {port} -j DROP\n"));
    }
    rules.push_str(&format!("-I INPUT -j {CHAIN}\n-I OUTPUT -j {CHAIN}\nCOMMIT\n"));
    let line = cluster.network.inside(&["iptables-restore", "-w", "--noflush"]);
    let (program, args) = line.split_first().context("an empty command")?;
    feed(&mut command(program, args), rules.as_bytes())?;
    println!("{} connections are dead", ports.len());
    Ok(())
}

fn clear(cluster: &Cluster) -> Result<()> {
    for chain in ["INPUT", "OUTPUT"] {
        while cluster.network.run_inside(&["iptables", "-w", "-C", chain, "-j", CHAIN]).is_ok() {
            cluster.network.run_inside(&["iptables", "-w", "-D", chain, "-j", CHAIN])?;
        }
    }
    if cluster.network.run_inside(&["iptables", "-w", "-n", "-L", CHAIN]).is_ok() {
        cluster.network.run_inside(&["iptables", "-w", "-F", CHAIN])?;
        cluster.network.run_inside(&["iptables", "-w", "-X", CHAIN])?;
    }
    Ok(())
}

/// The remote port of a line of /proc/net/tcp or tcp6, if it is an established connection to `local` from `remote`.
fn remote_port(line: &str, local: u16, remote: [u8; 4]) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let (_, local_port) = fields.next()?.rsplit_once(':')?;
    let (remote_address, remote_port) = fields.next()?.rsplit_once(':')?;
    let established = fields.next()? == "01";
    // Addresses are 32-bit words in host byte order; an IPv4 address is the last word of the mapped IPv6 one.
    let word = remote_address.get(remote_address.len().checked_sub(8)?..)?;
    let address = u32::from_str_radix(word, 16).ok()?.to_ne_bytes();
    let is_ours = u16::from_str_radix(local_port, 16).ok()? == local && address == remote;
    (established && is_ours).then(|| u16::from_str_radix(remote_port, 16).ok())?
}

fn shape(cluster: &Cluster, rate: &str) -> Result<()> {
    // A burst of 10 ms at 100 Mbit/s, and a queue that holds a tenth of a second at most: a slow line, not a broken one.
    cluster
        .network
        .run_inside(&[
            "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "128kb",
            "latency", "100ms",
        ])
        .map(drop)
}

fn unshape(cluster: &Cluster) -> Result<()> {
    let shown = cluster.network.run_inside(&["tc", "qdisc", "show", "dev", "eth0"])?;
    if shown.contains("tbf") {
        cluster.network.run_inside(&["tc", "qdisc", "del", "dev", "eth0", "root"])?;
    }
    Ok(())
}

/// Its client certificate is in its kubeconfig and stays.
fn kubelet_with_certificate(cluster: &Cluster, foreign: bool) -> Result<()> {
    cluster.process("kubelet").end(Signal::SIGKILL)?;
    cluster.issue_kubelet_certificate(foreign)?;
    cluster.process("kubelet").start_again()
}

fn start_api_server(cluster: &Cluster) -> Result<()> {
    cluster.process("apiserver").start_again()?;
    cluster.wait_for_api()
}

#[cfg(test)]
mod tests {
    use super::remote_port;

    const HOST: [u8; 4] = [10, 99, 0, 1];

    #[test]
    fn finds_established_connections_from_the_host() {
        // 10.99.0.2:6443 <- 10.99.0.1:40000, as IPv4 and as mapped IPv6, little-endian words.
        let v4 = "   1: 0200630A:192B 0100630A:9C40 01 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let v6 = "   1: 0000000000000000FFFF00000200630A:192B 0000000000000000FFFF00000100630A:9C40 01 0:0 0:0 0 0 0 1 1";
        assert_eq!(remote_port(v4, 6443, HOST), Some(40000));
        assert_eq!(remote_port(v6, 6443, HOST), Some(40000));
    }

    #[test]
    fn leaves_others_alone() {
        let listening = "   0: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let closing = "   1: 0200630A:192B 0100630A:9C40 06 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let own = "   1: 0200630A:192B 0200630A:9C40 01 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let other_port =
            "   1: 0200630A:0050 0100630A:9C40 01 00000000:00000000 00:00000000 00000000 0 0 1 1";
        for line in [listening, closing, own, other_port, "  sl  local_address rem_address st", ""] {
            assert_eq!(remote_port(line, 6443, HOST), None, "{line}");
        }
    }
}
