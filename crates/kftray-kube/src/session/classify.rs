//! What an error text of the container runtime means: may the connection be replayed, and is the pod gone.
//!
//! The texts come from containerd (`internal/cri/server/sandbox_portforward_linux.go`), CRI-O
//! (`internal/oci/runtime_oci_linux.go`), cri-dockerd (socat) and cri-streaming (`portforward/httpstream.go`).

use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ChannelError, Delivery};

/// The runtime dials inside the pod before it moves a byte.
const REFUSED: &[&str] = &["failed to connect to localhost"];
/// The pod's sandbox or its network is no more: all of `.0` occur in the text.
const GONE: &[&[&str]] = &[
    &["network namespace for sandbox", "is closed"],
    &["failed to find sandbox"],
    &["could not find sandbox"],
    &["sandbox", "is not running"],
];
/// The server never saw both streams, so it never dialled.
const UNPAIRED: &[&str] = &["timed out waiting for streams", "error creating error stream"];
/// Whether ::1 is tried depends on the node: the runtime looks `localhost` up in the node's own hosts file.
const LISTEN: &str = "Check that the program in the pod listens on that port, on 127.0.0.1 or on all addresses; \
    not every node tries ::1.";
/// Longest part of a text that is shown to a person, in bytes.
const SHOWN: usize = 400;

/// The error of a connection, from the text on its error stream. `pod` is `namespace/name`.
pub(super) fn classify(text: &str, pod: &str, port: u16, received: bool) -> ChannelError {
    let all = |parts: &[&str]| parts.iter().all(|part| text.contains(part));
    let socat_refused = all(&["socat", "onnection refused"]);
    let (problem, delivered_nothing) = if socat_refused || REFUSED.iter().any(|part| text.contains(part)) {
        let problem =
            Problem::new(Code::RemoteRefused, format!("nothing listens on port {port} in pod {pod}"));
        (problem.with_remedy(LISTEN), true)
    } else if GONE.iter().any(|parts| all(parts)) {
        (Problem::new(Code::PodGone, format!("pod {pod} is gone")), true)
    } else if UNPAIRED.iter().any(|part| text.contains(part)) {
        let message = format!("the node's container runtime did not take the connection to pod {pod}");
        (Problem::new(Code::ClusterError, message), true)
    } else {
        let message = format!("the connection to port {port} of pod {pod} broke: {}", shown(text));
        (Problem::new(Code::ConnectionLost, message), false)
    };
    let delivery = if delivered_nothing && !received { Delivery::Nothing } else { Delivery::Unknown };
    ChannelError { problem, delivery }
}

/// One line of at most [`SHOWN`] bytes.
fn shown(text: &str) -> String {
    let line = text.trim().replace(['\n', '\r', '\t'], " ");
    let mut end = line.len().min(SHOWN);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    if end < line.len() { format!("{}...", &line[..end]) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (Code, Delivery) {
        let error = classify(text, "ns/pod", 80, false);
        (error.problem.code, error.delivery)
    }

    #[test]
    fn refused_by_the_pod() {
        let containerd = "error forwarding port 9 to pod 1, uid : failed to execute portforward in network namespace \
            \"/var/run/netns/cni-1\": failed to connect to localhost:9 inside namespace \"1\", IPv4: dial tcp4 \
            127.0.0.1:9: connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found ";
        assert_eq!(check(containerd), (Code::RemoteRefused, Delivery::Nothing));
        let socat =
            "exit status 1: 2026/01/01 socat[9] E connect(5, AF=2 127.0.0.1:9, 16): Connection refused";
        assert_eq!(check(socat), (Code::RemoteRefused, Delivery::Nothing));
    }

    #[test]
    fn pod_gone() {
        for text in [
            "network namespace for sandbox \"0a\" is closed",
            "failed to find sandbox \"0a\" in store: not found",
            "sandbox container \"0a\" is not running",
            "could not find sandbox 0a",
        ] {
            assert_eq!(check(text), (Code::PodGone, Delivery::Nothing), "{text}");
        }
    }

    #[test]
    fn other_texts_say_nothing_about_delivery() {
        let text = "error forwarding port 80: read tcp 127.0.0.1:1->127.0.0.1:80: connection reset by peer";
        assert_eq!(check(text), (Code::ConnectionLost, Delivery::Unknown));
        let long = "é".repeat(1000);
        assert!(classify(&long, "ns/pod", 80, false).problem.message.len() < 500);
    }

    #[test]
    fn after_a_byte_nothing_may_be_replayed() {
        let error = classify("failed to connect to localhost:9", "ns/pod", 9, true);
        assert_eq!(error.delivery, Delivery::Unknown);
    }
}
