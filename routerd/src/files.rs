//! The files that HAProxy starts from: written before anything is told to it, each in one step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rssh_mqtt::{FileError, files};

use crate::config::HaproxyConfig;
use crate::desired::{Desired, Map, Serial};
use crate::render::{self, TemplateError};

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Write(#[from] FileError),
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: {reason}")]
    Revoked { path: PathBuf, line: usize, reason: String },
}

/// Writes HAProxy's files, and remembers what they say, by a hash.
pub struct Files {
    haproxy: HaproxyConfig,
    hashing: RandomState,
    written: BTreeMap<PathBuf, u64>,
}

impl Files {
    /// Makes the directories.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(haproxy: HaproxyConfig) -> Result<Self, FilesError> {
        let maps = haproxy.dir.join("maps");
        fs::create_dir_all(maps.path()).map_err(|source| FilesError::Directory {
            path: maps.path().to_owned(),
            source,
        })?;
        let mut files = Self::look(haproxy);
        // HAProxy does not start without them. What was revoked before this start stays so until PostgreSQL says otherwise.
        let kept = |map: &Map| map.is_operators() || *map == Map::Revoked;
        for map in Map::ALL.into_iter().filter(kept) {
            let path = render::map_path(&files.haproxy, map);
            if !path.path().exists() {
                files.put(path.path(), "", false)?;
            }
        }
        Ok(files)
    }

    /// Takes where the files are, to read them only.
    pub fn look(haproxy: HaproxyConfig) -> Self {
        Self {
            haproxy,
            hashing: RandomState::new(),
            written: BTreeMap::new(),
        }
    }

    /// Makes the files say what is desired; one that already does is left alone.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&mut self, desired: &Desired) -> Result<(), FilesError> {
        for (map, rows) in desired.maps.iter().filter(|(map, _)| !map.is_operators()) {
            let path = render::map_path(&self.haproxy, *map);
            self.put(path.path(), &render::map(rows), map.is_secret())?;
        }
        let text = render::configuration(&self.haproxy, desired)?;
        self.put(self.haproxy.dir.join("haproxy.cfg").path(), &text, false)
    }

    fn put(&mut self, path: &Path, text: &str, secret: bool) -> Result<(), FilesError> {
        let hash = self.hashing.hash_one(text);
        if self.written.get(path) == Some(&hash) {
            return Ok(());
        }
        let write = if secret {
            files::write_secret
        } else {
            files::write_public
        };
        write(path, text.as_bytes())?;
        self.written.insert(path.to_owned(), hash);
        Ok(())
    }

    /// Reads which users and certificates the operator has revoked.
    ///
    /// # Errors
    /// When a file cannot be read or a line is not an id: then what was read before must stand.
    pub fn revoked<U>(&self) -> Result<(BTreeSet<U>, BTreeSet<Serial>), FilesError>
    where
        U: FromStr<Err: std::fmt::Display> + Ord,
    {
        Ok((self.keys(Map::RevokedUsers)?, self.keys(Map::RevokedSerials)?))
    }

    /// Reads which users PostgreSQL had revoked when it last answered.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn known_revoked<U: FromStr<Err: std::fmt::Display> + Ord>(&self) -> Result<BTreeSet<U>, FilesError> {
        self.keys(Map::Revoked)
    }

    fn keys<K: FromStr<Err: std::fmt::Display> + Ord>(&self, map: Map) -> Result<BTreeSet<K>, FilesError> {
        let path = render::map_path(&self.haproxy, map).path().to_owned();
        let text = fs::read_to_string(&path).map_err(|source| FilesError::Read {
            path: path.clone(),
            source,
        })?;
        let lines = text.lines().enumerate().filter_map(|(index, line)| {
            let key = line.split_whitespace().next()?;
            (!key.starts_with('#')).then_some((index, key))
        });
        lines
            .map(|(index, key)| {
                key.parse().map_err(|error: K::Err| FilesError::Revoked {
                    path: path.clone(),
                    line: index + 1,
                    reason: error.to_string(),
                })
            })
            .collect()
    }
}
