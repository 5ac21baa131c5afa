//! The loss of servers, and how the others find it.

use std::net::SocketAddr;

use anyhow::Result;
use rssh_proto::payload::{ServerState, V1};
use rssh_proto::registration::Registration;
use rssh_proto::{Generation, ServerId};
use rssh_serverd::capacity::{Resources, capacity};
use rssh_serverd::failover::window;
use rssh_serverd::suspicion::Beat;

use super::{
    Event, HEALTH_WITHIN, KEEP_ALIVE, Loss, MEMORY_KIB, MESSAGE, PROCESSORS, REFUSING_DOWN, ROUND_TRIP, SILENT_DOWN,
    TTL, World, address, failed,
};
use crate::simulate::clock::jitter;

impl World {
    pub(super) fn lose(&mut self, server: usize) -> Result<()> {
        self.servers[server].alive = false;
        let down = match self.how {
            Loss::Killed => REFUSING_DOWN,
            Loss::Silent => SILENT_DOWN,
        };
        self.agenda.after(down, Event::Down(server));
        for device in (server..self.at.len()).step_by(self.servers.len()) {
            let device = u32::try_from(device)?;
            self.wake(device)?;
            self.lost += 1;
            let noticed = match self.how {
                Loss::Killed => ROUND_TRIP / 2,
                Loss::Silent => KEEP_ALIVE.0 + jitter(KEEP_ALIVE.1),
            };
            if let Some(attempt) = self.devices.get(&device).and_then(|device| device.attempt) {
                self.agenda
                    .after(noticed, Event::Over(device, attempt, failed("the server is gone")));
            }
        }
        Ok(())
    }

    /// Every living server registers with its load, and does what is due.
    pub(super) fn beat(&mut self) -> Result<()> {
        let now = self.agenda.now();
        for n in 0..self.servers.len() {
            let server = &mut self.servers[n];
            if !server.alive {
                continue;
            }
            let commands = server.leases.handle_timeout(now);
            server.counter += 1;
            let counts = server.leases.counts();
            let held = counts.held as u64;
            let there = Resources {
                held,
                ports_free: counts.free as u64,
                memory_available_kib: MEMORY_KIB.saturating_sub(held * 2560),
                processes_free: 4_000_000,
                descriptors: 1 << 20,
                sshd_ports: 1,
            };
            let at = |port| SocketAddr::new(address(n), port);
            self.balancers.handle_registration(Registration {
                v: V1,
                server: server.id.clone(),
                address: address(n),
                ssh: vec![at(2222)],
                health: at(8022),
                https: None,
                state: ServerState::Serving,
                capacity: capacity(&there).tunnels,
                tunnels: u32::try_from(held)?,
                load: (server.busy as f32 / PROCESSORS as f32).min(1.0),
                generation: Generation(1),
                instance: format!("{n:08}").parse()?,
                counter: server.counter,
            });
            self.follow_leases(n, commands);
        }
        self.balancers.weigh(&self.numbers)?;
        self.agenda.after(TTL / 4, Event::Beats);
        Ok(())
    }

    pub(super) fn look(&mut self, watcher: usize) {
        let now = self.agenda.now();
        let own = self.watchers[watcher].0;
        let others = self.servers.iter().enumerate();
        let beats: Vec<(ServerId, Beat)> = others
            .filter(|(n, _)| *n != own && !self.declared[*n])
            .map(|(_, server)| {
                let beat = Beat {
                    generation: Generation(1),
                    counter: server.counter,
                };
                (server.id.clone(), beat)
            })
            .collect();
        let suspicion = &mut self.watchers[watcher].1;
        let silent: Vec<usize> = suspicion
            .handle_beats(&beats, now)
            .iter()
            .filter_map(|id| self.numbers.get(id).copied())
            .collect();
        if silent.is_empty() {
            let pause = suspicion.poll_timeout(now);
            self.agenda.after(pause, Event::Looks(watcher));
        } else {
            let takes = match self.how {
                Loss::Killed => ROUND_TRIP / 10,
                Loss::Silent => HEALTH_WITHIN,
            };
            self.agenda.after(takes, Event::Checked(watcher, silent));
        }
    }

    pub(super) fn checked(&mut self, watcher: usize, silent: &[usize]) -> Result<()> {
        let now = self.agenda.now();
        for &server in silent {
            let (id, alive) = (&self.servers[server].id, self.servers[server].alive);
            let lost = self.watchers[watcher].1.handle_health(id, alive, now).is_some();
            if lost && !self.declared[server] {
                self.declare(server)?;
            }
        }
        let pause = self.watchers[watcher].1.poll_timeout(now);
        self.agenda.after(pause, Event::Looks(watcher));
        Ok(())
    }

    /// A server is declared lost: the devices of what is still there are asked to land again.
    fn declare(&mut self, server: usize) -> Result<()> {
        self.declared[server] = true;
        self.declared_at = Some(self.agenda.elapsed());
        let still = self.at.iter().enumerate().filter(|(_, (at, _))| *at == server);
        let tunnels: Vec<usize> = still.map(|(device, _)| device).collect();
        let window = window(tunnels.len());
        for device in tunnels {
            self.message();
            self.broker_free = self.broker_free.max(self.agenda.elapsed()) + MESSAGE;
            let at = self.broker_free + ROUND_TRIP / 2;
            self.agenda.at(at, Event::Ordered(u32::try_from(device)?, window));
        }
        Ok(())
    }
}
