//! What the agent tells and does for whoever is at the device.

use std::time::{Duration, Instant};

use super::Agent;
use crate::control::{self, Order, Status, Trouble};

impl Agent {
    /// Keeps what failed, for whoever asks at the device.
    pub(super) fn note(&mut self, trouble: String) {
        self.trouble = Some((Instant::now(), trouble));
    }

    /// Notes whether there is a session with a broker.
    pub(super) fn turn(&mut self, connected: bool) {
        if self.connected != connected {
            self.connected = connected;
            self.since = Instant::now();
        }
    }

    pub(super) fn handle_control(&mut self, order: Order) -> Status {
        let now = Instant::now();
        let pause = match order {
            Order::Status => None,
            Order::Pause { for_s } => Some(Some(Duration::from_secs(for_s))),
            Order::Resume => Some(None),
        };
        if let Some(pause) = pause {
            tracing::info!(?pause, "paused or resumed at the device");
            if let Err(error) = control::keep_pause(self.ssh.run_dir(), pause) {
                tracing::warn!(%error, "a restart of the agent will end or forget the pause");
            }
            match pause {
                Some(length) => {
                    let commands = self.tunnels.handle_pause(now + length);
                    self.execute(commands);
                }
                None => self.tunnels.handle_resume(),
            }
        }
        Status {
            device: self.device.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            connected: self.connected,
            since_s: (now - self.since).as_secs(),
            paused_s: self.tunnels.paused(now).map(|left| left.as_secs()),
            tunnels: self.tunnels.list(now),
            last_failure: self.trouble.as_ref().map(|(at, message)| Trouble {
                message: message.clone(),
                ago_s: (now - *at).as_secs(),
            }),
        }
    }
}
