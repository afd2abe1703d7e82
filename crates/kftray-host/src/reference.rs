//! Databases of the reference: taken over once from the directory, or imported by path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kftray_commons::Problem;
use kftray_commons::api::{ImportReport, RefusedEntry};
use kftray_commons::store::{MergeOptions, ReferenceReport};
use tokio::io::AsyncReadExt as _;

use crate::configs::{import_report, publish_all};
use crate::core::Core;

/// With these bytes every SQLite file begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Whether a file is a database.
pub(crate) async fn is_database(path: &Path) -> bool {
    let mut head = [0_u8; MAGIC.len()];
    match tokio::fs::File::open(path).await {
        Ok(mut file) => file.read_exact(&mut head).await.is_ok() && head == *MAGIC,
        Err(_) => false,
    }
}

/// Imports a database by its path.
///
/// # Errors
/// What the store says.
pub(crate) async fn import(
    core: &Core,
    path: PathBuf,
    options: MergeOptions,
) -> Result<ImportReport, Problem> {
    let board = Arc::clone(core.board());
    let report = core.archive().call(move |store| {
        let report = store.import_reference(&path, options)?;
        publish_all(store, &board)?;
        Ok(report)
    });
    Ok(told(report.await?))
}

/// Takes over the database that lies in the directory, if that has not been done. A failure is told and leaves the host
/// to those who want it.
pub(crate) async fn adopt(core: &Core) {
    let board = Arc::clone(core.board());
    let adopted = core.archive().call(move |store| {
        let report = store.adopt_reference()?;
        publish_all(store, &board)?;
        Ok(report)
    });
    match adopted.await {
        Ok(None) => {}
        Ok(Some(report)) => {
            let (added, faults) = (report.merge.added.len(), report.faults.len());
            tracing::info!(path = %report.path.display(), added, faults, "took over a database of the reference");
        }
        Err(problem) => tracing::warn!(%problem, "the reference's database could not be taken over"),
    }
}

fn told(report: ReferenceReport) -> ImportReport {
    let ReferenceReport { merge, faults, mut warnings, settings, shortcuts, .. } = report;
    let mut told = import_report(merge);
    told.faults = faults
        .iter()
        .map(|fault| RefusedEntry {
            entry: fault.entry,
            alias: fault.alias.clone(),
            problems: fault.problems().collect(),
        })
        .collect();
    let kinds = [("settings", settings), ("shortcuts", shortcuts)];
    for (what, names) in kinds.into_iter().filter(|(_, names)| !names.is_empty()) {
        warnings.push(format!("{what} taken over: {}", names.join(", ")));
    }
    told.warnings = warnings;
    told
}
