//! What goes to stdout and stderr: data to the one, one line for a person to the other.

use std::io::{self, IsTerminal as _, Write as _, stdout};

use rssh_proto::payload::{ClosedTunnel, TunnelInfo, TunnelState};
use rssh_proto::{DeviceId, ServerId, Target, TunnelId};
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

/// What happened to a tunnel, as `watch --json` prints it.
#[derive(Debug, Serialize)]
pub struct EventObject<'a> {
    event: Event,
    at: String,
    #[serde(flatten)]
    tunnel: TunnelObject<'a>,
}

impl<'a> EventObject<'a> {
    /// An event that was noticed now.
    pub fn new(event: Event, info: &'a TunnelInfo) -> Self {
        Self {
            event,
            at: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            tunnel: TunnelObject::new(info, None),
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
fn rfc3339(unix: i64) -> Option<String> {
    jiff::Timestamp::from_second(unix).ok().map(|time| time.to_string())
}

/// A table of tunnels that fits into so many columns, as far as that goes.
pub fn table(tunnels: &[TunnelInfo], now: i64, width: Option<usize>) -> String {
    let mut rows = vec![["DEVICE", "TARGET", "STATE", "SERVER", "ENDS", "TUNNEL"].map(str::to_owned)];
    rows.extend(tunnels.iter().map(|info| {
        [
            info.device.to_string(),
            info.target.to_string(),
            state(info.state).to_owned(),
            info.server.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            ends(info.expires_at - now),
            info.tunnel.to_string(),
        ]
    }));
    let mut widths: Vec<usize> = (0..6)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    // Device and target give way, the wider first; an id that is cut cannot be pasted.
    let spaces = 2 * (widths.len() - 1);
    if let Some(width) = width {
        while widths.iter().sum::<usize>() + spaces > width {
            let column = usize::from(widths[1] > widths[0]);
            if widths[column] <= 8 {
                break;
            }
            widths[column] -= 1;
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| {
            let mut cell: String = if cell.chars().count() > width {
                cell.chars().take(width - 1).chain(['~']).collect()
            } else {
                cell.clone()
            };
            cell.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            cell
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The width of the terminal that stdout is, if it is one.
pub fn width() -> Option<usize> {
    stdout()
        .is_terminal()
        .then(|| usize::from(dialoguer::console::Term::stdout().size().1))
}

pub(crate) fn state(state: TunnelState) -> &'static str {
    match state {
        TunnelState::Requested => "requested",
        TunnelState::Claimed => "claimed",
        TunnelState::Active => "active",
        TunnelState::Reconnecting => "reconnecting",
        TunnelState::Closed => "closed",
        TunnelState::Failed => "failed",
    }
}

/// The seconds until a tunnel ends, for a person.
fn ends(seconds: i64) -> String {
    match seconds {
        ..=0 => "now".to_owned(),
        1..=119 => format!("in {seconds}s"),
        120..=7_199 => format!("in {}m", seconds / 60),
        7_200..=172_799 => format!("in {}h", seconds / 3600),
        _ => format!("in {}d", seconds / 86_400),
    }
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

    #[test]
    fn a_table_is_aligned_and_fits() {
        let tunnels = [info("device-1"), info(&"x".repeat(63))];
        let wide = table(&tunnels[..1], 1_700_000_000, None);
        assert_eq!(
            wide,
            "DEVICE    TARGET        STATE   SERVER  ENDS    TUNNEL\n\
             device-1  localhost:22  active  s1      in 60m  0198b2f0-0000-7000-8000-000000000001\n"
        );
        let narrow = table(&tunnels, 1_700_000_000, Some(90));
        assert!(narrow.lines().all(|line| line.chars().count() <= 90), "{narrow}");
        assert!(narrow.contains("x~  ") && narrow.contains("localhost:22"), "{narrow}");
        assert!(table(&tunnels, 0, Some(1)).contains(&tunnels[0].tunnel.to_string()));
    }
}
