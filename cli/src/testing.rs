//! What the tests of several modules share.

use rssh_proto::payload::{TunnelInfo, TunnelState};
use rssh_proto::{Target, TunnelId};

/// A tunnel to a device's ssh.
pub(crate) fn info(device: &str, state: TunnelState) -> TunnelInfo {
    TunnelInfo {
        tunnel: TunnelId::generate(),
        device: device.parse().unwrap(),
        target: Target::ssh(),
        state,
        server: None,
        host: None,
        port: None,
        expires_at: 2_000_000_000,
        host_expires_at: None,
        host_valid_s: None,
    }
}
