//! The fleet at rest: tunnels that have been up for a while.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rssh_agentd::config::Targets;
use rssh_agentd::tunnel::{Command as DeviceCommand, Policy, Tunnels};
use rssh_proto::claim::Claimed;
use rssh_proto::payload::{OpenOrder, V1};
use rssh_proto::{Epoch, HostPort, Target};
use rssh_serverd::process::Process;

use super::{Device, PORTS, TTL_S, World, address, name, terms, tunnel};
use crate::simulate::clock::{jitter, random};

impl World {
    /// A tunnel that has been up for a while.
    pub(super) fn settle(&mut self, device: u32, server: usize) -> Result<()> {
        let child = self.process();
        let port = PORTS.first + u16::try_from(self.servers[server].connections)?;
        let (now, name, tunnel) = (self.agenda.now(), name(device)?, tunnel(device)?);
        let server_there = &mut self.servers[server];
        server_there.connections += 1;
        let held = server_there
            .leases
            .adopt(child, port, name, tunnel, terms(Epoch(1)), now);
        ensure!(held, "{} has no port for {tunnel}", server_there.id);
        self.at.push((server, Epoch(1)));
        Ok(())
    }

    pub(super) fn process(&mut self) -> Process {
        self.processes += 1;
        Process {
            pid: self.processes,
            start: 1,
        }
    }

    /// A device to which something happens for the first time: its tunnel is up.
    pub(super) fn wake(&mut self, device: u32) -> Result<()> {
        if self.devices.contains_key(&device) {
            return Ok(());
        }
        let (now, (server, epoch)) = (self.agenda.now(), self.at[device as usize]);
        let mut tunnels = Tunnels::new(Policy {
            device: name(device)?,
            max: 1,
            targets: Targets::default(),
            jitter,
        });
        let order = OpenOrder {
            epoch,
            ..self.order(device, Duration::ZERO)?
        };
        let commands = tunnels.handle_open(order, now);
        let attempt = commands.into_iter().find_map(|command| match command {
            DeviceCommand::Land { attempt, .. } => Some(attempt),
            _ => None,
        });
        let attempt = attempt.context("a device does not land")?;
        tunnels.handle_landed(attempt, &self.claimed(server, PORTS.first, epoch));
        let known = Device {
            tunnels,
            attempt: Some(attempt),
            up: true,
            session: None,
            due: None,
        };
        self.devices.insert(device, known);
        Ok(())
    }

    pub(super) fn claimed(&self, server: usize, port: u16, epoch: Epoch) -> Claimed {
        Claimed {
            server: self.servers[server].id.clone(),
            bind: address(server),
            port,
            epoch,
        }
    }

    /// What a server orders for a tunnel that has landed before.
    pub(super) fn order(&self, device: u32, window: Duration) -> Result<OpenOrder> {
        let balancers = self.balancers.count();
        let first = random() as usize % balancers;
        let door = |n: usize| -> Result<HostPort> { Ok(format!("lb{}:2222", (first + n) % balancers).parse()?) };
        Ok(OpenOrder {
            v: V1,
            tunnel: tunnel(device)?,
            epoch: self.at[device as usize].1.next(),
            target: Target::ssh(),
            lb: door(0)?,
            other_lbs: (1..balancers.min(3)).map(door).collect::<Result<_>>()?,
            ssh_user: "rssh-tunnel".to_owned(),
            within_ms: TTL_S * 1000,
            ttl_s: TTL_S,
            jitter_ms: u32::try_from(window.as_millis())?,
        })
    }
}
