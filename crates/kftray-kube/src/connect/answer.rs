//! What an API server's refusal means: the Kubernetes `Status` object read into a [`Problem`], the same for upgrades and for
//! requests through kube-rs.

use kftray_commons::{Code, Problem};
use serde::Deserialize;

use crate::config::login::redact;

/// As much of a `Status` (meta/v1) as messages need.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StatusText {
    kind: String,
    /// The server's sentence.
    pub(crate) message: String,
    /// `Forbidden`, `NotFound`, ...
    pub(crate) reason: String,
}

impl StatusText {
    /// From an error body: the object, or the text as it is.
    pub(crate) fn of(body: &[u8]) -> Self {
        match serde_json::from_slice::<Self>(body) {
            Ok(status) if status.kind == "Status" => status,
            _ => Self { message: plain(&String::from_utf8_lossy(body)), ..Self::default() },
        }
    }

    /// Whether the server said so in its own format: a gateway's error page does not.
    pub(crate) fn is_kubernetes(&self) -> bool {
        self.kind == "Status"
    }
}

/// A text in one line, bounded, without control characters, secrets or HTML.
fn plain(text: &str) -> String {
    const SHOWN: usize = 300;
    if text.trim_start().starts_with('<') {
        return "(an HTML page)".to_owned();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    redact(&line)
}

/// The parts of the authorizer's sentence
/// `pods "x" is forbidden: User "u" cannot VERB resource "R" in API group "g" in the namespace "n"`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    user: String,
    verb: String,
    resource: String,
    group: String,
    namespace: Option<String>,
}

impl Denied {
    /// Reads them, where the sentence has that form (RBAC and Node authorizers; webhooks may say anything).
    pub(crate) fn parse(message: &str) -> Option<Self> {
        let after = |mark: &str| message.split_once(mark).map(|(_, rest)| rest);
        let quoted = |rest: Option<&str>| rest?.split_once('"').map(|(text, _)| text.to_owned());
        Some(Self {
            user: quoted(after("User \""))?,
            verb: after("cannot ")?.split_whitespace().next()?.to_owned(),
            resource: quoted(after("resource \""))?,
            group: quoted(after("API group \"")).unwrap_or_default(),
            namespace: quoted(after("in the namespace \"")),
        })
    }
}

/// What was asked for, in case the server does not say what it refuses.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `get`, `list`, `watch`, `create`.
    pub verb: &'a str,
    /// Plural, with subresource: `pods/portforward`.
    pub resource: &'a str,
    /// Empty for the core group.
    pub group: &'a str,
    /// `None` for all namespaces.
    pub namespace: Option<&'a str>,
}

/// A 403. `remedy` names what to ask an administrator for.
pub(crate) fn forbidden(status: &StatusText, asked: Asked<'_>, context: &str) -> Problem {
    let denied = Denied::parse(&status.message);
    if denied.as_ref().is_some_and(|denied| denied.user == "system:anonymous") {
        return Problem::new(
            Code::Unauthorized,
            format!(
                "context {context}: the cluster takes the user for anonymous; the credentials are missing or not accepted"
            ),
        );
    }
    let (message, verb, resource, namespace) = match &denied {
        Some(it) => {
            let group = if it.group.is_empty() { String::new() } else { format!(".{}", it.group) };
            let place = it
                .namespace
                .as_ref()
                .map_or_else(|| "the whole cluster".to_owned(), |name| format!("namespace {name}"));
            let message = format!("user {} may not {} {}{group} in {place}", it.user, it.verb, it.resource);
            (message, it.verb.as_str(), format!("{}{group}", it.resource), it.namespace.as_deref())
        }
        None => {
            let group = if asked.group.is_empty() { String::new() } else { format!(".{}", asked.group) };
            let place = asked
                .namespace
                .map_or_else(|| "the whole cluster".to_owned(), |name| format!("namespace {name}"));
            let said = if status.message.is_empty() {
                String::new()
            } else {
                format!(" ({})", plain(&status.message))
            };
            let message = format!(
                "the user of context {context} may not {} {}{group} in {place}{said}",
                asked.verb, asked.resource
            );
            (message, asked.verb, format!("{}{group}", asked.resource), asked.namespace)
        }
    };
    let place =
        namespace.map_or_else(|| "a ClusterRole".to_owned(), |name| format!("a Role in namespace {name}"));
    // Which of the two a server wants depends on its version (kubernetes/enhancements#5524): ask for both at once.
    let verbs = if resource == "pods/portforward" { "get and create" } else { verb };
    Problem::new(Code::Forbidden, message)
        .with_remedy(format!("Ask for {place} that allows {verbs} on {resource}."))
}

/// A 401 that a fresh login did not cure.
pub(crate) fn unauthorized(context: &str, login: &str) -> Problem {
    Problem::new(Code::Unauthorized, format!("context {context}: the cluster does not accept the {login}"))
}

/// Texts with which API server, kubelet and runtimes say that the pod is not there to be forwarded to
/// (`pkg/kubelet/kubelet_pods.go`, containerd and CRI-O `portforward`).
const POD_GONE: [&str; 9] = [
    "pod not found",
    "pod does not exist",
    "pod is not running",
    "unable to forward port because pod",
    "container not running",
    "failed to find sandbox",
    "could not find sandbox",
    "is not running",
    "does not have a host assigned",
];

/// Whether a server's sentence means that the pod is gone, or not (yet) running on a node.
pub(crate) fn says_pod_gone(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    POD_GONE.iter().any(|mark| text.contains(mark))
        || (text.contains("sandbox") && text.contains("not found"))
}

/// What a failed request through [`crate::Cluster::client`] means.
#[must_use]
pub fn request_problem(error: &kube::Error, asked: Asked<'_>, context: &str) -> Problem {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are told by their own text")]
    match error {
        kube::Error::Api(status) => {
            let text = StatusText {
                kind: "Status".to_owned(),
                message: status.message.clone(),
                reason: status.reason.clone(),
            };
            refused(status.code, &text, asked, context)
        }
        kube::Error::Service(inner) => match inner.downcast_ref::<Problem>() {
            Some(problem) => problem.clone(),
            None => Problem::new(
                Code::ClusterUnreachable,
                format!("context {context}: {}", chain(inner.as_ref())),
            ),
        },
        kube::Error::HyperError(inner) => Problem::new(
            Code::ClusterUnreachable,
            format!("context {context}: connection lost: {}", chain(inner)),
        ),
        other => Problem::new(Code::ClusterError, format!("context {context}: {}", redact(&chain(other)))),
    }
}

/// An error with its sources, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

/// What an error answer to a request for objects means.
pub(crate) fn refused(code: u16, status: &StatusText, asked: Asked<'_>, context: &str) -> Problem {
    let text = plain(&status.message);
    match code {
        401 => unauthorized(context, "credentials"),
        403 => forbidden(status, asked, context),
        404 => Problem::new(
            Code::TargetMissing,
            if text.is_empty() { format!("{} not found", asked.resource) } else { text },
        ),
        429 => Problem::new(
            Code::ClusterError,
            format!("context {context}: the API server is overloaded (429): {text}"),
        ),
        _ => Problem::new(
            Code::ClusterError,
            format!("context {context}: the API server answers {code}: {text}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'_> =
        Asked { verb: "create", resource: "pods/portforward", group: "", namespace: Some("shop") };

    #[test]
    fn the_authorizers_sentence_is_taken_apart() {
        let body = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web-0\" is forbidden: User \"bob\" cannot create resource \"pods/portforward\" in API group \"\" in the namespace \"shop\"","reason":"Forbidden","details":{"name":"web-0","kind":"pods"},"code":403}"#;
        let status = StatusText::of(body);
        assert!(status.is_kubernetes());
        let problem = forbidden(&status, ASKED, "prod");
        assert_eq!(problem.code, Code::Forbidden);
        assert_eq!(problem.message, "user bob may not create pods/portforward in namespace shop");
        assert_eq!(
            problem.remedy,
            "Ask for a Role in namespace shop that allows get and create on pods/portforward."
        );
    }

    #[test]
    fn other_refusals_name_what_was_asked() {
        let status = StatusText::of(b"admission webhook said no");
        let asked =
            Asked { verb: "watch", resource: "endpointslices", group: "discovery.k8s.io", namespace: None };
        let problem = forbidden(&status, asked, "prod");
        assert_eq!(
            problem.message,
            "the user of context prod may not watch endpointslices.discovery.k8s.io in the whole cluster (admission webhook said no)"
        );
        assert_eq!(
            problem.remedy,
            "Ask for a ClusterRole that allows watch on endpointslices.discovery.k8s.io."
        );
    }

    #[test]
    fn anonymous_is_a_login_problem() {
        let status = StatusText {
            message: "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope".to_owned(),
            ..StatusText::default()
        };
        assert_eq!(forbidden(&status, ASKED, "prod").code, Code::Unauthorized);
    }

    #[test]
    fn bodies_that_are_no_status() {
        assert_eq!(StatusText::of(b"<html><body>Blocked</body></html>").message, "(an HTML page)");
        assert_eq!(StatusText::of(b" a\r\n\tb\x1b[31m ").message, "a b[31m");
        assert_eq!(StatusText::of(&[b'a'; 5000]).message.len(), 300);
    }

    #[test]
    fn gone_pods() {
        for text in [
            "unable to upgrade connection: pod not found (\"web_shop\")",
            "pod does not exist",
            "unable to forward port because pod is not running. Current status=Pending",
            "error forwarding port: failed to find sandbox \"abc\" in store: not found",
            "sandbox container \"x\" is not running",
        ] {
            assert!(says_pod_gone(text), "{text}");
        }
        assert!(!says_pod_gone("404 page not found"));
    }
}
