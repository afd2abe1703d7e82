//! What a user may do, asked by the user: `SelfSubjectAccessReview` and `SelfSubjectRulesReview`.

use http::StatusCode;
use serde_json::{Value, json};

use super::auth::Rule;
use super::kinds::Kind;
use super::rest::Attributes;
use super::status::Status;
use crate::cluster::Shared;

/// The group's path; every authenticated user may post to it.
const PATH: &str = "/apis/authorization.k8s.io/v1/";

/// The review that a path names, as the resource is called in rules.
pub(crate) fn asked(path: &str) -> Option<&'static str> {
    let name = path.strip_prefix(PATH)?;
    ["selfsubjectaccessreviews", "selfsubjectrulesreviews"].into_iter().find(|known| *known == name)
}

impl Shared {
    /// Answers a review of `user`. A fault that forbids `create` on it takes it away, as a hardened cluster does.
    pub(crate) fn review(
        &self,
        user: &str,
        resource: &str,
        body: &[u8],
    ) -> Result<(StatusCode, Value), Status> {
        if self.faults.borrow().forbids("create", resource) {
            let message =
                format!("{resource}.authorization.k8s.io is forbidden: User \"{user}\" cannot create it");
            return Err(Status::new(StatusCode::FORBIDDEN, message));
        }
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| Status::bad_request(error.to_string()))?;
        review["status"] = match resource {
            "selfsubjectaccessreviews" => {
                let wanted = &review["spec"]["resourceAttributes"];
                let text =
                    |name: &str| wanted[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                let attributes = Attributes {
                    kind: Kind::find(
                        &text("group").unwrap_or_default(),
                        &text("resource").unwrap_or_default(),
                    ),
                    subresource: text("subresource"),
                    namespace: text("namespace"),
                    name: text("name"),
                    ..Attributes::default()
                };
                let verb = text("verb").unwrap_or_default();
                json!({ "allowed": self.authorize(user, &verb, &attributes).is_ok() })
            }
            _ => {
                let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
                let rules: Vec<Value> =
                    self.auth.rules(user).iter().filter_map(|rule| rule.shown(namespace)).collect();
                json!({ "resourceRules": rules, "nonResourceRules": [], "incomplete": false })
            }
        };
        Ok((StatusCode::CREATED, review))
    }
}

impl Rule {
    /// As a rules review shows it, if it counts in this namespace.
    fn shown(&self, namespace: &str) -> Option<Value> {
        let (verbs, resources, namespaces, names) = self.parts();
        let counts = namespaces.is_empty() || namespaces.iter().any(|one| one == "*" || one == namespace);
        counts.then(
            || json!({ "verbs": verbs, "apiGroups": ["*"], "resources": resources, "resourceNames": names }),
        )
    }
}
