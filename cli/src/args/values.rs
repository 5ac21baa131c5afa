//! What stands on the command line, validated.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use rssh_proto::duration::Span;
use rssh_proto::id::IdError;
use rssh_proto::text::quoted;
use rssh_proto::{DeviceId, TunnelId};

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
