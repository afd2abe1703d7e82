//! Import and export of configs.

use serde::{Deserialize, Serialize};

use super::Selection;
use crate::problem::Problem;
use crate::spec::ForwardId;

/// A text to import.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImportRequest {
    /// The text. Empty with `path`.
    pub text: String,
    /// A file on this machine instead of a text, absolute: a database of the reference, or a JSON file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What it is.
    pub format: ImportFormat,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Remove the configs that are not in it.
    pub replace: bool,
    /// Leave configs that are there already as they are.
    pub only_new: bool,
}

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImportFormat {
    /// Found out from it.
    #[default]
    Auto,
    /// JSON: an entry, a list, or entries one after another.
    Json,
    /// A database of the reference; with `path` only.
    Database,
}

/// What an import did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImportReport {
    /// Whether it only says what would happen.
    pub dry_run: bool,
    /// New.
    pub added: Vec<ImportedEntry>,
    /// Known, with other content.
    pub changed: Vec<ImportedEntry>,
    /// Known and equal.
    pub unchanged: Vec<ImportedEntry>,
    /// Known, changed here and there; what is here was kept.
    pub conflicting: Vec<ImportedEntry>,
    /// Removed, because `replace` was asked for.
    pub removed: Vec<ImportedEntry>,
    /// Entries that cannot be used, with everything that is wrong with each.
    pub faults: Vec<RefusedEntry>,
    /// What was overlooked, with its place.
    pub warnings: Vec<String>,
}

/// One entry of an import.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImportedEntry {
    /// Its config, where there is one already.
    pub id: Option<ForwardId>,
    /// What people call it.
    pub label: String,
    /// What changes, in words.
    pub details: Vec<String>,
}

/// An entry that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefusedEntry {
    /// Its number in the text, from 1.
    pub entry: usize,
    /// Its alias, if that could be read.
    #[serde(default)]
    pub alias: Option<String>,
    /// What is wrong, with line and column.
    pub problems: Vec<Problem>,
}

/// Which configs shall be written as a text, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ExportRequest {
    /// Which; nothing said means all.
    #[serde(flatten)]
    pub selection: Selection,
    /// For whom.
    pub form: ExportForm,
}

/// For whom configs are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExportForm {
    /// For this program: everything.
    #[default]
    Own,
    /// For the reference, whose importer refuses a whole list for one entry that it does not understand.
    Reference,
}

/// Configs as a text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ExportReport {
    /// A JSON list.
    pub text: String,
    /// How many configs are in it.
    pub count: usize,
    /// Those that had to be left out, one sentence each.
    pub left_out: Vec<String>,
    /// What means something else to the reader, one sentence each.
    pub warnings: Vec<String>,
}
