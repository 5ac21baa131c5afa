//! What servers tell devices.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::V1;
use crate::id::{Epoch, TunnelId};
use crate::target::{HostPort, Target};

/// An order to open a tunnel, on [`crate::topic::Topic::DeviceOpen`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOrder {
    pub v: V1,
    pub tunnel: TunnelId,
    /// The epoch that the claim will get at least; an order below the agent's own is old.
    pub epoch: Epoch,
    pub target: Target,
    /// The load balancer's address for ssh; one of them, drawn by the server.
    pub lb: HostPort,
    /// The other load balancers, to be tried when that one does not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_lbs: Vec<HostPort>,
    /// The account to log in as.
    pub ssh_user: String,
    /// How long the asker still waits for the tunnel, in milliseconds.
    pub within_ms: u32,
    /// How long the tunnel may live from now, in seconds.
    pub ttl_s: u32,
    /// Wait a random part of this span first: how a fleet comes back after a loss. Milliseconds.
    #[serde(default)]
    pub jitter_ms: u32,
}

/// The port that a login of the device has been given, on [`crate::topic::Topic::DeviceOpen`]: told while the login is still
/// under way, so that the device can ask for its forward without having heard the claim's answer, which has the last word.
///
/// It is a hint, and comes once at most. An agent that does not know it drops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortHint {
    pub v: V1,
    /// The one tunnel of the device that waits to land.
    pub tunnel: TunnelId,
    pub bind: IpAddr,
    pub port: u16,
}

impl PortHint {
    /// Where the login may listen.
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }
}

/// What a device hears on [`crate::topic::Topic::DeviceOpen`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DeviceOrder {
    Open(OpenOrder),
    Port(PortHint),
}

/// An order to close a tunnel, on [`crate::topic::Topic::DeviceClose`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseOrder {
    pub v: V1,
    pub tunnel: TunnelId,
    /// Close only a session of this epoch or an older one.
    pub epoch: Epoch,
}
