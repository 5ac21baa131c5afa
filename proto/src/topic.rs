//! MQTT topics: who publishes what, and who a topic's identity is.
//!
//! MQTT does not say who published a message. The broker's access rules bind the identity in the topic to the client
//! certificate's CN, so the topic is the only proof of a sender.

use std::fmt;

use crate::id::{DeviceId, RouterId, ServerId, SessionId, UserId};

const ROOT: &str = "rssh/v1";

/// A topic of the protocol, with the identity it carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A user's requests, to whichever server takes them.
    UserRequest(UserId),
    /// Progress, results and errors for one session of a user.
    UserReply(UserId, SessionId),
    /// Orders for a device: open a tunnel.
    DeviceOpen(DeviceId),
    /// Orders for a device: close a tunnel.
    DeviceClose(DeviceId),
    /// A device's presence; retained, and its last will.
    DeviceStatus(DeviceId),
    /// A device's acknowledgements and named failures.
    DeviceEvent(DeviceId),
    /// A server's presence; retained, and its last will.
    ServerStatus(ServerId),
    /// What one server asks of another.
    ServerRequest(ServerId),
    /// A router's state; retained, and its last will.
    RouterStatus(RouterId),
}

impl Topic {
    /// Reads a topic that a broker delivered; `None` when it is not one of ours or its ids are not valid.
    pub fn parse(topic: &str) -> Option<Self> {
        let rest = topic.strip_prefix(ROOT)?.strip_prefix('/')?;
        let mut levels = rest.split('/');
        let parsed = match (levels.next()?, levels.next()?, levels.next()?, levels.next()) {
            ("user", user, "request", None) => Self::UserRequest(user.parse().ok()?),
            ("user", user, "reply", Some(session)) => Self::UserReply(user.parse().ok()?, session.parse().ok()?),
            ("device", device, "open", None) => Self::DeviceOpen(device.parse().ok()?),
            ("device", device, "close", None) => Self::DeviceClose(device.parse().ok()?),
            ("device", device, "status", None) => Self::DeviceStatus(device.parse().ok()?),
            ("device", device, "event", None) => Self::DeviceEvent(device.parse().ok()?),
            ("server", server, "status", None) => Self::ServerStatus(server.parse().ok()?),
            ("server", server, "request", None) => Self::ServerRequest(server.parse().ok()?),
            ("router", router, "status", None) => Self::RouterStatus(router.parse().ok()?),
            _ => return None,
        };
        levels.next().is_none().then_some(parsed)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ROOT}/")?;
        match self {
            Self::UserRequest(user) => write!(f, "user/{user}/request"),
            Self::UserReply(user, session) => write!(f, "user/{user}/reply/{session}"),
            Self::DeviceOpen(device) => write!(f, "device/{device}/open"),
            Self::DeviceClose(device) => write!(f, "device/{device}/close"),
            Self::DeviceStatus(device) => write!(f, "device/{device}/status"),
            Self::DeviceEvent(device) => write!(f, "device/{device}/event"),
            Self::ServerStatus(server) => write!(f, "server/{server}/status"),
            Self::ServerRequest(server) => write!(f, "server/{server}/request"),
            Self::RouterStatus(router) => write!(f, "router/{router}/status"),
        }
    }
}

/// Topic filters that servers and routers subscribe to.
pub mod filter {
    /// Every user's requests, each to one of the servers.
    pub const REQUESTS: &str = "$share/serverd/rssh/v1/user/+/request";
    /// Every device's presence, each message to one of the servers.
    pub const DEVICE_STATUS: &str = "$share/serverd/rssh/v1/device/+/status";
    /// Every device's events, each to one of the servers.
    pub const DEVICE_EVENTS: &str = "$share/serverd/rssh/v1/device/+/event";
    /// Every server's presence, to every subscriber.
    pub const SERVER_STATUS: &str = "rssh/v1/server/+/status";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back() {
        let device: DeviceId = "device-1".parse().unwrap();
        let user: UserId = "alice".parse().unwrap();
        let server: ServerId = "s1".parse().unwrap();
        for topic in [
            Topic::UserRequest(user.clone()),
            Topic::UserReply(user, SessionId::generate()),
            Topic::DeviceOpen(device.clone()),
            Topic::DeviceClose(device.clone()),
            Topic::DeviceStatus(device.clone()),
            Topic::DeviceEvent(device),
            Topic::ServerStatus(server.clone()),
            Topic::ServerRequest(server),
            Topic::RouterStatus("lb1".parse().unwrap()),
        ] {
            assert_eq!(Topic::parse(&topic.to_string()), Some(topic));
        }
    }

    #[test]
    fn other_topics_are_not_ours() {
        for bad in [
            "",
            "rssh/v1",
            "rssh/v1/user/alice",
            "rssh/v1/user/alice/request/x",
            "rssh/v2/user/alice/request",
            "rssh/v1/user/Alice/request",
            "rssh/v1/user/+/request",
            "rssh/v1/user/alice/reply/short",
            "rssh/v1/user/alice/reply/0123456789/x",
            "xrssh/v1/user/alice/request",
        ] {
            assert_eq!(Topic::parse(bad), None, "{bad}");
        }
    }
}
