//! Who needs which rights: four sheets, ready to apply.

use std::fmt;

/// A set of rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sheet {
    /// (a) Forwards to Services, workloads and pods.
    Forward,
    /// (b) That, and relays on demand: UDP, proxies, `via: relay`.
    Relay,
    /// (c) The use of a relay that an administrator has installed.
    Installed,
    /// (d) Sheet (b), and exposes.
    Expose,
}

impl Sheet {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Relay, Self::Installed, Self::Expose];

    /// The word on the command line and in the Role's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Relay => "relay",
            Self::Installed => "installed",
            Self::Expose => "expose",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Forward => "(a) Forward to Services, workloads and pods",
            Self::Relay => "(b) Forward, and start a relay on demand: UDP, proxies, `via: relay`",
            Self::Installed => "(c) Use the relay that an administrator has installed",
            Self::Expose => "(d) Forward, start relays, and expose local programs",
        }
    }

    fn remarks(self) -> &'static [&'static str] {
        match self {
            Self::Forward => &[
                "Forwards by pod name need only `get` on pods and the last rule. What is left out here is asked for in a",
                "simpler way, and `kftui` says so.",
            ],
            Self::Relay => &[
                "The relay is a Job with one small pod that fits the Pod Security profile `restricted`, has no service-account",
                "token, and ends 120 s after its last tunnel. Namespaced: no right reaches beyond this namespace.",
            ],
            Self::Installed => &[
                "To be bound in the relay's namespace; in the namespaces of their targets the same people need sheet (a) only",
                "for forwards to Services and pods, and nothing at all for proxies.",
                "Whoever has these rights reaches what the relay reaches: bind them to those who may.",
            ],
            Self::Expose => &[
                "Service and Ingress of an expose belong to the relay's Job; deleting that removes them, which is why `delete`",
                "on services is not asked for. Leave the rule for ingresses out where nothing may be made public. A class that is",
                "missing is told to those who may also list `ingressclasses`, which are the cluster's (a ClusterRole).",
            ],
        }
    }

    fn rules(self) -> Vec<Rule> {
        let pods =
            Rule::new("", &["pods"], &["get", "list", "watch"], "find pods and see when they come and go");
        let forward = Rule::new(
            "",
            &["pods/portforward"],
            &["create", "get"],
            "the forward itself (`get`: before 1.35)",
        );
        let mut rules = vec![pods];
        match self {
            Self::Installed => {
                rules.push(Rule::new(
                    "",
                    &["services"],
                    &["get"],
                    "kubectl port-forward svc/kftray-server, as the documents have it",
                ));
                rules.push(Rule::new("apps", &["deployments"], &["get", "list"], "kubectl get deployments"));
                rules.push(Rule::new("", &["pods/log"], &["get"], "kubectl logs deployment/kftray-server"));
            }
            Self::Forward | Self::Relay | Self::Expose => {
                rules.push(Rule::new(
                    "",
                    &["services"],
                    &["get", "list", "watch"],
                    "forwards by the name of a Service",
                ));
                rules.push(Rule::new(
                    "discovery.k8s.io",
                    &["endpointslices"],
                    &["get", "list", "watch"],
                    "which pods are behind it",
                ));
                rules.push(Rule::new(
                    "apps",
                    &["deployments", "statefulsets", "daemonsets", "replicasets"],
                    &["get", "list", "watch"],
                    "forwards by the name of a workload",
                ));
            }
        }
        if matches!(self, Self::Relay | Self::Expose) {
            rules.push(Rule::new(
                "batch",
                &["jobs"],
                &["create", "get", "list", "watch", "delete"],
                "the relay: found, started, removed",
            ));
            rules.push(Rule::new(
                "",
                &["events"],
                &["list", "watch"],
                "optional: why a relay does not start, in the cluster's own words",
            ));
        }
        if self == Self::Expose {
            rules.push(Rule::new("", &["services"], &["create", "patch"], "the name in the cluster"));
            rules.push(Rule::new(
                "networking.k8s.io",
                &["ingresses"],
                &["get", "list", "watch", "create", "patch", "delete"],
                "the name in the world (public exposes)",
            ));
            rules.push(Rule::new(
                "cert-manager.io",
                &["certificates"],
                &["list", "watch"],
                "optional: whether its certificate is issued, in cert-manager's own words",
            ));
        }
        rules.push(forward);
        rules
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

struct Rule {
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
}

impl Rule {
    const fn new(
        group: &'static str,
        resources: &'static [&'static str],
        verbs: &'static [&'static str],
        why: &'static str,
    ) -> Self {
        Self { group, resources, verbs, why }
    }
}

/// The rules of a sheet as objects.
pub(super) fn rules(sheet: Sheet) -> serde_json::Value {
    let rules: Vec<serde_json::Value> = sheet
        .rules()
        .iter()
        .map(|rule| {
            serde_json::json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs })
        })
        .collect();
    serde_json::json!(rules)
}

/// A sheet as YAML with a comment at every rule, for `kubectl apply -f -`: a Role in `namespace`, and a RoleBinding to these
/// subjects (`User`, `Group` or `ServiceAccount`, and a name; a service account as `NAMESPACE:NAME` or of the same
/// namespace).
#[must_use]
pub fn rbac(sheet: Sheet, namespace: &str, subjects: &[(SubjectKind, String)]) -> String {
    let quoted = |text: &str| serde_json::Value::String(text.to_owned()).to_string();
    let list = |items: &[&str]| items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ");
    let mut out = format!("# {}\n", sheet.title());
    for remark in sheet.remarks() {
        out.push_str(&format!("# {remark}\n"));
    }
    out.push_str(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: kftray-{sheet}\n  namespace: {}\nrules:\n",
        quoted(namespace)
    ));
    for rule in sheet.rules() {
        out.push_str(&format!(
            "# {}\n- apiGroups: [{}]\n  resources: [{}]\n  verbs: [{}]\n",
            rule.why,
            quoted(rule.group),
            list(rule.resources),
            list(rule.verbs)
        ));
    }
    out.push_str("---\n");
    out.push_str(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: kftray-{sheet}\n  namespace: {}\n\
         roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: kftray-{sheet}\n",
        quoted(namespace)
    ));
    if subjects.is_empty() {
        out.push_str("# Who gets the rights: name them here, or with --user, --group, --service-account.\nsubjects: []\n");
        return out;
    }
    out.push_str("subjects:\n");
    for (kind, name) in subjects {
        out.push_str(&kind.yaml(name, namespace));
    }
    out
}

/// Kind of somebody who gets rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectKind {
    /// A user by the name the API server knows.
    User,
    /// A group of users.
    Group,
    /// A service account.
    ServiceAccount,
}

impl SubjectKind {
    fn yaml(self, name: &str, namespace: &str) -> String {
        super::yaml::to_yaml(&serde_json::json!([self.object(name, namespace)]))
    }

    /// The subject of a RoleBinding.
    pub(super) fn object(self, name: &str, namespace: &str) -> serde_json::Value {
        match self {
            Self::User | Self::Group => {
                let kind = if self == Self::User { "User" } else { "Group" };
                serde_json::json!({ "kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io" })
            }
            Self::ServiceAccount => {
                let (namespace, name) = name.split_once(':').unwrap_or((namespace, name));
                serde_json::json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_sheets() {
        let all: Vec<String> = Sheet::ALL
            .into_iter()
            .map(|sheet| {
                let subjects = match sheet {
                    Sheet::Forward => vec![],
                    Sheet::Relay => vec![(SubjectKind::User, "jane@example.com".to_owned())],
                    Sheet::Installed => vec![(SubjectKind::Group, "system:authenticated".to_owned())],
                    Sheet::Expose => vec![
                        (SubjectKind::ServiceAccount, "ci:runner".to_owned()),
                        (SubjectKind::ServiceAccount, "own".to_owned()),
                    ],
                };
                rbac(sheet, "shop", &subjects)
            })
            .collect();
        insta::assert_snapshot!(all.join("---\n"));
    }

    #[test]
    fn no_sheet_asks_for_more_than_it_says() {
        for sheet in Sheet::ALL {
            for rule in sheet.rules() {
                assert!(
                    !rule.resources.contains(&"namespaces") && !rule.resources.contains(&"secrets"),
                    "{sheet}"
                );
                assert!(!rule.verbs.contains(&"*") && !rule.resources.contains(&"*"), "{sheet}");
                let writes = rule.verbs.iter().any(|verb| !matches!(*verb, "get" | "list" | "watch"));
                let allowed = match sheet {
                    Sheet::Forward | Sheet::Installed => rule.resources == ["pods/portforward"],
                    Sheet::Relay => rule.resources == ["pods/portforward"] || rule.resources == ["jobs"],
                    Sheet::Expose => true,
                };
                assert!(!writes || allowed, "{sheet}: {:?}", rule.resources);
            }
        }
    }
}
