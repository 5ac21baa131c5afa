//! The devices and tunnels that this user has seen here: what completion, the picker and ssh's configuration offer.
//!
//! One small file for each, so that programs that run at once need no lock. Like the names' cache it is a convenience:
//! a fault of it is never a fault of the command.

use std::fs;
use std::io;
use std::path::PathBuf;

use rssh_proto::payload::{TunnelInfo, TunnelState};
use rssh_proto::{DeviceId, Target, TunnelId};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::profile::{self, Profile};

/// A tunnel as it was when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KnownTunnel {
    pub device: DeviceId,
    pub target: Target,
    pub tunnel: TunnelId,
}

/// What one user has seen at one load balancer.
pub struct Known {
    directory: Option<PathBuf>,
}

impl Known {
    /// What the owner of a profile has seen; nothing where there is no cache directory.
    pub fn of(profile: &Profile) -> Self {
        Self::at(profile::directories().map(|directories| {
            let owner = format!("{}@{}", profile.user, profile.lb);
            directories.cache_dir().join("known").join(owner)
        }))
    }

    fn at(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    /// Remembers a tunnel, unless it is over, and its device.
    pub fn saw(&self, info: &TunnelInfo) {
        self.write("devices", info.device.as_str(), b"");
        if matches!(info.state, TunnelState::Closed | TunnelState::Failed) {
            return self.closed(info.tunnel);
        }
        let known = KnownTunnel {
            device: info.device.clone(),
            target: info.target.clone(),
            tunnel: info.tunnel,
        };
        if let Ok(json) = serde_json::to_vec(&known) {
            self.write("tunnels", &info.tunnel.to_string(), &json);
        }
    }

    /// Remembers these tunnels, and that there are no others.
    pub fn listed(&self, tunnels: &[TunnelInfo]) {
        for over in self.tunnels() {
            if tunnels.iter().all(|info| info.tunnel != over.tunnel) {
                self.closed(over.tunnel);
            }
        }
        tunnels.iter().for_each(|info| self.saw(info));
    }

    /// Remembers these devices, and that there are no others.
    pub fn listed_devices<'a>(&self, devices: impl Iterator<Item = &'a DeviceId>) {
        let there: Vec<&DeviceId> = devices.collect();
        for gone in self.devices().iter().filter(|known| !there.contains(known)) {
            if let Some(directory) = &self.directory {
                let _ = fs::remove_file(directory.join("devices").join(gone.as_str()));
            }
        }
        for device in there {
            self.write("devices", device.as_str(), b"");
        }
    }

    /// Forgets a tunnel.
    pub fn closed(&self, tunnel: TunnelId) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_file(directory.join("tunnels").join(tunnel.to_string()));
        }
    }

    /// The devices, in order.
    pub fn devices(&self) -> Vec<DeviceId> {
        let mut devices: Vec<DeviceId> = self
            .names("devices")
            .filter_map(|(_, name)| name.parse().ok())
            .collect();
        devices.sort();
        devices
    }

    /// The tunnels, in order; some may be over by now.
    pub fn tunnels(&self) -> Vec<KnownTunnel> {
        let mut tunnels: Vec<KnownTunnel> = self
            .names("tunnels")
            .filter_map(|(path, _)| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect();
        tunnels.sort();
        tunnels
    }

    fn names(&self, kind: &str) -> impl Iterator<Item = (PathBuf, String)> {
        let directory = self.directory.as_ref().map(|directory| directory.join(kind));
        let entries = directory.and_then(|directory| fs::read_dir(directory).ok());
        entries
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
    }

    fn write(&self, kind: &str, name: &str, bytes: &[u8]) {
        let Some(directory) = &self.directory else {
            return;
        };
        let written: io::Result<()> = files::replace(&directory.join(kind).join(name), bytes, 0o600);
        if let Err(error) = written {
            tracing::debug!(%error, kind, name, "not remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::info;

    #[test]
    fn devices_stay_known_and_tunnels_only_while_they_are_listed() {
        let directory = tempfile::tempdir().unwrap();
        let known = Known::at(Some(directory.path().join("alice@lb")));
        let [two, ten] = ["device-2", "device-10"].map(|device| info(device, TunnelState::Active));
        known.saw(&two);
        known.saw(&ten);
        let devices = ["device-10", "device-2"].map(|device| device.parse().unwrap());
        assert_eq!(known.devices(), devices);
        let tunnels = |known: &Known| known.tunnels().iter().map(|known| known.tunnel).collect::<Vec<_>>();
        assert_eq!(tunnels(&known), [ten.tunnel, two.tunnel]);
        known.listed(std::slice::from_ref(&two));
        assert_eq!(tunnels(&known), [two.tunnel]);
        known.saw(&TunnelInfo {
            state: TunnelState::Closed,
            ..two
        });
        assert_eq!(tunnels(&known), []);
        assert_eq!(known.devices(), devices);
        known.listed_devices([&ten.device].into_iter());
        assert_eq!(known.devices(), devices[..1]);
    }

    #[test]
    fn what_cannot_be_read_or_written_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let known = Known::at(Some(directory.path().to_owned()));
        known.saw(&info("device-1", TunnelState::Active));
        fs::write(directory.path().join("devices/-oX"), "").unwrap();
        fs::write(directory.path().join("tunnels/x"), "{").unwrap();
        assert_eq!((known.devices().len(), known.tunnels().len()), (1, 1));
        let nowhere = Known::at(None);
        nowhere.saw(&info("device-1", TunnelState::Active));
        assert_eq!(nowhere.devices(), []);
    }
}
