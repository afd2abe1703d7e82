//! Who asks (authentication) and what they may (RBAC).
//!
//! Users have client certificates, bearer tokens and passwords; each can be revoked at run time. A user may do what its
//! rules allow and nothing else; refusals carry the API server's sentence, which is what people paste into tickets.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine as _;
use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;

use super::rest::Attributes;
use super::status::{Status, qualified};
use crate::cluster::Shared;
use crate::sync::lock;

/// One RBAC rule; empty namespaces or names mean any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    verbs: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    names: Vec<String>,
}

impl Rule {
    /// Allows `verbs` (`get`, `list`, `watch`, `create`, ..., `*`) on `resources` (`pods`, `pods/portforward`, ..., `*`)
    /// everywhere.
    #[must_use]
    pub fn new(verbs: &[&str], resources: &[&str]) -> Self {
        Self { verbs: owned(verbs), resources: owned(resources), namespaces: Vec::new(), names: Vec::new() }
    }

    /// Everything.
    #[must_use]
    pub fn anything() -> Self {
        Self::new(&["*"], &["*"])
    }

    /// Only in this namespace (may be repeated).
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespaces.push(namespace.to_owned());
        self
    }

    /// Only for the object of this name (may be repeated); never matches lists.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// Verbs, resources, namespaces, names.
    pub(crate) fn parts(&self) -> (&[String], &[String], &[String], &[String]) {
        (&self.verbs, &self.resources, &self.namespaces, &self.names)
    }

    fn allows(&self, verb: &str, asked: &Attributes) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|entry| entry == "*" || entry == value);
        any(&self.verbs, verb)
            && any(&self.resources, &asked.resource())
            && (self.namespaces.is_empty() || any(&self.namespaces, asked.namespace.as_deref().unwrap_or("")))
            && (self.names.is_empty() || asked.name.as_deref().is_some_and(|name| any(&self.names, name)))
    }
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|&entry| entry.to_owned()).collect()
}

#[derive(Debug)]
enum Proof {
    Valid,
    Until(Instant),
    Revoked,
}

#[derive(Debug)]
struct Credential {
    user: String,
    proof: Proof,
}

impl Credential {
    fn user(&self, now: Instant) -> Option<&str> {
        match self.proof {
            Proof::Valid => Some(&self.user),
            Proof::Until(end) => (now < end).then_some(self.user.as_str()),
            Proof::Revoked => None,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    rules: HashMap<String, Vec<Rule>>,
    /// By DER of the certificate.
    certificates: HashMap<Vec<u8>, Credential>,
    tokens: HashMap<String, Credential>,
    /// By user name.
    passwords: HashMap<String, String>,
}

/// The cluster's users.
#[derive(Debug, Default)]
pub(crate) struct Auth {
    state: Mutex<State>,
}

impl Auth {
    pub(crate) fn set_rules(&self, user: &str, rules: Vec<Rule>) {
        lock(&self.state).rules.insert(user.to_owned(), rules);
    }

    pub(crate) fn rules(&self, user: &str) -> Vec<Rule> {
        lock(&self.state).rules.get(user).cloned().unwrap_or_default()
    }

    pub(crate) fn add_certificate(&self, user: &str, der: &[u8], valid: bool) {
        let proof = if valid { Proof::Valid } else { Proof::Revoked };
        let credential = Credential { user: user.to_owned(), proof };
        lock(&self.state).certificates.insert(der.to_vec(), credential);
    }

    pub(crate) fn add_token(&self, user: &str, token: &str, end: Option<Instant>) {
        let proof = end.map_or(Proof::Valid, Proof::Until);
        lock(&self.state).tokens.insert(token.to_owned(), Credential { user: user.to_owned(), proof });
    }

    pub(crate) fn add_password(&self, user: &str, password: &str) {
        lock(&self.state).passwords.insert(user.to_owned(), password.to_owned());
    }

    /// Makes every token of a user invalid.
    pub(crate) fn revoke_tokens(&self, user: &str) {
        for credential in lock(&self.state).tokens.values_mut().filter(|credential| credential.user == user) {
            credential.proof = Proof::Revoked;
        }
    }

    /// The user behind a request: by certificate, else by the `Authorization` header, the order of the API server's chain.
    pub(crate) fn user(&self, certificate: Option<&[u8]>, headers: &HeaderMap) -> Result<String, Status> {
        let state = lock(&self.state);
        let now = Instant::now();
        let by_certificate = certificate
            .and_then(|der| state.certificates.get(der))
            .and_then(|credential| credential.user(now))
            .map(str::to_owned);
        let by_header = || {
            let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
            state.by_header(value, now)
        };
        by_certificate.or_else(by_header).ok_or_else(Status::unauthorized)
    }

    /// Whether the rules of `user` allow what the request asks, with `verb` in the place of the request's own.
    fn allows(&self, user: &str, verb: &str, asked: &Attributes) -> bool {
        let state = lock(&self.state);
        state.rules.get(user).is_some_and(|rules| rules.iter().any(|rule| rule.allows(verb, asked)))
    }
}

impl Shared {
    /// The authorizer: the user's rules, less what a fault has taken away.
    pub(crate) fn authorize(&self, user: &str, verb: &str, asked: &Attributes) -> Result<(), Status> {
        let taken = self.faults.borrow().forbids(verb, &asked.resource());
        if !taken && self.auth.allows(user, verb, asked) {
            return Ok(());
        }
        self.counters.forbidden.add(1);
        Err(forbidden(user, verb, asked))
    }
}

impl State {
    fn by_header(&self, value: &str, now: Instant) -> Option<String> {
        let (scheme, rest) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.tokens.get(rest.trim())?.user(now).map(str::to_owned);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        (self.passwords.get(user).map(String::as_str) == Some(password)).then(|| user.to_owned())
    }
}

/// The API server's sentence (apimachinery `NewForbidden`, apiserver `forbiddenMessage`).
fn forbidden(user: &str, verb: &str, asked: &Attributes) -> Status {
    let Some(kind) = asked.kind else {
        let message = format!("forbidden: User \"{user}\" cannot {verb} path \"{}\"", asked.path);
        return Status::new(StatusCode::FORBIDDEN, message);
    };
    let subject = match &asked.name {
        Some(name) => format!("{} \"{name}\"", qualified(kind)),
        None => qualified(kind),
    };
    let place = match &asked.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{subject} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\" {place}",
        asked.resource(),
        kind.group(),
    );
    Status::new(StatusCode::FORBIDDEN, message)
}
