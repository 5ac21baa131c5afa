//! What sshd's two helper programs and serverd say to each other over unix sockets, one line each way.
//!
//! ```text
//! authorize: <key type> <key in base64>   ->  one authorized_keys line, or nothing
//! claim:     <device> <command>           ->  one JSON object, a ClaimReply
//! ```
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
