//! Readiness: how a starter sees that a component serves.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::component::{Component, Record, log_tail};
use crate::network::Networks;
use crate::process::POLL;
use crate::root::Root;

/// How long a component may take to serve.
const LIMIT: Duration = Duration::from_secs(30);
/// How long one look may take.
const PROBE: Duration = Duration::from_millis(500);

/// What shows that a component serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// It runs.
    Running,
    /// It says so: `READY=1` (sd_notify(3)).
    Notify,
    /// It accepts connections at this address of its place.
    Tcp(SocketAddr),
    /// It accepts connections at this unix socket, relative to the lab's directory.
    Unix(String),
    /// It answers `GET /healthz` with 200.
    Health(SocketAddr),
    /// A line of this file, relative to the lab's directory, is this word (postmaster.pid).
    Line(String, String),
}

impl Ready {
    /// The address that the check implies.
    pub fn address(&self) -> Option<String> {
        match self {
            Self::Tcp(address) | Self::Health(address) => Some(address.to_string()),
            Self::Running | Self::Notify | Self::Unix(_) | Self::Line(..) => None,
        }
    }
}

/// A component that is being started.
pub struct Pending<'a> {
    component: &'a Component,
    /// Where it says that it is ready; there before it starts.
    notify: Option<UnixDatagram>,
    path: PathBuf,
}

/// The variable and value that tell a component where to say so.
pub fn notify_variable(root: &Root, name: &str) -> (String, String) {
    (
        "NOTIFY_SOCKET".to_owned(),
        root.inside(format_args!("run/{name}.notify")),
    )
}

impl<'a> Pending<'a> {
    /// Prepares to see `component` become ready.
    ///
    /// # Errors
    /// When its socket cannot be made.
    pub fn new(root: &Path, component: &'a Component) -> Result<Self> {
        let name = format!("{}.notify", component.name);
        let path = root.join("run").join(&name);
        let notify = match component.ready {
            Ready::Notify => {
                fs::remove_file(&path).ok();
                let dir = File::open(root.join("run"))?;
                let socket = UnixDatagram::bind(short(&dir, &name))?;
                socket.set_nonblocking(true)?;
                Some(socket)
            }
            _ => None,
        };
        Ok(Self {
            component,
            notify,
            path,
        })
    }

    /// Waits until the component serves.
    ///
    /// # Errors
    /// When it ends or takes too long.
    pub fn wait(&self, root: &Path) -> Result<()> {
        let networks = Networks::of(root);
        let end = Instant::now() + LIMIT;
        let name = &self.component.name;
        let mut pause = POLL;
        loop {
            if self.is_ready(root, &networks)? {
                return Ok(());
            }
            if !Record::read(root, name).is_some_and(|record| record.process.is_alive()) {
                bail!("{name} ended before it was ready:\n{}", log_tail(root, name));
            }
            if Instant::now() >= end {
                bail!(
                    "{name} is not ready after {} s:\n{}",
                    LIMIT.as_secs(),
                    log_tail(root, name)
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn is_ready(&self, root: &Path, networks: &Networks) -> Result<bool> {
        Ok(match (&self.component.ready, &self.notify) {
            (Ready::Notify, Some(socket)) => said_ready(socket),
            (ready, _) => probe(ready, root, networks, self.component)?,
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.notify.is_some() {
            fs::remove_file(&self.path).ok();
        }
    }
}

fn said_ready(socket: &UnixDatagram) -> bool {
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        if buffer[..length]
            .split(|&byte| byte == b'\n')
            .any(|line| line == b"READY=1")
        {
            return true;
        }
    }
    false
}

/// Looks once whether a component serves; one that only says so itself counts as serving.
///
/// # Errors
/// When its place cannot be entered.
pub fn probe(ready: &Ready, root: &Path, networks: &Networks, component: &Component) -> Result<bool> {
    Ok(match ready {
        Ready::Running | Ready::Notify => true,
        Ready::Tcp(address) => {
            networks.inside(&component.place, || TcpStream::connect_timeout(address, PROBE).is_ok())?
        }
        Ready::Health(address) => networks.inside(&component.place, || health(*address).is_ok_and(|ok| ok))?,
        Ready::Unix(path) => connect_unix(root, path).is_ok(),
        Ready::Line(path, word) => {
            fs::read_to_string(root.join(path)).is_ok_and(|text| text.lines().any(|line| line.trim() == word))
        }
    })
}

fn health(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE)?;
    stream.set_read_timeout(Some(PROBE))?;
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status[8..] == b" 200")
}

/// Connects to a unix socket in the lab's directory, however long the directory's path is.
///
/// # Errors
/// When nothing accepts there.
pub fn connect_unix(root: &Path, relative: &str) -> Result<UnixStream> {
    let path = root.join(relative);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("not a socket: {relative}");
    };
    let dir = File::open(dir)?;
    UnixStream::connect(short(&dir, &name.to_string_lossy()))
        .with_context(|| format!("nothing accepts at {}", path.display()))
}

/// A path through an open directory: as short as an address of a unix socket has to be.
fn short(dir: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_line_of_its_own() {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        assert!(!said_ready(&here));
        there.send(b"STATUS=READY=1\n").unwrap();
        assert!(!said_ready(&here));
        there.send(b"STATUS=up\nREADY=1").unwrap();
        assert!(said_ready(&here));
    }

    #[test]
    fn a_socket_is_reached_through_a_path_longer_than_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        fs::create_dir(&deep).unwrap();
        let handle = File::open(&deep).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(short(&handle, "s")).unwrap();
        connect_unix(&deep, "s").unwrap();
    }
}
