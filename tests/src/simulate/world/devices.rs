//! What devices decide, and what comes of it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rssh_agentd::ssh::Ended;
use rssh_agentd::tunnel::{Command as DeviceCommand, Tunnels};

use super::{Event, Login, ROUND_TRIP, World, failed};

impl World {
    /// Has a device's tunnels decide, and carries out what they say.
    pub(super) fn tell(&mut self, device: u32, what: impl FnOnce(&mut Tunnels) -> Vec<DeviceCommand>) -> Result<()> {
        let Some(known) = self.devices.get_mut(&device) else {
            return Ok(());
        };
        for command in what(&mut known.tunnels) {
            self.follow(device, command)?;
        }
        let elapsed = self.agenda.elapsed();
        if let Some(known) = self.devices.get_mut(&device) {
            known.due = known.due.filter(|due| *due > elapsed);
            let due = known.tunnels.poll_timeout().map(|due| self.agenda.since_beginning(due));
            if let Some(due) = due
                && known.due.is_none_or(|known| due < known)
            {
                known.due = Some(due);
                self.agenda.at(due, Event::DeviceDue(device));
            }
        }
        Ok(())
    }

    fn follow(&mut self, device: u32, command: DeviceCommand) -> Result<()> {
        match command {
            DeviceCommand::Report { .. } => self.message(),
            DeviceCommand::Land { attempt, landing } => {
                let door = landing.lb.host();
                let balancer: usize = door.strip_prefix("lb").context("another load balancer")?.parse()?;
                if let Some(known) = self.devices.get_mut(&device) {
                    (known.attempt, known.up) = (Some(attempt), false);
                }
                let at = self.balancers.admit(balancer, self.agenda.elapsed() + ROUND_TRIP);
                self.agenda.at(at, Event::Admitted(Login { device, attempt }));
            }
            DeviceCommand::End { attempt } => {
                if let Some(known) = self.devices.get_mut(&device) {
                    self.failed += u32::from(!known.up);
                    (known.attempt, known.up) = (None, false);
                    if let Some((server, process)) = known.session.take() {
                        self.agenda.after(ROUND_TRIP / 2, Event::SessionOver(server, process));
                    }
                }
                let takes = Duration::from_millis(10);
                self.agenda.after(takes, Event::Over(device, attempt, Ended::Stopped));
            }
            DeviceCommand::Dial { .. } | DeviceCommand::Forward { .. } | DeviceCommand::Leave { .. } => {
                bail!("a device does what it was not asked")
            }
        }
        Ok(())
    }

    pub(super) fn message(&mut self) {
        *self.messages.entry(self.agenda.elapsed().as_secs()).or_default() += 1;
    }

    pub(super) fn is_current(&self, login: Login) -> bool {
        self.devices
            .get(&login.device)
            .is_some_and(|device| device.attempt == Some(login.attempt))
    }

    /// An attempt ends without a tunnel.
    pub(super) fn refuse(&mut self, login: Login, why: &str) {
        self.failed += 1;
        if let Some(known) = self
            .devices
            .get_mut(&login.device)
            .filter(|known| known.attempt == Some(login.attempt))
        {
            known.attempt = None;
        }
        self.agenda
            .after(ROUND_TRIP / 2, Event::Over(login.device, login.attempt, failed(why)));
    }
}
