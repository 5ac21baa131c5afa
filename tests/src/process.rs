//! Processes as /proc shows them (proc(5)): who is alive, and who belongs to the lab.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often a condition is looked at again.
pub const POLL: Duration = Duration::from_millis(5);

/// A process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start: u64,
}

/// What /proc says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `T` (stopped), `Z` (ended, not yet reaped), ...
    pub state: char,
    pub start: u64,
}

impl Stat {
    /// Whether a signal or a tracer holds it.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// Reads the fields of `/proc/PID/stat` that matter here.
fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses and may hold anything, parentheses too.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        start: fields.nth(18)?.parse().ok()?,
    })
}

impl Process {
    /// The process that has this number now.
    pub fn with_pid(pid: i32) -> Option<Self> {
        let stat = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, start: stat.start })
    }

    /// What /proc says of it; `None` when it has ended.
    pub fn stat(&self) -> Option<Stat> {
        let stat = parse_stat(&fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?)?;
        (stat.start == self.start && !matches!(stat.state, 'Z' | 'X')).then_some(stat)
    }

    /// Whether it runs, or is stopped.
    pub fn is_alive(&self) -> bool {
        self.stat().is_some()
    }

    /// The inode number of one of its namespaces, such as `net` or `mnt`.
    pub fn namespace(&self, kind: &str) -> Option<u64> {
        inode(Path::new(&format!("/proc/{}/ns/{kind}", self.pid)))
    }

    /// Its command line, for a message.
    pub fn command_line(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
    }

    /// Sends it a signal; an ended process is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match signal::kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The inode number of a namespace file.
pub fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// Every living process whose network namespace is one of `networks`: whatever started it, whatever it calls itself.
pub fn in_networks(networks: &[u64]) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::with_pid)
        .filter(|process| {
            process
                .namespace("net")
                .is_some_and(|network| networks.contains(&network))
                && process.is_alive()
        })
        .collect()
}

/// Waits until none of the processes is alive; says whether that came to pass.
pub fn wait_ended(processes: &[Process], limit: Duration) -> bool {
    wait(limit, || !processes.iter().any(Process::is_alive))
}

/// How long a test waits for what happens at once. What is promised is a second; the rest is for a busy machine, and the
/// fault suite measures.
pub const PROMPTLY: Duration = Duration::from_secs(5);
/// How long a test waits for what only has to happen.
pub const PATIENTLY: Duration = Duration::from_secs(60);

/// Waits until a condition holds; says whether that came to pass.
pub fn wait(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_parentheses_in_its_name() {
        let text = "42 (a) Z (b)) T 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 10";
        assert_eq!(parse_stat(text), Some(Stat { state: 'T', start: 777 }));
        assert_eq!(parse_stat("42 (x) R 1"), None);
    }

    #[test]
    fn an_ended_child_is_not_alive_although_nobody_reaped_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::with_pid(child.id() as i32).unwrap();
        assert!(process.is_alive());
        process.signal(Signal::SIGKILL).unwrap();
        assert!(wait_ended(&[process], Duration::from_secs(5)));
        child.wait().unwrap();
        process.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn another_process_with_the_same_number_is_another_process() {
        let own = Process::with_pid(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        let earlier = Process {
            start: own.start - 1,
            ..own
        };
        assert!(!earlier.is_alive());
    }
}
