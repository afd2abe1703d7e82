//! Files of forwards: which format, which shape, where the project's own one is.
//!
//! A file is a list of entries, one entry, or an object with `forwards` beside what they have in common. JSON in the first
//! two shapes goes to the border as it is, which then survives broken entries; all else is read as a whole.

mod consent;
mod schema;
mod toml;
mod tree;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kftray_commons::border::{self, Defaults, Import, Place, Warning};
use kftray_commons::{Code, Problem};
use serde_json::value::RawValue;

pub(crate) use consent::{fingerprint, widenings};
pub(crate) use schema::schema;
use tree::{Fault, Node, Value};

use crate::platform;

/// The names that are looked for, in this order.
pub(crate) const FILE_NAMES: [&str; 4] = [".kftray.yaml", ".kftray.yml", ".kftray.json", ".kftray.toml"];

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Toml,
}

impl Format {
    /// By the name's end; what has no known one is JSON, as standard input is.
    pub(crate) fn of(path: &Path) -> Self {
        let extension = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("yaml" | "yml") => Self::Yaml,
            Some("toml") => Self::Toml,
            _ => Self::Json,
        }
    }
}

/// The project file that counts for a folder: the nearest one on the way up.
pub(crate) fn find(from: &Path) -> Option<PathBuf> {
    let mut candidates = from.ancestors().flat_map(|folder| FILE_NAMES.map(|name| folder.join(name)));
    candidates.find(|path| path.is_file())
}

/// Reads a text of any format and shape. A document that cannot be read as a whole is one entry with a fault.
pub(crate) fn read(text: &str, format: Format, defaults: &Defaults) -> Import {
    let nodes = match format {
        Format::Json => return json(text, defaults),
        Format::Yaml => yaml::read(text),
        Format::Toml => toml::read(text).map(|node| vec![node]),
    };
    match nodes {
        Ok(nodes) => shaped(nodes, defaults),
        Err(fault) => broken(&fault),
    }
}

fn json(text: &str, defaults: &Defaults) -> Import {
    let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) else {
        // Not one sound object: the border tells what is wrong where.
        return match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Err(error) if looks_like_project(text) => broken(&Fault {
                place: Place { line: error.line().max(1), column: error.column().max(1) },
                message: without_place(&error),
            }),
            Ok(_) | Err(_) => border::import(text, defaults),
        };
    };
    let Some(forwards) = members.get("forwards") else {
        return border::import(text, defaults);
    };
    let mut header = Header::new(defaults);
    for (key, value) in members.iter().filter(|(key, _)| *key != "forwards") {
        let place = place_of(text, value.get());
        match serde_json::from_str::<String>(value.get()) {
            Ok(value) => header.take(key, place, &value),
            Err(_) => header.strange(key, place),
        }
    }
    // Everything before the entries becomes blanks, so that lines and columns stay what they are.
    let start = offset_of(text, forwards.get());
    let before = text.get(..start).unwrap_or_default();
    let mut blanked: String = before.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
    blanked.push_str(forwards.get());
    let mut import = border::import(&blanked, &header.defaults);
    import.warnings.splice(0..0, header.warnings);
    import
}

/// Whether somebody meant the object form, so that a slip in it is told as one of a project file.
fn looks_like_project(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim_start().starts_with('{') && text.contains("\"forwards\"")
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// Where a part of `text` begins, in bytes.
fn offset_of(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize).min(text.len())
}

fn place_of(text: &str, part: &str) -> Place {
    let before = text.get(..offset_of(text, part)).unwrap_or_default();
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    Place { line, column }
}

/// Entries out of documents: lists and entries as they are, objects with `forwards` opened.
fn shaped(nodes: Vec<Node>, defaults: &Defaults) -> Import {
    let mut all = Import { entries: Vec::new(), warnings: Vec::new() };
    for node in nodes {
        let is_project = matches!(&node.value, Value::Map(members) if members.iter().any(|member| member.key == "forwards"));
        let mut import = match node.value {
            Value::Map(members) if is_project => {
                let mut header = Header::new(defaults);
                let mut forwards = Vec::new();
                for member in members {
                    match member.node.value {
                        _ if member.key == "forwards" => forwards.push(member.node),
                        Value::Text(text) => header.take(&member.key, member.place, &text),
                        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Map(_) => {
                            header.strange(&member.key, member.place);
                        }
                    }
                }
                let mut import = tree::entries(&forwards, &header.defaults);
                import.warnings.splice(0..0, header.warnings);
                import
            }
            value @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_)) => tree::entries(&[Node { place: node.place, value }], defaults),
        };
        // Numbers go through the whole file, as they do for JSON.
        let before = all.entries.len();
        for entry in &mut import.entries {
            entry.number += before;
            match &mut entry.result {
                Ok(spec) => spec.id.0 += before as u64,
                Err(fault) => fault.entry += before,
            }
        }
        all.entries.append(&mut import.entries);
        all.warnings.append(&mut import.warnings);
    }
    all
}

/// What the object form says beside its entries.
struct Header {
    defaults: Defaults,
    warnings: Vec<Warning>,
}

impl Header {
    fn new(defaults: &Defaults) -> Self {
        Self { defaults: defaults.clone(), warnings: Vec::new() }
    }

    fn take(&mut self, key: &str, place: Place, value: &str) {
        match key {
            "$schema" => {}
            "namespace" => value.clone_into(&mut self.defaults.namespace),
            "context" => self.defaults.context = Some(value.to_owned()).filter(|name| name != "@current"),
            "kubeconfig" => self.defaults.kubeconfig = Some(value.to_owned()),
            _ => self.strange(key, place),
        }
    }

    fn strange(&mut self, key: &str, place: Place) {
        let message = match key {
            "namespace" | "context" | "kubeconfig" => format!("`{key}` is not a text; it is ignored"),
            _ => format!(
                "unknown field `{key}` is ignored; known beside `forwards` are namespace, context, kubeconfig"
            ),
        };
        self.warnings.push(Warning { place, message });
    }
}

/// A text that is none of its format, as the one faulty entry it is.
fn broken(fault: &Fault) -> Import {
    let fault = border::Fault {
        place: fault.place,
        field: None,
        message: fault.message.clone(),
        remedy: "Correct the file at the place named.".to_owned(),
    };
    let entry = border::Entry {
        number: 1,
        place: fault.place,
        result: Err(border::EntryFault { entry: 1, alias: None, faults: vec![fault] }),
        extra: serde_json::Map::new(),
        warnings: Vec::new(),
    };
    Import { entries: vec![entry], warnings: Vec::new() }
}

/// Refuses a project file that somebody else could have put there: it says what this machine connects to.
///
/// # Errors
/// [`Code::SpecInvalid`] for a file of another user (root aside).
pub(crate) fn check_owner(path: &Path) -> Result<(), Problem> {
    let Some(owner) = platform::foreign_owner(path) else { return Ok(()) };
    let message = format!("{} belongs to another user (uid {owner}); it is not used", path.display());
    Err(Problem::new(Code::SpecInvalid, message)
        .with_remedy("Copy it, or name it on the command line if you trust it: kftui up --file PATH."))
}

#[cfg(test)]
mod tests;
