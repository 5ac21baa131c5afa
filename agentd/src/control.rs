//! The control socket: what whoever is at the device asks of the running agent, one line of JSON each way.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rssh_proto::{DeviceId, Target, TunnelId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::process::{boot, since_boot};
use crate::rundir::RunDir;

/// How long each side may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest order.
const ORDER_LIMIT: u64 = 1024;
/// The longest answer: 64 tunnels, and room.
const ANSWER_LIMIT: u64 = 64 * 1024;

/// What can be asked; each is answered by the status after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Order {
    Status,
    /// End every tunnel, and open none for so many seconds.
    Pause {
        for_s: u64,
    },
    Resume,
}

/// What the agent knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub device: DeviceId,
    pub version: String,
    /// Whether there is a session with a broker.
    pub connected: bool,
    /// Since when it has been so.
    pub since_s: u64,
    /// How much longer no tunnel is opened.
    pub paused_s: Option<u64>,
    pub tunnels: Vec<TunnelStatus>,
    pub last_failure: Option<Trouble>,
}

/// A tunnel of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub tunnel: TunnelId,
    pub target: Target,
    pub state: TunnelState,
    pub deadline_s: u64,
}

/// How far a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    Waiting,
    Landing,
    Up,
    Ending,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub message: String,
    pub ago_s: u64,
}

/// Why the agent was not asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no rssh-agentd runs with this configuration; start it, or see its log: journalctl -u rssh-agentd")]
    NotRunning,
    #[error("cannot use {path}: {source}; run this as the agent's account or as root")]
    Denied { path: PathBuf, source: io::Error },
    #[error("rssh-agentd does not answer: {0}; restart it")]
    Silent(io::Error),
}

/// An order, and where its answer goes.
pub type Asked = (Order, oneshot::Sender<Status>);

/// Takes orders for the agent's loop; for its own account and root only.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(run: &RunDir) -> io::Result<mpsc::Receiver<Asked>> {
    let path = run.control();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is the account's own (0700), so that nobody is quicker than this.
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let (orders, asked) = mpsc::channel(1);
    tokio::spawn(async move {
        while !orders.is_closed() {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            match tokio::time::timeout(PATIENCE, answer(stream, &orders)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "control"),
                Err(_) => tracing::debug!("control: too slow"),
            }
        }
    });
    Ok(asked)
}

async fn answer(stream: UnixStream, orders: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut line = String::new();
    BufReader::new(from.take(ORDER_LIMIT)).read_line(&mut line).await?;
    let (reply, answer) = oneshot::channel();
    orders
        .send((serde_json::from_str(&line)?, reply))
        .await
        .map_err(io::Error::other)?;
    let answer = answer.await.map_err(io::Error::other)?;
    to.write_all((serde_json::to_string(&answer)? + "\n").as_bytes()).await
}

/// A pause as the next agent finds it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot: String,
    /// By [`since_boot`].
    until: Duration,
}

/// Keeps a pause of this length for the next agent; none removes it.
///
/// # Errors
/// When it cannot be kept.
pub fn keep_pause(run: &RunDir, length: Option<Duration>) -> io::Result<()> {
    match length {
        Some(length) => {
            let (boot, until) = (boot()?, since_boot() + length);
            fs::write(run.paused(), serde_json::to_vec(&Kept { boot, until })?)
        }
        None => match fs::remove_file(run.paused()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// What is left of a pause that an earlier agent kept; a restart of the device ends it.
pub fn kept_pause(run: &RunDir) -> Option<Duration> {
    let kept: Kept = serde_json::from_slice(&fs::read(run.paused()).ok()?).ok()?;
    let left = kept.until.saturating_sub(since_boot());
    (boot().ok()? == kept.boot && !left.is_zero()).then_some(left)
}

/// Asks the agent that runs with this state directory.
///
/// # Errors
/// When there is none, or it may not be asked, or does not answer.
pub async fn ask(state_dir: &Path, device: &DeviceId, order: Order) -> Result<Status, ControlError> {
    let mut denied = ControlError::NotRunning;
    for dir in RunDir::places(state_dir, device) {
        match connect(&dir).await {
            Ok(stream) => {
                let asked = tokio::time::timeout(2 * PATIENCE, put(stream, order)).await;
                return asked
                    .map_err(|_| ControlError::Silent(io::ErrorKind::TimedOut.into()))?
                    .map_err(ControlError::Silent);
            }
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                denied = ControlError::Denied { path: dir, source };
            }
            Err(_) => {}
        }
    }
    Err(denied)
}

async fn connect(dir: &Path) -> io::Result<UnixStream> {
    // A socket's path has 107 bytes at most (unix(7)), a directory's may have more.
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), crate::rundir::CONTROL)).await
}

async fn put(stream: UnixStream, order: Order) -> io::Result<Status> {
    let (from, mut to) = stream.into_split();
    to.write_all((serde_json::to_string(&order)? + "\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(from.take(ANSWER_LIMIT)).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}
