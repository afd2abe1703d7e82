//! SQLite's failures as problems: by cause, with the file's name.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::problem::{Code, Problem};

/// What a failure while working on `file` means for a person.
pub(super) fn problem(file: &Path, error: &rusqlite::Error) -> Problem {
    let name = file.display();
    let code = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Code::StoreBusy,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Code::StoreDamaged,
        Some(
            ErrorCode::DiskFull
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure
            | ErrorCode::NoLargeFileSupport
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory,
        ) => Code::StoreFailed,
        // Everything else is a wrong statement of ours, or a row that a foreign hand wrote.
        Some(_) | None => Code::Internal,
    };
    let what = if code == Code::StoreBusy {
        format!("another program keeps {name} locked")
    } else if code == Code::StoreDamaged {
        format!("{name} is damaged, or is no database: {error}")
    } else {
        format!("{name}: {error}")
    };
    Problem::new(code, what)
}
