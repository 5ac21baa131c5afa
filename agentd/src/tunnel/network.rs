//! What a change of the device's network means for its tunnels.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rssh_proto::payload::DeviceEventKind;

use super::{Attempt, Command, State, Then, Tunnels};

/// Spread of the pause before tunnels land from another network: enough for what else comes with its first seconds.
const RETURN: Duration = Duration::from_secs(1);

impl Tunnels {
    /// Learns that the device's network has changed, and which attempts have a connection that it no longer carries:
    /// those land anew, and whoever waits after a failure tries at once.
    pub fn handle_network(&mut self, stranded: &BTreeSet<Attempt>, now: Instant) -> Vec<Command> {
        for attempt in stranded {
            let pause = (self.policy.jitter)(RETURN);
            match self.current(*attempt).map(|tunnel| (&tunnel.state, tunnel.claimed)) {
                Some((State::Up, claimed)) => {
                    let reason = "the device's address changed".to_owned();
                    self.report(attempt.tunnel, claimed, DeviceEventKind::Lost { reason });
                    self.end(attempt.tunnel, Then::Land { pause });
                }
                Some((State::Landing { .. }, _)) => self.end(attempt.tunnel, Then::Land { pause }),
                _ => {}
            }
        }
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.failures > 0) {
            if let State::Waiting { until } = &mut tunnel.state {
                *until = (*until).min(now + (self.policy.jitter)(RETURN));
                tunnel.failures = 0;
            }
        }
        self.take()
    }
}
