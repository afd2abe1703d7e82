//! What a failed API request means for a watch: step down, list anew, wait, or tell a person.

use std::error::Error as _;
use std::time::Duration;

use kftray_commons::{Code, Problem};

use super::feed::FeedKey;

/// A failed request, by what has to happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not permitted, or not served by this cluster: another way must be found.
    Denied(Problem),
    /// The version is too old: list again.
    Gone,
    /// No object of that name.
    Missing,
    /// Anything else: retry, not before `retry_after` if the server gave one.
    Failed(Problem, Option<Duration>),
}

/// Longest `Retry-After` that is obeyed: a proxy once asked for an hour.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The reason in the Status of an object that is not there.
const NOT_FOUND: &str = "NotFound";

impl Refusal {
    /// Judges the error of `verb` on the objects of a feed.
    pub(super) fn of(error: &kube::Error, verb: &str, key: &FeedKey) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Failed(problem_of(error, key), None);
        };
        let wait = status.details.as_ref().map(|details| u64::from(details.retry_after_seconds));
        let wait = wait
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let message = status.message.trim();
        match status.code {
            401 => Self::Failed(
                Problem::new(
                    Code::Unauthorized,
                    format!(
                        "the cluster does not accept the credentials ({})",
                        said(message, "401 Unauthorized")
                    ),
                ),
                wait,
            ),
            403 => Self::Denied(forbidden(message, verb, key)),
            404 if verb == "get" && status.reason == NOT_FOUND => Self::Missing,
            // Every API server serves the core group (the only one without a dot), and says so in a Status.
            404 if !key.kind.resource.contains('.') && status.reason != NOT_FOUND => Self::Failed(
                Problem::new(
                    Code::ClusterError,
                    format!(
                        "what answers is no API server: 404 to {verb} {}: {}",
                        key.kind.resource,
                        said(message, "no reason given")
                    ),
                )
                .with_remedy("Check the address of the server in the kubeconfig, its path included."),
                wait,
            ),
            404 => Self::Denied(Problem::new(
                Code::Forbidden,
                format!("this cluster does not serve {}", key.kind.resource),
            )),
            400 | 422 => Self::Failed(
                Problem::new(
                    Code::SpecInvalid,
                    format!(
                        "the cluster refuses to {verb} {}: {}",
                        key.kind.resource,
                        said(message, "bad request")
                    ),
                ),
                wait,
            ),
            410 => Self::Gone,
            // Sent instead of 410 by old servers when the version is from another etcd.
            504 if message.contains("Too large resource version") => Self::Gone,
            code => Self::Failed(
                Problem::new(
                    Code::ClusterError,
                    format!(
                        "the API server answers {code} to {verb} {}: {}",
                        key.kind.resource,
                        said(message, "no reason given")
                    ),
                ),
                wait,
            ),
        }
    }
}

fn said<'a>(message: &'a str, otherwise: &'a str) -> &'a str {
    if message.is_empty() { otherwise } else { message }
}

/// The refusal names verb, resource, namespace and, as far as the server told, the user.
fn forbidden(message: &str, verb: &str, key: &FeedKey) -> Problem {
    let user = user_in(message).map_or_else(String::new, |user| format!(" (as user {user})"));
    let (resource, namespace) = (key.kind.resource, &key.namespace);
    // Not every 403 is RBAC: admission, a gateway, a suspended account. Those have a text of their own.
    let own_words = if message.is_empty() || message.contains(" cannot ") {
        String::new()
    } else {
        format!(": {message}")
    };
    Problem::new(
        Code::Forbidden,
        format!("may not {verb} {resource} in namespace {namespace}{user}{own_words}"),
    )
    .with_remedy(format!("Ask for a Role in namespace {namespace} with the verb {verb} on {resource}."))
}

/// `... is forbidden: User "jane" cannot list resource ...` (apiserver `responsewriters.ForbiddenMessage`).
fn user_in(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("User \"")?;
    after.split_once('"').map(|(user, _)| user).filter(|user| !user.is_empty())
}

/// An error without an answer of the server. The layers below put a [`Problem`] into the chain where they know better:
/// a failed plugin, an untrusted certificate.
fn problem_of(error: &kube::Error, key: &FeedKey) -> Problem {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error.to_string();
    while let Some(inner) = cause {
        if let Some(problem) = inner.downcast_ref::<Problem>() {
            return problem.clone();
        }
        innermost = inner.to_string();
        cause = inner.source();
    }
    if let kube::Error::SerdeError(_) = error {
        return Problem::new(
            Code::ClusterError,
            format!("the API server's answer about {} cannot be read: {innermost}", key.kind.resource),
        );
    }
    if error.source().is_none() {
        innermost = error.to_string();
    }
    Problem::new(Code::ClusterUnreachable, format!("the API server cannot be reached: {innermost}"))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::super::feed::{Access, ENDPOINT_SLICES, Scope};
    use super::*;

    fn refusal(code: u16, message: &str, verb: &str) -> Refusal {
        let key = FeedKey {
            kind: ENDPOINT_SLICES,
            namespace: "shop".into(),
            scope: Scope::All,
            access: Access::Watch,
        };
        let mut status = Status::failure(message, if code == 404 { NOT_FOUND } else { "" });
        status.code = code;
        Refusal::of(&kube::Error::Api(status.boxed()), verb, &key)
    }

    #[test]
    fn forbidden_names_verb_resource_namespace_and_user() {
        let server = "endpointslices.discovery.k8s.io is forbidden: User \"jane@example.com\" cannot list resource \
                      \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \"shop\"";
        let Refusal::Denied(problem) = refusal(403, server, "list") else { panic!("not denied") };
        assert_eq!(problem.code, Code::Forbidden);
        assert_eq!(
            problem.message,
            "may not list endpointslices.discovery.k8s.io in namespace shop (as user jane@example.com)"
        );
        assert!(
            problem.remedy.contains("verb list on endpointslices.discovery.k8s.io"),
            "{}",
            problem.remedy
        );
    }

    #[test]
    fn a_forbidden_of_another_origin_keeps_its_words() {
        let Refusal::Denied(problem) = refusal(403, "account suspended", "list") else {
            panic!("not denied")
        };
        assert_eq!(
            problem.message,
            "may not list endpointslices.discovery.k8s.io in namespace shop: account suspended"
        );
    }

    #[test]
    fn a_404_of_something_else_is_no_missing_object() {
        let core = FeedKey {
            kind: super::super::feed::SERVICES,
            namespace: "shop".into(),
            scope: Scope::All,
            access: Access::Watch,
        };
        let mut page = Status::failure("404 page not found", "Failed to parse error data");
        page.code = 404;
        let page = kube::Error::Api(page.boxed());
        let Refusal::Failed(problem, None) = Refusal::of(&page, "get", &core) else { panic!("missing") };
        assert_eq!(problem.code, Code::ClusterError);
        assert!(problem.message.contains("no API server"), "{}", problem.message);
        let slices = FeedKey { kind: ENDPOINT_SLICES, ..core };
        assert!(matches!(Refusal::of(&page, "get", &slices), Refusal::Denied(_)));
    }

    #[test]
    fn codes_lead_to_different_steps() {
        assert_eq!(refusal(410, "too old", "watch"), Refusal::Gone);
        assert_eq!(refusal(404, "", "get"), Refusal::Missing);
        assert!(matches!(refusal(404, "", "list"), Refusal::Denied(_)));
        for (status, code) in [
            (401, Code::Unauthorized),
            (400, Code::SpecInvalid),
            (500, Code::ClusterError),
            (429, Code::ClusterError),
        ] {
            assert!(
                matches!(refusal(status, "x", "list"), Refusal::Failed(problem, None) if problem.code == code)
            );
        }
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let key = FeedKey {
            kind: ENDPOINT_SLICES,
            namespace: "x".into(),
            scope: Scope::All,
            access: Access::Watch,
        };
        for (asked, expected) in [(5, Some(5)), (3600, Some(60)), (0, None)] {
            let mut status = Status::failure("slow down", "TooManyRequests");
            status.code = 429;
            status.details = Some(kube::core::response::StatusDetails {
                name: String::new(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_seconds: asked,
            });
            let refusal = Refusal::of(&kube::Error::Api(status.boxed()), "list", &key);
            assert!(
                matches!(refusal, Refusal::Failed(_, wait) if wait == expected.map(Duration::from_secs)),
                "{refusal:?}"
            );
        }
    }
}
