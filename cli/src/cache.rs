//! Names that still admit connections, so that a second connection needs no round trip to a server.
//!
//! The cache is a convenience: a fault of it is never a fault of the command.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rssh_proto::payload::TunnelInfo;
use rssh_proto::{DeviceId, Target, TunnelId, UserId};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::profile::{self, Profile};

/// A name is not used during its last moments: the way to the load balancer takes time too.
const MARGIN: Duration = Duration::from_secs(2);

/// A name as it was when a server sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedName {
    pub host: String,
    pub port: u16,
    pub tunnel: TunnelId,
    /// Whose name it is, and at which load balancer: another profile has no use for it.
    user: UserId,
    lb: String,
    /// This machine's clock when the name came, in Unix seconds; it may be wrong, so only its distance counts.
    stored_at: u64,
    /// For how long the name admits connections from then on, in seconds.
    valid_s: u32,
    /// When the name expires by the server's clock, in Unix seconds.
    exp: Option<i64>,
}

impl CachedName {
    fn admits_at(&self, now: SystemTime) -> bool {
        let stored = UNIX_EPOCH + Duration::from_secs(self.stored_at);
        // A clock that was set back since says nothing about the name's age.
        now.duration_since(stored)
            .is_ok_and(|age| age + MARGIN < Duration::from_secs(u64::from(self.valid_s)))
    }
}

/// The names of one user at one load balancer.
pub struct Cache {
    directory: Option<PathBuf>,
    user: UserId,
    lb: String,
}

impl Cache {
    /// The cache in the user's cache directory; without one, a cache that keeps nothing.
    pub fn of(profile: &Profile) -> Self {
        Self::at(
            profile::directories().map(|directories| directories.cache_dir().join("names")),
            profile,
        )
    }

    fn at(directory: Option<PathBuf>, profile: &Profile) -> Self {
        Self {
            directory,
            user: profile.user.clone(),
            lb: profile.lb.to_string(),
        }
    }

    /// The name for a target, while it admits connections.
    pub fn get(&self, device: &DeviceId, target: &Target, now: SystemTime) -> Option<CachedName> {
        let text = fs::read(self.file(device, target)?).ok()?;
        let name: CachedName = serde_json::from_slice(&text).ok()?;
        (name.user == self.user && name.lb == self.lb && name.admits_at(now)).then_some(name)
    }

    /// Keeps the name that came with a tunnel.
    pub fn put(&self, info: &TunnelInfo, now: SystemTime) {
        let (Some(path), Some(host), Some(port)) = (self.file(&info.device, &info.target), &info.host, info.port)
        else {
            return;
        };
        let stored_at = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let by_clock = || {
            let left = info.host_expires_at?.checked_sub(i64::try_from(stored_at).ok()?)?;
            u32::try_from(left).ok()
        };
        let Some(valid_s) = info.host_valid_s.or_else(by_clock) else {
            return;
        };
        let name = CachedName {
            host: host.clone(),
            port,
            tunnel: info.tunnel,
            user: self.user.clone(),
            lb: self.lb.clone(),
            stored_at,
            valid_s,
            exp: info.host_expires_at,
        };
        let written = serde_json::to_vec(&name)
            .map_err(io::Error::from)
            .and_then(|json| files::replace(&path, &json, 0o600));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "name not cached");
        }
    }

    /// Forgets a name that was refused, unless another has taken its place meanwhile.
    pub fn forget(&self, refused: &CachedName, device: &DeviceId, target: &Target) {
        if self
            .get(device, target, SystemTime::now())
            .is_none_or(|name| name.host == refused.host)
        {
            self.remove(device, target);
        }
    }

    /// Forgets the name for a target.
    pub fn remove(&self, device: &DeviceId, target: &Target) {
        if let Some(path) = self.file(device, target) {
            let _ = fs::remove_file(path);
        }
    }

    /// The file of a target's name. Neither ids nor targets contain a slash, and no device id an underscore.
    fn file(&self, device: &DeviceId, target: &Target) -> Option<PathBuf> {
        let name = format!("{device}_{target}.json");
        self.directory.as_ref().map(|directory| directory.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use rssh_proto::payload::TunnelState;

    use super::*;

    fn profile(user: &str) -> Profile {
        toml::from_str(&format!(
            r#"user="{user}"
            brokers=["127.0.0.1:1"]
            lb="127.0.0.1:2"
            ca="" 
            cert=""
            key="""#
        ))
        .unwrap()
    }

    fn info(valid_s: Option<u32>, host_expires_at: Option<i64>) -> TunnelInfo {
        TunnelInfo {
            tunnel: TunnelId::generate(),
            device: "device-1".parse().unwrap(),
            target: Target::ssh(),
            state: TunnelState::Active,
            server: None,
            host: Some("s1-1-1-0.proxy.test".into()),
            port: Some(443),
            expires_at: 0,
            host_expires_at,
            host_valid_s: valid_s,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_name_is_used_while_it_lasts_even_by_a_wrong_clock() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().join("names")), &profile("alice"));
        // The machine believes it is 1970; the name ends in 2033 by the server's clock.
        let info = info(Some(120), Some(2_000_000_000));
        cache.put(&info, at(100));
        let got = |now| cache.get(&info.device, &info.target, at(now)).map(|name| name.tunnel);
        assert_eq!(got(100), Some(info.tunnel));
        assert_eq!(got(217), Some(info.tunnel));
        assert_eq!(got(218), None, "its last moments are not used");
        assert_eq!(got(99), None, "the clock was set back");
        cache.remove(&info.device, &info.target);
        assert_eq!(got(100), None);
    }

    #[test]
    fn an_older_servers_absolute_time_serves_too() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().to_owned()), &profile("alice"));
        let info = info(None, Some(1_060));
        cache.put(&info, at(1_000));
        assert!(cache.get(&info.device, &info.target, at(1_057)).is_some());
        assert!(cache.get(&info.device, &info.target, at(1_058)).is_none());
    }

    #[test]
    fn a_name_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let names = directory.path().join("names");
        let info = info(Some(120), None);
        Cache::at(Some(names.clone()), &profile("alice")).put(&info, at(0));
        let file = names.join("device-1_localhost:22.json");
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&names).unwrap().mode() & 0o777, 0o700);
        let bob = Cache::at(Some(names), &profile("bob"));
        assert_eq!(bob.get(&info.device, &info.target, at(0)), None);
    }

    #[test]
    fn what_cannot_be_read_is_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(directory.path().to_owned()), &profile("alice"));
        let (device, target) = ("device-1".parse().unwrap(), Target::ssh());
        fs::write(cache.file(&device, &target).unwrap(), "{").unwrap();
        assert_eq!(cache.get(&device, &target, at(0)), None);
        let nowhere = Cache::at(None, &profile("alice"));
        nowhere.put(&info(Some(120), None), at(0));
        assert_eq!(nowhere.get(&device, &target, at(0)), None);
    }
}
