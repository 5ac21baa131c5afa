//! Processes that outlive the agent that started them, and the clock that outlives both.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

/// A process, told apart from every other that has had or will have its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    started: u64,
    /// The boot that it runs in.
    boot: String,
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = parse_start(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let boot = boot()?;
        Ok(Self { pid, started, boot })
    }

    /// A handle on this very process, if it runs.
    pub fn open(&self) -> Option<OwnedFd> {
        let handle = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // From here on the id cannot become another's unnoticed: the handle is of whoever has it now.
        (Self::of(self.pid).ok()? == *self).then_some(handle)
    }
}

/// Names this boot of the machine.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim_end().to_owned())
}

/// The name of the program comes second, in parentheses, and may hold anything.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// The time since boot, suspended time included: a deadline on it holds for the next agent too.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_start_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_start(stat), Some(4711));
        assert_eq!(parse_start(""), None);
    }

    #[test]
    fn a_process_is_found_until_it_ends_and_another_with_its_id_is_not_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id().cast_signed()).unwrap();
        assert!(process.open().is_some());
        for other in [
            Process {
                started: process.started + 1,
                ..process.clone()
            },
            Process {
                boot: "another".into(),
                ..process.clone()
            },
        ] {
            assert!(other.open().is_none(), "{other:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.open().is_none());
    }
}
