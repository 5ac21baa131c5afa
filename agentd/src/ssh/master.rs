//! One ssh process: started, watched and ended.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Landing;
use super::changes::{Changed, Changes};
use super::fault::{self, Fault};
use crate::rundir::{SOCKET, TunnelDir};

/// What a master did.
pub(super) enum Did {
    /// What was waited for.
    It,
    Ended,
}

/// A running ssh; killed when dropped.
pub(super) struct Master {
    pid: Pid,
    /// It, if this agent started it.
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
    /// What happens in the tunnel's directory.
    changed: Changed,
    /// Whether there is nothing left to kill, or nothing that is to be.
    done: bool,
}

impl Master {
    /// Starts ssh on a connection, with the tunnel's directory as its working directory, so that its socket has a short
    /// name.
    pub(super) fn spawn(
        program: &Path,
        config: &Path,
        dir: &TunnelDir,
        landing: &Landing,
        connection: TcpStream,
        changes: &Changes,
    ) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(dir.log())?;
        let changed = changes.watch(dir.path())?;
        let mut child = Command::new(program)
            // The sweep knows an ssh of ours by these first two.
            .arg("-F")
            .arg(config)
            .args(["-M", "-N", "-S", SOCKET, "-l", landing.account.as_ref()])
            .args(["-p", &landing.lb.port().to_string()])
            .args(["--", &landing.lb.host()])
            .current_dir(dir.path())
            .stdin(OwnedFd::from(connection.try_clone()?))
            .stdout(OwnedFd::from(connection))
            .stderr(log)
            // What a terminal sends to the agent is not for its ssh.
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(watched)
        {
            Ok(pidfd) => Ok(Self {
                pid,
                child: Some(child),
                pidfd,
                changed,
                done: false,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Takes over an ssh that another agent started; one that cannot be watched is ended.
    pub(super) fn adopt(pid: i32, handle: OwnedFd, dir: &TunnelDir, changes: &Changes) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let changed = changes.watch(dir.path()).inspect_err(|_| {
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
        })?;
        Ok(Self {
            pid,
            child: None,
            pidfd: watched(handle)?,
            changed,
            done: false,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until the control socket is there or ssh has ended.
    pub(super) async fn started(&mut self) -> io::Result<Did> {
        did(self.changed.socket(), &self.pidfd).await
    }

    /// Waits until ssh writes to its log or has ended.
    pub(super) async fn wrote(&mut self) -> io::Result<Did> {
        did(self.changed.written(), &self.pidfd).await
    }

    /// Waits until ssh has ended.
    pub(super) async fn ended(&self) {
        // A pidfd is readable from the process's end on.
        if let Ok(mut ready) = self.pidfd.readable().await {
            ready.retain_ready();
        }
    }

    /// Ends ssh and waits until it is gone; the status of a child that ended by itself.
    pub(super) async fn end(&mut self) -> Option<ExitStatus> {
        let by_itself = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        self.kill();
        self.ended().await;
        self.reap();
        by_itself
    }

    /// Lets ssh run on.
    pub(super) fn leave(mut self) {
        self.done = true;
    }

    fn kill(&self) {
        if !self.done {
            let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
        }
    }

    fn reap(&mut self) {
        if !self.done {
            self.done = true;
            if let Some(child) = &mut self.child {
                let _ = child.wait();
            }
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

#[expect(
    deprecated,
    reason = "the successor is an unsafe fn, for types whose descriptor may change; an OwnedFd keeps its own"
)]
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Waits for something, or for the end of a process.
async fn did(it: impl Future<Output = io::Result<()>>, pidfd: &AsyncFd<OwnedFd>) -> io::Result<Did> {
    tokio::select! {
        done = it => done.map(|()| Did::It),
        ended = pidfd.readable() => {
            ended?.retain_ready();
            Ok(Did::Ended)
        }
    }
}

/// Why an ssh failed: by what it said, else by how it ended; `None` when neither tells.
pub(super) fn last_words(log: &Path, status: Option<ExitStatus>) -> Option<Fault> {
    let text = fs::read(log).unwrap_or_default();
    if !text.trim_ascii().is_empty() {
        return Some(fault::explain(&String::from_utf8_lossy(&text)));
    }
    let signal = status.and_then(|status| status.signal())?;
    Some(Fault::passing(format!("ssh was ended by signal {signal}")))
}
