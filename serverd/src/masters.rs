//! The masters of the name keys: the one that is, and the one before while names by its keys are about.
//!
//! ```text
//!              rotate          SPREADS over            the overlap is over, or retire
//!   routers  old | old and new       | old and new                | new
//!   servers  old | old               | new                        | new
//! ```
//! Routers take both before any server signs by the new one, so at no moment is a good name refused. Nobody is told:
//! routers and servers ask every few seconds, and what they are answered follows from the files and the clock alone.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rssh_mqtt::files::{self, FileError};
use rssh_proto::name::NameError;
use rssh_proto::payload::SharedName;
use rssh_proto::{NameKey, NameMaster, ServerId};
use serde::{Deserialize, Serialize};

use crate::clock::UnixTime;

/// How long a master spreads to the routers before any server signs by it; they ask several times meanwhile.
pub const SPREADS: Duration = Duration::from_secs(30);
/// How often servers ask for their key.
pub const SERVERS_ASK: Duration = Duration::from_secs(10);

/// Why the masters cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {source}")]
    Master { path: PathBuf, source: NameError },
    #[error("{0} does not say which master was before; remove it when no name by that one is about")]
    Before(PathBuf),
    #[error("cannot change {path}: {source}")]
    Change { path: PathBuf, source: io::Error },
    #[error(
        "the names' master before is good for {} s more; wait, or take it back at once with rssh-serverd names retire",
        .0.as_secs()
    )]
    TooSoon(Duration),
    #[error("the overlap is shorter than names live; give it at least {} s", .0.as_secs())]
    TooShort(Duration),
}

/// The files of the masters, beside the authorities.
pub struct MasterFiles {
    current: PathBuf,
    before: PathBuf,
}

/// What the file of the master before says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Before {
    /// In base64.
    master: String,
    /// When another took its place.
    rotated_at: UnixTime,
    /// For how long names by it are good from then on, in seconds.
    overlap_s: i64,
}

/// The masters at a moment.
pub struct Masters {
    pub current: NameMaster,
    /// While names by its keys are about.
    pub previous: Option<NameMaster>,
    /// Whether routers may not know the current one yet.
    spreading: bool,
    left: Duration,
}

impl Masters {
    /// The key that a server signs names with.
    pub fn key(&self, server: &ServerId) -> NameKey {
        let master = self.previous.as_ref().filter(|_| self.spreading);
        master.unwrap_or(&self.current).key(server)
    }
}

impl MasterFiles {
    /// The files in the directory of the authorities.
    pub fn new(dir: &Path) -> Self {
        Self {
            current: dir.join("name-master"),
            before: dir.join("name-master-before"),
        }
    }

    /// Draws the first master.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(&self) -> Result<(), MasterError> {
        Ok(write(&self.current, &NameMaster::generate())?)
    }

    /// Reads them as they count at `now`.
    ///
    /// # Errors
    /// When a file is missing, exposed or not what it should be.
    pub fn read(&self, now: UnixTime) -> Result<Masters, MasterError> {
        // First the one before: whoever rotates at this moment writes it first.
        let before = self.read_before()?;
        let text = files::read_secret(&self.current)?;
        let current = parse(&self.current, &String::from_utf8_lossy(&text))?;
        let mut masters = Masters {
            current,
            previous: None,
            spreading: false,
            left: Duration::ZERO,
        };
        if let Some(before) = before {
            let age = now.0.saturating_sub(before.rotated_at.0);
            let left = u64::try_from(before.overlap_s.saturating_sub(age)).unwrap_or(0);
            if left > 0 && before.master != masters.current.to_base64() {
                masters.previous = Some(parse(&self.before, &before.master)?);
                masters.spreading = u64::try_from(age).unwrap_or(0) < SPREADS.as_secs();
                masters.left = Duration::from_secs(left);
            }
        }
        Ok(masters)
    }

    /// Draws another master; names by the one before stay good for `overlap`. A crash on the way leaves all as it was.
    ///
    /// # Errors
    /// When an overlap is under way, this one is too short, or the directory cannot be written.
    pub fn rotate(&self, overlap: Duration, name_ttl: Duration, now: UnixTime) -> Result<(), MasterError> {
        let lives = name_ttl.max(Duration::from_secs(SharedName::LONGEST_S.into()));
        let least = SPREADS + 2 * SERVERS_ASK + lives;
        if overlap < least {
            return Err(MasterError::TooShort(least));
        }
        let masters = self.read(now)?;
        if masters.previous.is_some() {
            return Err(MasterError::TooSoon(masters.left));
        }
        let before = Before {
            master: masters.current.to_base64(),
            rotated_at: now,
            overlap_s: i64::try_from(overlap.as_secs()).unwrap_or(i64::MAX),
        };
        let text = serde_json::to_vec(&before).map_err(|error| self.change(error.into()))?;
        files::write_secret(&self.before, &text)?;
        // A daemon under its own account goes on reading what root changes.
        let owner = std::fs::metadata(&self.current).map_err(|error| self.change(error))?;
        std::os::unix::fs::chown(&self.before, Some(owner.uid()), Some(owner.gid()))
            .map_err(|error| self.change(error))?;
        Ok(write(&self.current, &NameMaster::generate())?)
    }

    /// Ends the overlap at once. Returns whether there was one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn retire(&self, now: UnixTime) -> Result<bool, MasterError> {
        let counted = self.read(now)?.previous.is_some();
        match std::fs::remove_file(&self.before) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.change(error)),
            _ => Ok(counted),
        }
    }

    fn read_before(&self) -> Result<Option<Before>, MasterError> {
        if !self.before.exists() {
            return Ok(None);
        }
        let text = files::read_secret(&self.before)?;
        let before = serde_json::from_slice(&text).map_err(|_| MasterError::Before(self.before.clone()))?;
        Ok(Some(before))
    }

    fn change(&self, source: io::Error) -> MasterError {
        MasterError::Change {
            path: self.before.clone(),
            source,
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<NameMaster, MasterError> {
    text.parse().map_err(|source| MasterError::Master {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, master: &NameMaster) -> Result<(), FileError> {
    files::write_secret(path, format!("{}\n", master.to_base64()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(120);
    const OVERLAP: Duration = Duration::from_secs(3600);

    fn server() -> ServerId {
        "s1".parse().unwrap()
    }

    #[test]
    fn routers_know_a_master_before_servers_sign_by_it_and_the_one_before_ends() {
        let dir = tempfile::tempdir().unwrap();
        let files = MasterFiles::new(dir.path());
        files.create().unwrap();
        let start = UnixTime(1_700_000_000);
        let at = |s: i64| files.read(UnixTime(start.0 + s)).unwrap();
        let first = at(0).current.key(&server());
        assert!(at(0).previous.is_none() && at(0).key(&server()) == first);

        files.rotate(OVERLAP, TTL, start).unwrap();
        let second = at(0).current.key(&server());
        assert!(second != first);
        // Until when servers sign by which, and routers take which.
        for (s, signs, takes) in [
            // A clock that was set back is no reason to sign by what routers may not know.
            (-100, &first, Some(&first)),
            (0, &first, Some(&first)),
            (29, &first, Some(&first)),
            (30, &second, Some(&first)),
            (3599, &second, Some(&first)),
            (3600, &second, None),
        ] {
            let masters = at(s);
            assert!(masters.key(&server()) == *signs, "{s}");
            let previous = masters.previous.map(|previous| previous.key(&server()));
            assert!(previous.as_ref() == takes, "{s}");
        }
    }

    #[test]
    fn there_is_one_overlap_at_a_time_and_it_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let files = MasterFiles::new(dir.path());
        files.create().unwrap();
        let now = UnixTime(1_700_000_000);
        let short = files.rotate(Duration::from_secs(600), TTL, now).unwrap_err();
        assert!(matches!(short, MasterError::TooShort(_)), "{short}");
        files.rotate(OVERLAP, TTL, now).unwrap();
        let again = files.rotate(OVERLAP, TTL, UnixTime(now.0 + 60)).unwrap_err();
        assert!(
            again.to_string().contains("3540 s more") && again.to_string().contains("names retire"),
            "{again}"
        );
        let current = files.read(now).unwrap().current.to_base64();
        assert!(files.retire(now).unwrap());
        assert!(!files.retire(now).unwrap());
        let masters = files.read(now).unwrap();
        assert!(masters.previous.is_none());
        assert_eq!(masters.current.to_base64(), current);
        files.rotate(OVERLAP, TTL, now).unwrap();
        // One that is over does not stand in the way either.
        files.rotate(OVERLAP, TTL, UnixTime(now.0 + 3600)).unwrap();
    }

    #[test]
    fn a_rotation_that_was_cut_short_changes_nothing_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let files = MasterFiles::new(dir.path());
        files.create().unwrap();
        let now = UnixTime(1_700_000_000);
        let master = files.read(now).unwrap().current.to_base64();
        let written = serde_json::json!({"master": master, "rotated-at": now, "overlap-s": 3600});
        files::write_secret(&dir.path().join("name-master-before"), written.to_string().as_bytes()).unwrap();
        let masters = files.read(now).unwrap();
        assert!(masters.previous.is_none());
        assert_eq!(masters.current.to_base64(), master);
        files.rotate(OVERLAP, TTL, now).unwrap();
        assert_eq!(files.read(now).unwrap().previous.unwrap().to_base64(), master);
    }
}
