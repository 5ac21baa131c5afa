//! What HAProxy is to do: the servers of its pools, and its maps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use rssh_proto::ServerId;

/// HAProxy's pools of servers, by their names in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Where devices land.
    Sshd,
    /// Where HTTPS is answered.
    Https,
}

impl Pool {
    pub const ALL: [Self; 2] = [Self::Sshd, Self::Https];

    /// The pool's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sshd => "sshd",
            Self::Https => "https",
        }
    }

    /// The pool that a server with this name is of.
    pub fn of(server: &str) -> Self {
        if server.ends_with("_https") {
            Self::Https
        } else {
            Self::Sshd
        }
    }
}

/// One address of a server, as a server of one of HAProxy's pools: `<id>_<n>` its n-th for ssh, `<id>_https` the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolName {
    pub server: ServerId,
    /// Which address for ssh; nothing for HTTPS.
    pub index: Option<usize>,
}

impl PoolName {
    /// The pool that it is of.
    pub const fn pool(&self) -> Pool {
        match self.index {
            Some(_) => Pool::Sshd,
            None => Pool::Https,
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}_{index}", self.server),
            None => write!(f, "{}_https", self.server),
        }
    }
}

/// A server of HAProxy's pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolServer {
    pub address: SocketAddr,
    pub health: SocketAddr,
    /// Up to 256, as HAProxy takes it; 0 takes no landings.
    pub weight: u16,
    /// Whether landings and health checks are on at all.
    pub enabled: bool,
}

/// HAProxy's maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    Addresses,
    KeysCurrent,
    KeysPrevious,
    /// Users that PostgreSQL calls revoked.
    Revoked,
    RevokedUsers,
    RevokedSerials,
}

impl Map {
    /// In the order in which they change: a key becomes the one before, and then there is another.
    pub const ALL: [Self; 6] = [
        Self::Addresses,
        Self::KeysPrevious,
        Self::KeysCurrent,
        Self::Revoked,
        Self::RevokedUsers,
        Self::RevokedSerials,
    ];

    /// The name of its file.
    pub fn file(self) -> &'static str {
        match self {
            Self::Addresses => "addresses.map",
            Self::KeysCurrent => "keys-current.map",
            Self::KeysPrevious => "keys-previous.map",
            Self::Revoked => "revoked.map",
            Self::RevokedUsers => "revoked-users.map",
            Self::RevokedSerials => "revoked-serials.map",
        }
    }

    /// Whether its values are secrets.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::KeysCurrent | Self::KeysPrevious)
    }

    /// Whether the operator writes the file, and routerd only reads it.
    pub fn is_operators(self) -> bool {
        matches!(self, Self::RevokedUsers | Self::RevokedSerials)
    }
}

/// A map's rows.
pub type Rows = BTreeMap<String, String>;

/// What HAProxy should be doing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub pool: BTreeMap<PoolName, PoolServer>,
    pub maps: BTreeMap<Map, Rows>,
}

impl fmt::Debug for Desired {
    /// Shows the pool and the maps' keys; values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.maps.iter().map(|(map, rows)| (map, rows.keys())).collect();
        f.debug_struct("Desired")
            .field("pool", &self.pool)
            .field("maps", &keys)
            .finish()
    }
}

/// A user's certificate serial number: lower-case hexadecimal without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(String);

impl Serial {
    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Serial {
    type Err = String;

    /// Takes the forms that tools print: with colons, leading zeros and capitals.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let digits = digits.trim_start_matches('0').to_ascii_lowercase();
        // RFC 5280, 4.1.2.2: at most 20 octets.
        if (1..=40).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(digits))
        } else {
            Err(format!("not a serial number: {}", rssh_proto::text::quoted(text, 60)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_read_as_tools_print_them() {
        for text in ["0A:2b", "a2b", "00A2B", "0a:2B"] {
            assert_eq!(text.parse::<Serial>().unwrap().as_str(), "a2b");
        }
        for bad in ["", "0", "xyz", "a b", &"1".repeat(41)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }
}
