//! The last good registry on disk, for a start while the registry is away.

use std::path::{Path, PathBuf};

use rssh_mqtt::{FileError, files};
use rssh_proto::ServerId;
use rssh_proto::registration::SignedRegistration;

use crate::route::Routes;

/// Why the last good registry cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged ({source}); remove it, and the registry is read anew")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Write(#[from] FileError),
}

/// The file of the last good registry: entries as their servers signed them, so that it is believed no more than they.
pub struct State {
    path: PathBuf,
    /// The revision of the routes that it holds.
    saved: Option<u64>,
}

impl State {
    /// Makes the directory.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(dir: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(dir).map_err(|source| StateError::Directory {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            path: dir.join("registry.json"),
            saved: None,
        })
    }

    /// Reads the entries; nothing on a first start.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(&self) -> Result<Option<Vec<(ServerId, String)>>, StateError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = self.path.clone();
                return Err(StateError::Read { path, source });
            }
        };
        let damaged = |source| StateError::Damaged {
            path: self.path.clone(),
            source,
        };
        let entries: Vec<(ServerId, SignedRegistration)> = serde_json::from_str(&text).map_err(damaged)?;
        entries
            .into_iter()
            .map(|(server, signed)| Ok((server, serde_json::to_string(&signed).map_err(damaged)?)))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Keeps the entries.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, routes: &Routes) -> Result<(), StateError> {
        if self.saved == Some(routes.revision()) {
            return Ok(());
        }
        // As a text it would be larger than all that is known.
        files::write_public_by(&self.path, |file| Ok(serde_json::to_writer(file, &routes.signed())?))?;
        self.saved = Some(routes.revision());
        Ok(())
    }
}
