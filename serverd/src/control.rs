//! The control socket: what the administrator of this machine tells the running daemon, one line each way.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rssh_proto::payload::ServerState;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::capacity::{self, Capacity};
use crate::lease::Counts;
use crate::registry;
use crate::server::Server;

/// The name of the socket.
pub const SOCKET: &str = "control.sock";
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a draining server looks whether it is empty.
const LOOK: Duration = Duration::from_millis(200);

/// What can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Order {
    /// Say how full the server is.
    Capacity,
    /// Take no new landings, and end when the last tunnel has, or after this many seconds.
    Drain { within_s: u64 },
}

/// What the daemon says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub state: ServerState,
    pub counts: Counts,
    pub capacity: Capacity,
}

/// Opens the socket, for the daemon's own account and root.
///
/// # Errors
/// When the directory cannot be written.
pub fn listen(server: &Server) -> io::Result<UnixListener> {
    let path = server.config.socket(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes orders until a drain has come to its end.
pub async fn serve(server: Arc<Server>, listener: UnixListener) {
    let mut drained = None;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = empty(&server, drained) => return,
        };
        let Ok((stream, _)) = stream else { continue };
        match tokio::time::timeout(PATIENCE, answer(&server, stream)).await {
            Ok(Ok(Order::Drain { within_s })) => {
                tracing::info!(within_s, "draining");
                drained = Some(tokio::time::Instant::now() + Duration::from_secs(within_s));
            }
            Ok(Ok(Order::Capacity)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "control"),
            Err(_) => tracing::debug!("control: too slow"),
        }
    }
}

/// Becomes ready when a draining server is empty or out of time; never for one that does not drain.
async fn empty(server: &Server, until: Option<tokio::time::Instant>) {
    let Some(until) = until else {
        return std::future::pending().await;
    };
    while tokio::time::Instant::now() < until {
        let counts = server.leases().counts();
        if counts.held + counts.landing == 0 {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn answer(server: &Server, stream: UnixStream) -> io::Result<Order> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    let order: Order = serde_json::from_str(&line)?;
    if let Order::Drain { .. } = order {
        server.open_for_landings.store(false, Ordering::Relaxed);
        registry::announce(server, ServerState::Draining);
    }
    let counts = server.leases().counts();
    let answer = Answer {
        state: registry::state(server),
        counts,
        capacity: capacity::capacity(&capacity::look(&server.config.sshd, counts)),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await?;
    Ok(order)
}

/// Tells the running daemon something.
///
/// # Errors
/// When none runs, or the caller may not speak to it.
pub async fn tell(socket: &Path, order: Order) -> io::Result<Answer> {
    let ask = async {
        let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
        writer
            .write_all(format!("{}\n", serde_json::to_string(&order)?).as_bytes())
            .await?;
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
