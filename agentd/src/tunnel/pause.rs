//! A pause: whoever keeps the device wants no tunnels for a while.

use std::time::{Duration, Instant};

use rssh_proto::payload::DeviceEventKind;
use rssh_proto::{Failure, FailureKind, TunnelId};

use super::{Command, State, Tunnel, Tunnels};
use crate::control::{TunnelState, TunnelStatus};

impl Tunnels {
    /// Ends every tunnel, and refuses orders until then.
    pub fn handle_pause(&mut self, until: Instant) -> Vec<Command> {
        self.paused = Some(until);
        let all: Vec<TunnelId> = self.tunnels.keys().copied().collect();
        for id in all {
            self.finish(id, DeviceEventKind::Closed);
        }
        self.take()
    }

    /// Takes orders again.
    pub fn handle_resume(&mut self) {
        self.paused = None;
    }

    /// How long the pause still lasts.
    pub fn paused(&self, now: Instant) -> Option<Duration> {
        let left = self.paused?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// What is told to those who ask meanwhile.
    pub(super) fn paused_failure(&self, now: Instant) -> Option<Failure> {
        let minutes = self.paused(now)?.as_secs().div_ceil(60);
        let message = format!(
            "{} opens no tunnels for another {minutes} min: whoever keeps it has paused it; ask there for: rssh-agentd resume",
            self.policy.device
        );
        Some(Failure::new(FailureKind::Denied, message))
    }

    /// The tunnels that there are.
    pub fn list(&self, now: Instant) -> Vec<TunnelStatus> {
        let status = |(id, tunnel): (&TunnelId, &Tunnel)| TunnelStatus {
            tunnel: *id,
            target: tunnel.landing.target.clone(),
            state: match tunnel.state {
                State::Dialing { .. } | State::Waiting { .. } => TunnelState::Waiting,
                State::Landing { .. } => TunnelState::Landing,
                State::Up => TunnelState::Up,
                State::Ending(_) => TunnelState::Ending,
            },
            deadline_s: tunnel.deadline.saturating_duration_since(now).as_secs(),
        };
        self.tunnels.iter().map(status).collect()
    }
}
