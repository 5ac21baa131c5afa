//! Another SSH key for this device; the one before stays good for a day, and tunnels that are up stay up.
//!
//! ```text
//!   ssh_key.making --> ssh_key.next --registered--> ssh_key
//!   half a key         whole, on disk               both are good at the servers, the next landing uses the new one
//! ```
//! Cut short at any point, the device still lands: until the last step by the key before, from then on by the new one.
//! What was begun is carried on by the next who comes: the command, or the agent at its start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rssh_mqtt::Identity;
use rssh_mqtt::https::Client;
use rssh_proto::enrolment::NewSshKey;

use crate::config::Config;
use crate::init;

/// How often the key's age is looked at.
const LOOK: Duration = Duration::from_secs(3600);
/// How long to wait after a rotation that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// Where a key lies, and the one that is to take its place.
pub struct Keys {
    key: PathBuf,
}

impl Keys {
    /// Of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            key: config.ssh.key.clone(),
        }
    }

    fn beside(&self, end: &str) -> PathBuf {
        init::beside(&self.key, end)
    }

    /// The key that is to be, once it is whole.
    pub fn next(&self) -> PathBuf {
        self.beside(".next")
    }

    /// Only one changes them at a time.
    fn lock(&self) -> anyhow::Result<File> {
        let dir = self.dir();
        let locked = File::open(dir).and_then(|file| {
            file.try_lock()?;
            Ok(file)
        });
        locked.with_context(|| format!("cannot lock {}; is another rotation under way?", dir.display()))
    }

    fn dir(&self) -> &Path {
        self.key.parent().unwrap_or(Path::new("/"))
    }

    /// Makes the next key, unless there is one.
    fn make(&self) -> anyhow::Result<()> {
        let (making, next) = (self.beside(".making"), self.next());
        for half in [&making, &self.beside(".making.pub")] {
            gone(half)?;
        }
        if next.exists() {
            return Ok(());
        }
        init::generate(&making)?;
        // Where root rotates, the agent's own account goes on reading its key.
        let owner = fs::metadata(&self.key).with_context(|| format!("cannot read {}", self.key.display()))?;
        std::os::unix::fs::chown(&making, Some(owner.uid()), Some(owner.gid()))
            .with_context(|| format!("cannot give {} its owner", making.display()))?;
        // Whole on disk, before any server knows it.
        File::open(&making)?.sync_all()?;
        rename(&making, &next)?;
        self.sync()
    }

    /// Puts the next key in its place.
    fn place(&self) -> anyhow::Result<()> {
        self.unpublish()?;
        rename(&self.next(), &self.key)?;
        self.sync()?;
        self.publish()
    }

    /// Nothing tells of the key before; ssh believes a `.pub`, as earlier agents wrote it, more than the private key.
    fn unpublish(&self) -> anyhow::Result<()> {
        for public in [init::public_file(&self.key), self.beside(".pub")] {
            gone(&public)?;
        }
        self.sync()
    }

    fn publish(&self) -> anyhow::Result<()> {
        init::publish(&self.key)
    }

    fn sync(&self) -> anyhow::Result<()> {
        let dir = self.dir();
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("cannot write {}", dir.display()))
    }

    /// How old the key is; nothing while the clock stands before its making.
    fn age(&self) -> Option<Duration> {
        fs::metadata(&self.key).ok()?.modified().ok()?.elapsed().ok()
    }
}

fn gone(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot put {} in place of {}", from.display(), to.display()))
}

/// Gives the device another key: makes it, has it registered, puts it in its place. It can be repeated when it failed
/// half-way.
///
/// # Errors
/// When no server answers, one refuses, or a file cannot be written.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let keys = Keys::of(config);
    let _lock = keys.lock()?;
    keys.make()?;
    register(config, &keys).await?;
    keys.place()
}

async fn register(config: &Config, keys: &Keys) -> anyhow::Result<()> {
    let Some(url) = config.url.clone() else {
        bail!("the configuration has no url to register a key at; enrol the device, or add it");
    };
    let asked = NewSshKey {
        ssh_key: init::public_half(&keys.next())?,
        host_keys: Vec::new(),
    };
    let client = Client::new(url, &Identity::load(&config.identity())?)?.by(config.proxies()?);
    let _: serde_json::Value = client.post("/v1/device/ssh-key", &asked).await?;
    Ok(())
}

/// Carries on what was cut short, and rotates a key that is older than the configuration lets it be; for ever.
pub async fn keep(config: Config) {
    let keys = Keys::of(&config);
    if let Err(error) = keys.publish() {
        tracing::warn!("the device's public ssh key cannot be written: {error:#}");
    }
    loop {
        let old = |after: Duration| keys.age().is_some_and(|age| age > after);
        let due = keys.next().exists() || config.ssh.rotate_after.is_some_and(|after| old(after.duration()));
        let mut pause = LOOK;
        if cfg!(feature = "enrolment") && due && config.url.is_some() {
            match run(&config).await {
                Ok(()) => tracing::info!("the device has another ssh key"),
                Err(error) => {
                    tracing::warn!("the device's ssh key could not be changed yet: {error:#}");
                    pause = AGAIN;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device can be cut short after.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Cut {
        HalfMade,
        Made,
        Registered,
        Unpublished,
        Renamed,
        Placed,
    }

    /// The keys by which servers know the device: the last two.
    struct Registry(Vec<String>);

    impl Registry {
        fn register(&mut self, keys: &Keys) {
            let key = init::public_half(&keys.next()).unwrap();
            if self.0.last() != Some(&key) {
                self.0.push(key);
            }
        }

        fn knows(&self, key: &String) -> bool {
            self.0.iter().rev().take(2).any(|known| known == key)
        }
    }

    fn go(keys: &Keys, registry: &mut Registry, until: Cut) {
        if until == Cut::HalfMade {
            fs::write(keys.beside(".making"), "-----BEGIN OPENSSH").unwrap();
            return;
        }
        keys.make().unwrap();
        if until >= Cut::Registered {
            registry.register(keys);
        }
        match until {
            Cut::Unpublished | Cut::Renamed => {
                keys.unpublish().unwrap();
                if until == Cut::Renamed {
                    rename(&keys.next(), &keys.key).unwrap();
                }
            }
            Cut::Placed => keys.place().unwrap(),
            _ => {}
        }
    }

    #[test]
    fn a_device_that_was_cut_short_anywhere_still_lands_and_carries_on() {
        for cut in [
            Cut::HalfMade,
            Cut::Made,
            Cut::Registered,
            Cut::Unpublished,
            Cut::Renamed,
            Cut::Placed,
        ] {
            let dir = tempfile::tempdir().unwrap();
            init::make(dir.path()).unwrap();
            let keys = Keys {
                key: dir.path().join("ssh_key"),
            };
            let first = init::public_half(&keys.key).unwrap();
            // As earlier agents left it.
            fs::write(keys.beside(".pub"), &first).unwrap();
            let mut registry = Registry(vec![first.clone()]);
            go(&keys, &mut registry, cut);
            let lands = |registry: &Registry| {
                let key = init::public_half(&keys.key).unwrap();
                assert!(registry.knows(&key), "{cut:?}");
                // ssh believes a `.pub` before the private key.
                for public in [init::public_file(&keys.key), keys.beside(".pub")] {
                    if let Ok(public) = init::public_key(&public) {
                        assert_eq!(public, key, "{cut:?}");
                    }
                }
                key
            };
            let key = lands(&registry);
            assert_eq!(key == first, cut < Cut::Renamed, "{cut:?}");

            // The agent at its start.
            keys.publish().unwrap();
            lands(&registry);
            if keys.next().exists() || cut == Cut::HalfMade {
                go(&keys, &mut registry, Cut::Placed);
            }
            let second = lands(&registry);
            assert_ne!(second, first, "{cut:?}");
            assert_eq!(registry.0, [first, second], "{cut:?}: one rotation, one key");
            let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
            assert_eq!(left.len(), 2, "{cut:?}: {left:?}");
            assert_eq!(fs::metadata(&keys.key).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn one_rotation_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys {
            key: dir.path().join("ssh_key"),
        };
        let held = keys.lock().unwrap();
        assert!(keys.lock().is_err());
        drop(held);
        // A program that another test starts at this moment has the lock, too, until it runs.
        let free = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            keys.lock().is_ok()
        });
        assert!(free, "the lock is held for ever");
    }
}
