//! Who there is: devices, users, servers and routers, of which no two share a name.

use rssh_proto::id::IdError;
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
    /// The identity of a kind by its name.
    ///
    /// # Errors
    /// When no identity of that kind can have the name.
    pub fn new(kind: Kind, name: &str) -> Result<Self, IdError> {
        Ok(match kind {
            Kind::Device => Self::Device(name.parse()?),
            Kind::User => Self::User(name.parse()?),
            Kind::Server => Self::Server(name.parse()?),
            Kind::Router => Self::Router(name.parse()?),
        })
    }

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
