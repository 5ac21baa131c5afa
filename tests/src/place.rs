//! Places: where in the lab a program runs, and as whom.
//!
//! ```text
//!   users, servers, broker, load balancer     the devices' site, behind NAT
//!  +----------------- core -----------------+ +------- site -------+   +- device-1 -+
//!  | 127.0.1.N     server N: sshd, forwards | | masquerade         |---| 10.77.0.2  |
//!  | 198.51.100.1  HAProxy, broker (.4: too)|=| 198.51.100.2       |---| device-2   |
//!  | 198.51.100.9  HAProxy, all at one port | |                    |   |            |
//!  +----------------------------------------+ +--------------------+   +------------+
//! ```
//! Each box is a network namespace of the lab's own: the ports in it are real ones, nothing listens on the machine
//! itself, and no address can collide with another lab's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use rssh_proto::id::UserId;

use crate::root::Root;

/// The load balancer's and the broker's address (TEST-NET-2, RFC 5737).
pub const LB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The other load balancer's and the other broker's, in a lab that has them.
pub const LB2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 4);
/// What the whole site's connections come from.
pub const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The site's router as the devices see it.
pub const SITE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where devices' ssh connects.
pub const LB_DEVICES: u16 = 2222;
/// Where users connect with TLS.
pub const LB_USERS: u16 = 443;
/// Where bearers of a shared name connect with TLS.
pub const LB_BEARER: u16 = 8444;
/// Where HTTPS is answered: enrolment, renewal, the API.
pub const LB_HTTPS: u16 = 8445;
/// The address at which the load balancer has everything at [`LB_USERS`].
pub const LB_PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
/// Where the broker listens.
pub const BROKER_PORT: u16 = 8883;
/// The domain of signed names.
pub const DOMAIN: &str = "proxy.test";
/// Where each server answers health checks.
pub const HEALTH_PORT: u16 = 8022;
/// Where each router answers Prometheus.
pub const ROUTER_METRICS_PORT: u16 = 8024;
/// Where each server answers HTTPS.
pub const HTTPS_PORT: u16 = 8443;
/// Where each server's sshd listens: more than one, since one pair of addresses carries only so many connections.
pub const SSHD_PORTS: [u16; 2] = [2201, 2202];
/// The account that tunnels log in as.
pub const TUNNEL_ACCOUNT: &str = "rssh-tunnel";

/// The address of server `n`, counted from 1: its forwards bind to it, so only the load balancer's side of the lab reaches it.
pub fn server_address(n: u32) -> Ipv4Addr {
    let [high, low] = [((n - 1) / 250) as u8, ((n - 1) % 250 + 1) as u8];
    Ipv4Addr::new(127, 0, 1 + high, low)
}

/// The address of device `n`, counted from 1, in its site.
pub fn device_address(n: u32) -> Ipv4Addr {
    let [high, low] = [((n - 1) / 250) as u8, ((n - 1) % 250 + 2) as u8];
    Ipv4Addr::new(10, 77, high, low)
}

/// The names that users get, in order.
const NAMES: [&str; 16] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mike", "niaj", "olivia",
    "peggy", "rupert", "sybil",
];

/// The name of user `n`, counted from 1.
pub fn user_name(n: u32) -> String {
    match NAMES.get(n as usize - 1) {
        Some(name) => (*name).to_owned(),
        None => format!("user-{n}"),
    }
}

/// The name of device `n`, counted from 1.
pub fn device_name(n: u32) -> String {
    format!("device-{n}")
}

/// Where a program runs: in which network namespace, and whose home it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Beside the servers, as the lab's operator.
    Core,
    /// The router of the devices' site.
    Site,
    /// On a server: beside all others, but with accounts of its own.
    Server(u32),
    /// On a device, as its root.
    Device(u32),
    /// Beside the servers, as a user.
    User(UserId),
}

impl Place {
    /// The name of the place's network namespace.
    pub fn network(&self) -> String {
        match self {
            Self::Core | Self::Server(_) | Self::User(_) => "core".to_owned(),
            Self::Site => "site".to_owned(),
            Self::Device(n) => device_name(*n),
        }
    }

    /// The directory of the place's owner, below the lab's: `home` and more lie in it.
    pub fn owner_dir(&self) -> String {
        match self {
            Self::Core | Self::Site => "operator".to_owned(),
            Self::Server(n) => format!("servers/s{n}"),
            Self::Device(n) => format!("devices/{}", device_name(*n)),
            Self::User(name) => format!("users/{name}"),
        }
    }

    /// The place's environment, on top of what a program needs anyway.
    pub fn environment(&self, root: &Root) -> Vec<(String, String)> {
        let home = root.inside(format_args!("{}/home", self.owner_dir()));
        let mut environment = vec![
            ("USER".to_owned(), "root".to_owned()),
            ("LOGNAME".to_owned(), "root".to_owned()),
            ("XDG_CONFIG_HOME".to_owned(), format!("{home}/.config")),
            ("XDG_CACHE_HOME".to_owned(), format!("{home}/.cache")),
            ("XDG_DATA_HOME".to_owned(), format!("{home}/.local/share")),
            ("XDG_STATE_HOME".to_owned(), format!("{home}/.local/state")),
            (
                "XDG_RUNTIME_DIR".to_owned(),
                root.inside(format_args!("{}/run", self.owner_dir())),
            ),
        ];
        match self {
            Self::User(_) => environment.push(("LAB_SSH_CONFIG".to_owned(), format!("{home}/.ssh/config"))),
            Self::Core => environment.extend(crate::postgres::client_environment(root)),
            Self::Site | Self::Server(_) | Self::Device(_) => {}
        }
        environment.push(("HOME".to_owned(), home));
        environment
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core => f.write_str("core"),
            Self::Site => f.write_str("site"),
            Self::Server(n) => write!(f, "server-{n}"),
            Self::Device(n) => f.write_str(&device_name(*n)),
            Self::User(name) => write!(f, "user:{name}"),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("user:") {
            return Ok(Self::User(name.parse()?));
        }
        let number = |n: &str| n.parse().with_context(|| format!("no such place: {text}"));
        if let Some(n) = text.strip_prefix("server-") {
            return Ok(Self::Server(number(n)?));
        }
        if let Some(n) = text.strip_prefix("device-") {
            return Ok(Self::Device(number(n)?));
        }
        match text {
            "core" => Ok(Self::Core),
            "site" => Ok(Self::Site),
            _ => bail!("no such place: {text}; use core, site, server-N, device-N or user:NAME"),
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

impl TryFrom<String> for Place {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// An address with a port as text.
pub fn socket(address: impl Into<IpAddr>, port: u16) -> String {
    std::net::SocketAddr::new(address.into(), port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_it_is_written() {
        for text in ["core", "site", "server-2", "device-7", "user:alice"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["", "device-", "device-x", "user:", "user:A", "server-x"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_two_servers_and_no_two_devices_share_an_address() {
        let mut servers: Vec<_> = (1..=1000).map(server_address).collect();
        servers.dedup();
        assert_eq!(servers.len(), 1000);
        let mut devices: Vec<_> = (1..=2000).map(device_address).collect();
        devices.push(SITE_GATEWAY);
        devices.sort();
        devices.dedup();
        assert_eq!(devices.len(), 2001);
        assert!(devices.iter().all(|a| a.octets()[3] != 255 && a.octets()[3] != 0));
    }

    #[test]
    fn alice_and_bob_come_first_and_names_never_run_out() {
        assert_eq!((user_name(1).as_str(), user_name(2).as_str()), ("alice", "bob"));
        assert_eq!(user_name(40), "user-40");
        let mut names: Vec<_> = (1..=100).map(user_name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|name| name.parse::<UserId>().is_ok()));
    }
}
