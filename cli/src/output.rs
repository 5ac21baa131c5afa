//! What goes to stdout and stderr: data to the one, one line for a person to the other.

use std::io::{self, Write as _, stdout};

use rssh_proto::payload::{ClosedTunnel, DeviceInfo, Presence, TunnelInfo, TunnelState};
use rssh_proto::{DeviceId, ServerId, Tags, Target, TunnelId};
use serde::Serialize;

use crate::error::Error;
use crate::watch::Event;

/// Tells why the command did not succeed, in one line on stderr.
pub fn error(error: &Error) {
    if !matches!(error, Error::Silent(_)) {
        remark(&error.to_string());
    }
}

/// Tells something that is not data, in one line on stderr.
pub fn remark(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = io::stderr().write_all(format!("rssh: {text}\n").as_bytes());
}

/// Writes data to stdout.
///
/// # Errors
/// [`Error::Silent`] when its reader went away, as `head` does.
pub fn data(text: &str) -> Result<(), Error> {
    bytes(text.as_bytes())
}

/// Writes data that need not be text to stdout.
///
/// # Errors
/// As [`data`].
pub fn bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::Silent(0),
            _ => Error::internal(format!("cannot write to stdout: {error}")),
        })
}

/// Writes one JSON object in one line to stdout.
///
/// # Errors
/// As [`data`].
pub fn json(object: &impl Serialize) -> Result<(), Error> {
    let mut line = serde_json::to_string(object).map_err(|error| Error::internal(error.to_string()))?;
    line.push('\n');
    data(&line)
}

/// A tunnel as `open --json` and `ls --json` print it.
#[derive(Debug, Serialize)]
pub struct TunnelObject<'a> {
    tunnel: TunnelId,
    device: &'a DeviceId,
    target: &'a Target,
    server: Option<&'a ServerId>,
    host: Option<&'a str>,
    port: Option<u16>,
    state: TunnelState,
    expires_at: Option<String>,
    host_expires_at: Option<String>,
    /// The version that the device's sshd said, for a proven tunnel to ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    banner: Option<&'a str>,
}

impl<'a> TunnelObject<'a> {
    /// A tunnel, with the banner that proved it.
    pub fn new(info: &'a TunnelInfo, banner: Option<&'a str>) -> Self {
        Self {
            tunnel: info.tunnel,
            device: &info.device,
            target: &info.target,
            server: info.server.as_ref(),
            host: info.host.as_deref(),
            port: info.port,
            state: info.state,
            expires_at: rfc3339(info.expires_at),
            host_expires_at: info.host_expires_at.and_then(rfc3339),
            banner,
        }
    }
}

/// A device as `devices --json` prints it.
#[derive(Debug, Serialize)]
pub struct DeviceObject<'a> {
    device: &'a DeviceId,
    status: Presence,
    since: Option<String>,
    tags: &'a Tags,
}

impl<'a> From<&'a DeviceInfo> for DeviceObject<'a> {
    /// Its time is counted back from now.
    fn from(info: &'a DeviceInfo) -> Self {
        let now = jiff::Timestamp::now().as_second();
        let since = info.since_s.and_then(|ago| now.checked_sub_unsigned(ago));
        Self {
            device: &info.device,
            status: info.presence,
            since: since.and_then(rfc3339),
            tags: &info.tags,
        }
    }
}

/// What happened to a tunnel or device, as `--json` prints it where it is watched.
#[derive(Debug, Serialize)]
pub struct EventObject<T> {
    event: Event,
    at: String,
    #[serde(flatten)]
    what: T,
}

impl<T> EventObject<T> {
    /// An event that was noticed now.
    pub fn new(event: Event, what: T) -> Self {
        Self {
            event,
            at: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            what,
        }
    }
}

/// A closed tunnel as `close --json` prints it.
#[derive(Debug, Serialize)]
pub struct ClosedObject<'a> {
    tunnel: TunnelId,
    device: &'a DeviceId,
    target: &'a Target,
    holders_left: u32,
}

impl<'a> From<&'a ClosedTunnel> for ClosedObject<'a> {
    fn from(closed: &'a ClosedTunnel) -> Self {
        Self {
            tunnel: closed.tunnel,
            device: &closed.device,
            target: &closed.target,
            holders_left: closed.holders_left,
        }
    }
}

/// Unix seconds as RFC 3339; `None` for a time past the year 9999.
pub fn rfc3339(unix: i64) -> Option<String> {
    jiff::Timestamp::from_second(unix).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(device: &str) -> TunnelInfo {
        TunnelInfo {
            tunnel: "0198b2f0-0000-7000-8000-000000000001".parse().unwrap(),
            device: device.parse().unwrap(),
            target: Target::ssh(),
            state: TunnelState::Active,
            server: Some("s1".parse().unwrap()),
            host: Some("h.proxy.test".into()),
            port: Some(443),
            expires_at: 1_700_003_600,
            host_expires_at: Some(1_700_000_120),
            host_valid_s: Some(120),
        }
    }

    #[test]
    fn an_object_has_its_documented_fields() {
        let object = serde_json::to_string(&TunnelObject::new(&info("device-42"), Some("SSH-2.0-x"))).unwrap();
        assert_eq!(
            object,
            r#"{"tunnel":"0198b2f0-0000-7000-8000-000000000001","device":"device-42","target":"localhost:22","server":"s1","host":"h.proxy.test","port":443,"state":"active","expires_at":"2023-11-14T23:13:20Z","host_expires_at":"2023-11-14T22:15:20Z","banner":"SSH-2.0-x"}"#
        );
    }
}
