//! What a tunnel leads to, as seen from the device.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::quoted;

/// Why a text is not a target or an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("not a port: {0}; use a number from 1 to 65535")]
    Port(String),
    #[error("not a host: {0}; use a host name, an IPv4 address or an IPv6 address in brackets")]
    Host(String),
    #[error("not a host and port: {0}; use HOST:PORT")]
    HostPort(String),
    #[error("not a target: {0}; use a port, HOST:PORT or the name of a target in the device's list")]
    Target(String),
}

/// A host name or literal address; safe in argv, a configuration line and a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Host {
    Name(String),
    Address(IpAddr),
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        match text.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')?
                .parse()
                .ok()
                .map(|v6| Self::Address(IpAddr::V6(v6))),
            None => match text.parse() {
                Ok(v4) => Some(Self::Address(IpAddr::V4(v4))),
                Err(_) if text.len() <= 253 && text.split('.').all(label) => {
                    Some(Self::Name(text.to_ascii_lowercase()))
                }
                Err(_) => None,
            },
        }
    }
}

/// A host with a port: `192.168.1.10:502`, `camera.lan:80`, `[fe80::1]:22`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: Host,
    port: NonZeroU16,
}

impl HostPort {
    /// The host without brackets, as a resolver takes it.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.get()
    }
}

impl FromStr for HostPort {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| TargetError::HostPort(quoted(text, 60)))?;
        Ok(Self {
            host: Host::parse(host).ok_or_else(|| TargetError::Host(quoted(host, 60)))?,
            port: parse_port(port)?,
        })
    }
}

as_text!(HostPort);

impl From<std::net::SocketAddr> for HostPort {
    /// Port 0 is not an address anyone can dial; it becomes 1 (tcpmux), where nothing listens.
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: Host::Address(address.ip()),
            port: NonZeroU16::new(address.port()).unwrap_or(NonZeroU16::MIN),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "{v4}:{}", self.port),
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

fn parse_port(text: &str) -> Result<NonZeroU16, TargetError> {
    // u16's own parser takes "+22".
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TargetError::Port(quoted(text, 20)));
    }
    text.parse().map_err(|_| TargetError::Port(quoted(text, 20)))
}

/// What a tunnel leads to: a port of the device itself, a host in its network, or a name the device knows.
///
/// As text: `localhost:22` (also written `22`), `192.168.1.10:502`, `plc-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    Local(NonZeroU16),
    Host(HostPort),
    Named(TargetName),
}

impl Target {
    /// A port on the device itself.
    pub fn local(port: NonZeroU16) -> Self {
        Self::Local(port)
    }

    /// Port 22 on the device itself: what `ssh DEVICE` means.
    pub fn ssh() -> Self {
        Self::Local(NonZeroU16::new(22).expect("22 is not zero"))
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return parse_port(text).map(Self::Local);
        }
        if text.contains(':') {
            let address: HostPort = text.parse()?;
            // However it is written: one target has one form.
            return Ok(match &address.host {
                Host::Name(name) if name == "localhost" => Self::Local(address.port),
                _ => Self::Host(address),
            });
        }
        text.parse().map(Self::Named)
    }
}

as_text!(Target);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(port) => write!(f, "localhost:{port}"),
            Self::Host(address) => address.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}

/// A name from the device's list of targets, such as `plc-1`: `[a-z][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl FromStr for TargetName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let valid = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(TargetError::Target(quoted(text, 60)))
        }
    }
}

as_text!(TargetName);

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_in_one_way_and_read_in_three() {
        for (text, shown) in [
            ("22", "localhost:22"),
            ("localhost:8080", "localhost:8080"),
            ("LocalHost:22", "localhost:22"),
            ("192.168.1.10:502", "192.168.1.10:502"),
            ("[fe80::1]:22", "[fe80::1]:22"),
            ("Camera.lan:80", "camera.lan:80"),
            ("plc-1", "plc-1"),
        ] {
            let target: Target = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse(), Ok(target));
        }
    }

    #[test]
    fn what_could_reach_a_shell_or_an_option_is_refused() {
        for bad in [
            "",
            "0",
            "65536",
            "+22",
            "-22",
            "localhost:",
            "localhost:0",
            ":22",
            "a b:22",
            "-oX:22",
            "a;b:22",
            "$(x):22",
            "fe80::1:22",
            "[fe80::1%eth0]:22",
            "[x]:22",
            "PLC",
            "plc_1",
            "a\nb",
            "host:22:",
            "x:٢٢",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }
}
