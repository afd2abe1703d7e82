//! What a forward needs to be allowed, and whether it is: by `SelfSubjectAccessReview`, one per verb, or out of a
//! `SelfSubjectRulesReview` where those are refused. Both ask about oneself and change nothing.

use futures::future::join_all;
use kftray_commons::api::{Granted, Need, Permission};
use kftray_commons::spec::{Pods, Protocol};
use kftray_commons::{Code, ForwardSpec, Problem, Via, Workload, WorkloadKind};
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
    /// Rights of one way; any of them will do, of [`Way::Relay`] all that must be are needed.
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
    /// Start a relay, and make the objects of an expose.
    Relay,
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

/// What such a forward uses, in order of use.
fn rights(spec: &ForwardSpec) -> Vec<Right> {
    use Need::{Better, Must};
    let mut all = match &spec.workload {
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
    if needs_relay(spec) {
        all.extend([
            right("create", "jobs", "batch", Way::Relay, Must),
            right("list", "jobs", "batch", Way::Relay, Must),
            right("list", "pods", "", Way::Relay, Must),
            right("watch", "jobs", "batch", Way::Relay, Better),
            right("watch", "pods", "", Way::Relay, Better),
            right("delete", "jobs", "batch", Way::Relay, Better),
            right("list", "events", "", Way::Relay, Better),
        ]);
    }
    if let Workload::Expose(expose) = &spec.workload {
        let named = |resource, group| {
            ["get", "create", "patch"].map(|verb| right(verb, resource, group, Way::Relay, Must))
        };
        all.extend(named("services", ""));
        if expose.is_public() {
            all.extend(named("ingresses", "networking.k8s.io"));
        }
    }
    all.extend(OPEN);
    all
}

/// Whether it does not work without a relay; one that would only rather have it does.
fn needs_relay(spec: &ForwardSpec) -> bool {
    spec.protocol == Protocol::Udp
        || spec.via == Via::Relay
        || matches!(spec.workload, Workload::Proxy { .. } | Workload::Expose(_))
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

/// Asks the cluster about everything that such a forward uses in this namespace, the relay that it needs included.
pub async fn permissions(cluster: &Cluster, spec: &ForwardSpec, namespace: &str) -> Vec<Permission> {
    let rights = rights(spec);
    let object = object(&spec.workload);
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
pub fn judge(spec: &ForwardSpec, namespace: &str, permissions: &[Permission]) -> Vec<Problem> {
    let rights = rights(spec);
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

/// What stands in the way of the relay of a forward that needs one: all that it must be able to do and may not.
#[must_use]
pub fn judge_relay(spec: &ForwardSpec, namespace: &str, permissions: &[Permission]) -> Option<Problem> {
    let missing: Vec<String> = rights(spec)
        .iter()
        .zip(permissions)
        .filter(|(right, answer)| {
            right.way == Way::Relay && right.need == Need::Must && answer.granted == Granted::No
        })
        .map(|(right, _)| format!("{} {}", right.verb, right.shown()))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let exposes = matches!(spec.workload, Workload::Expose(_));
    let (what, sheet) = if exposes { ("an expose", "expose") } else { ("a relay of its own", "relay") };
    let message = format!("may not {} in namespace {namespace}, which {what} needs", missing.join(", "));
    let mut remedy = format!("Ask for the Role that `kftui rbac print {sheet} -n {namespace}` prints");
    if !exposes {
        remedy.push_str(", or for a relay that is installed for all (`kftui relay install`)");
    }
    Some(Problem::new(Code::Forbidden, message).with_remedy(remedy + "."))
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

    use kftray_commons::access::Access;
    use kftray_commons::spec::{Expose, ExposeProtocol, Exposure};
    use kftray_commons::{ForwardId, RemotePort};

    use super::*;

    fn service() -> ForwardSpec {
        let port = RemotePort::Number(NonZeroU16::MIN);
        ForwardSpec::new(ForwardId(1), Workload::Service { name: "web".to_owned(), port })
    }

    fn answers(granted: impl Fn(&Right) -> Granted) -> Vec<Permission> {
        answers_for(&service(), granted)
    }

    fn answers_for(spec: &ForwardSpec, granted: impl Fn(&Right) -> Granted) -> Vec<Permission> {
        let told = |right: &Right| Permission {
            verb: right.verb.to_owned(),
            resource: right.shown(),
            granted: granted(right),
            need: right.need,
        };
        rights(spec).iter().map(told).collect()
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
    fn a_relay_needs_all_of_its_rights() {
        let denied = |right: &Right| if right.resource == "jobs" { Granted::No } else { Granted::Yes };
        let direct = service();
        assert_eq!(judge_relay(&direct, "shop", &answers_for(&direct, |_| Granted::No)), None);
        let udp = ForwardSpec { protocol: Protocol::Udp, ..service() };
        let problem = judge_relay(&udp, "shop", &answers_for(&udp, denied)).expect("a problem");
        assert_eq!(
            problem.message,
            "may not create jobs.batch, list jobs.batch in namespace shop, which a relay of its own needs"
        );
        assert!(problem.remedy.contains("kftui rbac print relay -n shop"), "{}", problem.remedy);
        assert_eq!(judge(&udp, "shop", &answers_for(&udp, denied)), [], "told once");
        let missing =
            answers_for(&udp, |right| if right.need == Need::Better { Granted::No } else { Granted::Yes });
        assert_eq!(judge_relay(&udp, "shop", &missing), None);

        let public = ForwardSpec::new(
            ForwardId(2),
            Workload::Expose(Expose {
                local_host: "localhost".to_owned(),
                local_port: NonZeroU16::MIN,
                local_tls: false,
                exposure: Exposure::Public {
                    protocol: ExposeProtocol::Http,
                    ingress_class: None,
                    annotations: Default::default(),
                    certificate: None,
                },
                access: Access::default(),
            }),
        );
        let no_ingress =
            |right: &Right| if right.resource == "ingresses" { Granted::No } else { Granted::Yes };
        let problem = judge_relay(&public, "shop", &answers_for(&public, no_ingress)).expect("a problem");
        assert!(problem.message.contains("patch ingresses.networking.k8s.io"), "{problem}");
        assert!(problem.remedy.contains("rbac print expose"), "{}", problem.remedy);
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
