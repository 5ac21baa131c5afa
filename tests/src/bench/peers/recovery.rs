//! How long each takes to be back after a device was without a link.

use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::super::byhand;
use super::super::crowd::at_once;
use super::super::results::{Figure, Reach};
use super::super::rig::{BUSY, Rig};
use super::peer::{Peer, banner, shows_banner};
use crate::component::Record;
use crate::parts::server;
use crate::place::{Place, device_name, server_address};
use crate::{Lab, process, run};

/// How long the device has no link: every keep-alive is long over.
const CUT: Duration = Duration::from_secs(45);
/// How long recovery may take.
const RECOVERS: Duration = Duration::from_secs(120);

/// How long each takes to be back after the device was without a link, all in the same cut.
///
/// # Errors
/// When one of them is not there before, or the link cannot be cut.
pub(super) fn measure(rig: &mut Rig, peers: &[Peer]) -> Result<Vec<Figure>> {
    rig.device.end()?;
    rig.settle()?;
    rig.open()?;
    for &peer in peers {
        peer.begin(rig, 0)?;
        peer.opened(&rig.lab, 0)?;
    }
    let link = |state: &str| {
        let device = format!("d{BUSY}");
        rig.lab.networks().inside(&Place::Site, || {
            run::checked(Command::new("ip").args(["link", "set", &device, state]))
        })?
    };
    link("down")?;
    thread::sleep(CUT);
    let since = Instant::now();
    link("up")?;
    let (lab, times) = (&rig.lab, Mutex::new(Vec::new()));
    at_once([None].into_iter().chain(peers.iter().copied().map(Some)), |who| {
        let back = match who {
            None => process::wait(RECOVERS, || {
                thread::sleep(Duration::from_millis(50));
                ours_shows_banner(lab)
            }),
            Some(peer) => shows_banner(lab, peer.tunnel(0), RECOVERS)?,
        };
        let took = back.then(|| since.elapsed().as_secs_f64());
        if let Ok(mut times) = times.lock() {
            times.push((who, took));
        }
        Ok(())
    })?;
    let times = times.into_inner().unwrap_or_default();
    let of = |who: Option<Peer>| times.iter().find(|(peer, _)| *peer == who).and_then(|(_, took)| *took);
    let own = of(None);
    let how = format!(
        "s from when the link of {} is there again after {} s until the banner comes through; beside it ours",
        device_name(BUSY),
        CUT.as_secs()
    );
    let rows = peers.iter().map(|&peer| {
        let [.., key] = peer.keys();
        let row = match of(Some(peer)) {
            Some(took) => Figure::amount(key, Reach::None, &[took], how.clone()),
            None => Figure::missing(
                key,
                Reach::None,
                format!("not back within {} s; {how}", RECOVERS.as_secs()),
            ),
        };
        match own {
            Some(own) => row.against(own),
            None => row,
        }
    });
    let rows = rows.collect();
    rig.device.end()?;
    // The sessions that autossh lost are still there for the sshd that it used.
    if let Some(sshd) = Record::read(rig.lab.dir(), byhand::SSHDS[0]) {
        let sessions = sshd.members(&rig.lab.networks().inodes());
        for session in sessions.iter().filter(|session| **session != sshd.process) {
            session.signal(Signal::SIGKILL)?;
        }
    }
    rig.close()?;
    Ok(rows)
}

/// Whether our tunnel shows the device's banner, wherever it is now.
fn ours_shows_banner(lab: &Lab) -> bool {
    let Ok(row) = lab.psql("SELECT server_id, port FROM live_leases") else {
        return false;
    };
    let at = row.split_once('|').and_then(|(id, port)| {
        let n = (1..=2).find(|n| server::id(*n) == id)?;
        Some((server_address(n), port.parse().ok()?))
    });
    let shows = |at| lab.networks().inside(&Place::Core, || banner(at).is_ok());
    at.is_some_and(|at| shows(at).unwrap_or(false))
}
