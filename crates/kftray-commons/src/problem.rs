//! The one shape in which a failure reaches a person: a stable code, a plain sentence, a remedy.
//!
//! Faces match on [`Code`] and never search in texts. A code is added only when a person or a face does something
//! different because of it. Whether retrying can help is a property of the code, decided here and nowhere else.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A failure as a person sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Stable code, one per cause a person can act on.
    pub code: Code,
    /// One plain sentence about this case, without a trailing full stop; names the object, port, file or host concerned.
    pub message: String,
    /// What to do about it; the code's general remedy unless the case knows better.
    pub remedy: String,
}

/// What retrying can do about a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cure {
    /// Passes by itself or with the next attempt: back off and retry.
    Retry,
    /// Waits for the cluster to change; a watch tells.
    Wait,
    /// Needs a person; a retry without a change is useless.
    User,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal, $cure:ident, $remedy:literal;)+) => {
        /// Stable failure codes. The text form is part of the API and never changes meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $variant,)+
            /// A code that this build does not know: the other side is newer.
            #[serde(rename = "unknown", other)]
            Unknown,
        }

        impl Code {
            /// Every code that this build knows, for tables in documents and tests.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable text form.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ Self::Unknown => "unknown" }
            }

            /// What retrying can do about it.
            #[must_use]
            pub fn cure(self) -> Cure {
                match self { $(Self::$variant => Cure::$cure,)+ Self::Unknown => Cure::Retry }
            }

            /// The general remedy.
            #[must_use]
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                    Self::Unknown => "Use the same version of kftray everywhere.",
                }
            }

            /// The cause in general, from the code's documentation.
            #[must_use]
            pub fn cause(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                    Self::Unknown => "Another version of kftray knows it.",
                }
            }
        }
    };
}

codes! {
    /// The local port is in use by another program.
    PortInUse = "port_in_use", User, "Stop that program, or choose another local port.";
    /// The local port may not be bound without privileges.
    PortPrivileged = "port_privileged", User, "Choose a local port of 1024 or above.";
    /// The local address cannot be bound on this machine.
    AddressUnavailable = "address_unavailable", User, "Use an address of this machine, such as 127.0.0.1 or localhost.";
    /// The system refuses more open files.
    TooManyFiles = "too_many_files", Retry, "Raise the limit of open files (`ulimit -n`).";

    /// The kubeconfig is missing or cannot be read.
    KubeconfigMissing = "kubeconfig_missing", User, "Set KUBECONFIG or pass --kubeconfig with the path of a readable file.";
    /// The kubeconfig is not valid.
    KubeconfigInvalid = "kubeconfig_invalid", User, "Correct the file at the place named.";
    /// The kubeconfig has no such context, or the context names a cluster or user that is not there.
    ContextMissing = "context_missing", User, "Run `kubectl config get-contexts` and use a name from the list.";
    /// The exec credential plugin is not installed or not on PATH.
    PluginMissing = "plugin_missing", User, "Install the plugin, or name it by its full path in the kubeconfig.";
    /// The exec credential plugin failed, hung, or printed something that is no credential.
    PluginFailed = "plugin_failed", User, "Run the plugin by hand in a terminal; log in again if it asks for it.";
    /// The cluster does not accept the credentials.
    Unauthorized = "unauthorized", User, "Log in again; the token or client certificate may have expired.";
    /// The user lacks a permission.
    Forbidden = "forbidden", User, "Ask for a Role with the verb and resource named.";
    /// The API server's certificate is not trusted.
    CertificateUntrusted = "certificate_untrusted", User, "Check certificate-authority and tls-server-name in the kubeconfig.";
    /// The client certificate or key in the kubeconfig is unusable.
    ClientCertificateInvalid = "client_certificate_invalid", User, "Renew the client certificate in the kubeconfig.";
    /// The proxy refuses or asks for credentials.
    ProxyRefused = "proxy_refused", User, "Check proxy-url in the kubeconfig, HTTPS_PROXY and NO_PROXY, and the credentials in them.";

    /// The API server cannot be reached.
    ClusterUnreachable = "cluster_unreachable", Retry, "Check the network or VPN; the forward recovers by itself.";
    /// The API server answers with an error of its own.
    ClusterError = "cluster_error", Retry, "Wait, or ask the cluster's administrator; the forward recovers by itself.";
    /// The connection to the pod was lost.
    ConnectionLost = "connection_lost", Retry, "Nothing to do: the forward reconnects by itself.";
    /// This machine's clock and the API server's differ so much that logins are refused.
    ClockWrong = "clock_wrong", User, "Set this machine's clock; turn on time synchronisation.";
    /// No port-forward protocol could be agreed on with the API server.
    TransportRefused = "transport_refused", Retry, "A proxy or gateway may block upgrades; try another --transport.";

    /// The object does not exist.
    TargetMissing = "target_missing", Wait, "Check name and namespace; the forward starts when the object appears.";
    /// The object exists but has no such port.
    TargetPortMissing = "target_port_missing", Wait, "Use one of the ports listed.";
    /// No pod behind the target is ready.
    NoReadyPods = "no_ready_pods", Wait, "Look at the pods' events; the forward starts when one is ready.";
    /// The Service cannot be forwarded to because its endpoints are not pods.
    TargetNotForwardable = "target_not_forwardable", User, "Forward to a Service or workload that has pods behind it.";
    /// Nothing listens on the port inside the pod.
    RemoteRefused = "remote_refused", Retry, "Check that the program in the pod listens on that port, on localhost.";
    /// The pod is gone.
    PodGone = "pod_gone", Retry, "Nothing to do: the forward moves to another pod.";
    /// No pod became ready while the connection was held.
    HoldTimeout = "hold_timeout", Retry, "Raise --hold, or look why no pod is ready.";
    /// A limit that protects the node's container runtime was reached.
    Overloaded = "overloaded", Retry, "Use fewer, longer connections.";

    /// The relay is not up yet.
    RelayStarting = "relay_starting", Wait, "Nothing to do: the forward starts when the relay is up.";
    /// The relay does not let us in: another token, or no protocol version in common.
    RelayRefused = "relay_refused", Wait, "Use a version of this program that fits the relay, or ask whoever installed the relay.";
    /// The relay may not connect to that target.
    RelayDenied = "relay_denied", User, "Ask whoever started the relay to allow the target; its own loopback, metadata addresses and the API server are denied unless named.";
    /// The cluster's DNS knows no such name.
    HostNotFound = "host_not_found", User, "Check the name as the cluster sees it: NAME.NAMESPACE.svc for a Service of another namespace.";
    /// The target did not answer the relay's attempt to connect.
    HostTimedOut = "host_timed_out", User, "Check address and port, and network policies between the relay and the target.";
    /// The relay's network leads nowhere near the target.
    DestinationUnreachable = "destination_unreachable", User, "Check the address, and that the cluster's nodes reach it.";
    /// Direct connections are held back to protect the node, and the relay would carry them.
    SuggestRelay = "suggest_relay", Retry, "Set \"via\": \"relay\" for this forward, or install a relay and set \"via\": \"auto\".";
    /// The local program that is exposed does not answer.
    LocalProgramDown = "local_program_down", Retry, "Start the program, or correct local_address and local_port.";
    /// A caller of an exposed program was turned away.
    CallerRefused = "caller_refused", User, "Give the caller the credentials, or add its address to exposure_allow.";
    /// The time for which a program was exposed is over.
    ExposeExpired = "expose_expired", User, "Start it again to expose it for the same time once more.";

    /// The cluster has no such ingress class, so that nobody serves a public expose.
    IngressClassMissing = "ingress_class_missing", Wait, "Set ingress_class to a class of the cluster (`kubectl get ingressclasses`), or install its controller.";
    /// The certificate of a public expose is not issued yet.
    CertificatePending = "certificate_pending", Wait, "Wait a minute; then look at the Certificate's events and at the issuer (cert_issuer, cert_issuer_kind).";

    /// The relay's image cannot be pulled.
    RelayImagePull = "relay_image_pull", Wait, "Name an image that the cluster can pull (KFTRAY_RELAY_IMAGE), and a pull secret if its registry asks for one.";
    /// A quota or limit of the namespace leaves no room for the relay.
    RelayQuota = "relay_quota", Wait, "Ask for more quota, or set the relay's resources to what the namespace allows.";
    /// A rule of the cluster (admission webhook, policy, Pod Security) refuses the relay or an object of an expose.
    RelayAdmission = "relay_admission", Wait, "Ask the cluster's administrator for an exception, or adapt the manifest with the relay's patch setting.";
    /// No node takes the relay.
    RelayUnschedulable = "relay_unschedulable", Wait, "Give the relay tolerations or smaller requests, or wait for room on a node.";
    /// The relay ended or was ended: out of memory, evicted, crashed.
    RelayEnded = "relay_ended", Retry, "Nothing to do: the relay is started again; if it ends again and again, look at its log.";
    /// The name is taken in the cluster by somebody else's object.
    NameTaken = "name_taken", User, "Choose another alias, or ask the owner to remove the object.";

    /// The forward's description is not valid.
    SpecInvalid = "spec_invalid", User, "Correct the entry at the place named.";
    /// This build does not serve forwards of this kind yet.
    Unsupported = "unsupported", User, "Leave the entry out, or use a later version.";

    /// The request is not understood.
    RequestInvalid = "request_invalid", User, "Correct the request; `GET /v1/openapi.json` describes it.";
    /// The request is larger than the host takes.
    RequestTooLarge = "request_too_large", User, "Send less at once.";
    /// There is no such thing.
    NotFound = "not_found", User, "List what there is, and use an id from the list.";
    /// Somebody else has changed it meanwhile.
    Conflict = "conflict", User, "Look at the present state, and repeat the change on it.";
    /// The host belongs to another user of this machine.
    PeerRefused = "peer_refused", User, "Use a host of your own: every user has one.";
    /// The host serves as many clients as it can.
    TooManyClients = "too_many_clients", Retry, "Close some of them.";
    /// Host and client do not understand each other's protocol.
    VersionMismatch = "version_mismatch", User, "Use the same version of kftray everywhere; `kftui host stop` ends an old host.";
    /// No host runs and none can be started, or it does not answer.
    HostUnreachable = "host_unreachable", User, "Run `kftui host` in a terminal to see why.";
    /// The host is about to end.
    HostEnding = "host_ending", Retry, "Connect again.";
    /// The store cannot be read or written.
    StoreFailed = "store_failed", User, "Check that the disk is not full and that the directory belongs to you.";
    /// Another program holds the store's lock for longer than we wait.
    StoreBusy = "store_busy", Retry, "Close the other program that uses kftray.db, and try again.";
    /// The store was written by a later version, in a way that this one would damage.
    StoreTooNew = "store_too_new", User, "Use that later version of kftray, or set KFTRAY_CONFIG to another directory.";
    /// The store's file is damaged, or is no database of ours.
    StoreDamaged = "store_damaged", User, "Put the file aside and restore a backup: kftray.db.backup-* in the same directory.";
    /// The configuration directory cannot be used safely.
    DirectoryRefused = "directory_refused", User, "Set KFTRAY_CONFIG to a directory that belongs to you alone.";
    /// What shall be imported is no database or file that can be read.
    ImportUnreadable = "import_unreadable", User, "Name a configs.db or a JSON export of kftray.";

    /// A fault of this program.
    Internal = "internal", Retry, "Report it with the log.";
}

impl Problem {
    /// A problem with its code's general remedy. Control characters but for line feeds and tabs are replaced: clusters and
    /// other programs have their say in messages, and these end up on terminals.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: plain(message.into()), remedy: code.remedy().to_owned() }
    }

    /// The same problem with a remedy for this case.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = plain(remedy.into());
        self
    }
}

fn plain(text: String) -> String {
    let is_odd = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    if text.contains(is_odd) { text.replace(is_odd, "\u{fffd}") } else { text }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_moves_a_terminal() {
        let problem = Problem::new(Code::Internal, "a\u{1b}[2Jb\u{9b}31m\nc").with_remedy("\u{7}d");
        assert_eq!(problem.message, "a\u{fffd}[2Jb\u{fffd}31m\nc");
        assert_eq!(problem.remedy, "\u{fffd}d");
    }
}
