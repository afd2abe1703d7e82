//! What the cluster means when it refuses an object: the same sentences come as an answer to a request and, for the pod of
//! a Job, as an event of the Job.

use kftray_commons::{Code, Problem};

use super::api::Kind;

/// Longest quoted message of the cluster, in characters: some list every policy there is.
const QUOTE_MAX: usize = 400;

/// What was tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried<'a> {
    pub(super) verb: &'static str,
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
    /// Empty for lists and new objects.
    pub(super) name: &'a str,
}

impl Tried<'_> {
    fn object(&self) -> String {
        match (self.name, self.namespace) {
            ("", "") => self.kind.resource.to_owned(),
            ("", namespace) => format!("{} in namespace {namespace}", self.kind.resource),
            (name, "") => format!("{} {name}", self.kind.word()),
            (name, namespace) => format!("{} {namespace}/{name}", self.kind.word()),
        }
    }
}

/// A failed request as a person should hear of it.
pub(super) fn of_request(error: &kube::Error, tried: &Tried<'_>) -> Problem {
    let kube::Error::Api(status) = error else { return unanswered(error) };
    let message = quote(&status.message);
    let object = tried.object();
    if let Some((code, remedy)) = rule(&message) {
        let problem =
            Problem::new(code, format!("the cluster refuses to {} {object}: {message}", tried.verb));
        return match remedy {
            Some(remedy) => problem.with_remedy(remedy),
            None => problem,
        };
    }
    match status.code {
        401 => Problem::new(
            Code::Unauthorized,
            format!("the cluster does not accept the credentials ({})", said(&message, "401 Unauthorized")),
        ),
        403 => forbidden(&message, tried),
        404 if message.contains("namespaces \"") => {
            Problem::new(Code::TargetMissing, format!("namespace {} does not exist", tried.namespace))
        }
        404 if tried.name.is_empty() => {
            Problem::new(Code::Forbidden, format!("this cluster does not serve {}", tried.kind.resource))
        }
        404 => Problem::new(Code::TargetMissing, format!("{object} does not exist")),
        400 | 422 => Problem::new(
            Code::SpecInvalid,
            format!("the cluster cannot {} {object}: {}", tried.verb, said(&message, "bad request")),
        ),
        code => Problem::new(
            Code::ClusterError,
            format!(
                "the API server answers {code} to {} {object}: {}",
                tried.verb,
                said(&message, "no reason given")
            ),
        ),
    }
}

/// A sentence of the cluster about an object that it would not have: which rule spoke, and a remedy where the case knows a
/// better one. `None`: no rule, but rights or a fault.
pub(super) fn rule(message: &str) -> Option<(Code, Option<String>)> {
    if message.contains("exceeded quota") {
        return Some((Code::RelayQuota, None));
    }
    if message.contains("failed quota") && message.contains("must specify") {
        let remedy = "The quota asks for limits or requests that the relay has not: set the relay's resources, for example \
                      with limits for cpu and memory.";
        return Some((Code::RelayQuota, Some(remedy.to_owned())));
    }
    let of_limit_range = ["usage per Container", "usage per Pod", "limit to request ratio per"];
    if of_limit_range.iter().any(|words| message.contains(words)) {
        return Some((
            Code::RelayQuota,
            Some("Set the relay's resources to what the namespace's LimitRange allows.".to_owned()),
        ));
    }
    if message.contains("violates PodSecurity") {
        return Some((
            Code::RelayAdmission,
            Some(
                "The relay fits the profile `restricted` as it is made: look at what a patch setting or an admission webhook \
                 adds to it."
                    .to_owned(),
            ),
        ));
    }
    if message.contains("security context constraint") {
        return Some((Code::RelayAdmission, None));
    }
    if message.contains("denied the request") || message.contains("denied request") {
        return Some((Code::RelayAdmission, None));
    }
    if message.contains("failed calling webhook") || message.contains("failed to call webhook") {
        return Some((
            Code::RelayAdmission,
            Some(
                "An admission webhook of the cluster does not answer; its administrator must mend it."
                    .to_owned(),
            ),
        ));
    }
    if message.contains("is being terminated") {
        return Some((
            Code::RelayAdmission,
            Some("The namespace is being deleted; use another, or wait until it is there again.".to_owned()),
        ));
    }
    None
}

/// The refusal names verb, resource, namespace and, as far as the server told, the user; and how to get the right.
fn forbidden(message: &str, tried: &Tried<'_>) -> Problem {
    let user =
        message.split_once("User \"").and_then(|(_, after)| after.split_once('"')).map(|(user, _)| user);
    let user =
        user.filter(|user| !user.is_empty()).map_or_else(String::new, |user| format!(" (as user {user})"));
    let resource = tried.kind.resource;
    let place =
        if tried.namespace.is_empty() { String::new() } else { format!(" in namespace {}", tried.namespace) };
    // Not every 403 is RBAC. Others have a text of their own.
    let own_words = if message.is_empty() || message.contains(" cannot ") {
        String::new()
    } else {
        format!(": {message}")
    };
    let verb = tried.verb;
    Problem::new(Code::Forbidden, format!("may not {verb} {resource}{place}{user}{own_words}")).with_remedy(format!(
        "Ask for a Role{place} with the verb {verb} on {resource} (`kftui rbac print` has one ready), or for a relay \
         installed by an administrator (`kftui relay install`)."
    ))
}

/// An error without an answer of the server. The layers below put a [`Problem`] into the chain where they know better.
fn unanswered(error: &kube::Error) -> Problem {
    let mut innermost = error.to_string();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(problem) = inner.downcast_ref::<Problem>() {
            return problem.clone();
        }
        innermost = inner.to_string();
        cause = inner.source();
    }
    Problem::new(Code::ClusterUnreachable, format!("the API server cannot be reached: {innermost}"))
}

fn said<'a>(message: &'a str, otherwise: &'a str) -> &'a str {
    if message.is_empty() { otherwise } else { message }
}

/// A message of the cluster on one line and not too long.
pub(super) fn quote(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(QUOTE_MAX) {
        line.truncate(cut);
        line.push_str("...");
    }
    line.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::super::api::JOBS;
    use super::*;

    fn told(code: u16, message: &str, name: &str) -> Problem {
        let mut status = Status::failure(message, "");
        status.code = code;
        let tried = Tried { verb: "create", kind: JOBS, namespace: "shop", name };
        of_request(&kube::Error::Api(status.boxed()), &tried)
    }

    #[test]
    fn every_rule_has_its_code() {
        for (message, code) in [
            (
                "pods \"kftray-relay-jane-1-x\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=3, limited: \
                 pods=3",
                Code::RelayQuota,
            ),
            (
                "pods \"x\" is forbidden: failed quota: q: must specify limits.cpu for: kftray-server",
                Code::RelayQuota,
            ),
            (
                "pods \"x\" is forbidden: minimum memory usage per Container is 64Mi, but request is 16Mi",
                Code::RelayQuota,
            ),
            (
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
                Code::RelayAdmission,
            ),
            (
                "admission webhook \"images.example.com\" denied the request: only our registry",
                Code::RelayAdmission,
            ),
            (
                "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
                Code::RelayAdmission,
            ),
            (
                "Internal error occurred: failed calling webhook \"w.example.com\": connection refused",
                Code::RelayAdmission,
            ),
            (
                "jobs.batch \"x\" is forbidden: unable to create new content in namespace shop because it is being terminated",
                Code::RelayAdmission,
            ),
        ] {
            let problem = told(403, message, "x");
            assert_eq!(problem.code, code, "{message}");
            assert!(
                problem.message.starts_with("the cluster refuses to create job shop/x: "),
                "{}",
                problem.message
            );
        }
    }

    #[test]
    fn rights_name_verb_resource_namespace_and_user() {
        let problem = told(
            403,
            "jobs.batch is forbidden: User \"jane\" cannot create resource \"jobs\" in API group \"batch\" in the namespace \
             \"shop\"",
            "",
        );
        assert_eq!(problem.code, Code::Forbidden);
        assert_eq!(problem.message, "may not create jobs.batch in namespace shop (as user jane)");
        assert!(problem.remedy.contains("rbac print"), "{}", problem.remedy);
    }

    #[test]
    fn the_rest_has_codes_too() {
        for (status, message, code) in [
            (401, "", Code::Unauthorized),
            (404, "namespaces \"shop\" not found", Code::TargetMissing),
            (422, "Job.batch \"x\" is invalid: spec", Code::SpecInvalid),
            (500, "etcd is slow", Code::ClusterError),
        ] {
            assert_eq!(told(status, message, "x").code, code, "{status} {message}");
        }
    }
}
