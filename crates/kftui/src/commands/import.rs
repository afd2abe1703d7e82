//! `kftui import` and `kftui export`: files in, files out.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use kftray_commons::api::{
    ExportForm, ExportRequest, ImportFormat, ImportReport, ImportRequest, ImportedEntry, Selection,
};
use kftray_commons::border::{self, Defaults, Import};
use serde_json::{Map, Value};

use super::select::{self, SelectArgs};
use crate::connect;
use crate::exit::Exit;
use crate::project::{self, Format};
use crate::render::Paint;
use crate::shown::{self, Cell, Forward, Table};

/// The first bytes of every SQLite file (<https://sqlite.org/fileformat2.html>, section 1.3).
const SQLITE: &[u8] = b"SQLite format 3\0";

/// The name of standard input.
const STANDARD_INPUT: &str = "-";

pub(crate) const IMPORT_HELP: &str = "\
Examples:
  kftui import team.json --dry-run         what would be added and changed
  kftui import team.yaml more.toml
  kftui import ~/.kftray/configs.db        a database of kftray
  generate | kftui import -
  kftui import team.json --replace         and remove what is not in it

What is there already is recognised and changed, not doubled. An entry with a fault is told with
line and column; the others are imported.";

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// JSON, YAML or TOML files, databases of kftray; `-` is standard input (JSON)
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) files: Vec<String>,

    /// Only say what would happen
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Remove what is not in the files
    #[arg(long)]
    pub(crate) replace: bool,

    /// Namespace of entries that name none
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub(crate) namespace: String,

    /// What happened, for people or as JSON or YAML
    #[command(flatten)]
    pub(crate) output: shown::OutputArgs,
}

/// What the files hold.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Entries as they are stored.
    pub(crate) entries: Vec<Map<String, Value>>,
    /// Databases, to be read by the host.
    databases: Vec<PathBuf>,
    /// Files or entries that cannot be used.
    faults: usize,
}

impl Gathered {
    /// Reads a file; faults and warnings are told at once on standard error.
    pub(crate) fn add(&mut self, source: &str, defaults: &Defaults) -> Result<()> {
        let bytes = if source == STANDARD_INPUT {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        } else {
            std::fs::read(source)
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                shown::aside(&format!("{source}: cannot be read: {error}"));
                self.faults += 1;
                return Ok(());
            }
        };
        if bytes.starts_with(SQLITE) {
            self.databases.push(std::path::absolute(source).context("the current directory is not known")?);
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes);
        self.take(source, project::read(&text, Format::of(Path::new(source)), defaults));
        Ok(())
    }

    /// Takes what was read from a source.
    pub(crate) fn take(&mut self, source: &str, import: Import) {
        self.faults += tell(source, &import);
        let usable = import.entries.into_iter().filter_map(|entry| Some((entry.result.ok()?, entry.extra)));
        self.entries.extend(usable.map(|(spec, extra)| border::object(&spec, &extra)));
    }
}

/// Tells what is wrong or was overlooked; answers how many entries cannot be used.
pub(crate) fn tell(source: &str, import: &Import) -> usize {
    let source = if source == STANDARD_INPUT { "standard input" } else { source };
    let mut faults = 0;
    for fault in import.faults() {
        faults += 1;
        let alias = fault.alias.as_ref().map(|alias| format!(" ({alias})")).unwrap_or_default();
        for problem in fault.problems() {
            shown::trouble(&format!("{source}: entry {}{alias}", fault.entry), &problem);
        }
    }
    let warnings = import.warnings.iter().chain(import.entries.iter().flat_map(|entry| &entry.warnings));
    for warning in warnings {
        shown::aside(&format!("{source}: {}: {}", warning.place, warning.message));
    }
    faults
}

/// Imports.
pub(crate) async fn import(args: ImportArgs) -> Result<Exit> {
    let defaults = Defaults { namespace: args.namespace.clone(), ..Defaults::default() };
    let mut gathered = Gathered::default();
    for file in &args.files {
        gathered.add(file, &defaults)?;
    }
    let sources = usize::from(!gathered.entries.is_empty()) + gathered.databases.len();
    if sources == 0 {
        shown::aside("there is nothing to import");
        return Ok(Exit::BadInput);
    }
    if args.replace && sources > 1 {
        shown::aside("--replace takes one database, or any number of files without one");
        return Ok(Exit::Usage);
    }
    let client = connect::host().await?;
    let mut report = ImportReport { dry_run: args.dry_run, ..ImportReport::default() };
    let request =
        || ImportRequest { dry_run: args.dry_run, replace: args.replace, ..ImportRequest::default() };
    if !gathered.entries.is_empty() {
        let text = serde_json::to_string(&gathered.entries)?;
        merge(
            &mut report,
            client.import(&ImportRequest { text, format: ImportFormat::Json, ..request() }).await?,
        );
    }
    for database in &gathered.databases {
        let path = Some(database.display().to_string());
        merge(
            &mut report,
            client.import(&ImportRequest { path, format: ImportFormat::Database, ..request() }).await?,
        );
    }
    for refused in &report.faults {
        for problem in &refused.problems {
            shown::trouble(&format!("entry {}", refused.entry), problem);
        }
    }
    for warning in &report.warnings {
        shown::aside(warning);
    }
    match args.output.output {
        shown::Format::Table => crate::documents::print(table(&report, shown::paint()).as_bytes())?,
        shown::Format::Name => {
            let names = report.added.iter().chain(&report.changed).map(|one| one.label.clone() + "\n");
            crate::documents::print(names.collect::<String>().as_bytes())?
        }
        format @ (shown::Format::Json | shown::Format::Yaml) => {
            crate::documents::print(shown::document(format, &report)?.as_bytes())?
        }
    };
    let nothing =
        report.added.len() + report.changed.len() + report.unchanged.len() + report.conflicting.len() == 0;
    Ok(if nothing && (gathered.faults > 0 || !report.faults.is_empty()) {
        Exit::BadInput
    } else {
        Exit::Clean
    })
}

fn merge(into: &mut ImportReport, from: ImportReport) {
    into.added.extend(from.added);
    into.changed.extend(from.changed);
    into.unchanged.extend(from.unchanged);
    into.conflicting.extend(from.conflicting);
    into.removed.extend(from.removed);
    into.faults.extend(from.faults);
    into.warnings.extend(from.warnings);
}

fn table(report: &ImportReport, paint: Paint) -> String {
    let mut table = Table::new(&["CHANGE", "NAME", "DETAILS"]);
    let kinds: [(&str, &[ImportedEntry]); 4] = [
        ("added", &report.added),
        ("changed", &report.changed),
        ("conflicting", &report.conflicting),
        ("removed", &report.removed),
    ];
    for (kind, entries) in kinds {
        for entry in entries {
            table.row(vec![
                kind.into(),
                Cell::strong(entry.label.clone()),
                Cell::dim(entry.details.join("; ")),
            ]);
        }
    }
    let mut text = table.render(paint);
    let tense = if report.dry_run { "would be " } else { "" };
    text.push_str(&format!(
        "{} {tense}added, {} {tense}changed, {} unchanged",
        report.added.len(),
        report.changed.len(),
        report.unchanged.len()
    ));
    for (count, word) in [
        (report.conflicting.len(), "conflicting (kept as they are here)"),
        (report.removed.len(), "removed"),
        (report.faults.len(), "refused"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    text.push('\n');
    text
}

pub(crate) const EXPORT_HELP: &str = "\
Examples:
  kftui export > team.json             everything
  kftui export --group shop -o yaml
  kftui export db web -f .kftray.json
  kftui export --for kftray -f for-kftray.json     only what kftray reads";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,

    /// A file instead of standard output
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,

    /// Who shall read it: kftray refuses a whole list for one entry that it does not know
    #[arg(long = "for", value_enum, default_value_t, value_name = "PROGRAM")]
    pub(crate) reader: Reader,

    /// How it is written
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: ExportFormat,
}

/// Forms of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ExportFormat {
    #[default]
    Json,
    Yaml,
}

/// Readers of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Reader {
    #[default]
    Kftui,
    Kftray,
}

/// Exports.
pub(crate) async fn export(args: ExportArgs) -> Result<Exit> {
    let client = connect::host().await?;
    let selection = if args.select.is_empty() {
        Selection::default()
    } else {
        let chosen = args.select.choose(&Forward::all(&client.snapshot().await?))?;
        Selection::ids(select::ids(&chosen))
    };
    let form = match args.reader {
        Reader::Kftui => ExportForm::Own,
        Reader::Kftray => ExportForm::Reference,
    };
    let report = client.export(&ExportRequest { selection, form }).await?;
    for line in report.left_out.iter().chain(&report.warnings) {
        shown::aside(line);
    }
    let json = report.text;
    let text = match args.output {
        ExportFormat::Json if json.ends_with('\n') => json,
        ExportFormat::Json => json + "\n",
        ExportFormat::Yaml => shown::document(shown::Format::Yaml, &serde_json::from_str::<Value>(&json)?)?,
    };
    match args.file {
        Some(path) => {
            std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(Exit::Clean)
        }
        None => crate::documents::print(text.as_bytes()),
    }
}
