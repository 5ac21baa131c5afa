//! What devices tell servers.

use serde::{Deserialize, Serialize};

use super::V1;
use crate::failure::Failure;
use crate::id::{Epoch, Generation, InstanceId, TunnelId};

/// Whether the sender of a status is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    Online,
    Offline,
}

/// A device's presence, on [`crate::topic::Topic::DeviceStatus`]; retained, and its last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub v: V1,
    pub presence: Presence,
    /// Counts the agent's connects, kept across restarts.
    pub generation: Generation,
    pub instance: InstanceId,
    /// The tunnels it holds, each with its epoch.
    #[serde(default)]
    pub tunnels: Vec<(TunnelId, Epoch)>,
}

impl DeviceStatus {
    /// How many tunnels fit one status message, and so how many an agent may hold.
    pub const MAX_TUNNELS: usize = 64;
}

/// What a device says of one tunnel, on [`crate::topic::Topic::DeviceEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEvent {
    pub v: V1,
    pub tunnel: TunnelId,
    pub instance: InstanceId,
    /// The claim that the event speaks of; 0 before the first.
    #[serde(default)]
    pub epoch: Epoch,
    pub event: DeviceEventKind,
}

/// What happened on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceEventKind {
    /// The order has arrived and is being carried out.
    Accepted,
    /// It was not carried out; or, of the epoch of a tunnel that is up and stays so, a connection through it failed.
    Failed(Failure),
    /// The tunnel's ssh ended without an order to; the agent comes back with it if it may.
    Lost { reason: String },
    /// The tunnel is over on the device: on order, at its deadline or at the agent's shutdown.
    Closed,
}
