//! What servers do for a login.

use std::time::Duration;

use anyhow::Result;
use rssh_serverd::lease::Command as LeaseCommand;
use rssh_serverd::process::Process;

use super::{
    AFTER_CLAIM, CONNECT_TIMEOUT, Event, LANDING_COMMITS, LOGIN_CPU, Login, Loss, MAX_STARTUPS, PROCESSORS, ROUND_TRIP,
    Session, UNTIL_CLAIM, World, failed, name, terms, tunnel,
};
use crate::simulate::clock::random;

impl World {
    /// HAProxy gives a login to a server.
    pub(super) fn admitted(&mut self, login: Login) -> Result<()> {
        let second = self.agenda.elapsed().as_secs();
        *self.logins.entry(second).or_default() += 1;
        let Some(picked) = self.balancers.pick(|n| self.servers[n].connections) else {
            self.refuse(login, "no server is up");
            return Ok(());
        };
        let server = &mut self.servers[picked];
        if !server.alive {
            let again = match self.how {
                Loss::Killed => Duration::from_secs(1),
                Loss::Silent => CONNECT_TIMEOUT,
            };
            self.agenda.after(again, Event::Admitted(login));
            return Ok(());
        }
        if server.second.0 != second {
            server.second = (second, 0);
        }
        server.second.1 += 1;
        self.busiest = self.busiest.max(server.second.1);
        if server.startups >= MAX_STARTUPS {
            self.refuse(login, "sshd drops the connection");
            return Ok(());
        }
        server.startups += 1;
        server.connections += 1;
        self.agenda
            .after(ROUND_TRIP * UNTIL_CLAIM, Event::Arrives(picked, login));
        Ok(())
    }

    pub(super) fn arrives(&mut self, server: usize, login: Login) -> Result<()> {
        self.servers[server].waiting.push_back(login);
        self.serve(server)
    }

    /// Gives free processors to logins that wait: each is authorized, and then claims.
    fn serve(&mut self, server: usize) -> Result<()> {
        let now = self.agenda.now();
        while self.servers[server].busy < PROCESSORS
            && let Some(login) = self.servers[server].waiting.pop_front()
        {
            let current = self.is_current(login);
            let process = self.process();
            let there = &mut self.servers[server];
            let name = name(login.device)?;
            let authorized = current
                && there
                    .leases
                    .handle_authorize(process, &name, None, random, |_| true, now)
                    .is_ok();
            if !authorized {
                there.startups -= 1;
                there.connections -= 1;
                if current {
                    self.refuse(login, "every port is leased");
                }
                continue;
            }
            there.busy += 1;
            there.sessions.insert(process, (login, None));
            if let Some(device) = self.devices.get_mut(&login.device) {
                device.session = Some((server, process));
            }
            self.agenda
                .after(LOGIN_CPU, Event::Claims(server, Session { login, process }));
        }
        Ok(())
    }

    pub(super) fn claims(&mut self, server: usize, session: Session) -> Result<()> {
        let (child, device) = (self.process(), session.login.device);
        let there = &mut self.servers[server];
        there.busy -= 1;
        // It may have ended meanwhile.
        if let Some((_, known)) = there.sessions.get_mut(&session.process) {
            let claim = there
                .leases
                .handle_claim(session.process, child, &name(device)?, tunnel(device)?);
            if claim.is_ok() {
                *known = Some(child);
                self.database_free = self.database_free.max(self.agenda.elapsed()) + LANDING_COMMITS;
                self.agenda.at(self.database_free, Event::Granted(server, session));
            } else {
                self.agenda
                    .after(Duration::ZERO, Event::SessionOver(server, session.process));
            }
        }
        self.serve(server)
    }

    pub(super) fn granted(&mut self, server: usize, session: Session) -> Result<()> {
        let (now, Login { device, attempt }) = (self.agenda.now(), session.login);
        if !self.servers[server].leases.is_claiming(session.process) {
            return Ok(());
        }
        let tunnel = tunnel(device)?;
        let (before, epoch) = self.at[device as usize];
        let epoch = epoch.next();
        self.at[device as usize] = (server, epoch);
        if before != server && self.servers[before].alive {
            self.message();
            let commands = self.servers[before].leases.handle_evict(tunnel, epoch, now);
            self.follow_leases(before, commands);
        }
        let there = &mut self.servers[server];
        there.startups -= 1;
        let (_, commands) = there.leases.handle_granted(session.process, terms(epoch), now);
        let held = there.leases.held(tunnel).map(|held| held.port);
        self.follow_leases(server, commands);
        if let Some(port) = held {
            let claimed = self.claimed(server, port, epoch);
            self.agenda
                .after(ROUND_TRIP * AFTER_CLAIM, Event::Landed(device, attempt, claimed));
        }
        Ok(())
    }

    pub(super) fn follow_leases(&mut self, server: usize, commands: Vec<LeaseCommand>) {
        for command in commands {
            // What is released or closed are rows in the database.
            if let LeaseCommand::Kill { login, .. } = command {
                self.agenda
                    .after(Duration::from_millis(10), Event::SessionOver(server, login));
            }
        }
    }

    pub(super) fn session_over(&mut self, server: usize, process: Process) -> Result<()> {
        let now = self.agenda.now();
        let there = &mut self.servers[server];
        if !there.alive {
            return Ok(());
        }
        let Some((login, child)) = there.sessions.remove(&process) else {
            return Ok(());
        };
        there.connections -= 1;
        if child.is_none() || there.leases.is_claiming(process) {
            there.startups -= 1;
        }
        let commands = there.leases.handle_ended(child.unwrap_or(process), now);
        self.follow_leases(server, commands);
        if let Some(known) = self.devices.get_mut(&login.device)
            && known.session == Some((server, process))
        {
            known.session = None;
            let over = Event::Over(login.device, login.attempt, failed("the server ended the session"));
            self.agenda.after(ROUND_TRIP / 2, over);
        }
        Ok(())
    }
}
