//! How tunnels pass from one agent to the next.

use std::time::Instant;

use rssh_proto::{Epoch, Failure};

use super::{Attempt, Command, State, Then, Tunnel, Tunnels};
use crate::ssh::Landing;

impl Tunnels {
    /// What an ssh that is up carries, and until when.
    pub fn carried(&self, attempt: Attempt) -> Option<(&Landing, Instant)> {
        self.current(attempt)
            .filter(|tunnel| matches!(tunnel.state, State::Up))
            .map(|tunnel| (&tunnel.landing, tunnel.deadline))
    }

    /// Takes a tunnel that is up already, by the ssh of an earlier agent.
    ///
    /// # Errors
    /// When the device no longer allows where it leads: its configuration may have changed between the agents.
    pub fn adopt(&mut self, landing: Landing, claimed: Epoch, deadline: Instant) -> Result<Attempt, Failure> {
        if self.resolve(&landing.target)? != landing.to {
            return Err(self.not_allowed(&landing.target));
        }
        let attempt = Attempt {
            tunnel: landing.tunnel,
            number: self.number(),
        };
        let tunnel = Tunnel {
            epoch: claimed,
            claimed,
            landing,
            deadline,
            patience: None,
            failures: 0,
            number: attempt.number,
            refused: None,
            state: State::Up,
        };
        self.tunnels.insert(attempt.tunnel, tunnel);
        Ok(attempt)
    }

    /// Lets go of every tunnel that is up, for the next agent to find, and takes no more orders.
    ///
    /// What is not up is given up without a word: servers see what the next agent does not hold and ask for it again.
    /// All is done when [`Tunnels::is_empty`].
    pub fn handle_departure(&mut self) -> Vec<Command> {
        self.leaving = true;
        let all: Vec<_> = self.tunnels.keys().copied().collect();
        for id in all {
            let Some(tunnel) = self.tunnels.get_mut(&id) else {
                continue;
            };
            let attempt = Attempt {
                tunnel: id,
                number: tunnel.number,
            };
            match tunnel.state {
                State::Up => {
                    tunnel.state = State::Ending(Then::Nothing);
                    self.commands.push(Command::Leave { attempt });
                }
                State::Landing { .. } | State::Ending(Then::Land { .. } | Then::Retry(_)) => {
                    self.end(id, Then::Nothing);
                }
                State::Ending(Then::Over(_) | Then::Nothing) => {}
                State::Dialing { .. } | State::Waiting { .. } => {
                    self.tunnels.remove(&id);
                }
            }
        }
        self.take()
    }
}
