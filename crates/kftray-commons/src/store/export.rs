//! Forwards as a text that others import.

use serde_json::{Map, Value};

use super::Store;
use crate::border;
use crate::problem::Problem;
use crate::spec::ForwardId;

/// For whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// For this program: everything, with the fields that only other versions know.
    #[default]
    Own,
    /// For the reference, whose importer refuses a whole list for one entry that it does not understand.
    Reference,
}

/// A JSON list, and what is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Two blanks per level, a line break at the end.
    pub text: String,
    /// How many forwards are in it.
    pub count: usize,
    /// Those that had to be left out.
    pub left_out: Vec<LeftOut>,
    /// What means something else to the reader.
    pub warnings: Vec<LeftOut>,
}

/// Something that the reader does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The forward.
    pub id: ForwardId,
    /// What people call it.
    pub label: String,
    /// Why; a clause without full stop.
    pub reason: String,
}

impl Store {
    /// The forwards with these ids, or all with `None`, by id. Numbers and desired states stay here.
    ///
    /// # Errors
    /// As with every method of the store.
    pub fn export(&self, ids: Option<&[ForwardId]>, form: Form) -> Result<Export, Problem> {
        let mut entries: Vec<Value> = Vec::new();
        let (mut left_out, mut warnings) = (Vec::new(), Vec::new());
        for config in self.configs()? {
            if ids.is_some_and(|ids| !ids.contains(&config.id)) {
                continue;
            }
            let note = |reason: String| LeftOut { id: config.id, label: config.label(), reason };
            match (form, &config.spec) {
                (Form::Own, _) => entries.push(without_id(config.entry).into()),
                (Form::Reference, Ok(spec)) => match border::compatible(spec, &config.extra) {
                    Ok(compatible) => {
                        warnings.extend(compatible.warnings.into_iter().map(note));
                        entries.push(compatible.object.into());
                    }
                    Err(reason) => left_out.push(note(reason)),
                },
                (Form::Reference, Err(_)) => left_out.push(note("this version cannot read it".to_owned())),
            }
        }
        let count = entries.len();
        // Indented JSON of values cannot fail.
        let mut text = serde_json::to_string_pretty(&entries).unwrap_or_default();
        text.push('\n');
        Ok(Export { text, count, left_out, warnings })
    }
}

fn without_id(mut entry: Map<String, Value>) -> Map<String, Value> {
    entry.shift_remove("id");
    entry
}
