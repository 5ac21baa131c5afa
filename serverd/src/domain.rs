//! The three domains of trust, each with an authority of its own.

use std::path::{Path, PathBuf};

/// Which authority signs an identity: the domain it can act in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    Servers,
    Devices,
    Users,
}

impl Domain {
    pub const ALL: [Self; 3] = [Self::Servers, Self::Devices, Self::Users];

    /// As its files are named.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Servers => "servers",
            Self::Devices => "devices",
            Self::Users => "users",
        }
    }
}

/// The certificate of an authority, in a directory of authorities or of their public halves.
pub fn ca_file(dir: &Path, domain: Domain) -> PathBuf {
    dir.join(format!("{}-ca.pem", domain.name()))
}
