//! Configuration files, read the same way by every daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a configuration file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TomlError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {path} is wrong: {reason}")]
    Parse { path: PathBuf, reason: String },
}

/// Reads a configuration, as far as its form goes.
///
/// # Errors
/// When the file cannot be read, or is not of that form.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, TomlError> {
    let text = fs::read_to_string(path).map_err(|source| TomlError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error| TomlError::Parse {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })
}
