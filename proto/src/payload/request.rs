//! What users ask of servers.

use serde::{Deserialize, Serialize};

use super::V1;
use crate::id::{DeviceId, SessionId, TunnelId};
use crate::target::Target;

/// A user's request, on [`crate::topic::Topic::UserRequest`]. A repeated one with the same id finds its first outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub v: V1,
    /// For an open, also the id of the tunnel that it makes.
    pub id: TunnelId,
    /// Where the replies go: the last level of the user's reply topic.
    pub session: SessionId,
    /// How long the asker goes on waiting, in milliseconds from now.
    pub deadline_ms: u32,
    #[serde(flatten)]
    pub op: Operation,
}

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Operation {
    /// Open a tunnel, or get a live one of the same user, device and target.
    Open(OpenRequest),
    /// Give a tunnel up: it closes with its last opener.
    Close(CloseRequest),
    /// List the user's live tunnels.
    List,
    /// Sign a fresh name for a live tunnel.
    Name { tunnel: TunnelId },
    /// List the devices that the user may open something on.
    Devices,
    /// Tell how a tunnel came about: when each stage was reached, and why it failed if it did.
    Trace { tunnel: TunnelId },
    /// The same of the user's latest tunnel to a device, or to one of its targets; it may be over.
    Latest {
        device: DeviceId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<Target>,
    },
    /// Sign a name for a live tunnel that whoever bears it may use, for at most so many seconds.
    Share { tunnel: TunnelId, valid_s: u32 },
    /// Tell the host keys of a device's own sshd.
    HostKeys { device: DeviceId },
}

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    pub device: DeviceId,
    pub target: Target,
    /// The port wished for on the server: a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// How long the tunnel may live, in seconds; the server's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// How long it may carry no connection, in seconds; forever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u32>,
    /// Make a tunnel even where a live one exists.
    #[serde(default)]
    pub new: bool,
    /// Wait for a device that is offline, for as long as the request's deadline allows.
    #[serde(default)]
    pub wait: bool,
    /// Whether the asker holds the tunnel until it closes it. A ProxyCommand does not: idleness ends its tunnel.
    #[serde(default)]
    pub hold: bool,
}

impl OpenRequest {
    /// A tunnel that its asker holds, with no other wishes.
    pub const fn new(device: DeviceId, target: Target) -> Self {
        Self {
            device,
            target,
            remote_port: None,
            ttl_s: None,
            idle_s: None,
            new: false,
            wait: false,
            hold: true,
        }
    }
}

/// What to close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseRequest {
    pub which: Which,
    /// Close it whoever else holds it.
    #[serde(default)]
    pub force: bool,
}

/// Which of the user's live tunnels is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    Tunnel(TunnelId),
    /// Every live tunnel to the device, or only those to the target.
    Device {
        device: DeviceId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<Target>,
    },
}
