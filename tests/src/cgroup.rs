//! Control groups (cgroups(7)): what a set of processes uses, and how much it may.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{files, process};

/// A control group of this run; its processes leave it when it is dropped.
#[derive(Debug)]
pub struct Group {
    mount: PathBuf,
    path: PathBuf,
}

impl Group {
    /// Makes an empty one that counts processor time, in the version 2 hierarchy.
    ///
    /// # Errors
    /// When the machine has none, or it cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let mount = hierarchy(|kind, _| kind == "cgroup2")?.context("no cgroup2 is mounted")?;
        Self::below(mount, name)
    }

    /// Makes an empty one that can bound how many processes it has, in whichever hierarchy does.
    ///
    /// # Errors
    /// When the machine has none, or it cannot be written.
    pub fn of_pids(name: &str) -> Result<Self> {
        let bounds = |kind: &str, options: &str| match kind {
            "cgroup" => options.split(',').any(|option| option == "pids"),
            _ => false,
        };
        let mount = match hierarchy(bounds)? {
            Some(mount) => mount,
            None => hierarchy(|kind, _| kind == "cgroup2")?.context("no control groups are mounted")?,
        };
        Self::below(mount, name)
    }

    fn below(mount: PathBuf, name: &str) -> Result<Self> {
        let path = mount.join(format!("rssh-lab-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { mount, path })
    }

    /// Bounds how many processes and threads it has, to what it has now or to no number; says to how many.
    ///
    /// # Errors
    /// When its hierarchy does not bound that.
    pub fn bound(&self, bounded: bool) -> Result<String> {
        let now = files::read(&self.path.join("pids.current"))?.trim().to_owned();
        let most = if bounded { now } else { "max".to_owned() };
        files::write(&self.path.join("pids.max"), &most)?;
        Ok(most)
    }

    /// How often the bound refused a process.
    ///
    /// # Errors
    /// When its hierarchy does not bound that.
    pub fn refused(&self) -> Result<u64> {
        let text = files::read(&self.path.join("pids.events"))?;
        let count = text.lines().find_map(|line| line.strip_prefix("max "));
        Ok(count.context("pids.events has no count")?.parse()?)
    }

    /// Moves a process here; what it starts from now on belongs here too.
    ///
    /// # Errors
    /// When it has ended.
    pub fn take(&self, pid: u32) -> Result<()> {
        files::write(&self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Moves a process here with everything below it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn take_tree(&self, pid: u32) -> Result<()> {
        self.take(pid)?;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children
            .split_ascii_whitespace()
            .try_for_each(|child| self.take_tree(child.parse()?))
    }

    /// The processor time used so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn used(&self) -> Result<Duration> {
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

/// Where the first hierarchy of control groups is mounted that is wanted, by its kind and its mount options.
fn hierarchy(wanted: impl Fn(&str, &str) -> bool) -> Result<Option<PathBuf>> {
    let mounts = files::read(Path::new("/proc/self/mounts"))?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        wanted(kind, options).then(|| PathBuf::from(target))
    });
    Ok(found)
}
