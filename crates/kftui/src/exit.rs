//! How the program ends. The codes are part of the command line's contract and documented in `--help`.

use std::process::ExitCode;

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// As it should.
    Clean,
    /// A fault of this program, or a demo in which a request failed.
    Failed,
    /// Nothing in the input can run.
    BadInput,
    /// A forward needs the user before it can start.
    NeedsUser,
    /// `--ready-timeout` passed.
    NotReady,
    /// As the command after `--` ended.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Failed => 1,
            // 2 is clap's own, for the command line.
            Exit::BadInput => 3,
            Exit::NeedsUser => 4,
            Exit::NotReady => 5,
            Exit::Command(code) => code,
        })
    }
}
