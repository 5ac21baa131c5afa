//! How long a certificate is good.

use std::path::Path;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::{self, FileError};

/// From when to when a certificate is good, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub from: i64,
    pub until: i64,
}

impl Life {
    /// Reads the life of the first certificate in a file.
    ///
    /// # Errors
    /// When the file holds none.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let none = || FileError::Pem {
            path: path.to_owned(),
            what: "certificate",
        };
        let certificates = files::certificates(path)?;
        certificates
            .first()
            .and_then(|first| Self::read(first))
            .ok_or_else(none)
    }

    /// Reads the life of a certificate in DER form, if it is one.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        Some(Self {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// When it is to be renewed: at two thirds.
    pub const fn renew_at(self) -> i64 {
        self.from + (self.until - self.from) / 3 * 2
    }

    /// Whether it is over.
    pub const fn is_over(self, now: i64) -> bool {
        now >= self.until
    }
}
