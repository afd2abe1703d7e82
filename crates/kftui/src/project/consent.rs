//! What of a project file widens what this machine shows or touches. A file comes with a repository, and pulling a branch
//! must not open a port to the office network: such a wish is asked about once and remembered for exactly this content.

use std::fmt;
use std::net::IpAddr;

use kftray_commons::spec::Exposure;
use kftray_commons::{ForwardSpec, Workload};
use sha2::{Digest as _, Sha256};

/// A wish that needs a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Widening {
    /// Of which forward.
    pub(crate) label: String,
    pub(crate) wish: Wish,
}

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Other machines can connect to the forward.
    Listen(String),
    /// Another kubeconfig, and with it other credentials.
    Kubeconfig(String),
    /// A program of this machine becomes reachable from the internet.
    Public,
}

impl fmt::Display for Widening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = &self.label;
        match &self.wish {
            Wish::Listen(host) => write!(f, "{label} listens on {host}: other machines can connect to it"),
            Wish::Kubeconfig(path) => write!(f, "{label} uses the kubeconfig {path} with its credentials"),
            Wish::Public => write!(f, "{label} makes a program of this machine reachable from the internet"),
        }
    }
}

/// Everything in the forwards that needs a yes, in their order.
pub(crate) fn widenings<'a>(specs: impl IntoIterator<Item = &'a ForwardSpec>) -> Vec<Widening> {
    let of = |spec: &'a ForwardSpec| {
        let is_expose = matches!(spec.workload, Workload::Expose(_));
        // An expose listens nowhere here; what it forwards to is its own business.
        let hosts = spec.listen.hosts.iter().filter(move |host| !is_expose && !stays_here(host));
        let kubeconfig = spec.cluster.kubeconfig.iter().cloned().map(Wish::Kubeconfig);
        let public = matches!(&spec.workload, Workload::Expose(expose) if matches!(expose.exposure, Exposure::Public { .. }));
        let wishes = hosts.cloned().map(Wish::Listen).chain(kubeconfig).chain(public.then_some(Wish::Public));
        let label = spec.label();
        wishes.map(move |wish| Widening { label: label.clone(), wish })
    };
    specs.into_iter().flat_map(of).collect()
}

/// Whether only programs of this machine can connect to it. A name that is looked up may lead anywhere.
fn stays_here(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

/// What a yes is remembered by: the content of the file, to the byte.
pub(crate) fn fingerprint(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use kftray_commons::border::{Defaults, import};

    use super::*;

    #[test]
    fn what_needs_a_yes() {
        let text = r#"[
            {"alias": "quiet", "service": "a", "remote_port": 1, "local_address": "127.0.0.9"},
            {"alias": "quiet6", "service": "a", "remote_port": 1, "local_address": "::1, LOCALHOST, x.localhost"},
            {"alias": "office", "service": "a", "remote_port": 1, "local_address": "127.0.0.1,0.0.0.0"},
            {"alias": "named", "service": "a", "remote_port": 1, "local_address": "my-laptop"},
            {"alias": "other", "service": "a", "remote_port": 1, "kubeconfig": "/tmp/evil"},
            {"alias": "app", "workload_type": "expose", "local_port": 3000, "local_address": "192.168.0.4"},
            {"alias": "app.example.com", "workload_type": "expose", "local_port": 3000, "exposure_type": "public"}
        ]"#;
        let read = import(text, &Defaults::default());
        assert_eq!(read.faults().count(), 0);
        let told: Vec<String> = widenings(read.specs()).iter().map(Widening::to_string).collect();
        assert_eq!(
            told,
            [
                "office listens on 0.0.0.0: other machines can connect to it",
                "named listens on my-laptop: other machines can connect to it",
                "other uses the kubeconfig /tmp/evil with its credentials",
                "app.example.com makes a program of this machine reachable from the internet",
            ]
        );
    }

    #[test]
    fn another_byte_is_another_file() {
        assert_eq!(fingerprint(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_ne!(fingerprint("a"), fingerprint("a "));
    }
}
