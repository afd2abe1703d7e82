//! What a forward needs to be allowed, and whether it is: by `SelfSubjectAccessReview`, one per verb, or out of a
//! `SelfSubjectRulesReview` where those are refused. Both ask about oneself and change nothing.

use futures::future::join_all;
use kftray_commons::Workload;
use kftray_commons::api::{Granted, Need, Permission};
use kftray_commons::spec::Pods;
use kftray_commons::{Code, Problem, WorkloadKind};
use serde_json::{Value, json};

use crate::Cluster;

/// One thing to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Right {
    verb: &'static str,
    /// Plural.
    resource: &'static str,
    subresource: &'static str,
    group: &'static str,
    /// Rights of one way; any of them will do.
    way: Way,
    need: Need,
}

/// What a forward must be able to do, by whichever right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Find the object.
    Object,
    /// Find its pods.
    Pods,
    /// Open the port-forward.
    Open,
}

const fn right(
    verb: &'static str,
    resource: &'static str,
    group: &'static str,
    way: Way,
    need: Need,
) -> Right {
    Right { verb, resource, subresource: "", group, way, need }
}

/// `create` opens it by SPDY and, from Kubernetes 1.35, by WebSocket; `get` by WebSocket before that.
const OPEN: [Right; 2] = [
    Right { subresource: "portforward", ..right("create", "pods", "", Way::Open, Need::Must) },
    Right { subresource: "portforward", ..right("get", "pods", "", Way::Open, Need::Better) },
];

/// What a forward of this kind uses, in order of use.
fn rights(workload: &Workload) -> Vec<Right> {
    use Need::{Better, Must};
    let mut all = match workload {
        Workload::Service { .. } => vec![
            right("get", "services", "", Way::Object, Must),
            right("list", "services", "", Way::Object, Better),
            right("watch", "services", "", Way::Object, Better),
            right("list", "endpointslices", "discovery.k8s.io", Way::Pods, Must),
            right("watch", "endpointslices", "discovery.k8s.io", Way::Pods, Better),
            right("list", "pods", "", Way::Pods, Better),
            right("watch", "pods", "", Way::Pods, Better),
        ],
        // A pod that is named with a port number is forwarded to even unseen.
        Workload::Pod { pods: Pods::Name(_), .. } => vec![
            right("get", "pods", "", Way::Object, Better),
            right("list", "pods", "", Way::Object, Better),
            right("watch", "pods", "", Way::Object, Better),
        ],
        Workload::Pod { pods: Pods::Selector(_), .. } => {
            vec![right("list", "pods", "", Way::Pods, Must), right("watch", "pods", "", Way::Pods, Better)]
        }
        Workload::Owner { owner, .. } => {
            let (resource, group) = plural(*owner);
            vec![
                right("get", resource, group, Way::Object, Must),
                right("watch", resource, group, Way::Object, Better),
                right("list", "pods", "", Way::Pods, Must),
                right("watch", "pods", "", Way::Pods, Better),
            ]
        }
        // Their permissions are those of the relay.
        Workload::Proxy { .. } | Workload::Expose(_) => Vec::new(),
    };
    all.extend(OPEN);
    all
}

fn plural(owner: WorkloadKind) -> (&'static str, &'static str) {
    match owner {
        WorkloadKind::Deployment => ("deployments", "apps"),
        WorkloadKind::StatefulSet => ("statefulsets", "apps"),
        WorkloadKind::DaemonSet => ("daemonsets", "apps"),
        WorkloadKind::ReplicaSet => ("replicasets", "apps"),
        WorkloadKind::Job => ("jobs", "batch"),
    }
}

impl Right {
    /// `pods/portforward`, `endpointslices.discovery.k8s.io`.
    fn shown(&self) -> String {
        let subresource =
            if self.subresource.is_empty() { String::new() } else { format!("/{}", self.subresource) };
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        format!("{}{subresource}{group}", self.resource)
    }
}

/// Asks the cluster about everything that a forward of this kind uses in this namespace.
pub async fn permissions(cluster: &Cluster, workload: &Workload, namespace: &str) -> Vec<Permission> {
    let rights = rights(workload);
    let object = object(workload);
    let mut answers = join_all(rights.iter().map(|right| review(cluster, right, namespace, object))).await;
    if answers.contains(&Granted::Unknown)
        && let Some(rules) = rules(cluster, namespace).await
    {
        for (answer, right) in answers.iter_mut().zip(&rights) {
            if *answer == Granted::Unknown {
                *answer = rules.allow(right, object);
            }
        }
    }
    let told = |(right, granted): (&Right, Granted)| Permission {
        verb: right.verb.to_owned(),
        resource: right.shown(),
        granted,
        need: right.need,
    };
    rights.iter().zip(answers).map(told).collect()
}

/// The name of what is forwarded to: a role may be for that alone.
fn object(workload: &Workload) -> &str {
    match workload {
        Workload::Service { name, .. }
        | Workload::Pod { pods: Pods::Name(name), .. }
        | Workload::Owner { name, .. } => name,
        Workload::Pod { pods: Pods::Selector(_), .. } | Workload::Proxy { .. } | Workload::Expose(_) => "",
    }
}

/// What of it stands in the way: a thing that a forward must do, and every right to it is denied.
#[must_use]
pub fn judge(workload: &Workload, namespace: &str, permissions: &[Permission]) -> Vec<Problem> {
    let rights = rights(workload);
    let mut problems = Vec::new();
    for way in [Way::Object, Way::Pods, Way::Open] {
        let mut ways = rights.iter().zip(permissions).filter(|(right, _)| right.way == way).peekable();
        let must = rights.iter().any(|right| right.way == way && right.need == Need::Must);
        // Watching alone finds nothing.
        let denied = ways.peek().is_some()
            && ways.all(|(right, answer)| right.verb == "watch" || answer.granted == Granted::No);
        let Some(first) = rights.iter().find(|right| right.way == way && right.need == Need::Must) else {
            continue;
        };
        if must && denied {
            let (verb, resource) = (first.verb, first.shown());
            let message = format!("may not {verb} {resource} in namespace {namespace}");
            let verbs = if way == Way::Open { "get and create" } else { "get, list and watch" };
            let remedy =
                format!("Ask for a Role in namespace {namespace} that allows {verbs} on {resource}.");
            problems.push(Problem::new(Code::Forbidden, message).with_remedy(remedy));
        }
    }
    problems
}

async fn review(cluster: &Cluster, right: &Right, namespace: &str, object: &str) -> Granted {
    let name = if right.way == Way::Object { object } else { "" };
    let attributes = json!({
        "namespace": namespace, "verb": right.verb, "group": right.group, "resource": right.resource,
        "subresource": right.subresource, "name": name,
    });
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": attributes },
    });
    match post(cluster, "selfsubjectaccessreviews", &review).await {
        Some(answer) if answer["status"]["allowed"] == true => Granted::Yes,
        Some(answer) if answer["status"]["allowed"] == false => Granted::No,
        Some(_) | None => Granted::Unknown,
    }
}

async fn post(cluster: &Cluster, resource: &str, review: &Value) -> Option<Value> {
    let path = format!("/apis/authorization.k8s.io/v1/{resource}");
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(review.to_string().into_bytes())
        .ok()?;
    let answer = cluster.client().request::<Value>(request).await;
    answer
        .inspect_err(|error| tracing::debug!(resource, %error, "the cluster does not tell what is permitted"))
        .ok()
}

/// What a rules review told.
struct Rules {
    rules: Vec<Value>,
    /// An authorizer could not list its rules: what is not in them may be permitted all the same.
    incomplete: bool,
}

async fn rules(cluster: &Cluster, namespace: &str) -> Option<Rules> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": namespace },
    });
    let mut answer = post(cluster, "selfsubjectrulesreviews", &review).await?;
    let incomplete = answer["status"]["incomplete"] == true;
    let rules = answer["status"]["resourceRules"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Some(Rules { rules, incomplete })
}

impl Rules {
    fn allow(&self, right: &Right, object: &str) -> Granted {
        let any = |list: &Value, wanted: &[&str]| {
            list.as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .any(|entry| wanted.contains(&entry))
        };
        let whole = if right.subresource.is_empty() {
            right.resource.to_owned()
        } else {
            format!("{}/{}", right.resource, right.subresource)
        };
        let any_object = format!("*/{}", right.subresource);
        let allows = |rule: &&Value| {
            // A rule for some objects says nothing about the others.
            let names = &rule["resourceNames"];
            let names_it = right.way == Way::Object && any(names, &[object]);
            any(&rule["verbs"], &["*", right.verb])
                && any(&rule["apiGroups"], &["*", right.group])
                && any(&rule["resources"], &["*", &whole, &any_object])
                && (names_it || names.as_array().is_none_or(Vec::is_empty))
        };
        match self.rules.iter().find(allows) {
            Some(_) => Granted::Yes,
            None if self.incomplete => Granted::Unknown,
            None => Granted::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use kftray_commons::RemotePort;

    use super::*;

    fn service() -> Workload {
        Workload::Service { name: "web".to_owned(), port: RemotePort::Number(NonZeroU16::MIN) }
    }

    fn answers(granted: impl Fn(&Right) -> Granted) -> Vec<Permission> {
        let told = |right: &Right| Permission {
            verb: right.verb.to_owned(),
            resource: right.shown(),
            granted: granted(right),
            need: right.need,
        };
        rights(&service()).iter().map(told).collect()
    }

    #[test]
    fn one_way_is_enough() {
        let none = judge(&service(), "shop", &answers(|_| Granted::No));
        let told: Vec<&str> = none.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(
            told,
            [
                "may not get services in namespace shop",
                "may not list endpointslices.discovery.k8s.io in namespace shop",
                "may not create pods/portforward in namespace shop",
            ]
        );
        let pods_only = answers(|right| match (right.resource, right.verb) {
            ("pods", "list") | ("services", "get") => Granted::Yes,
            ("pods", "get") => Granted::Yes,
            _ => Granted::No,
        });
        assert_eq!(judge(&service(), "shop", &pods_only), []);
        let watch_only = answers(|right| if right.verb == "watch" { Granted::Yes } else { Granted::No });
        assert_eq!(judge(&service(), "shop", &watch_only).len(), 3);
        assert_eq!(judge(&service(), "shop", &answers(|_| Granted::Unknown)), []);
    }

    #[test]
    fn rules_are_read_as_the_authorizer_reads_them() {
        let rules = |incomplete| Rules {
            rules: vec![
                json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["services"], "resourceNames": ["web"] }),
                json!({ "verbs": ["*"], "apiGroups": ["discovery.k8s.io"], "resources": ["*"] }),
                json!({ "verbs": ["create"], "apiGroups": ["*"], "resources": ["pods/portforward"] }),
            ],
            incomplete,
        };
        let told = |rules: &Rules| {
            rights(&service()).iter().map(|right| rules.allow(right, "web")).collect::<Vec<_>>()
        };
        use Granted::{No, Unknown, Yes};
        assert_eq!(told(&rules(false)), [Yes, No, No, Yes, Yes, No, No, Yes, No]);
        assert_eq!(told(&rules(true)), [Yes, Unknown, Unknown, Yes, Yes, Unknown, Unknown, Yes, Unknown]);
    }
}
