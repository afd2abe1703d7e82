//! Users with few rights, to see what a forward really needs: a certificate or a token, bound to a Role of one namespace.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::Cluster;
use super::pki::{Subject, write_private};
use crate::command::{command, feed, output};

const HELP: &str = "\
Examples:
  cargo xtask cluster user jane --allow pods=get,list --allow pods/portforward=create
  cargo xtask cluster user ci --token 600 --allow services=get
  kftui forward svc/web 8080:80 --kubeconfig $(cargo xtask cluster user late --expired)

A user of the same name gets the rights given now, in the same file.";

/// A user and its rights in one namespace.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct User {
    /// The user's name
    user: String,
    /// The namespace of its rights
    #[arg(long, short, default_value = "kftest")]
    namespace: String,
    /// A right: RESOURCE=VERB[,VERB...], for example pods=get or pods/portforward=create or apps/deployments=get,list
    #[arg(long = "allow", value_name = "RIGHT")]
    rights: Vec<String>,
    /// A file with a Role's `rules` (JSON or a whole Role as YAML) instead of --allow
    #[arg(long, conflicts_with = "rights", value_name = "FILE")]
    role: Option<PathBuf>,
    /// Log in with a service-account token of this lifetime (at least 600 s) instead of a client certificate
    #[arg(long, value_name = "SECONDS")]
    token: Option<u32>,
    /// Log in with a client certificate that has expired
    #[arg(long, conflicts_with = "token")]
    expired: bool,
}

impl User {
    /// Makes it, and prints the path of its kubeconfig.
    pub(super) fn create(&self, cluster: &Cluster) -> Result<()> {
        let Self { user, namespace, .. } = self;
        let subject = match self.token {
            Some(_) => json!({ "kind": "ServiceAccount", "name": user, "namespace": namespace }),
            None => json!({ "kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io" }),
        };
        let mut objects = vec![self.role(cluster)?];
        if self.token.is_some() {
            objects.push(json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": user, "namespace": namespace },
            }));
        }
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": user, "namespace": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user },
            "subjects": [subject],
        }));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        feed(&mut cluster.kubectl(&["apply", "-f", "-"]), &serde_json::to_vec(&list)?)?;
        let config = self.kubeconfig(cluster)?;
        let path = cluster.state.join(format!("user-{user}.kubeconfig"));
        write_private(&path, &config)?;
        println!("{}", path.display());
        Ok(())
    }

    fn kubeconfig(&self, cluster: &Cluster) -> Result<String> {
        let Self { user, namespace, .. } = self;
        let pki = cluster.pki();
        let Some(seconds) = self.token else {
            let file = format!("user-{user}");
            pki.issue(&file, &Subject { user, groups: &[], names: &[], expired: self.expired })?;
            return pki.kubeconfig(&cluster.context(), &cluster.server(), &file, namespace);
        };
        let duration = format!("--duration={seconds}s");
        let token = output(&mut cluster.kubectl(&["-n", namespace, "create", "token", user, &duration]))?;
        let login = json!({ "token": token.trim() });
        pki.kubeconfig_with(&cluster.context(), &cluster.server(), user, &login, namespace)
    }

    fn role(&self, cluster: &Cluster) -> Result<Value> {
        let rules = match &self.role {
            Some(file) => {
                // kubectl is our YAML parser.
                let json = output(
                    command(
                        &cluster.programs.kube,
                        ["kubectl", "create", "--dry-run=client", "-o", "json", "--kubeconfig"],
                    )
                    .arg(cluster.kubeconfig())
                    .args(["--validate=false", "-f"])
                    .arg(file),
                )?;
                let role: Value = serde_json::from_str(&json)?;
                role.get("rules").cloned().unwrap_or_default()
            }
            None => self.rights.iter().map(|right| rule(right)).collect::<Result<_>>()?,
        };
        Ok(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": { "name": self.user, "namespace": self.namespace },
            "rules": rules,
        }))
    }
}

/// `apps/deployments=get,list` or `pods/portforward=create`: what stands before the slash is an API group unless it is a resource of
/// the core group with subresources.
fn rule(right: &str) -> Result<Value> {
    let Some((resource, verbs)) = right.split_once('=') else {
        bail!("{right:?} is not RESOURCE=VERB[,VERB...], such as pods=get,list");
    };
    let (group, resource) = match resource.split_once('/') {
        Some((group, resource)) if !["pods", "services", "nodes"].contains(&group) => (group, resource),
        _ => ("", resource),
    };
    let verbs: Vec<&str> = verbs.split(',').collect();
    Ok(json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs }))
}

#[cfg(test)]
mod tests {
    use super::rule;

    #[test]
    fn rights_name_group_resource_and_verbs() {
        let rule = |right| rule(right).unwrap().to_string();
        assert_eq!(
            rule("pods=get,list"),
            r#"{"apiGroups":[""],"resources":["pods"],"verbs":["get","list"]}"#
        );
        assert_eq!(
            rule("pods/portforward=create"),
            r#"{"apiGroups":[""],"resources":["pods/portforward"],"verbs":["create"]}"#
        );
        assert_eq!(
            rule("discovery.k8s.io/endpointslices=watch"),
            r#"{"apiGroups":["discovery.k8s.io"],"resources":["endpointslices"],"verbs":["watch"]}"#
        );
        assert!(super::rule("pods").is_err());
    }
}
