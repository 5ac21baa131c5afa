//! Processes, told apart from later ones with the same id. proc(5), pidfd_open(2).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process: its id, and when it started in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub start: u64,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub process: Process,
    pub parent: i32,
    /// One letter: `R`, `S`, `D`, `T` (stopped), `Z` (zombie) and so on.
    pub state: char,
}

/// Reads a process; `None` when there is none.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name between the parentheses may hold anything, parentheses and spaces included: count from the last one.
fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    Some(Stat {
        process: Process {
            pid,
            start: fields.get(19)?.parse().ok()?,
        },
        parent: fields.get(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
    })
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// The user that a process runs as now: its effective user id.
pub fn owner(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;

    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

/// The user that started a process, and that it can be again: its real user id. proc(5), `/proc/PID/status`.
pub fn real_user(pid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().next()?.parse().ok()
}

/// The sockets that a process has open: each descriptor with the socket's number.
pub fn sockets(pid: i32) -> impl Iterator<Item = (i32, u32)> {
    let socket = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    entries.into_iter().flatten().flatten().filter_map(socket)
}

/// The control group of a process, as /proc/PID/cgroup has it. cgroups(7).
pub fn control_group(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

/// Every process of a user.
pub fn of_user(uid: u32) -> Vec<Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| owner(*pid) == Some(uid))
        .filter_map(stat)
        .filter(|stat| stat.state != 'Z')
        .map(|stat| stat.process)
        .collect()
}

impl Process {
    /// Opens a handle on this very process.
    ///
    /// # Errors
    /// When it has ended, or this process has no descriptors left.
    pub fn handle(self) -> io::Result<Handle> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // The id may have been taken by another process before the handle was open: look at who it is now.
        match stat(self.pid) {
            Some(now) if now.process == self && now.state != 'Z' => Ok(Handle(fd)),
            _ => Err(gone()),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}

/// A handle on one process, which can never mean another.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Sends a signal; a process that has ended is no fault.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.0, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::error!(%error, "cannot signal a session; does serverd have CAP_KILL?");
        }
    }

    /// Duplicates a descriptor of the process. pidfd_getfd(2).
    ///
    /// # Errors
    /// When there is none, or the caller may not trace the process.
    pub fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.0, number, PidfdGetfdFlags::empty())?)
    }

    /// The descriptor, which becomes readable when the process ends.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends the session below an sshd monitor: its user-side child, which holds the listener and outlives the monitor, and
/// then the monitor. The monitor is stopped first, so that it makes no child meanwhile.
pub fn end_session(monitor: Option<Process>, child: Option<Process>) {
    let handle = monitor.and_then(|monitor| monitor.handle().ok());
    if let Some(handle) = &handle {
        handle.signal(Signal::STOP);
    }
    let below = monitor
        .filter(|_| handle.is_some())
        .map(|monitor| children(monitor.pid))
        .unwrap_or_default();
    let below = below.into_iter().filter_map(|pid| stat(pid).map(|stat| stat.process));
    for process in child.into_iter().chain(below) {
        if let Ok(handle) = process.handle() {
            handle.signal(Signal::KILL);
        }
    }
    if let Some(handle) = handle {
        handle.signal(Signal::KILL);
    }
}

/// The kernel's id of this boot.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Who runs under a server's id: enough to name it to a second one, and to tell whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub boot_id: String,
    /// The namespace that `process` counts in.
    pub pid_namespace: String,
    pub process: Process,
}

impl Holder {
    /// This process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn this() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let host = nix::unistd::gethostname()?;
        Ok(Self {
            host: host.to_string_lossy().into_owned(),
            boot_id: boot_id()?,
            pid_namespace: fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned(),
            process: stat(pid).ok_or(io::ErrorKind::NotFound)?.process,
        })
    }

    /// Whether the holder lives; `None` when that cannot be seen from here.
    pub fn lives(&self, seen_by: &Self) -> Option<bool> {
        let same_kernel = self.boot_id == seen_by.boot_id && self.pid_namespace == seen_by.pid_namespace;
        same_kernel
            .then(|| stat(self.process.pid).is_some_and(|stat| stat.process == self.process && stat.state != 'Z'))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.process, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let line = "77 (a) b (c) S 42 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1 1";
        let stat = parse_stat(77, line).unwrap();
        assert_eq!((stat.parent, stat.process.start, stat.state), (42, 98_765, 'S'));
    }

    #[test]
    fn a_handle_never_means_a_later_process() {
        let this = stat(i32::try_from(std::process::id()).unwrap()).unwrap().process;
        assert!(this.handle().is_ok());
        let later = Process {
            start: this.start + 1,
            ..this
        };
        assert!(later.handle().is_err());
    }
}
