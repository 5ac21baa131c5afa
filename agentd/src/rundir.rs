//! The run directory: what belongs to running tunnels.
//!
//! ```text
//! run/lock             held while an agent runs
//! run/ssh_config       what every ssh of this agent reads
//! run/control          where the agent answers whoever is at the device
//! run/paused           until when it opens no tunnels
//! run/<tunnel>/ctl     the ssh master's control socket
//! run/<tunnel>/log     what it said
//! run/<tunnel>/record  what the next agent needs to carry it on
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rssh_proto::{DeviceId, TunnelId};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};

/// Why there is no run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("cannot use {path} for running tunnels: {source}; set state-dir to a directory of the agent's own")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{0} belongs to another account; set state-dir to a directory of the agent's own")]
    Foreign(PathBuf),
    #[error("another rssh-agentd uses {0}; stop it, or give this one its own state-dir")]
    Locked(PathBuf),
}

/// A run directory of which this process is the only user.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held open, so that sockets in it are reached by a short path: one may have 107 bytes (unix(7)).
    dir: File,
    _lock: File,
}

impl RunDir {
    /// Opens `run/` in the state directory, or a directory in the temporary one when that cannot be written.
    ///
    /// # Errors
    /// When neither can be used, or another agent uses it.
    pub fn open(state_dir: &Path, device: &DeviceId) -> Result<Self, RunDirError> {
        let [usual, fallback] = Self::places(state_dir, device);
        let error = match Self::at(usual) {
            Err(RunDirError::Unusable { source, .. }) => source,
            done => return done,
        };
        let opened = Self::at(fallback)?;
        tracing::warn!(state_dir = %state_dir.display(), %error, instead = %opened.path.display(), "cannot write state-dir");
        Ok(opened)
    }

    /// Where the run directory of an agent of this account may be.
    pub fn places(state_dir: &Path, device: &DeviceId) -> [PathBuf; 2] {
        let account = rustix::process::geteuid().as_raw();
        let fallback = std::env::temp_dir().join(format!("rssh-agentd-{account}-{device}"));
        [state_dir.join("run"), fallback]
    }

    fn at(path: PathBuf) -> Result<Self, RunDirError> {
        let unusable = |source| RunDirError::Unusable {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(unusable)?;
        let metadata = fs::symlink_metadata(&path).map_err(unusable)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(RunDirError::Foreign(path));
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(unusable)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RunDirError::Locked(path)),
            Err(error) => return Err(unusable(error.into())),
        }
        let dir = File::open(&path).map_err(unusable)?;
        Ok(Self { path, dir, _lock: lock })
    }

    /// The configuration file of every ssh.
    pub fn ssh_config(&self) -> PathBuf {
        self.path.join("ssh_config")
    }

    /// Where the agent answers: a short path, valid in this process.
    pub fn control(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{CONTROL}", self.dir.as_raw_fd()))
    }

    /// Where a pause is kept for the next agent.
    pub fn paused(&self) -> PathBuf {
        self.path.join("paused")
    }

    /// Makes the empty directory of a tunnel.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare(&self, tunnel: TunnelId) -> io::Result<TunnelDir> {
        let dir = self.dir(tunnel);
        let path = dir.path();
        // A fresh device has none; one is left where an earlier ssh was killed.
        if let Err(error) = DirBuilder::new().mode(0o700).create(path) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            fs::remove_dir_all(path)?;
            DirBuilder::new().mode(0o700).create(path)?;
        }
        Ok(dir)
    }

    /// The directory of a tunnel, which is there already.
    pub fn dir(&self, tunnel: TunnelId) -> TunnelDir {
        TunnelDir {
            path: self.path.join(tunnel.to_string()),
            socket: PathBuf::from(format!("/proc/self/fd/{}/{tunnel}/{SOCKET}", self.dir.as_raw_fd())),
        }
    }

    /// Where the record of a tunnel is kept.
    pub fn record(&self, tunnel: TunnelId) -> PathBuf {
        self.path.join(tunnel.to_string()).join("record")
    }

    /// The records that are there.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn records(&self) -> io::Result<Vec<(TunnelId, Vec<u8>)>> {
        let read = |tunnel| Some((tunnel, fs::read(self.record(tunnel)).ok()?));
        Ok(self.tunnels()?.into_iter().filter_map(read).collect())
    }

    fn tunnels(&self) -> io::Result<Vec<TunnelId>> {
        let entries = fs::read_dir(&self.path)?.flatten();
        Ok(entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Whether a process is an ssh of this directory.
    pub fn is_master(&self, pid: i32) -> bool {
        reads_config(Path::new(&format!("/proc/{pid}")), &self.ssh_config())
    }

    /// Ends every other ssh that an earlier agent left here, and removes what they used.
    ///
    /// They are known by the configuration file on their command line, so that one which has not yet opened its
    /// control socket is found too.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sweep(&self, kept: &BTreeMap<TunnelId, i32>) -> io::Result<usize> {
        let mut ended = 0;
        let config = self.ssh_config();
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if !kept.values().any(|kept| *kept == pid) && reads_config(&process.path(), &config) {
                ended += usize::from(end(pid, || reads_config(&process.path(), &config)));
            }
        }
        for tunnel in self.tunnels()? {
            if !kept.contains_key(&tunnel) {
                drop(self.dir(tunnel));
            }
        }
        Ok(ended)
    }
}

/// The name of the agent's own socket.
pub const CONTROL: &str = "control";
/// The control socket's name within a tunnel's directory.
pub const SOCKET: &str = "ctl";
/// The name of what ssh says.
pub const LOG: &str = "log";

/// A tunnel's directory; removed when dropped.
#[derive(Debug)]
pub struct TunnelDir {
    path: PathBuf,
    socket: PathBuf,
}

impl TunnelDir {
    /// The directory, which is ssh's working directory: so it too names its socket shortly.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A short path of the control socket, valid in this process.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Leaves it where it is.
    pub fn keep(self) {
        // Only the drop would remove it.
        std::mem::forget(self);
    }

    /// What ssh says.
    pub fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }
}

impl Drop for TunnelDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove a tunnel's directory");
        }
    }
}

/// Whether a process was started as `PROGRAM -F CONFIG ...`.
fn reads_config(process: &Path, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;

    let Ok(line) = fs::read(process.join("cmdline")) else {
        return false;
    };
    let mut arguments = line.split(|&byte| byte == 0).skip(1);
    arguments.next() == Some(b"-F") && arguments.next() == Some(config.as_os_str().as_bytes())
}

/// Kills a process that is not a child of ours and waits for its end; `is_it` is asked once its id can no longer be
/// another's.
fn end(pid: i32, is_it: impl Fn() -> bool) -> bool {
    let ended = || {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        if !is_it() {
            return None;
        }
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).ok()?;
        let mut events = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        rustix::event::poll(&mut events, Some(&limit)).ok()
    };
    ended().is_some()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn device() -> DeviceId {
        "device-1".parse().unwrap()
    }

    #[test]
    fn a_second_agent_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let first = RunDir::open(state.path(), &device()).unwrap();
        let second = RunDir::open(state.path(), &device()).unwrap_err();
        assert!(matches!(second, RunDirError::Locked(_)), "{second}");
        drop(first);
        RunDir::open(state.path(), &device()).unwrap();
    }

    #[test]
    fn a_sweep_clears_the_tunnels_of_an_earlier_agent_and_leaves_other_processes_alone() {
        let state = tempfile::tempdir().unwrap();
        let run = RunDir::open(state.path(), &device()).unwrap();
        fs::write(run.ssh_config(), "").unwrap();
        let mut other = Command::new("tail")
            .arg("-f")
            .arg(run.ssh_config())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let tunnel = TunnelId::generate();
        let kept = run.prepare(tunnel).unwrap();
        kept.keep();
        run.sweep(&BTreeMap::new()).unwrap();
        assert!(
            other.try_wait().unwrap().is_none(),
            "a process that is no ssh of ours lives on"
        );
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!run.path.join(tunnel.to_string()).exists());
    }

    #[test]
    fn where_the_state_cannot_be_written_a_temporary_directory_serves() {
        let device: DeviceId = format!("test-{}", std::process::id()).parse().unwrap();
        let run = RunDir::open(Path::new("/proc/nowhere"), &device).unwrap();
        assert!(run.path.starts_with(std::env::temp_dir()));
        run.prepare(TunnelId::generate()).unwrap();
        fs::remove_dir_all(&run.path).unwrap();
    }
}
