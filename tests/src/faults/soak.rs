//! Random faults for a long time, under load.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

/// What a soak does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub time: Duration,
    pub tunnels: u32,
    pub every: Duration,
    pub seed: u64,
}

/// Soaks.
///
/// # Errors
/// When the lab does not come up.
pub fn run(_plan: &Plan, _dir: &Path) -> Result<bool> {
    bail!("not there yet")
}
