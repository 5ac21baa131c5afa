//! What servers and routers tell each other.

use serde::{Deserialize, Serialize};

use super::{Presence, Reply, V1};
use crate::id::{Epoch, Generation, InstanceId, SessionId, TunnelId, UserId};

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Takes landings and carries tunnels.
    Serving,
    /// Takes no new landings; its tunnels go on.
    Draining,
    /// Said goodbye or vanished: no new landings; its tunnels may still live.
    Offline,
}

/// A server's presence, on [`crate::topic::Topic::ServerStatus`]; retained, and its last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    pub v: V1,
    pub state: ServerState,
    /// Counts the server's starts and address changes; a status with a lower one is late and means nothing.
    pub generation: Generation,
    pub instance: InstanceId,
}

/// What one server asks of another, on [`crate::topic::Topic::ServerRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRequest {
    pub v: V1,
    #[serde(flatten)]
    pub op: ServerOperation,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum ServerOperation {
    /// End every session of the tunnel whose epoch is below this one.
    Evict { tunnel: TunnelId, below: Epoch },
    /// End the tunnel's session: it was closed, expired or revoked.
    End { tunnel: TunnelId },
    /// Sign a name for a tunnel that the addressed server holds, and send it to the user.
    Sign {
        tunnel: TunnelId,
        user: UserId,
        session: SessionId,
        request: TunnelId,
        /// A bearer name, for so many seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bearer_s: Option<u32>,
    },
    /// Hand an answer to a user's session that is at the addressed server: one that came by HTTP.
    Relay {
        user: UserId,
        session: SessionId,
        reply: Box<Reply>,
    },
}

/// A router's state, on [`crate::topic::Topic::RouterStatus`]; retained, and its last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterStatus {
    pub v: V1,
    pub presence: Presence,
    /// Counts the router's changes to HAProxy since its start.
    pub map_generation: u64,
    /// Servers that users are routed to, and of those the ones that take landings.
    pub routed: u32,
    pub landing: u32,
    /// Whether the registry is away, so that the routes are the last good ones.
    pub stale: bool,
}
