//! JSON payloads, version 1.
//!
//! Each message is one JSON object of at most [`LIMIT`] bytes. Unknown fields are ignored, so that a newer sender can
//! add one; an unknown variant is an error. Spans of time are relative seconds or milliseconds (clocks at 1970 exist on
//! devices); points in time are Unix seconds and come from servers only.

use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{DeviceId, Epoch, Generation, InstanceId, ServerId, SessionId, TunnelId, UserId};
use crate::tag::Tags;
use crate::target::{HostPort, Target};

/// The largest payload, in bytes; the broker refuses larger packets too.
pub const LIMIT: usize = 4096;

/// Why a payload was dropped.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("payload of {0} bytes is over the limit of {LIMIT}")]
    TooLarge(usize),
    #[error("not a payload of this topic: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a payload.
///
/// # Errors
/// When it is over [`LIMIT`] bytes, not JSON, nested deeper than 128 levels, or not a valid `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > LIMIT {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Writes a payload.
pub fn encode<T: Serialize>(payload: &T) -> Vec<u8> {
    // Every payload type is a tree of strings, numbers and lists: nothing in it can fail to serialize.
    serde_json::to_vec(payload).expect("payloads serialize")
}

/// The protocol's version, checked while reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct V1;

impl TryFrom<u8> for V1 {
    type Error = String;

    fn try_from(version: u8) -> Result<Self, String> {
        if version == 1 {
            Ok(Self)
        } else {
            Err(format!("protocol version {version} is not 1"))
        }
    }
}

impl From<V1> for u8 {
    fn from(_: V1) -> u8 {
        1
    }
}

// --- user -> server -------------------------------------------------------------------------------------------------

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

// --- server -> user -------------------------------------------------------------------------------------------------

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

// --- server -> device -----------------------------------------------------------------------------------------------

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

// --- device -> server -----------------------------------------------------------------------------------------------

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

// --- servers and routers ----------------------------------------------------------------------------------------------

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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op: Operation) -> Request {
        Request {
            v: V1,
            id: TunnelId::generate(),
            session: SessionId::generate(),
            deadline_ms: 15_000,
            op,
        }
    }

    #[test]
    fn requests_read_back() {
        for op in [
            Operation::Open(OpenRequest {
                device: "device-1".parse().unwrap(),
                target: Target::ssh(),
                remote_port: Some(20_001),
                ttl_s: Some(3600),
                idle_s: None,
                new: false,
                wait: false,
                hold: true,
            }),
            Operation::Close(CloseRequest {
                which: Which::Device {
                    device: "device-1".parse().unwrap(),
                    target: None,
                },
                force: true,
            }),
            Operation::List,
            Operation::Name {
                tunnel: TunnelId::generate(),
            },
        ] {
            let request = request(op);
            assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        }
    }

    #[test]
    fn bad_payloads_are_errors() {
        let good = String::from_utf8(encode(&request(Operation::List))).unwrap();
        assert!(decode::<Request>(good.as_bytes()).is_ok());
        let deep = "[".repeat(2000);
        for bad in [
            good.replace("\"v\":1", "\"v\":2"),
            good.replace("\"list\"", "\"format-disk\""),
            good.replace("\"session\":\"", "\"session\":\"../"),
            good.replace("{\"v\":1", "{\"v\":1,\"v\":1"),
            good.replace("{\"v\":1", &format!("{{\"extra\":{deep},\"v\":1")),
            good[..good.len() - 1].to_owned(),
            deep,
            String::new(),
        ] {
            assert!(decode::<Request>(bad.as_bytes()).is_err(), "{bad:.80}");
        }
        assert!(decode::<Request>(b"\xff\xfe{}").is_err());
        assert!(matches!(
            decode::<Request>(&vec![b' '; LIMIT + 1]),
            Err(DecodeError::TooLarge(_))
        ));
    }

    #[test]
    fn a_full_status_fits_the_limit() {
        let status = DeviceStatus {
            v: V1,
            presence: Presence::Online,
            generation: Generation(u64::MAX),
            instance: InstanceId::generate(),
            tunnels: vec![(TunnelId::generate(), Epoch(u64::from(u32::MAX))); DeviceStatus::MAX_TUNNELS],
        };
        assert!(encode(&status).len() <= LIMIT);
    }
}
