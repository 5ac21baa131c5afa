//! Tables that fit the terminal, and spans of time as people read them.

use std::io::{IsTerminal as _, stdout};

use rssh_proto::payload::{DeviceInfo, Presence, TunnelInfo, TunnelState};

/// The narrowest that a column becomes when it gives way.
const NARROWEST: usize = 8;
/// Stands where a cell was cut.
const CUT: char = '~';

/// The width of the terminal that stdout is, if it is one.
pub fn width() -> Option<usize> {
    stdout()
        .is_terminal()
        .then(|| usize::from(dialoguer::console::Term::stdout().size().1))
}

/// Rows below a header, in aligned columns. Where they are wider than `width`, the columns of `giving` give way, the
/// widest first.
pub fn aligned<const N: usize>(
    header: [&str; N],
    rows: &[[String; N]],
    giving: &[usize],
    width: Option<usize>,
) -> String {
    let header = header.map(str::to_owned);
    let rows: Vec<&[String; N]> = std::iter::once(&header).chain(rows).collect();
    let mut widths: Vec<usize> = (0..N)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let spaces = 2 * (N - 1);
    if let Some(width) = width {
        while widths.iter().sum::<usize>() + spaces > width {
            let widest = giving.iter().copied().rev().max_by_key(|&column| widths[column]);
            match widest.filter(|&column| widths[column] > NARROWEST) {
                Some(column) => widths[column] -= 1,
                None => break,
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| {
            let mut cell: String = if cell.chars().count() > width {
                cell.chars().take(width - 1).chain([CUT]).collect()
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

/// A table of tunnels.
pub fn tunnels(tunnels: &[TunnelInfo], now: i64, width: Option<usize>) -> String {
    let rows: Vec<_> = tunnels
        .iter()
        .map(|info| {
            [
                info.device.to_string(),
                info.target.to_string(),
                state(info.state).to_owned(),
                info.server.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                ends(info.expires_at - now),
                info.tunnel.to_string(),
            ]
        })
        .collect();
    // An id that is cut cannot be pasted.
    aligned(
        ["DEVICE", "TARGET", "STATE", "SERVER", "ENDS", "TUNNEL"],
        &rows,
        &[0, 1],
        width,
    )
}

/// A table of devices.
pub fn devices(devices: &[DeviceInfo], width: Option<usize>) -> String {
    let rows: Vec<_> = devices
        .iter()
        .map(|info| {
            let tags: Vec<String> = info.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                info.device.to_string(),
                presence(info.presence).to_owned(),
                seen(info),
                if tags.is_empty() {
                    "-".to_owned()
                } else {
                    tags.join(",")
                },
            ]
        })
        .collect();
    aligned(["DEVICE", "STATUS", "SEEN", "TAGS"], &rows, &[0, 3], width)
}

/// The name of a state.
pub fn state(state: TunnelState) -> &'static str {
    match state {
        TunnelState::Requested => "requested",
        TunnelState::Claimed => "claimed",
        TunnelState::Active => "active",
        TunnelState::Reconnecting => "reconnecting",
        TunnelState::Closed => "closed",
        TunnelState::Failed => "failed",
    }
}

/// The name of a presence.
pub fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Online => "online",
        Presence::Offline => "offline",
    }
}

/// When a device was last there.
fn seen(info: &DeviceInfo) -> String {
    match (info.presence, info.since_s) {
        (_, None) => "never".to_owned(),
        (Presence::Online, Some(seconds)) => format!("for {}", rough(seconds)),
        (Presence::Offline, Some(seconds)) => format!("{} ago", rough(seconds)),
    }
}

/// The seconds until a tunnel ends, for a person.
fn ends(seconds: i64) -> String {
    match u64::try_from(seconds) {
        Err(_) | Ok(0) => "now".to_owned(),
        Ok(seconds) => format!("in {}", rough(seconds)),
    }
}

/// A span in one unit.
pub fn rough(seconds: u64) -> String {
    match seconds {
        ..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use rssh_proto::Tags;

    use super::*;
    use crate::testing::info;

    #[test]
    fn a_table_is_aligned_and_fits() {
        let long = "x".repeat(63);
        let list = [info("device-1", TunnelState::Active), info(&long, TunnelState::Active)];
        let id = list[0].tunnel;
        let wide = tunnels(&list[..1], list[0].expires_at - 3600, None);
        assert_eq!(
            wide,
            format!(
                "DEVICE    TARGET        STATE   SERVER  ENDS    TUNNEL\ndevice-1  localhost:22  active  -       in 60m  {id}\n"
            )
        );
        let narrow = tunnels(&list, 0, Some(90));
        assert!(narrow.lines().all(|line| line.chars().count() <= 90), "{narrow}");
        assert!(narrow.contains("x~  ") && narrow.contains("localhost:22"), "{narrow}");
        assert!(tunnels(&list, 0, Some(1)).contains(&id.to_string()));
    }

    #[test]
    fn devices_show_when_they_were_there() {
        let device = |name: &str, presence, since_s, tags: &[(&str, &str)]| DeviceInfo {
            device: name.parse().unwrap(),
            presence,
            since_s,
            tags: tags
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<Tags>(),
        };
        let list = [
            device(
                "device-1",
                Presence::Online,
                Some(7_200),
                &[("site", "berlin"), ("role", "gate")],
            ),
            device("device-2", Presence::Offline, Some(119), &[]),
            device("device-3", Presence::Offline, None, &[]),
        ];
        let expected = "DEVICE    STATUS   SEEN      TAGS\n\
                        device-1  online   for 2h    role=gate,site=berlin\n\
                        device-2  offline  119s ago  -\n\
                        device-3  offline  never     -\n";
        assert_eq!(devices(&list, None), expected);
        let narrow = devices(&list, Some(44));
        assert!(
            narrow.lines().all(|line| line.chars().count() <= 44) && narrow.contains("role=gate,site~"),
            "{narrow}"
        );
    }
}
