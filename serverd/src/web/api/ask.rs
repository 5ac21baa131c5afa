//! A request in the way of those over MQTT, and its answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_proto::payload::{
    CloseRequest, ClosedTunnel, DeviceInfo, Operation, Rank, ReplyBody, Request, SharedName, TunnelInfo, TunnelTrace,
    V1, Which,
};
use rssh_proto::{Failure, FailureKind, TunnelId, UserId};

use crate::local::Session;
use crate::requests;
use crate::server::Server;

/// How long the answer to a question may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// After how long a request is made again with the same id: the server that took it up may have died since.
const AGAIN: Duration = Duration::from_secs(4);

/// What a request brought.
#[derive(Debug)]
pub enum Answer {
    Opened(TunnelInfo),
    Tunnels(Vec<TunnelInfo>),
    Devices(Vec<DeviceInfo>),
    Trace(TunnelTrace),
    Closed(Vec<ClosedTunnel>),
    Shared(SharedName),
    HostKeys(Vec<String>),
}

/// The answer was one to another question.
pub fn unexpected() -> Failure {
    Failure::new(FailureKind::Internal, "the answer was one to another question")
}

/// Carries a request to its end.
///
/// # Errors
/// The named failure.
pub async fn ask(
    server: &Arc<Server>,
    user: &UserId,
    id: TunnelId,
    op: Operation,
    patience: Duration,
) -> Result<Answer, Failure> {
    let mut session = Session::begin(server, user);
    let deadline = Instant::now() + patience;
    let (mut tunnels, mut devices) = (Vec::new(), Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(overdue(server, user, id, &op));
        }
        let request = Request {
            v: V1,
            id,
            session: session.id.clone(),
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            op: op.clone(),
        };
        tokio::spawn(requests::handle(server.clone(), user.clone(), request));
        let again = tokio::time::sleep(left.min(AGAIN));
        tokio::pin!(again);
        loop {
            let reply = tokio::select! {
                reply = session.replies.recv() => reply,
                () = &mut again => break,
            };
            let Some(reply) = reply.filter(|reply| reply.rank == Rank::Final) else {
                continue;
            };
            return Ok(match reply.body {
                ReplyBody::Progress { .. } => continue,
                ReplyBody::Opened(info) => Answer::Opened(info),
                ReplyBody::Trace(trace) => Answer::Trace(trace),
                ReplyBody::Closed { items } => Answer::Closed(items),
                ReplyBody::Shared(shared) => Answer::Shared(shared),
                ReplyBody::HostKeys { keys, .. } => Answer::HostKeys(keys),
                ReplyBody::Tunnels { items, last } => {
                    tunnels.extend(items);
                    if !last {
                        continue;
                    }
                    Answer::Tunnels(tunnels)
                }
                ReplyBody::Devices { items, last } => {
                    devices.extend(items);
                    if !last {
                        continue;
                    }
                    Answer::Devices(devices)
                }
                ReplyBody::Failed(failure) => return Err(failure),
            });
        }
    }
}

/// Gives up what was asked for: a tunnel that comes too late is of no use to anyone.
fn overdue(server: &Arc<Server>, user: &UserId, id: TunnelId, op: &Operation) -> Failure {
    if let Operation::Open(open) = op {
        let close = Operation::Close(CloseRequest {
            which: Which::Tunnel(id),
            force: false,
        });
        let session = Session::begin(server, user);
        let request = Request {
            v: V1,
            id: TunnelId::generate(),
            session: session.id.clone(),
            deadline_ms: 2_000,
            op: close,
        };
        tokio::spawn(requests::handle(server.clone(), user.clone(), request));
        let message = format!("{} had no working tunnel in time; raise timeout_ms", open.device);
        return Failure::new(FailureKind::Deadline, message);
    }
    Failure::new(FailureKind::Deadline, "there was no answer in time; try again")
}
