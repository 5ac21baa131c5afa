//! What people pick instead: autossh, rathole and bore, on the same device, between the same ends.
//!
//! They get what favours them: tunnels that are configured beforehand, servers that are reached without a load balancer,
//! and nobody who asks whether they may. rathole encrypts (noise); bore cannot, and carries everything in the clear.

mod beside;
mod peer;
mod recovery;

use anyhow::{Context as _, Result};

use super::memory;
use super::results::{Figure, Reach};
use super::rig::{BUSY, IDLE, Rig};
use super::stream;
use crate::component::Record;
use beside::Own;
use peer::Peer;

/// How often each opens.
const OPENS: usize = 5;

/// Measures each peer that is installed; one that is not, or that fails, is reported.
///
/// # Errors
/// When our own side fails.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    stream::serve(&rig.lab)?;
    let mut figures = Vec::new();
    let mut there = Vec::new();
    for peer in Peer::ALL {
        match peer.prepare(&rig.lab) {
            Ok(()) => there.push(peer),
            Err(error) => figures.extend(
                peer.keys()
                    .map(|key| Figure::missing(key, Reach::None, format!("{error:#}"))),
            ),
        }
    }
    // Ours, as often.
    let mut ours = Vec::new();
    for round in 0..=OPENS {
        rig.settle()?;
        let took = rig.open()?.took();
        if round > 0 {
            ours.push(took.as_secs_f64() * 1000.0);
        }
        if round < OPENS {
            rig.close()?;
        }
    }
    let agent = Record::read(rig.lab.dir(), &format!("agentd-{BUSY}")).context("the device has no agent")?;
    let one_tunnel = memory::pss_of(&agent.members(&rig.lab.networks().inodes()));
    rig.close()?;
    let idle = Record::read(rig.lab.dir(), &format!("agentd-{IDLE}")).context("the device has no agent")?;
    let own = Own {
        opens: ours,
        idle: memory::pss(idle.process)?,
        one_tunnel,
    };
    for &peer in &there {
        let mut rows = match beside::measure(rig, peer, &own) {
            Ok(rows) => rows,
            Err(error) => {
                eprintln!("error: {}: {error:#}", peer.name());
                // Whichever of ours is left.
                rig.close().ok();
                let [own @ .., _] = peer.keys();
                own.map(|key| Figure::missing(key, Reach::None, format!("{error:#}")))
                    .into()
            }
        };
        rig.device.end()?;
        figures.append(&mut rows);
    }
    figures.extend(recovery::measure(rig, &there)?);
    rig.device.end()?;
    Ok(figures)
}
