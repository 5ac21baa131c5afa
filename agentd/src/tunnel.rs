//! The tunnels of a device: what to do with each order, loss and passing of time. No input or output happens here.
//!
//! ```text
//! order --> Dialing --> Waiting --> Landing --landed--> Up
//!              |           ^          |                  |
//!              |           +--failed--+<------lost-------+
//!              +--> over <--- Ending <--- close, deadline, a newer order, an ssh that does not land
//! ```
//! An ssh belongs to exactly one attempt. A tunnel has at most one attempt at a time: the next begins when the one
//! before is known to have ended (`Ending`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rssh_proto::claim::Claimed;
use rssh_proto::payload::DeviceEventKind;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, TunnelId};

use crate::config::Targets;
use crate::ssh::fault::Fault;
use crate::ssh::{Ended, Endpoint, Landing};

mod handover;
mod history;
mod network;
mod order;
mod pause;
#[cfg(test)]
mod tests;

use history::History;

/// How long a target may take to accept a connection.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one ssh may take from its start to the forward. While somebody waits for it, it is half of what is left of
/// their patience, so that one that hangs leaves time for another server; but no less than the second. Nobody hurries one
/// that comes back: where hundreds do, each has to wait, and one that gave up would have to wait again.
const LANDING_TIMEOUT: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(2));
/// How often a tunnel that has never been up is tried: for about four seconds, which a load balancer may take to restart.
const FIRST_ATTEMPTS: u32 = 6;
/// Spread of the pause after the first failed attempt; it doubles up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Pause after a loss, and spread on top of it: the second that a server has to release the old lease, then jitter.
const AFTER_LOSS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));
/// Where a target is an SSH server, which is proven by its banner and not dialled first.
const SSH_PORT: u16 = 22;
/// How often a target that does not answer is told; each connection to it would be a message.
const REFUSED_EVERY: Duration = Duration::from_secs(2);

/// What the loop is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell the servers.
    Report {
        tunnel: TunnelId,
        epoch: Epoch,
        event: DeviceEventKind,
    },
    /// See whether the target accepts a connection, and say so by [`Tunnels::handle_dialed`].
    Dial { attempt: Attempt, to: Endpoint },
    /// Start an ssh; its landing and its end are told by the handles of those names.
    Land { attempt: Attempt, landing: Landing },
    /// Ask for the remote forward there, before the claim's answer; an ssh that has heard it already does nothing.
    Forward { attempt: Attempt, at: SocketAddr },
    /// End an ssh now; its end is told like any other.
    End { attempt: Attempt },
    /// Let an ssh that is up run on without the agent; that this is done is told like an end.
    Leave { attempt: Attempt },
}

/// One try of one tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    pub tunnel: TunnelId,
    pub number: u64,
}

/// What the agent is, and may do.
#[derive(Debug, Clone)]
pub struct Policy {
    pub device: DeviceId,
    pub max: usize,
    pub targets: Targets,
    /// Draws a span up to the one given.
    pub jitter: fn(Duration) -> Duration,
}

#[derive(Debug)]
struct Tunnel {
    /// The highest epoch that was ordered or claimed.
    epoch: Epoch,
    /// What the latest claim got; 0 before the first.
    claimed: Epoch,
    landing: Landing,
    deadline: Instant,
    /// Until when somebody waits for the first landing; nobody does once there was one.
    patience: Option<Instant>,
    /// Attempts since the last landing or order.
    failures: u32,
    number: u64,
    /// When it was last told that the target does not answer.
    refused: Option<Instant>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The target is being dialled; then the pause.
    Dialing {
        pause: Duration,
    },
    Waiting {
        until: Instant,
    },
    Landing {
        until: Instant,
    },
    Up,
    /// The ssh was told to end.
    Ending(Then),
}

/// What follows an end.
#[derive(Debug)]
enum Then {
    Over(DeviceEventKind),
    Land {
        pause: Duration,
    },
    Retry(Failure),
    /// The tunnel is the next agent's.
    Nothing,
}

/// All tunnels of the device.
#[derive(Debug)]
pub struct Tunnels {
    policy: Policy,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    history: History,
    numbers: u64,
    leaving: bool,
    /// Until when no order is carried out.
    paused: Option<Instant>,
    commands: Vec<Command>,
}

impl Tunnels {
    /// No tunnels yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            tunnels: BTreeMap::new(),
            history: History::default(),
            numbers: 0,
            leaving: false,
            paused: None,
            commands: Vec::new(),
        }
    }

    /// The tunnels that are up, each with the epoch of its claim.
    pub fn held(&self) -> Vec<(TunnelId, Epoch)> {
        self.tunnels
            .iter()
            .filter(|(_, tunnel)| matches!(tunnel.state, State::Up))
            .map(|(id, tunnel)| (*id, tunnel.claimed))
            .collect()
    }

    /// Whether nothing is left to end.
    pub fn is_empty(&self) -> bool {
        self.tunnels.is_empty()
    }

    /// Learns whether the target accepted a connection.
    pub fn handle_dialed(&mut self, attempt: Attempt, outcome: Result<(), String>, now: Instant) -> Vec<Command> {
        if let Some(tunnel) = self.current(attempt)
            && let State::Dialing { pause } = tunnel.state
        {
            match outcome {
                Ok(()) => self.wait(attempt.tunnel, pause, now),
                Err(reason) => {
                    let message = format!(
                        "nothing answers at {} from {}: {reason}; see whether the service runs",
                        tunnel.landing.to, self.policy.device
                    );
                    let failure = Failure::new(FailureKind::TargetRefused, message);
                    self.finish(attempt.tunnel, DeviceEventKind::Failed(failure));
                }
            }
        }
        self.take()
    }

    /// Learns that an ssh has landed and forwards.
    pub fn handle_landed(&mut self, attempt: Attempt, claimed: &Claimed) -> Vec<Command> {
        if let Some(tunnel) = self.current_mut(attempt)
            && matches!(tunnel.state, State::Landing { .. })
        {
            tunnel.claimed = tunnel.claimed.max(claimed.epoch);
            tunnel.patience = None;
            tunnel.failures = 0;
            if claimed.epoch < tunnel.epoch {
                // A newer order came while an older claim was under way.
                tunnel.state = State::Ending(Then::Land { pause: BACKOFF.0 });
                self.commands.push(Command::End { attempt });
            } else {
                tunnel.epoch = claimed.epoch;
                tunnel.state = State::Up;
            }
        }
        self.take()
    }

    /// Learns that a connection through a tunnel did not reach the target; the tunnel stays.
    pub fn handle_refused(&mut self, attempt: Attempt, now: Instant) -> Vec<Command> {
        if let Some(tunnel) = self.current_mut(attempt)
            && matches!(tunnel.state, State::Up)
            && tunnel.refused.is_none_or(|told| now >= told + REFUSED_EVERY)
        {
            tunnel.refused = Some(now);
            let (epoch, to) = (tunnel.claimed, tunnel.landing.to.clone());
            let service = if to.port == SSH_PORT { "sshd" } else { "the service" };
            let message = format!(
                "nothing answers at {to} on {}; is {service} running there?",
                self.policy.device
            );
            let failure = Failure::new(FailureKind::TargetRefused, message);
            self.report(attempt.tunnel, epoch, DeviceEventKind::Failed(failure));
        }
        self.take()
    }

    /// Learns that an ssh is over.
    pub fn handle_ended(&mut self, attempt: Attempt, ended: Ended, now: Instant) -> Vec<Command> {
        let id = attempt.tunnel;
        let Some(tunnel) = self.current_mut(attempt) else {
            return self.take();
        };
        match std::mem::replace(&mut tunnel.state, State::Waiting { until: now }) {
            State::Ending(Then::Over(event)) => self.over(id, event),
            State::Ending(Then::Land { pause }) => self.wait(id, pause, now),
            State::Ending(Then::Retry(failure)) => self.failed(id, failure, true, now),
            State::Ending(Then::Nothing) => {
                self.tunnels.remove(&id);
            }
            State::Up => self.lost(id, ended, now),
            State::Landing { .. } => match ended {
                Ended::Failed(fault) => {
                    let retry = fault.retry;
                    self.failed(id, self.named(fault), retry, now);
                }
                Ended::Refused(failure) => {
                    let retry = matches!(failure.kind, FailureKind::Busy | FailureKind::Internal);
                    // The server that grants claims has the last word on whether a tunnel lives.
                    if retry {
                        self.failed(id, failure, true, now);
                    } else {
                        self.over(id, DeviceEventKind::Failed(failure));
                    }
                }
                Ended::Stopped => self.over(id, DeviceEventKind::Closed),
            },
            // No ssh runs in these states.
            state @ (State::Dialing { .. } | State::Waiting { .. }) => tunnel.state = state,
        }
        self.take()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Command> {
        let due: Vec<TunnelId> = self
            .tunnels
            .iter()
            .filter(|(_, tunnel)| tunnel.due().is_some_and(|due| due <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.due(id, now);
        }
        self.take()
    }

    /// When [`Tunnels::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tunnels.values().filter_map(Tunnel::due).min()
    }

    /// Ends every tunnel and takes no more orders; all is done when [`Tunnels::is_empty`].
    pub fn handle_shutdown(&mut self) -> Vec<Command> {
        self.leaving = true;
        let all: Vec<TunnelId> = self.tunnels.keys().copied().collect();
        for id in all {
            self.finish(id, DeviceEventKind::Closed);
        }
        self.take()
    }

    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    fn current(&self, attempt: Attempt) -> Option<&Tunnel> {
        self.tunnels
            .get(&attempt.tunnel)
            .filter(|tunnel| tunnel.number == attempt.number)
    }

    fn current_mut(&mut self, attempt: Attempt) -> Option<&mut Tunnel> {
        self.tunnels
            .get_mut(&attempt.tunnel)
            .filter(|tunnel| tunnel.number == attempt.number)
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Lands a tunnel after a pause.
    fn wait(&mut self, id: TunnelId, pause: Duration, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.state = State::Waiting { until: now + pause };
            if pause.is_zero() && tunnel.due().is_some_and(|due| due <= now) {
                self.due(id, now);
            }
        }
    }

    /// Does what is due for one tunnel.
    fn due(&mut self, id: TunnelId, now: Instant) {
        let Some(tunnel) = self.tunnels.get(&id) else {
            return;
        };
        if tunnel.deadline <= now {
            self.finish(id, DeviceEventKind::Closed);
        } else if tunnel.patience.is_some_and(|patience| patience <= now) {
            let message = format!("{} could not open the tunnel in time; try again", self.policy.device);
            self.finish(
                id,
                DeviceEventKind::Failed(Failure::new(FailureKind::Deadline, message)),
            );
        } else if matches!(tunnel.state, State::Waiting { .. }) {
            self.land(id, now);
        } else if matches!(tunnel.state, State::Landing { .. }) {
            let failure = self.named(Fault::passing("ssh did not land in time"));
            self.end(id, Then::Retry(failure));
        }
    }

    fn land(&mut self, id: TunnelId, now: Instant) {
        let number = self.number();
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.number = number;
            let (longest, shortest) = LANDING_TIMEOUT;
            let limit = tunnel.patience.map_or(longest, |patience| {
                (patience.saturating_duration_since(now) / 2).clamp(shortest, longest)
            });
            tunnel.state = State::Landing { until: now + limit };
            let landing = tunnel.landing.clone();
            let attempt = Attempt { tunnel: id, number };
            self.commands.push(Command::Land { attempt, landing });
        }
    }

    /// Tells the ssh of a tunnel to end.
    fn end(&mut self, id: TunnelId, then: Then) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            let attempt = Attempt {
                tunnel: id,
                number: tunnel.number,
            };
            if !matches!(tunnel.state, State::Ending(_)) {
                self.commands.push(Command::End { attempt });
            }
            tunnel.state = State::Ending(then);
        }
    }

    /// Ends a tunnel for good, its ssh first.
    fn finish(&mut self, id: TunnelId, event: DeviceEventKind) {
        match self.tunnels.get(&id) {
            Some(tunnel) if tunnel.has_ssh() => self.end(id, Then::Over(event)),
            Some(_) => self.over(id, event),
            None => {}
        }
    }

    /// Forgets a tunnel that has no ssh, and says why.
    fn over(&mut self, id: TunnelId, event: DeviceEventKind) {
        if let Some(tunnel) = self.tunnels.remove(&id) {
            self.history.add(id, tunnel.epoch, tunnel.claimed, event.clone());
            self.report(id, tunnel.claimed, event);
        }
    }

    /// Deals with an attempt that did not land.
    fn failed(&mut self, id: TunnelId, failure: Failure, retry: bool, now: Instant) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        tunnel.failures += 1;
        tunnel.landing.turn();
        let pause = (self.policy.jitter)(backoff(tunnel.failures));
        let first = tunnel.patience.is_some();
        if first && (!retry || tunnel.failures >= FIRST_ATTEMPTS || tunnel.patience <= Some(now + pause)) {
            self.over(id, DeviceEventKind::Failed(failure));
        } else {
            tracing::debug!(tunnel = %id, %failure, "did not land; trying again");
            self.wait(id, pause, now);
        }
    }

    /// Comes back with a tunnel whose ssh ended by itself.
    fn lost(&mut self, id: TunnelId, ended: Ended, now: Instant) {
        let reason = match ended {
            Ended::Failed(fault) => fault.reason,
            Ended::Refused(failure) => failure.message().to_owned(),
            Ended::Stopped => "ssh ended".to_owned(),
        };
        if let Some(tunnel) = self.tunnels.get(&id) {
            let claimed = tunnel.claimed;
            self.report(id, claimed, DeviceEventKind::Lost { reason });
            self.wait(id, AFTER_LOSS.0 + (self.policy.jitter)(AFTER_LOSS.1), now);
        }
    }

    /// A fault of ssh as it is told to the asker.
    fn named(&self, fault: Fault) -> Failure {
        Failure::new(
            FailureKind::SshFailed,
            format!("{} could not land: {}", self.policy.device, fault.reason),
        )
    }

    fn report(&mut self, tunnel: TunnelId, epoch: Epoch, event: DeviceEventKind) {
        self.commands.push(Command::Report { tunnel, epoch, event });
    }
}

impl Tunnel {
    /// Whether an ssh runs for it, as far as is known.
    fn has_ssh(&self) -> bool {
        matches!(self.state, State::Landing { .. } | State::Up | State::Ending(_))
    }

    /// When time changes something.
    fn due(&self) -> Option<Instant> {
        let state = match self.state {
            State::Ending(_) => return None,
            State::Waiting { until } | State::Landing { until } => Some(until),
            State::Dialing { .. } | State::Up => None,
        };
        [Some(self.deadline), self.patience, state].into_iter().flatten().min()
    }
}

/// The longest pause after so many failures.
fn backoff(failures: u32) -> Duration {
    BACKOFF
        .0
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
        .min(BACKOFF.1)
}
