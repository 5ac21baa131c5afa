//! What stands on the command line, validated.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use rssh_proto::duration::Span;
use rssh_proto::id::IdError;
use rssh_proto::text::quoted;
use rssh_proto::{DeviceId, HostPort, Target, TunnelId};

/// A local port and what connections to it reach: `[LOCAL:]TARGET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// 0 for any free port.
    pub local: u16,
    pub target: Target,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, target) = match text.split_once(':') {
            Some((local, target)) if local.bytes().all(|b| b.is_ascii_digit()) => (Some(local), target),
            _ => (None, text),
        };
        let target: Target = target.parse().map_err(|error| format!("{error}"))?;
        let local = match (local, &target) {
            (Some(local), _) => local
                .parse()
                .map_err(|_| format!("not a local port: {}; use a number from 0 to 65535", quoted(local, 20)))?,
            (None, Target::Local(port)) => port.get(),
            (None, Target::Host(address)) => address.port(),
            (None, Target::Named(name)) => return Err(format!("name the local port too, as in 8080:{name}")),
        };
        Ok(Self { local, target })
    }
}

/// A port on the device and what connections to it reach on this side: `DPORT:HOST:PORT`, as ssh's own `-R`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    device_port: u16,
    to: HostPort,
}

impl FromStr for Offer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, to) = text
            .split_once(':')
            .filter(|(port, _)| port.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| format!("not a service to offer: {}; use DPORT:HOST:PORT", quoted(text, 60)))?;
        let device_port = port
            .parse()
            .map_err(|_| format!("not a port of the device: {}", quoted(port, 20)))?;
        let to = to.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { device_port, to })
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device_port, self.to)
    }
}

/// What `close` closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceOrTunnel {
    Device(DeviceId),
    Tunnel(TunnelId),
}

impl FromStr for DeviceOrTunnel {
    type Err = IdError;

    /// A UUID is also a possible device id; it is taken for the tunnel, which is what has such ids.
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.parse() {
            Ok(tunnel) => Ok(Self::Tunnel(tunnel)),
            Err(_) => device(text).map(Self::Device),
        }
    }
}

/// Whom to log in as, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub login: Option<Login>,
    pub device: DeviceId,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (login, device) = match text.rsplit_once('@') {
            Some((login, device)) => (Some(login.parse()?), device),
            None => (None, text),
        };
        let device = self::device(device).map_err(|error| error.to_string())?;
        Ok(Self { login, device })
    }
}

/// The name of an account on a device; never an option, whatever ssh makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login(String);

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = (1..=32).contains(&text.len())
            && !text.starts_with(['-', '.'])
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            let text = quoted(text, 40);
            Err(format!("not an account name: {text}; use letters, digits, ., - and _"))
        }
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The top level under which ssh's configuration knows every device: `device-42.rssh`.
pub const HOSTS: &str = ".rssh";

/// A device by its id or by its host name in ssh's configuration.
pub(super) fn device(text: &str) -> Result<DeviceId, IdError> {
    text.strip_suffix(HOSTS).unwrap_or(text).parse()
}

pub(super) fn port(text: &str) -> Result<NonZeroU16, String> {
    let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    number.ok_or_else(|| "not a port; use a number from 1 to 65535".to_owned())
}

pub(super) fn positive(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if span.duration().is_zero() {
        return Err("it must be longer than nothing".to_owned());
    }
    Ok(span)
}

/// A span in whole seconds, rounded up, as payloads carry it.
pub fn seconds(span: Span) -> u32 {
    u32::try_from(span.duration().as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}
