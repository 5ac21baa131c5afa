//! How a command ends when it does not succeed.

use rssh_proto::{Failure, FailureKind};

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A named failure, ours or a server's.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A signal ended it; the shell's convention is 128 and its number.
    #[error("interrupted")]
    Signal(u8),
    /// It ends with this exit code, and there is nobody to tell or nothing to say.
    #[error("ended with exit code {0}")]
    Silent(u8),
}

impl Error {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failure(failure) => failure.kind.exit_code(),
            Self::Signal(number) => 128 + number,
            Self::Silent(code) => *code,
        }
    }

    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        Self::Failure(Failure::new(kind, message))
    }

    /// A malformed command line.
    pub fn usage(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::BadRequest, message)
    }

    /// A profile or file that is missing or wrong.
    pub fn configuration(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Configuration, message)
    }

    /// A fault of this program or of what it talks to.
    pub fn internal(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::Internal, message)
    }
}
