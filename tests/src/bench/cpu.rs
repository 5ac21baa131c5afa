//! Processor time of the device's side for one open, against a hand-run ssh.
//!
//! Counted by control group, since ssh puts itself into the background and out of anybody's rusage.

use anyhow::{Context as _, Result};

use super::byhand::Client;
use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig};
use super::stats::Pairs;
use crate::cgroup::Group;
use crate::component::Record;

/// Measures the agent and its ssh against a hand-run ssh.
///
/// # Errors
/// When an open fails or nothing can be counted.
pub fn measure(rig: &mut Rig, rounds: usize) -> Result<Vec<Figure>> {
    let agent = Record::read(rig.lab.dir(), &format!("agentd-{BUSY}")).context("the device has no agent")?;
    let (ours, theirs) = (Group::new("agent")?, Group::new("hand")?);
    ours.take(agent.process.pid as u32)?;
    theirs.take(rig.device.pid())?;

    let mut used = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        for step in 0..3 {
            let way = (round + step) % 3;
            rig.settle()?;
            let group = if way == 0 { &ours } else { &theirs };
            let before = group.used_at_rest()?;
            match way {
                0 => rig.open()?,
                1 => rig.open_by_hand(Client::Default, "localhost:22")?,
                _ => rig.open_by_hand(Client::Equal, "localhost:22")?,
            };
            let spent = group.used_at_rest()? - before;
            if way == 0 {
                rig.close()?;
            } else {
                rig.close_by_hand()?;
            }
            if round > 0 {
                used[way].push(spent.as_secs_f64() * 1000.0);
            }
        }
    }
    let [ours, default, equal] = used;
    let figure = |key, reach, theirs, note| {
        let pairs = Pairs {
            ours: ours.clone(),
            theirs,
        };
        Figure::ratio(key, Reach::AtMost(reach), &pairs, "ms of processor", note)
    };
    Ok(vec![
        figure(
            "agent_cpu_vs_ssh",
            0.25,
            default,
            "agentd and its ssh for one open, against ssh -f -N -R with default settings",
        ),
        figure(
            "agent_cpu_vs_ssh_equal",
            1.2,
            equal,
            "the same with our key exchange and cipher",
        ),
    ])
}
