//! What an idle agent takes of a device: memory, disk, and traffic.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::byhand::Client;
use super::memory::{self, KIB};
use super::results::{Figure, Reach};
use super::rig::{BUSY, IDLE, Rig};
use super::stats::median;
use crate::component::{Component, Record};
use crate::place::Place;
use crate::process::Process;
use crate::{Action, Lab, process};

/// Bytes of an Ethernet header, which the interface counts and an operator of a network does not.
const ETHERNET: u64 = 14;
/// How long the idle device is watched at least: more than one keep-alive.
const WATCHED: Duration = Duration::from_secs(245);
const MIB: f64 = (1 << 20) as f64;

/// The traffic of a device so far, in both directions, with TCP and IP headers.
fn traffic(lab: &Lab, device: u32) -> Result<u64> {
    // Its own /sys is only seen from a mount made in its network; /proc/net follows the thread.
    let text = lab.networks().inside(&Place::Device(device), || {
        fs::read_to_string("/proc/thread-self/net/dev")
    })??;
    let fields: Vec<u64> = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("eth0:"))
        .context("the device has no eth0")?
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // proc_pid_net(5): bytes and packets received come first, those sent from the ninth on.
    ensure!(fields.len() >= 10, "eth0 has no counters");
    Ok(fields[0] + fields[8] - (fields[1] + fields[9]) * ETHERNET)
}

/// The IPv4 traffic of a device so far, in both directions, loopback included (`IpExt` of netstat(8)): an idle device's
/// interface counts what its neighbours say about IPv6 too, which is the lab's and not the agent's.
fn ip_traffic(lab: &Lab, device: u32) -> Result<u64> {
    let text = lab.networks().inside(&Place::Device(device), || {
        fs::read_to_string("/proc/thread-self/net/netstat")
    })??;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = rows.next().zip(rows.next()).context("netstat has no IpExt")?;
    Ok(names
        .split(' ')
        .zip(values.split(' '))
        .filter(|(name, _)| matches!(*name, "InOctets" | "OutOctets"))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum())
}

/// The agent as devices get it, when it is built.
fn packaged(lab: &Lab) -> Option<PathBuf> {
    let path = lab.programs().dir().parent()?.join("device/rssh-agentd");
    path.exists().then_some(path)
}

/// A device that is watched while other things are measured on others.
#[derive(Debug)]
pub struct Idle {
    since: Instant,
    before: u64,
    packaged: Option<PathBuf>,
}

impl Idle {
    /// Puts the packaged agent on the idle device and begins to count.
    ///
    /// # Errors
    /// When it does not start.
    pub fn begin(lab: &Lab) -> Result<Self> {
        let packaged = packaged(lab);
        if let Some(path) = &packaged {
            let name = format!("agentd-{IDLE}");
            let mut component = Component::read(lab.dir(), &name)?;
            component.argv[0] = path.to_string_lossy().into_owned();
            component.write(lab.dir())?;
            lab.ctl(Action::Restart, &name)?;
        }
        Ok(Self {
            since: Instant::now(),
            before: ip_traffic(lab, IDLE)?,
            packaged,
        })
    }

    fn which(&self) -> &'static str {
        match self.packaged {
            Some(_) => "of the profile device",
            None => "of the release profile; build the other: cargo build --profile device -p rssh-agentd",
        }
    }
}

/// Measures memory, disk and traffic of the agent.
///
/// # Errors
/// When the agent cannot be looked at.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    let agent = Record::read(rig.lab.dir(), &format!("agentd-{IDLE}")).context("the device has no agent")?;
    let pss = memory::pss(agent.process)? / MIB;
    let release = rig.lab.programs().path("rssh-agentd");
    let binary = rig.idle.packaged.clone().unwrap_or(release);
    let size = fs::metadata(&binary)?.len() as f64 / MIB;
    let ssh = fs::metadata("/usr/bin/ssh").map_or(0.0, |metadata| metadata.len() as f64 / MIB);

    rig.settle()?;
    rig.open_by_hand(Client::Default, "localhost:22")?;
    let by_hand = background(&rig.lab, BUSY).context("the hand-run ssh is gone")?;
    let ssh_pss = memory::pss(by_hand)? / MIB;
    rig.close_by_hand()?;

    let mut opens = Vec::new();
    for _ in 0..10 {
        let before = traffic(&rig.lab, BUSY)?;
        rig.open()?;
        let after = traffic(&rig.lab, BUSY)?;
        rig.close()?;
        opens.push((after - before) as f64 / KIB);
    }
    let mut by_hand_bytes = Vec::new();
    for _ in 0..3 {
        let before = traffic(&rig.lab, BUSY)?;
        rig.open_by_hand(Client::Default, "localhost:22")?;
        by_hand_bytes.push((traffic(&rig.lab, BUSY)? - before) as f64 / KIB);
        rig.close_by_hand()?;
    }

    // Other groups may have taken longer than that already.
    process::wait(WATCHED, || rig.idle.since.elapsed() >= WATCHED);
    let watched = rig.idle.since.elapsed().as_secs_f64();
    let bytes = ip_traffic(&rig.lab, IDLE)? - rig.idle.before;
    let per_day = bytes as f64 / watched * 86_400.0 / KIB;
    Ok(vec![
        Figure::amount(
            "agent_idle_pss_mib",
            Reach::AtMost(4.0),
            &[pss],
            format!(
                "MiB, idle over TLS, {}; beside it the PSS of a hand-run ssh -f -N -R",
                rig.idle.which()
            ),
        )
        .against(ssh_pss),
        Figure::amount(
            "agent_binary_mib",
            Reach::AtMost(4.0),
            &[size],
            format!(
                "MiB, {}; beside it /usr/bin/ssh, which links to OpenSSL",
                rig.idle.which()
            ),
        )
        .against(ssh),
        Figure::amount(
            "idle_bytes_per_day",
            Reach::AtMost(200.0),
            &[per_day],
            format!("KiB a day, both directions, with TCP/IP headers; {bytes} bytes in {watched:.0} s"),
        ),
        Figure::amount(
            "bytes_per_open",
            Reach::AtMost(12.0),
            &opens,
            "KiB on the device, both directions, with TCP/IP headers; beside it a hand-run ssh",
        )
        .against(median(&by_hand_bytes)),
    ])
}

/// The ssh that a hand-run `ssh -f` left in the background of a device.
fn background(lab: &Lab, device: u32) -> Option<Process> {
    let network = process::inode(&lab.networks().file(&Place::Device(device)))?;
    process::in_networks(&[network])
        .into_iter()
        .find(|process| process.command_line().starts_with("ssh -f -N"))
}
