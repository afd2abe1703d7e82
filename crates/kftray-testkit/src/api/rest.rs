//! Requests for objects: what a URL means, and the verbs on the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::kinds::Kind;
use super::selector::Selector;
use super::status::Status;
use super::store::{Store, timestamp};

/// What a request asks for, as the authorizer sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) verb: &'static str,
    /// `None` for paths that name no resource, such as `/version`.
    pub(crate) kind: Option<Kind>,
    pub(crate) subresource: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) path: String,
}

impl Attributes {
    /// `pods`, `pods/portforward`, or the path.
    pub(crate) fn resource(&self) -> String {
        match (self.kind, &self.subresource) {
            (Some(kind), Some(subresource)) => format!("{}/{subresource}", kind.plural()),
            (Some(kind), None) => kind.plural().to_owned(),
            (None, _) => self.path.clone(),
        }
    }

    /// Takes a request apart, as `RequestInfoFactory` of the API server does.
    pub(crate) fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut asked = Self { path: path.to_owned(), ..Self::default() };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => ("", [].as_slice()),
        };
        let (namespace, rest) = match rest {
            // `/api/v1/namespaces/x` itself names the namespace; below it, it is a prefix.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && *rest != ["finalize"] => {
                (Some(*namespace), rest)
            }
            rest => (None, rest),
        };
        if let [plural, rest @ ..] = rest {
            asked.kind = Kind::find(group, plural);
            asked.namespace = namespace.map(str::to_owned);
            asked.name = rest.first().map(|&name| name.to_owned());
            asked.subresource = rest.get(1).map(|&subresource| subresource.to_owned());
        }
        asked.verb = verb(method, asked.kind.is_some(), asked.name.is_some(), query);
        asked
    }
}

fn verb(method: &Method, resource: bool, named: bool, query: &Query) -> &'static str {
    match (method.as_str(), named) {
        ("GET" | "HEAD", _) if !resource => "get",
        ("GET" | "HEAD", false) if query.is_true("watch") => "watch",
        ("GET" | "HEAD", false) => "list",
        ("GET" | "HEAD", true) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "unknown",
    }
}

/// Query parameters; the first of a name counts, as in Go's `url.Values.Get`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(crate) fn parse(uri: &Uri) -> Self {
        let text = uri.query().unwrap_or_default();
        let pairs = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        Self { pairs }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | ""))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Status::bad_request(format!("Invalid value: \"{text}\": {name}")))
    }

    pub(crate) fn selector(&self) -> Result<Selector, Status> {
        Selector::parse(self.get("labelSelector"), self.get("fieldSelector"))
    }
}

/// What becomes of a deletion: the controller knows how long a pod takes to end.
pub(crate) trait Deletions {
    /// Begins to delete an object that exists; `grace` in seconds, if the client named it.
    fn delete(&self, kind: Kind, namespace: &str, name: &str, grace: Option<u64>) -> Option<Arc<Value>>;
}

/// Answers a request for an object or a list (watches and subresources with streams are served elsewhere).
pub(crate) fn answer(
    store: &Store,
    deletions: &impl Deletions,
    kind: Kind,
    asked: &Attributes,
    query: &Query,
    body: &[u8],
) -> Result<(StatusCode, Value), Status> {
    let namespace = asked.namespace.as_deref().unwrap_or_default();
    let name = asked.name.as_deref().unwrap_or_default();
    let known = |object: Option<Arc<Value>>| {
        object.map(|object| (StatusCode::OK, (*object).clone())).ok_or_else(|| Status::not_found(kind, name))
    };
    match (asked.verb, asked.subresource.as_deref()) {
        ("get", None | Some("status")) => known(store.get(kind, namespace, name)),
        ("get", Some("scale")) => {
            known(store.get(kind, namespace, name).map(|object| Arc::new(scale(&object))))
        }
        ("list", None) => {
            list(store, kind, asked.namespace.as_deref(), query).map(|list| (StatusCode::OK, list))
        }
        ("create", None) => {
            let object = store.create(kind, namespace, parse(body)?)?;
            Ok((StatusCode::CREATED, (*object).clone()))
        }
        ("update", None) => {
            let new = parse(body)?;
            check_version(store, kind, namespace, name, &new)?;
            known(store.update(kind, namespace, name, |object| replace(object, new)))
        }
        ("patch", None) => {
            let patch = parse(body)?;
            check_version(store, kind, namespace, name, &patch)?;
            known(store.update(kind, namespace, name, |object| modify(object, &patch)))
        }
        ("patch" | "update", Some("scale")) => {
            let replicas = parse(body)?["spec"]["replicas"].clone();
            let change = json!({ "spec": { "replicas": replicas } });
            known(
                store
                    .update(kind, namespace, name, |object| modify(object, &change))
                    .map(|o| Arc::new(scale(&o))),
            )
        }
        ("delete", None) => {
            let options = if body.is_empty() { Value::Null } else { parse(body)? };
            check_precondition(store, kind, namespace, name, &options["preconditions"]["uid"])?;
            let from_body = options["gracePeriodSeconds"].as_u64();
            let grace = query.number("gracePeriodSeconds")?.or(from_body);
            known(deletions.delete(kind, namespace, name, grace))
        }
        _ => Err(Status::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn parse(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body).map_err(|error| Status::bad_request(error.to_string()))
}

/// `limit` and `continue`; the token names the last key of the page before, the list itself is always the newest.
fn list(store: &Store, kind: Kind, namespace: Option<&str>, query: &Query) -> Result<Value, Status> {
    let selector = query.selector()?;
    let limit = query.number("limit")?.filter(|&limit| limit > 0);
    let after = query.get("continue").filter(|token| !token.is_empty()).map(decode_continue).transpose()?;
    let (objects, version) = store.list(kind, namespace);
    let key = |object: &Value| {
        let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        (part("namespace"), part("name"))
    };
    let mut matching: Vec<Arc<Value>> = objects
        .into_iter()
        .filter(|object| selector.matches(object))
        .filter(|object| after.as_ref().is_none_or(|after| key(object) > *after))
        .collect();
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok())
        && matching.len() > limit
    {
        metadata["remainingItemCount"] = json!(matching.len() - limit);
        matching.truncate(limit);
        if let Some(last) = matching.last() {
            let (namespace, name) = key(last);
            metadata["continue"] = json!(URL_SAFE_NO_PAD.encode(json!([namespace, name]).to_string()));
        }
    }
    let items: Vec<&Value> = matching.iter().map(|object| &**object).collect();
    Ok(json!({
        "kind": format!("{}List", kind.name()),
        "apiVersion": kind.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

fn decode_continue(token: &str) -> Result<(String, String), Status> {
    let invalid = || Status::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    serde_json::from_slice(&bytes).map_err(|_| invalid())
}

fn check_version(store: &Store, kind: Kind, namespace: &str, name: &str, new: &Value) -> Result<(), Status> {
    let Some(current) = store.get(kind, namespace, name) else { return Ok(()) };
    let asked = &new["metadata"]["resourceVersion"];
    if asked.as_str().is_some_and(|asked| !asked.is_empty())
        && *asked != current["metadata"]["resourceVersion"]
    {
        return Err(Status::conflict(kind, name));
    }
    Ok(())
}

/// A deletion that is meant for one very object and no successor of that name.
fn check_precondition(
    store: &Store,
    kind: Kind,
    namespace: &str,
    name: &str,
    uid: &Value,
) -> Result<(), Status> {
    let Some(current) = store.get(kind, namespace, name) else { return Ok(()) };
    if uid.is_string() && *uid != current["metadata"]["uid"] {
        return Err(Status::conflict(kind, name));
    }
    Ok(())
}

/// Fields that no client may change.
const IMMUTABLE: [&str; 6] =
    ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation"];

fn replace(object: &mut Value, mut new: Value) {
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    keep(object, &mut new);
    *object = new;
}

/// Applies a JSON merge patch (RFC 7386), which is also what the strategic patches of `kubectl rollout restart`,
/// `scale` and `label` amount to: they touch maps only.
pub(crate) fn modify(object: &mut Value, patch: &Value) {
    let mut new = object.clone();
    merge(&mut new, patch);
    keep(object, &mut new);
    *object = new;
}

fn keep(object: &Value, new: &mut Value) {
    for field in IMMUTABLE {
        match object["metadata"].get(field) {
            Some(value) => new["metadata"][field] = value.clone(),
            None => {
                if let Some(map) = new["metadata"].as_object_mut() {
                    map.remove(field);
                }
            }
        }
    }
    new["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
    new["kind"] = object["kind"].clone();
    new["apiVersion"] = object["apiVersion"].clone();
    if new["spec"] != object["spec"] {
        let generation = object["metadata"]["generation"].as_u64().unwrap_or_default();
        new["metadata"]["generation"] = json!(generation + 1);
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(map) = target.as_object_mut() else { return };
    for (name, change) in changes {
        if change.is_null() {
            map.remove(name);
        } else {
            merge(map.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

fn scale(object: &Value) -> Value {
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": object["metadata"]["name"],
            "namespace": object["metadata"]["namespace"],
            "uid": object["metadata"]["uid"],
            "resourceVersion": object["metadata"]["resourceVersion"],
            "creationTimestamp": object["metadata"]["creationTimestamp"],
        },
        "spec": { "replicas": object["spec"]["replicas"] },
        "status": { "replicas": object["status"]["replicas"] },
    })
}

/// Paths that name no resource: version, health and discovery (the unaggregated form, which every client knows).
pub(crate) fn discover(path: &str) -> Option<Value> {
    let groups: BTreeMap<&str, &str> = Kind::ALL
        .into_iter()
        .map(Kind::group)
        .filter(|group| !group.is_empty())
        .map(|group| (group, "v1"))
        .collect();
    let group = |name: &str| {
        let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
        json!({ "name": name, "versions": [version], "preferredVersion": version })
    };
    match path.trim_end_matches('/') {
        "/version" => Some(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0+fake", "gitCommit": "0000000000000000000000000000000000000000",
            "gitTreeState": "clean", "buildDate": timestamp(), "goVersion": "go1.27", "compiler": "gc",
            "platform": "linux/amd64",
        })),
        "/healthz" | "/livez" | "/readyz" => Some(json!("ok")),
        "/api" => Some(json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        })),
        "/apis" => Some(json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups.keys().map(|name| group(name)).collect::<Vec<_>>(),
        })),
        "/api/v1" => Some(resources("")),
        path => {
            let rest = path.strip_prefix("/apis/")?;
            match rest.split_once('/') {
                Some((name, "v1")) if groups.contains_key(name) => Some(resources(name)),
                None if groups.contains_key(rest) => {
                    let mut found = group(rest);
                    found["kind"] = json!("APIGroup");
                    found["apiVersion"] = json!("v1");
                    Some(found)
                }
                _ => None,
            }
        }
    }
}

fn resources(group: &str) -> Value {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let mut list: Vec<Value> = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group() == group) {
        list.push(json!({
            "name": kind.plural(),
            "singularName": kind.name().to_lowercase(),
            "namespaced": kind.namespaced(),
            "kind": kind.name(),
            "verbs": verbs,
            "shortNames": kind.short_names(),
        }));
        if kind == Kind::Pod {
            list.push(json!({
                "name": "pods/portforward", "singularName": "", "namespaced": true, "kind": "PodPortForwardOptions",
                "verbs": ["create", "get"],
            }));
        }
        if matches!(kind, Kind::Deployment | Kind::ReplicaSet | Kind::StatefulSet) {
            list.push(json!({
                "name": format!("{}/scale", kind.plural()), "singularName": "", "namespaced": true, "kind": "Scale",
                "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(method: Method, uri: &str) -> Attributes {
        let uri: Uri = uri.parse().unwrap();
        Attributes::parse(&method, uri.path(), &Query::parse(&uri))
    }

    #[test]
    fn urls_are_taken_apart_like_the_api_server_does() {
        let list = attributes(Method::GET, "/api/v1/namespaces/shop/pods?watch=true");
        assert_eq!((list.verb, list.resource().as_str()), ("watch", "pods"));
        assert_eq!(list.namespace.as_deref(), Some("shop"));
        let forward = attributes(Method::POST, "/api/v1/namespaces/shop/pods/web-0/portforward");
        assert_eq!((forward.verb, forward.resource().as_str()), ("create", "pods/portforward"));
        assert_eq!(forward.name.as_deref(), Some("web-0"));
        let namespace = attributes(Method::GET, "/api/v1/namespaces/shop");
        assert_eq!((namespace.kind, namespace.verb), (Some(Kind::Namespace), "get"));
        assert_eq!(namespace.name.as_deref(), Some("shop"));
        let all = attributes(Method::GET, "/apis/apps/v1/deployments");
        assert_eq!((all.kind, all.verb, all.namespace), (Some(Kind::Deployment), "list", None));
        assert_eq!(attributes(Method::GET, "/version").kind, None);
    }

    #[test]
    fn merge_patch_removes_nulls_and_keeps_identity() {
        let mut object =
            json!({ "metadata": { "name": "a", "uid": "1", "labels": { "x": "y" } }, "spec": { "n": 1 } });
        modify(
            &mut object,
            &json!({ "metadata": { "uid": "2", "labels": { "x": null, "z": "1" } }, "spec": { "n": 2 } }),
        );
        assert_eq!(object["metadata"]["uid"], "1");
        assert_eq!(object["metadata"]["labels"], json!({ "z": "1" }));
        assert_eq!(object["spec"]["n"], 2);
        assert_eq!(object["metadata"]["generation"], 1);
    }
}
