//! The table of a tunnel's life, by subject, and what holds in every history.

use std::net::{IpAddr, Ipv4Addr};

use rssh_proto::Target;
use rssh_proto::payload::{CloseOrder, OpenOrder, PortHint, V1};

use super::*;

mod handover;
mod histories;
mod life;
mod network;
mod orders;
mod pause;
mod targets;

const TTL: Duration = Duration::from_secs(600);
/// How long the asker waits.
const PATIENCE: Duration = Duration::from_secs(10);

fn policy() -> Policy {
    let mut targets = Targets::default();
    targets.allow.push("192.168.1.10:502".parse().unwrap());
    targets
        .named
        .insert("plc-1".parse().unwrap(), "192.168.1.10:502".parse().unwrap());
    Policy {
        device: "device-1".parse().unwrap(),
        max: 2,
        targets,
        jitter: |longest| longest,
    }
}

fn order(tunnel: TunnelId, epoch: u64) -> OpenOrder {
    OpenOrder {
        v: V1,
        tunnel,
        epoch: Epoch(epoch),
        target: Target::ssh(),
        lb: "127.0.0.1:2222".parse().unwrap(),
        other_lbs: Vec::new(),
        ssh_user: "rssh-tunnel".into(),
        within_ms: u32::try_from(PATIENCE.as_millis()).unwrap(),
        ttl_s: 600,
        jitter_ms: 0,
    }
}

fn close(tunnel: TunnelId, epoch: u64) -> CloseOrder {
    CloseOrder {
        v: V1,
        tunnel,
        epoch: Epoch(epoch),
    }
}

fn claimed(epoch: u64) -> Claimed {
    Claimed {
        server: "s1".parse().unwrap(),
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 20_000,
        epoch: Epoch(epoch),
    }
}

fn port(tunnel: TunnelId) -> PortHint {
    PortHint {
        v: V1,
        tunnel,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 20_000,
    }
}

fn passing() -> Ended {
    Ended::Failed(Fault::passing("connection refused"))
}

/// The tunnels with a clock, and shorthand for what a test looks at.
struct Rig {
    tunnels: Tunnels,
    now: Instant,
    id: TunnelId,
}

impl Rig {
    fn new() -> Self {
        Self {
            tunnels: Tunnels::new(policy()),
            now: Instant::now(),
            id: TunnelId::generate(),
        }
    }

    fn open(&mut self, epoch: u64) -> Vec<Command> {
        self.tunnels.handle_open(order(self.id, epoch), self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Command> {
        self.now += time;
        self.tunnels.handle_timeout(self.now)
    }

    /// Opens and lands; the attempt that carries it.
    fn up(&mut self) -> Attempt {
        let attempt = landed_by(&self.open(1));
        assert_eq!(self.tunnels.handle_landed(attempt, &claimed(1)), []);
        assert_eq!(self.tunnels.held(), [(self.id, Epoch(1))]);
        attempt
    }

    fn up_beside(&mut self) {
        let attempt = landed_by(&self.open(1));
        self.tunnels.handle_landed(attempt, &claimed(1));
    }
}

fn landed_by(commands: &[Command]) -> Attempt {
    commands
        .iter()
        .find_map(|command| match command {
            Command::Land { attempt, .. } => Some(*attempt),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no landing in {commands:?}"))
}

fn events(commands: &[Command]) -> Vec<&DeviceEventKind> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::Report { event, .. } => Some(event),
            _ => None,
        })
        .collect()
}

fn failure(commands: &[Command]) -> FailureKind {
    match events(commands)[..] {
        [DeviceEventKind::Failed(failure)] => failure.kind,
        _ => panic!("no failure in {commands:?}"),
    }
}
