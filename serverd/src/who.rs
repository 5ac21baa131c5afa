//! Who there is: devices, users, servers and routers, of which no two share a name.

use rssh_proto::{DeviceId, RouterId, ServerId, UserId};

use crate::store::Kind;

/// A known identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Device(DeviceId),
    User(UserId),
    Server(ServerId),
    Router(RouterId),
}

impl Who {
    /// What it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Device(_) => Kind::Device,
            Self::User(_) => Kind::User,
            Self::Server(_) => Kind::Server,
            Self::Router(_) => Kind::Router,
        }
    }

    /// Its id, which is its certificate's CN.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(id) => id.as_str(),
            Self::User(id) => id.as_str(),
            Self::Server(id) => id.as_str(),
            Self::Router(id) => id.as_str(),
        }
    }
}
