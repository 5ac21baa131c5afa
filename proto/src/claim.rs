//! What sshd's two helper programs and serverd say to each other over unix sockets, one line each way.
//!
//! ```text
//! authorize: <key type> <key in base64>   ->  one authorized_keys line, or nothing
//! claim:     <device> <peer> <command>    ->  one JSON object, a ClaimReply
//! ```
//! The peer is the address and port that sshd sees the device as, which are the load balancer's; `-` when unknown.
//! The command is what the agent asked to run: `claim <tunnel>`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::id::{Epoch, ServerId, TunnelId};

/// The longest line either way, in bytes: an RSA key of 16,384 bits is under 3 KiB of base64.
pub const LINE_LIMIT: usize = 8192;

/// The outcome of a claim, printed by the forced command to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimReply {
    /// The tunnel holds this port: ask for the remote forward now.
    Claimed(Claimed),
    Refused(Failure),
}

/// A port that a tunnel holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    pub server: ServerId,
    /// The literal address to bind; never a name, which could bind on one address family only.
    pub bind: IpAddr,
    pub port: u16,
    pub epoch: Epoch,
}

/// What the forced command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimLine<'a> {
    /// As sshd's configuration names it.
    pub device: &'a str,
    /// As whom sshd sees the device, or `-`.
    pub via: &'a str,
    /// What the device asked to run.
    pub command: &'a str,
}

/// Reads what the forced command says.
pub fn parse_line(line: &str) -> Option<ClaimLine<'_>> {
    let (device, rest) = line.split_once(' ')?;
    let (via, command) = rest.split_once(' ')?;
    Some(ClaimLine { device, via, command })
}

/// The command that claims a tunnel.
pub fn command(tunnel: TunnelId) -> String {
    format!("claim {tunnel}")
}

/// Reads a command that an agent asked to run.
pub fn parse_command(command: &str) -> Option<TunnelId> {
    command.strip_prefix("claim ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_three_parts_and_the_command_may_hold_anything() {
        let line = parse_line("device-1 10.0.0.1:4711 claim a b").unwrap();
        assert_eq!(
            (line.device, line.via, line.command),
            ("device-1", "10.0.0.1:4711", "claim a b")
        );
        assert_eq!(parse_line("device-1 - ").unwrap().command, "");
        for bad in ["", "device-1", "device-1 -"] {
            assert_eq!(parse_line(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_a_claim_is_a_command() {
        let tunnel = TunnelId::generate();
        assert_eq!(parse_command(&command(tunnel)), Some(tunnel));
        for bad in [
            "",
            "sh",
            "claim",
            "claim x",
            &format!("claim {tunnel} "),
            &format!("claim  {tunnel}"),
        ] {
            assert_eq!(parse_command(bad), None, "{bad:?}");
        }
    }
}
