//! The node's own network namespace, joined to this machine by one veth pair: iptables rules and bridges stay out of the host, and
//! the link can be cut.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::Result;

use crate::command::{command, feed, output, run};

/// One cluster's network: the namespace and a /24 for the two ends of the link.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) namespace: String,
    /// The third octet of the link's addresses and the number in the host's interface name; one per cluster.
    pub(crate) index: u8,
}

impl Network {
    /// The host's end of the link.
    pub(crate) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.index, 1)
    }

    /// The node's end: where the API server listens.
    pub(crate) fn node(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.index, 2)
    }

    /// The host's interface.
    pub(crate) fn interface(&self) -> String {
        format!("kft{}", self.index)
    }

    /// Makes namespace and link.
    pub(crate) fn create(&self) -> Result<()> {
        let Self { namespace, index } = self;
        let interface = self.interface();
        run(&mut command("ip", ["netns", "add", namespace]))?;
        run(&mut command(
            "ip",
            ["link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", namespace],
        ))?;
        // The unreachable route answers for the link while it is down, so that nothing leaves for the default gateway.
        let host = format!(
            "addr add {}/24 dev {interface}\nlink set {interface} up\nroute add unreachable 10.99.{index}.0/24 metric 4096\n",
            self.host()
        );
        feed(&mut command("ip", ["-batch", "-"]), host.as_bytes())?;
        let node = format!(
            "addr add {}/24 dev eth0\nlink set eth0 up\nlink set lo up\nroute add default via {}\n",
            self.node(),
            self.host()
        );
        feed(&mut command("ip", ["-n", namespace, "-batch", "-"]), node.as_bytes())?;
        // A namespace starts without forwarding; pods are reached by it.
        self.write_inside("/proc/sys/net/ipv4/ip_forward", "1")
    }

    /// Removes what there is of namespace, link and route.
    pub(crate) fn remove(&self) -> Result<()> {
        // The link first: with the namespace it would vanish too, but some time later.
        if fs::exists(format!("/sys/class/net/{}", self.interface()))? {
            run(&mut command("ip", ["link", "del", &self.interface()]))?;
        }
        if fs::exists(format!("/run/netns/{}", self.namespace))? {
            run(&mut command("ip", ["netns", "del", &self.namespace]))?;
        }
        let subnet = format!("10.99.{}.0/24", self.index);
        let routes = output(&mut command("ip", ["route", "show", "type", "unreachable", &subnet]))?;
        if !routes.trim().is_empty() {
            run(&mut command("ip", ["route", "del", "unreachable", &subnet, "metric", "4096"]))?;
        }
        Ok(())
    }

    /// A command line that runs inside. `ip netns exec` would remount /sys and hide the cgroups from the kubelet.
    pub(crate) fn inside(&self, argv: &[&str]) -> Vec<String> {
        let mut line = vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.namespace)];
        line.extend(argv.iter().map(|word| (*word).to_owned()));
        line
    }

    /// Runs a command inside to its end.
    pub(crate) fn run_inside(&self, argv: &[&str]) -> Result<String> {
        let line = self.inside(argv);
        let (program, args) =
            line.split_first().map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
        output(&mut command(program, args))
    }

    fn write_inside(&self, file: &str, value: &str) -> Result<()> {
        self.run_inside(&["sh", "-c", &format!("echo {value} > {file}")]).map(drop)
    }
}
