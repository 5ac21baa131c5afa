//! What the daemons use, to see that it does not grow.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use crate::faults::scene::Scene;

/// One component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Part {
    pub pid: i32,
    pub files: usize,
    /// Resident memory.
    pub kib: u64,
}

/// A moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub at_ms: u64,
    /// All of the lab's.
    pub processes: usize,
    pub components: BTreeMap<String, Part>,
}

/// The daemons that are looked at; of the agents one.
const PARTS: [&str; 5] = ["serverd-1", "serverd-2", "routerd", "agentd-1", "mosquitto"];

impl Usage {
    /// Looks.
    pub(super) fn of(scene: &Scene) -> Self {
        let components = PARTS
            .iter()
            .filter_map(|name| {
                let pid = scene.process(name)?.pid;
                let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
                let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
                let kib = line.trim().strip_suffix(" kB")?.parse().ok()?;
                Some(((*name).to_owned(), Part { pid, files, kib }))
            })
            .collect();
        Self {
            at_ms: scene.history.now(),
            processes: scene.lab.processes().len(),
            components,
        }
    }
}

/// Files and memory of each kind of daemon: tunnels, and a file for each, move from one server to another.
fn sums(usage: &Usage) -> BTreeMap<&str, (usize, u64)> {
    let mut sums: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (name, part) in &usage.components {
        let sum = sums.entry(name.split('-').next().unwrap_or(name)).or_default();
        sum.0 += part.files;
        sum.1 += part.kib;
    }
    sums
}

/// What has grown from the first look to the last, beyond what a moment explains.
pub(super) fn growth(usage: &[Usage]) -> Vec<String> {
    let (Some(first), Some(last)) = (usage.first(), usage.last()) else {
        return Vec::new();
    };
    let mut grown = Vec::new();
    // An open that is under way has some; psql is one.
    if last.processes > first.processes + first.processes / 10 + 20 {
        grown.push(format!("{} processes became {}", first.processes, last.processes));
    }
    let before = sums(first);
    for (name, after) in sums(last) {
        let Some(before) = before.get(name) else {
            continue;
        };
        // Pools of connections fill up under load; 40 is more than all of them.
        if after.0 > before.0 + before.0 / 5 + 40 {
            grown.push(format!("{name}: {} files became {}", before.0, after.0));
        }
        if after.1 > before.1 * 3 / 2 + 20_000 {
            grown.push(format!("{name}: {} KiB became {}", before.1, after.1));
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(processes: usize, files: usize, kib: u64) -> Usage {
        let part = Part { pid: 1, files, kib };
        Usage {
            at_ms: 0,
            processes,
            components: [("serverd-1".to_owned(), part)].into(),
        }
    }

    #[test]
    fn what_stays_about_equal_has_not_grown() {
        assert!(growth(&[usage(600, 250, 30_000), usage(610, 260, 40_000)]).is_empty());
        assert_eq!(growth(&[usage(600, 250, 30_000), usage(900, 500, 90_000)]).len(), 3);
    }
}
