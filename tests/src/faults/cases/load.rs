//! Tunnels with sessions, spread over two servers.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::faults::scene::{Opened, Scene, USER};
use crate::faults::session::Session;

/// Tunnels to the first devices, a session through each, and the epoch of each.
pub(super) struct Load {
    pub tunnels: Vec<Opened>,
    pub epochs: Vec<u64>,
    pub sessions: Vec<Session>,
}

/// Opens to the first devices and logs in to each.
fn load(scene: &Scene, devices: u32) -> Result<Load> {
    let tunnels = (1..=devices).map(|n| scene.open(n)).collect::<Result<Vec<_>>>()?;
    let sessions = (1..=devices).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    scene.until(Duration::from_secs(5), "every tunnel is seen", || {
        Ok(tunnels.iter().all(|tunnel| scene.place_of(&tunnel.tunnel).is_some()))
    })?;
    let epochs = tunnels
        .iter()
        .map(|tunnel| Ok(scene.place_of(&tunnel.tunnel).context("a tunnel is not seen")?.0))
        .collect::<Result<_>>()?;
    Ok(Load {
        tunnels,
        epochs,
        sessions,
    })
}

impl Load {
    /// Those on a server, by position.
    pub(super) fn on(&self, server: &str) -> Vec<usize> {
        (0..self.tunnels.len())
            .filter(|at| self.tunnels[*at].server == server)
            .collect()
    }
}

/// Opens to the last devices until both servers hold some.
pub(super) fn load_on_both(scene: &Scene, devices: u32) -> Result<Load> {
    let spread = load(scene, devices)?;
    if !spread.on("s1").is_empty() {
        return Ok(spread);
    }
    drop(spread);
    scene.close_tunnel(USER, 1)?;
    scene.open_on(1, 1)?;
    load(scene, devices)
}
