//! What servers answer to users.

use serde::{Deserialize, Serialize};

use super::{Presence, V1};
use crate::failure::Failure;
use crate::id::{DeviceId, Epoch, ServerId, TunnelId};
use crate::tag::Tags;
use crate::target::Target;

/// An answer, on [`crate::topic::Topic::UserReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub v: V1,
    /// The [`Request::id`] that it answers.
    pub request: TunnelId,
    /// The claim it speaks of; with `rank`, an older answer that comes late is known and ignored.
    #[serde(default)]
    pub epoch: Epoch,
    pub rank: Rank,
    pub body: ReplyBody,
}

/// How far a request has come; later variants are further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// A server has taken the request.
    Accepted,
    /// The device has acknowledged it.
    Answered,
    /// The device's ssh has landed on a server and holds a port.
    Claimed,
    /// The request is over.
    Final,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplyBody {
    /// Still going on: the rank says how far.
    Progress {
        tunnel: TunnelId,
        /// The server that speaks.
        server: ServerId,
    },
    /// The tunnel is active and may be used by this name.
    Opened(TunnelInfo),
    /// Some of the user's tunnels; more follow unless `last`.
    Tunnels {
        items: Vec<TunnelInfo>,
        last: bool,
    },
    /// Some of the user's devices; more follow unless `last`.
    Devices {
        items: Vec<DeviceInfo>,
        last: bool,
    },
    /// How a tunnel came about.
    Trace(TunnelTrace),
    /// A bearer name.
    Shared(SharedName),
    /// The public host keys of a device's own sshd, `<type> <base64>` each; none when it has reported none.
    HostKeys {
        device: DeviceId,
        keys: Vec<String>,
    },
    /// These tunnels were given up.
    Closed {
        items: Vec<ClosedTunnel>,
    },
    Failed(Failure),
}

/// A tunnel as its user sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelInfo {
    pub tunnel: TunnelId,
    pub device: DeviceId,
    pub target: Target,
    pub state: TunnelState,
    /// Where the tunnel has landed, while it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerId>,
    /// The signed host name, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The load balancer's public port for `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// When the tunnel ends, in Unix seconds.
    pub expires_at: i64,
    /// Until when `host` admits new connections, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_expires_at: Option<i64>,
    /// Until when `host` admits new connections, in seconds from the sending: for a user's clock that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_valid_s: Option<u32>,
}

/// A host name that leads whoever bears it to a tunnel's target, from the first address that uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedName {
    pub tunnel: TunnelId,
    pub device: DeviceId,
    pub target: Target,
    pub host: String,
    /// The load balancer's public port for bearers.
    pub port: u16,
    /// Until when it admits new connections, in Unix seconds, and in seconds from the sending.
    pub expires_at: i64,
    pub valid_s: u32,
}

impl SharedName {
    /// The longest that one may admit connections, in seconds; the load balancer refuses a longer one.
    pub const LONGEST_S: u32 = 600;
}

/// A device as a user sees it who may open something on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    pub device: DeviceId,
    pub presence: Presence,
    /// How long ago it came or went, in seconds; absent when it was never there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// When a tunnel reached each stage, in milliseconds from its request; absent when it has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelTrace {
    pub info: TunnelInfo,
    /// When it was requested, in Unix seconds.
    pub requested_at: i64,
    /// The device acknowledged the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_ms: Option<u32>,
    /// Its ssh was connected, its keys were exchanged, and sshd asked about it; of the last claim, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landed_ms: Option<u32>,
    /// Its ssh had landed and claimed; of the last claim, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_ms: Option<u32>,
    /// The server saw the listener; of the last claim, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_ms: Option<u32>,
    /// It ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u32>,
    /// How many times it was claimed.
    pub claims: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// The states of a tunnel.
///
/// ```text
/// requested --claim--> claimed --listener seen--> active --close, expiry, revocation--> closed
///     |                   |                          \--link or server lost--> reconnecting --claim--> claimed
///     \---- deadline -----+---- refused ----> failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    Requested,
    Claimed,
    Active,
    Reconnecting,
    Closed,
    Failed,
}

/// A tunnel that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedTunnel {
    pub tunnel: TunnelId,
    pub device: DeviceId,
    pub target: Target,
    /// How many others still hold it open; it is closed when none does.
    pub holders_left: u32,
}
