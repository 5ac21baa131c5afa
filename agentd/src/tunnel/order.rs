//! Orders: whether the device may carry one out, and how it begins.

use std::time::{Duration, Instant};

use rssh_proto::id::IdError;
use rssh_proto::payload::{CloseOrder, DeviceEventKind, OpenOrder, PortHint};
use rssh_proto::{Account, Epoch, Failure, FailureKind, Target};

use super::{Attempt, Command, SSH_PORT, State, Then, Tunnel, Tunnels};
use crate::ssh::{Endpoint, Landing};

impl Tunnels {
    /// Takes an order to open a tunnel; every order is answered by an event, repeated ones by the same again.
    pub fn handle_open(&mut self, order: OpenOrder, now: Instant) -> Vec<Command> {
        let id = order.tunnel;
        if let Some(over) = self.history.get(id).filter(|over| over.epoch >= order.epoch) {
            let (claimed, event) = (over.claimed, over.event.clone());
            self.report(id, claimed, event);
        } else if self.leaving {
            self.report(id, Epoch::default(), DeviceEventKind::Closed);
        } else if let Some(tunnel) = self.tunnels.get(&id).filter(|tunnel| tunnel.epoch >= order.epoch) {
            let claimed = tunnel.claimed;
            self.report(id, claimed, DeviceEventKind::Accepted);
        } else {
            match self.plan(&order, now) {
                Ok(landing) => self.accept(&order, landing, now),
                Err(failure) => self.refuse(&order, failure),
            }
        }
        self.take()
    }

    /// Takes word of the port that the login of a tunnel was given; one that does not land now has no use for it.
    pub fn handle_port(&mut self, hint: &PortHint) -> Vec<Command> {
        if let Some(tunnel) = self.tunnels.get(&hint.tunnel)
            && matches!(tunnel.state, State::Landing { .. })
        {
            let attempt = Attempt {
                tunnel: hint.tunnel,
                number: tunnel.number,
            };
            let at = hint.address();
            self.commands.push(Command::Forward { attempt, at });
        }
        self.take()
    }

    /// Takes an order to close a tunnel.
    pub fn handle_close(&mut self, order: &CloseOrder) -> Vec<Command> {
        match self.tunnels.get(&order.tunnel) {
            // A claim that the sender did not know of yet.
            Some(tunnel) if tunnel.claimed > order.epoch => {}
            Some(_) => self.finish(order.tunnel, DeviceEventKind::Closed),
            None => {
                if self.history.get(order.tunnel).is_none() {
                    self.history
                        .add(order.tunnel, order.epoch, order.epoch, DeviceEventKind::Closed);
                }
                self.report(order.tunnel, order.epoch, DeviceEventKind::Closed);
            }
        }
        self.take()
    }

    /// Whether an order may be carried out, and how.
    fn plan(&self, order: &OpenOrder, now: Instant) -> Result<Landing, Failure> {
        if let Some(failure) = self.paused_failure(now) {
            return Err(failure);
        }
        let account: Account = order
            .ssh_user
            .parse()
            .map_err(|error: IdError| Failure::new(FailureKind::BadRequest, error.to_string()))?;
        let busy = self
            .tunnels
            .iter()
            .filter(|(id, tunnel)| **id != order.tunnel && !matches!(tunnel.state, State::Ending(Then::Over(_))))
            .count();
        if busy >= self.policy.max {
            let message = format!(
                "{} holds {busy} tunnels, as many as it may; close one, or raise [tunnels] max on the device",
                self.policy.device
            );
            return Err(Failure::new(FailureKind::DeviceLimit, message));
        }
        Ok(Landing {
            tunnel: order.tunnel,
            lb: order.lb.clone(),
            other_lbs: order.other_lbs.clone(),
            account,
            to: self.resolve(&order.target)?,
            target: order.target.clone(),
        })
    }

    /// Where a target leads, if the device's own list has it.
    pub(super) fn resolve(&self, target: &Target) -> Result<Endpoint, Failure> {
        let targets = &self.policy.targets;
        let allowed = match target {
            Target::Named(name) => targets.named.get(name),
            listed => targets.allow.contains(listed).then_some(listed),
        };
        match allowed {
            Some(Target::Local(port)) => Ok(Endpoint {
                host: targets
                    .localhost
                    .map_or_else(|| "localhost".to_owned(), |address| address.to_string()),
                port: port.get(),
            }),
            Some(Target::Host(address)) => Ok(Endpoint {
                host: address.host(),
                port: address.port(),
            }),
            Some(Target::Named(_)) | None => Err(self.not_allowed(target)),
        }
    }

    pub(super) fn not_allowed(&self, target: &Target) -> Failure {
        let message = format!(
            "{} does not allow the target {target}; list it under [targets] in its agentd.toml",
            self.policy.device
        );
        Failure::new(FailureKind::TargetNotAllowed, message)
    }

    /// Begins a tunnel, or begins it anew under a newer order.
    fn accept(&mut self, order: &OpenOrder, landing: Landing, now: Instant) {
        let id = order.tunnel;
        let pause = (self.policy.jitter)(Duration::from_millis(order.jitter_ms.into()));
        let within = Duration::from_millis(order.within_ms.into());
        // The named failure is to arrive before the asker gives up.
        let patience = now + pause + within - within / 10;
        let deadline = now + Duration::from_secs(order.ttl_s.into());
        let number = self.number();
        let before = self.tunnels.remove(&id);
        let claimed = before.as_ref().map_or(Epoch::default(), |tunnel| tunnel.claimed);
        self.report(id, claimed, DeviceEventKind::Accepted);
        let mut tunnel = Tunnel {
            epoch: order.epoch,
            claimed,
            landing,
            deadline,
            patience: (claimed == Epoch::default()).then_some(patience),
            failures: 0,
            number,
            refused: None,
            state: State::Dialing { pause },
        };
        match before {
            Some(before) if before.has_ssh() => {
                let same = before.landing.to == tunnel.landing.to;
                tunnel.number = before.number;
                tunnel.state = match before.state {
                    // Its claim may be the one that the order speaks of; `handle_landed` sees.
                    state @ State::Landing { .. } if same => state,
                    State::Ending(_) => State::Ending(Then::Land { pause }),
                    _ => {
                        let attempt = Attempt {
                            tunnel: id,
                            number: before.number,
                        };
                        self.commands.push(Command::End { attempt });
                        State::Ending(Then::Land { pause })
                    }
                };
                self.tunnels.insert(id, tunnel);
            }
            _ if tunnel.landing.to.port == SSH_PORT => {
                // Dialling it would cost a banner, and OpenSSH 10 penalises many of those.
                self.tunnels.insert(id, tunnel);
                self.wait(id, pause, now);
            }
            _ => {
                let attempt = Attempt { tunnel: id, number };
                let to = tunnel.landing.to.clone();
                self.tunnels.insert(id, tunnel);
                self.commands.push(Command::Dial { attempt, to });
            }
        }
    }

    /// Does not carry an order out; an older session of the tunnel ends with it.
    fn refuse(&mut self, order: &OpenOrder, failure: Failure) {
        let event = DeviceEventKind::Failed(failure);
        match self.tunnels.get_mut(&order.tunnel) {
            Some(tunnel) => {
                tunnel.epoch = order.epoch;
                self.finish(order.tunnel, event);
            }
            None => {
                self.history
                    .add(order.tunnel, order.epoch, Epoch::default(), event.clone());
                self.report(order.tunnel, Epoch::default(), event);
            }
        }
    }
}
