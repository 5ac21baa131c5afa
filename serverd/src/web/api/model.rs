//! What the API's documents look like: the objects of `rssh --json`, as docs/cli-json.md has them.

use rssh_proto::payload::{ClosedTunnel, DeviceInfo, Presence, SharedName, TunnelInfo, TunnelState, TunnelTrace};
use rssh_proto::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// Unix seconds as RFC 3339; the last moment that has such a form for a later one.
fn rfc3339(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// How far a tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Requested,
    Claimed,
    Active,
    Reconnecting,
    Closed,
    Failed,
}

impl From<TunnelState> for State {
    fn from(state: TunnelState) -> Self {
        match state {
            TunnelState::Requested => Self::Requested,
            TunnelState::Claimed => Self::Claimed,
            TunnelState::Active => Self::Active,
            TunnelState::Reconnecting => Self::Reconnecting,
            TunnelState::Closed => Self::Closed,
            TunnelState::Failed => Self::Failed,
        }
    }
}

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tunnel {
    /// Its id: a UUID.
    #[schema(format = Uuid)]
    pub tunnel: String,
    pub device: String,
    /// Where it leads, as the device sees it.
    #[schema(example = "localhost:22")]
    pub target: String,
    pub state: State,
    /// The server where it has landed.
    pub server: Option<String>,
    /// The signed host name, where one was asked for: TLS with it as the server's name leads to the target.
    pub host: Option<String>,
    /// The load balancer's port for `host`.
    pub port: Option<u16>,
    /// When the tunnel ends.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// Until when `host` admits new connections.
    #[schema(format = DateTime)]
    pub host_expires_at: Option<String>,
    /// What the device's sshd said through the load balancer, where a server was asked to prove the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub banner: Option<String>,
}

impl From<TunnelInfo> for Tunnel {
    fn from(info: TunnelInfo) -> Self {
        Self {
            tunnel: info.tunnel.to_string(),
            device: info.device.to_string(),
            target: info.target.to_string(),
            state: info.state.into(),
            server: info.server.map(Into::into),
            host: info.host,
            port: info.port,
            expires_at: rfc3339(info.expires_at),
            host_expires_at: info.host_expires_at.map(rfc3339),
            banner: None,
        }
    }
}

/// A tunnel, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Explained {
    #[serde(flatten)]
    pub tunnel: Tunnel,
    #[schema(format = DateTime)]
    pub requested_at: String,
    /// How many times the device has landed with it.
    pub claims: u64,
    /// The stages that were reached, in their order.
    pub stages: Vec<Reached>,
    pub failure: Option<Fault>,
}

/// A stage of an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A server checked the grant and recorded the tunnel.
    Accepted,
    /// The device acknowledged its order.
    Device,
    /// Its ssh was connected, the keys exchanged.
    Ssh,
    /// It logged in and leased a port.
    Claim,
    /// The server saw the port open.
    Listener,
    /// The tunnel ended.
    Ended,
}

/// When a stage was reached, in milliseconds from the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reached {
    pub stage: Stage,
    pub at_ms: u32,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// The exit code's name, such as `offline`.
    #[schema(value_type = String)]
    pub kind: FailureKind,
    pub message: String,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.message().to_owned(),
        }
    }
}

/// The stages that a trace tells of.
pub fn stages(trace: &TunnelTrace) -> Vec<Reached> {
    [
        (Stage::Accepted, Some(0)),
        (Stage::Device, trace.answered_ms),
        (Stage::Ssh, trace.landed_ms),
        (Stage::Claim, trace.claimed_ms),
        (Stage::Listener, trace.active_ms),
        (Stage::Ended, trace.ended_ms),
    ]
    .into_iter()
    .filter_map(|(stage, at)| at.map(|at_ms| Reached { stage, at_ms }))
    .collect()
}

impl From<TunnelTrace> for Explained {
    fn from(trace: TunnelTrace) -> Self {
        Self {
            stages: stages(&trace),
            requested_at: rfc3339(trace.requested_at),
            claims: trace.claims,
            failure: trace.failure.map(Into::into),
            tunnel: trace.info.into(),
        }
    }
}

/// A tunnel that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Closed {
    #[schema(format = Uuid)]
    pub tunnel: String,
    pub device: String,
    pub target: String,
    /// How many others hold it open; it is closed at 0.
    pub holders_left: u32,
}

impl From<ClosedTunnel> for Closed {
    fn from(closed: ClosedTunnel) -> Self {
        Self {
            tunnel: closed.tunnel.to_string(),
            device: closed.device.to_string(),
            target: closed.target.to_string(),
            holders_left: closed.holders_left,
        }
    }
}

/// Tunnels that were given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ClosedTunnels {
    pub items: Vec<Closed>,
}

/// A URL by which whoever has it gets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Share {
    pub url: String,
    pub host: String,
    pub port: u16,
    pub device: String,
    pub target: String,
    #[schema(format = Uuid)]
    pub tunnel: String,
    #[schema(format = DateTime)]
    pub host_expires_at: String,
}

impl From<SharedName> for Share {
    fn from(shared: SharedName) -> Self {
        Self {
            url: format!("https://{}:{}/", shared.host, shared.port),
            host: shared.host,
            port: shared.port,
            device: shared.device.to_string(),
            target: shared.target.to_string(),
            tunnel: shared.tunnel.to_string(),
            host_expires_at: rfc3339(shared.expires_at),
        }
    }
}

/// Whether a device is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Online,
    Offline,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Device {
    pub device: String,
    pub status: Status,
    /// When it came or went; null when it was never there.
    #[schema(format = DateTime)]
    pub since: Option<String>,
    /// Its tags: a text for each key.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    pub tags: rssh_proto::Tags,
}

impl Device {
    /// A device, at a moment in Unix seconds.
    pub fn at(now: i64, info: DeviceInfo) -> Self {
        Self {
            device: info.device.into(),
            status: match info.presence {
                Presence::Online => Status::Online,
                Presence::Offline => Status::Offline,
            },
            since: info.since_s.and_then(|ago| now.checked_sub_unsigned(ago)).map(rfc3339),
            tags: info.tags,
        }
    }
}

/// Some of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Devices {
    pub items: Vec<Device>,
    /// What to give as `after` for those that follow; null when there are none.
    pub next: Option<String>,
}

/// Some of the tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tunnels {
    pub items: Vec<Tunnel>,
    /// What to give as `after` for those that follow; null when there are none.
    pub next: Option<String>,
}

/// The host keys of a device's own sshd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct HostKeys {
    pub device: String,
    /// `<type> <base64>` each.
    pub keys: Vec<String>,
}

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Open {
    #[schema(example = "device-42", pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    pub device: String,
    /// A port of the device, `HOST:PORT` in its network, or a name of its list of targets; its ssh by default.
    #[schema(example = "22")]
    pub target: Option<String>,
    /// The port wished for on the server: a hint.
    #[schema(minimum = 1, maximum = 65535)]
    pub remote_port: Option<u16>,
    /// How long the tunnel may live, in seconds.
    #[schema(minimum = 1)]
    pub ttl_s: Option<u32>,
    /// Close it once it has carried no connection for so many seconds.
    #[schema(minimum = 1)]
    pub idle_s: Option<u32>,
    /// Make a tunnel even where a live one exists.
    #[serde(default)]
    pub new: bool,
    /// Hold it open until it is given up, rather than until it is idle; so by default.
    pub hold: Option<bool>,
    /// How long to wait for it at most, in milliseconds.
    #[schema(minimum = 1000, maximum = 25000)]
    pub timeout_ms: Option<u32>,
    /// Have the server prove the tunnel through the load balancer before it answers.
    pub prove: Option<Prove>,
}

/// Who is to prove a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Prove {
    Server,
}

/// How to share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareFor {
    /// How long the URL admits new connections, in seconds.
    #[schema(minimum = 1, maximum = 600)]
    pub valid_s: u32,
}

/// An error (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    pub r#type: String,
    pub title: String,
    pub status: u16,
    /// What is wrong, and what to do about it.
    pub detail: String,
    /// The failure's kind, as `rssh` names it.
    pub code: String,
    /// What `rssh` would end with.
    pub exit_code: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_however_far_they_are() {
        assert_eq!(rfc3339(1_700_003_600), "2023-11-14T23:13:20Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
