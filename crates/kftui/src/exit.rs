//! How the program ends. The codes are part of the command line's contract and documented in `--help`.

use std::process::ExitCode;

use kftray_commons::{Code, Cure};

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// As it should.
    Clean,
    /// A fault of this program, or a demo in which a request failed.
    Failed,
    /// The command line is not understood.
    Usage,
    /// Nothing in the input can be used, or it names what is not there.
    BadInput,
    /// A forward needs the user before it can start.
    NeedsUser,
    /// A time limit passed before everything was ready.
    NotReady,
    /// The host cannot be reached or started.
    HostUnreachable,
    /// As the command after `--` ended.
    Command(u8),
}

/// Nobody is served by a host that is like this.
const HOST: &[Code] = &[
    Code::HostUnreachable,
    Code::HostEnding,
    Code::VersionMismatch,
    Code::PeerRefused,
    Code::TooManyClients,
    Code::DirectoryRefused,
    Code::StoreFailed,
    Code::StoreBusy,
    Code::StoreTooNew,
    Code::StoreDamaged,
];

/// What was asked for cannot be.
const INPUT: &[Code] = &[
    Code::SpecInvalid,
    Code::RequestInvalid,
    Code::RequestTooLarge,
    Code::ImportUnreadable,
    Code::NotFound,
    Code::Conflict,
    Code::Unsupported,
];

impl Exit {
    /// What a refusal of the host, or on the way to it, ends a command with.
    pub(crate) fn of(code: Code) -> Self {
        if HOST.contains(&code) {
            Self::HostUnreachable
        } else if INPUT.contains(&code) {
            Self::BadInput
        } else if code.cure() == Cure::User {
            Self::NeedsUser
        } else {
            Self::Failed
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Failed => 1,
            // Also clap's own.
            Exit::Usage => 2,
            Exit::BadInput => 3,
            Exit::NeedsUser => 4,
            Exit::NotReady => 5,
            Exit::HostUnreachable => 6,
            Exit::Command(code) => code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals() {
        assert_eq!(Exit::of(Code::HostUnreachable), Exit::HostUnreachable);
        assert_eq!(Exit::of(Code::StoreFailed), Exit::HostUnreachable);
        assert_eq!(Exit::of(Code::NotFound), Exit::BadInput);
        assert_eq!(Exit::of(Code::ContextMissing), Exit::NeedsUser);
        assert_eq!(Exit::of(Code::ClusterUnreachable), Exit::Failed);
    }
}
