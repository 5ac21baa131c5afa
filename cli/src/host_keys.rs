//! Devices' host keys that a server has told, so that ssh's question at each login costs no round trip.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rssh_proto::DeviceId;

use crate::files;
use crate::profile::{self, Profile};

/// For how long they are taken as they were told: a device may get new ones.
const FRESH: Duration = Duration::from_secs(10 * 60);

/// The keys that were told to one user at one load balancer.
pub struct HostKeys(Option<PathBuf>);

impl HostKeys {
    /// Those of a profile's owner; none where there is no cache directory.
    pub fn of(profile: &Profile) -> Self {
        Self(profile::directories().map(|directories| {
            let owner = format!("{}@{}", profile.user, profile.lb);
            directories.cache_dir().join("host-keys").join(owner)
        }))
    }

    /// The keys of a device, when they were told a short time ago.
    pub fn get(&self, device: &DeviceId) -> Option<Vec<String>> {
        let file = self.0.as_ref()?.join(device.as_str());
        let told = fs::metadata(&file).and_then(|metadata| metadata.modified()).ok()?;
        let age = SystemTime::now().duration_since(told).ok()?;
        let text = fs::read_to_string(file).ok().filter(|_| age < FRESH)?;
        Some(text.lines().map(str::to_owned).collect())
    }

    /// Keeps the keys of a device.
    pub fn put(&self, device: &DeviceId, keys: &[String]) {
        let Some(directory) = &self.0 else { return };
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        if let Err(error) = files::replace(&directory.join(device.as_str()), text.as_bytes(), 0o600) {
            tracing::debug!(%error, %device, "host keys not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_again_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let cache = HostKeys(Some(directory.path().to_owned()));
        let device = "device-1".parse().unwrap();
        assert_eq!(cache.get(&device), None);
        let keys = vec!["ssh-ed25519 AAAA".to_owned(), "ssh-rsa BBBB".to_owned()];
        cache.put(&device, &keys);
        assert_eq!(cache.get(&device), Some(keys));
        let old = SystemTime::now() - FRESH;
        let file = fs::File::open(directory.path().join("device-1")).unwrap();
        file.set_modified(old).unwrap();
        assert_eq!(cache.get(&device), None);
    }
}
