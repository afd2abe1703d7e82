//! The lenient border: what people and the reference's exports write, turned into [`ForwardSpec`]s.
//!
//! Everything that can only mean one thing is understood; everything else is answered with entry, field, line, column and
//! a remedy; and one bad entry never loses the others. The format is the reference's config object: a list of
//! entries, one entry, or several after one another (JSON lines).
//!
//! | written | understood as |
//! |---|---|
//! | port as `8080` or `"8080"`; local port 0, null, absent | a port; any free one |
//! | remote port as a name | a named port |
//! | `true`, `"true"`, `"TRUE"`, `1` | yes |
//! | `null`, `""`, and the placeholders the reference stores (`default-service`, `current-context`, ...) | absent |
//! | `bind_address` | `local_address` |
//! | `remote_address` with a port, or as a URL | host, and the port in it wins over `remote_port` |
//! | `target` | a pod's name, or a label selector if it looks like one |
//! | `via` | `direct` (default), `relay` or `auto`: which way TCP takes to a pod |
//! | `local_address` of an expose as a URL | host, and TLS to the local program if it begins with `https://` |
//! | `exposure_protocol` | `http` (default), `tcp` (internal only), `h2c` or `grpc`: HTTP/2 without TLS, which Ingress controllers must be told |
//! | `exposure_basic_auth`, `exposure_bearer_token`, `exposure_allow`, `exposure_expires_after` | who may call an exposed program: `"user:password"`, a token, addresses or networks (list, or text with commas), a time such as `"8h"` |
//! | no namespace, protocol, workload type | `default`, `tcp`, `service` |
//! | no context, `@current` | whatever the kubeconfig's current context is |
//! | a field nobody knows | a warning with the field that was probably meant; kept in [`Entry::extra`] |
//!
//! [`object`] is the way back, [`compatible`] the same for the reference.

mod address;
mod entry;
mod fields;
mod json;
mod write;

use std::fmt;

use serde_json::{Map, Value};

use crate::problem::{Code, Problem};
use crate::spec::{ForwardId, ForwardSpec, Workload};

pub use address::{RemoteAddress, remote_address};
pub use write::{Compatible, compatible, object};

/// A place in a text; both count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// What an entry gets where it says nothing itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Namespace; empty leaves the choice to the context.
    pub namespace: String,
    /// Context; `None` follows the current one.
    pub context: Option<String>,
    /// Kubeconfig path list; `None` follows `KUBECONFIG`, then `~/.kube/config`.
    pub kubeconfig: Option<String>,
    /// Where to listen; never empty.
    pub hosts: Vec<String>,
}

impl Defaults {
    /// Decides nothing for an entry that says nothing: for what [`object`] wrote.
    #[must_use]
    pub fn open() -> Self {
        Self { namespace: String::new(), ..Self::default() }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            context: None,
            kubeconfig: None,
            hosts: vec![crate::spec::Listen::DEFAULT_HOST.to_owned()],
        }
    }
}

/// What a text held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
    /// What was overlooked outside of any one entry.
    pub warnings: Vec<Warning>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the text, from 1; also its [`ForwardId`].
    pub number: usize,
    /// Where it begins.
    pub place: Place,
    /// The forward, or why it is none.
    pub result: Result<ForwardSpec, EntryFault>,
    /// The fields that this version has no use for, as they were.
    pub extra: Map<String, Value>,
    /// What was read but not used.
    pub warnings: Vec<Warning>,
}

/// Why an entry is not a forward: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFault {
    /// The entry's number, from 1.
    pub entry: usize,
    /// Its alias, if that could be read.
    pub alias: Option<String>,
    /// Never empty.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// Which field; `None` if the entry as a whole is meant.
    pub field: Option<String>,
    /// What is wrong, without full stop.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

/// Something that was overlooked, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub place: Place,
    /// What, without full stop.
    pub message: String,
}

impl Import {
    /// The forwards that can be used, in order.
    pub fn specs(&self) -> impl Iterator<Item = &ForwardSpec> {
        self.entries.iter().filter_map(|entry| entry.result.as_ref().ok())
    }

    /// What is wrong, in order.
    pub fn faults(&self) -> impl Iterator<Item = &EntryFault> {
        self.entries.iter().filter_map(|entry| entry.result.as_ref().err())
    }
}

impl EntryFault {
    /// One problem per fault, with the place in its message.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.faults.iter().map(|fault| {
            let field = fault.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
            let message = format!("{}: {field}{}", fault.place, fault.message);
            Problem::new(Code::SpecInvalid, message).with_remedy(fault.remedy.clone())
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Reads a text. Never fails as a whole: a text without any entry is an [`Import`] without entries.
#[must_use]
pub fn import(text: &str, defaults: &Defaults) -> Import {
    let lines = json::Lines::of(text);
    let document = json::read(text, &lines);
    let numbered = document.entries.into_iter().zip(1_usize..);
    let entries = numbered.map(|(read, number)| one(read, number, &lines, defaults)).collect();
    Import { entries, warnings: document.warnings }
}

/// Reads one entry that is already an object; places in faults count in its compact text.
#[must_use]
pub fn read_object(entry: &Map<String, Value>, id: ForwardId, defaults: &Defaults) -> Entry {
    let text = serde_json::to_string(entry).unwrap_or_default();
    let lines = json::Lines::of(&text);
    let node = json::read(&text, &lines).entries.into_iter().next();
    let remedy = "Write {\"service\": \"web\", \"remote_port\": 80}.";
    let nothing = || Err(json::SyntaxFault { at: 0, message: "there is no entry".to_owned(), remedy });
    let mut entry = one(node.unwrap_or_else(nothing), 1, &lines, defaults);
    if let Ok(spec) = &mut entry.result {
        spec.id = id;
    }
    entry
}

fn one(
    read: Result<json::Node, json::SyntaxFault>,
    number: usize,
    lines: &json::Lines<'_>,
    defaults: &Defaults,
) -> Entry {
    let failed = |at: usize, message: String, remedy: &str| Entry {
        number,
        place: lines.place(at),
        result: Err(EntryFault {
            entry: number,
            alias: None,
            faults: vec![Fault { place: lines.place(at), field: None, message, remedy: remedy.to_owned() }],
        }),
        extra: Map::new(),
        warnings: Vec::new(),
    };
    match read {
        Err(fault) => failed(fault.at, fault.message, fault.remedy),
        Ok(json::Node { at, value: json::Value::Object(members) }) => {
            let place = lines.place(at);
            let mut fields = fields::Fields::new(&members, at, lines);
            let spec = entry::read(&mut fields, ForwardId(number as u64), defaults);
            // The reference names a pod's host after its `service`; to us it says nothing where there is a target.
            let service = fields.node("target").and_then(|_| fields.node("service")).map(json::Node::plain);
            let (faults, warnings) = fields.finish();
            let alias = spec.alias;
            let result = match spec.spec {
                Some(spec) if faults.is_empty() => Ok(spec),
                Some(_) | None => Err(EntryFault { entry: number, alias, faults }),
            };
            let unknown = members.iter().filter(|member| !fields::is_known(&member.key));
            let mut extra: Map<String, Value> =
                unknown.map(|member| (member.key.clone(), member.node.plain())).collect();
            if let (Some(service), Ok(ForwardSpec { workload: Workload::Pod { .. }, .. })) =
                (service, &result)
            {
                extra.insert("service".to_owned(), service);
            }
            Entry { number, place, result, extra, warnings }
        }
        Ok(node) => {
            let message = format!("expected an entry in braces, found {}", node.value.kind());
            failed(
                node.at,
                message,
                "Write {\"service\": \"web\", \"local_port\": 8080, \"remote_port\": 80}.",
            )
        }
    }
}
