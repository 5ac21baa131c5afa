//! Processor time of the device's side for one open, against a hand-run ssh.
//!
//! Counted by control group, since ssh puts itself into the background and out of anybody's rusage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::byhand::Client;
use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig};
use super::stats::Pairs;
use crate::component::Record;
use crate::{files, process};

/// A control group (cgroups(7), version 2) of this run; its processes leave it when it is dropped.
#[derive(Debug)]
pub struct Group {
    mount: PathBuf,
    path: PathBuf,
}

impl Group {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the machine has no version 2 hierarchy, or it cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let mounts = files::read(Path::new("/proc/self/mounts"))?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(2) == Some(&"cgroup2"))
            .and_then(|fields| fields.get(1).map(PathBuf::from))
            .context("no cgroup2 is mounted")?;
        let path = mount.join(format!("rssh-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { mount, path })
    }

    /// Moves a process here; what it starts from now on belongs here too.
    ///
    /// # Errors
    /// When it has ended.
    pub fn take(&self, pid: u32) -> Result<()> {
        files::write(&self.path.join("cgroup.procs"), pid.to_string())
    }

    fn used(&self) -> Result<Duration> {
        let text = files::read(&self.path.join("cpu.stat"))?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(micros.context("cpu.stat has no usage")?.parse()?))
    }

    /// The processor time used so far, once it has stopped growing.
    ///
    /// # Errors
    /// When it does not stop, or cannot be read.
    pub fn used_at_rest(&self) -> Result<Duration> {
        let mut last = self.used()?;
        // As many equal looks, [`process::POLL`] apart, are rest: an open's last words take less.
        let mut equal = 0;
        let rests = process::wait(Duration::from_secs(5), || {
            let now = self.used().unwrap_or(last);
            equal = if now == last { equal + 1 } else { 0 };
            last = now;
            equal == 10
        });
        ensure!(rests, "{} does not come to rest", self.path.display());
        Ok(last)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            fs::write(self.mount.join("cgroup.procs"), pid).ok();
        }
        fs::remove_dir(&self.path).ok();
    }
}

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
