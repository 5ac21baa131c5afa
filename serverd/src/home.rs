//! The state directory of a server: its id, its name key, and the lock that only one process holds.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rssh_mqtt::files::{self, FileError};
use rssh_proto::id::random_hex;
use rssh_proto::{NameKey, ServerId};

use crate::config::Config;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot use the state directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} does not hold a server id; rssh-serverd server init makes one")]
    NoId { path: PathBuf },
    #[error("{path} holds the id {kept}; a server keeps its id, so {wanted} needs a state directory of its own")]
    OtherId {
        path: PathBuf,
        kept: ServerId,
        wanted: ServerId,
    },
    #[error("{path} does not hold a name key; rssh-serverd server init makes one")]
    NoKey { path: PathBuf },
    #[error("another rssh-serverd runs in {0}")]
    Locked(PathBuf),
}

/// The state directory.
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// Opens the directory, making it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(config: &Config) -> Result<Self, HomeError> {
        let dir = config.state_dir.clone();
        let run = dir.join("run");
        fs::create_dir_all(&run).map_err(|source| HomeError::Directory { path: run, source })?;
        Ok(Self { dir })
    }

    /// Looks at the directory as it is, to change nothing there.
    pub fn look(config: &Config) -> Self {
        Self {
            dir: config.state_dir.clone(),
        }
    }

    /// The kept id; on the first call, keeps `wanted` or draws one.
    ///
    /// # Errors
    /// When another id is kept.
    pub fn keep_id(&self, wanted: Option<ServerId>) -> Result<ServerId, HomeError> {
        let path = self.id_file();
        if path.exists() {
            let kept = self.id()?;
            return match wanted {
                Some(wanted) if wanted != kept => Err(HomeError::OtherId { path, kept, wanted }),
                _ => Ok(kept),
            };
        }
        let id = wanted.unwrap_or_else(draw_id);
        files::write_public(&path, format!("{id}\n").as_bytes())?;
        Ok(id)
    }

    /// The kept id.
    ///
    /// # Errors
    /// When there is none.
    pub fn id(&self) -> Result<ServerId, HomeError> {
        let path = self.id_file();
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.trim().parse().map_err(|_| HomeError::NoId { path })
    }

    /// Keeps the key that this server signs names with.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn keep_name_key(&self, key: &NameKey) -> Result<(), HomeError> {
        Ok(files::write_secret(
            &self.name_key_file(),
            format!("{}\n", key.to_base64()).as_bytes(),
        )?)
    }

    /// The key that this server signs names with.
    ///
    /// # Errors
    /// When it is missing, exposed or not a key.
    pub fn name_key(&self) -> Result<NameKey, HomeError> {
        let path = self.name_key_file();
        let text = files::read_secret(&path)?;
        String::from_utf8_lossy(&text)
            .parse()
            .map_err(|_| HomeError::NoKey { path })
    }

    /// Takes the lock of the directory, which lasts as long as the returned file.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<File, HomeError> {
        let path = self.dir.join("run/lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| HomeError::Directory { path, source })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(_) => Err(HomeError::Locked(self.dir.clone())),
        }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn id_file(&self) -> PathBuf {
        self.dir.join("server-id")
    }

    fn name_key_file(&self) -> PathBuf {
        self.dir.join("name.key")
    }
}

/// An id of one letter and forty random bits.
pub fn draw_id() -> ServerId {
    format!("s{}", random_hex::<5>())
        .parse()
        .expect("a letter and ten hexadecimal digits are a server id")
}
