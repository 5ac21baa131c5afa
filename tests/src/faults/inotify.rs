//! What many agents on one kernel need of it.

use std::path::Path;

use anyhow::Result;

use crate::files;

/// How many inotify instances one user may have. Here the agents of all devices are one user's, on one kernel.
const INOTIFY: &str = "/proc/sys/fs/inotify/max_user_instances";

/// A higher limit, put back with the value.
pub struct Raised(Option<String>);

impl Raised {
    /// Enough for so many tunnels or devices, with what else runs here.
    ///
    /// # Errors
    /// When the limit cannot be read or raised.
    pub fn for_devices(devices: u32) -> Result<Self> {
        Self::to(devices * 4 + 512)
    }

    fn to(instances: u32) -> Result<Self> {
        let before = files::read(Path::new(INOTIFY))?.trim().to_owned();
        if before.parse::<u32>()? >= instances {
            return Ok(Self(None));
        }
        eprintln!("fs.inotify.max_user_instances is {instances} instead of {before} meanwhile");
        files::write(Path::new(INOTIFY), instances.to_string())?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nobody is left to tell.
            let _ = files::write(Path::new(INOTIFY), before);
        }
    }
}
