//! The fleet: devices, servers and what lies between them.

mod devices;
mod loss;
mod rest;
mod servers;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rssh_agentd::ssh::Ended;
use rssh_agentd::ssh::fault::Fault;
use rssh_agentd::tunnel::{Attempt, Tunnels};
use rssh_proto::claim::Claimed;
use rssh_proto::{DeviceId, Epoch, ServerId, TunnelId};
use rssh_serverd::config::PortRange;
use rssh_serverd::lease::{Leases, Limits, Terms};
use rssh_serverd::process::Process;
use rssh_serverd::suspicion::Suspicion;

use super::balancer::Balancers;
use super::clock::{Agenda, seed};
use super::{Args, Outcome};

/// How long a message or a packet takes there and back, between a device and a server.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Round trips from ssh's start until its claim arrives, and from there until the device knows of the forward
/// (docs/performance.md, open_rtt_50ms).
const UNTIL_CLAIM: u32 = 8;
const AFTER_CLAIM: u32 = 2;
/// Processor time of a server for one login, from sshd's fork to the claim, and its processors (docs/performance.md).
const LOGIN_CPU: Duration = Duration::from_millis(40);
const PROCESSORS: usize = 2;
/// Logins that sshd takes at once (`[sshd] max-startups`).
const MAX_STARTUPS: usize = 1000;
/// What PostgreSQL needs for one landing: the claim, the listener seen, the old lease released; 7,000 commits a second.
const LANDING_COMMITS: Duration = Duration::from_micros(3 * 1_000_000 / 7_000);
/// What the broker needs for one message: it hands out a lost server's orders one after the other.
const MESSAGE: Duration = Duration::from_micros(22);
/// A heartbeat's time to live (`[redis] ttl`); servers beat and are looked at four times in it.
const TTL: Duration = Duration::from_secs(5);
/// How long serverd waits for another's health.
const HEALTH_WITHIN: Duration = Duration::from_secs(1);
/// When HAProxy leads nobody to a server any more: one that refuses connections, and one that says nothing.
const REFUSING_DOWN: Duration = Duration::from_millis(500);
const SILENT_DOWN: Duration = Duration::from_secs(4);
/// After how long HAProxy gives a login to another server, when one says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// When a device's ssh gives a silent server up: five keep-alives of five seconds, and what is left of the one before.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(25), Duration::from_secs(5));
/// How many servers watch the others: whoever is first declares a loss, so that more only ask the database more often.
const WATCHERS: usize = 3;
/// Each server's memory, in KiB: that of 8 GiB.
const MEMORY_KIB: u64 = 8 << 20;
/// The ports that each leases.
const PORTS: PortRange = PortRange {
    first: 20_000,
    last: 25_999,
};
/// How long a tunnel lives.
const TTL_S: u32 = 8 * 3600;
/// When a story that has not come to its end is given up.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// How a server is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its processes are killed: the kernel ends the connections, and refuses new ones.
    Killed,
    /// Its machine or its network is gone: nothing answers.
    Silent,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Killed => "killed",
            Self::Silent => "silent",
        })
    }
}

#[derive(Debug)]
enum Event {
    /// A device has something to do by its own clock.
    DeviceDue(u32),
    /// An order of a server reaches a device.
    Ordered(u32, Duration),
    /// A device's ssh is over, by itself or because it was told to.
    Over(u32, Attempt, Ended),
    /// A login has come through a load balancer's queue, and goes to a server.
    Admitted(Login),
    /// A server begins to hear a login that HAProxy gave it.
    Arrives(usize, Login),
    /// A server has done all it has to do for a login, and asks the database.
    Claims(usize, Session),
    /// The database has the lease.
    Granted(usize, Session),
    /// The device hears that its forward is there.
    Landed(u32, Attempt, Claimed),
    /// The kernel has ended a session.
    SessionOver(usize, Process),
    /// HAProxy's health checks of a server have failed.
    Down(usize),
    /// Every server beats.
    Beats,
    /// A watcher reads the heartbeats; then it has checked the health of those that are silent.
    Looks(usize),
    Checked(usize, Vec<usize>),
}

/// A login on its way.
#[derive(Debug, Clone, Copy)]
struct Login {
    device: u32,
    attempt: Attempt,
}

/// A login that a server carries.
#[derive(Debug, Clone, Copy)]
struct Session {
    login: Login,
    process: Process,
}

struct Device {
    tunnels: Tunnels,
    /// The attempt under way or up, and whether it is up.
    attempt: Option<Attempt>,
    up: bool,
    /// The server that has a session of it, and the session's process.
    session: Option<(usize, Process)>,
    /// When it is to look again.
    due: Option<Duration>,
}

struct Server {
    id: ServerId,
    alive: bool,
    leases: Leases,
    counter: u64,
    /// Connections through the load balancers, and how many of them have not claimed yet.
    connections: usize,
    startups: usize,
    /// Logins that wait for a processor, and how many are being worked on.
    waiting: VecDeque<Login>,
    busy: usize,
    /// Whose session each login's process is, and its child once it has claimed.
    sessions: HashMap<Process, (Login, Option<Process>)>,
    /// A second, and the logins that began in it.
    second: (u64, u32),
}

/// The whole fleet.
pub(super) struct World {
    how: Loss,
    agenda: Agenda<Event>,
    devices: HashMap<u32, Device>,
    servers: Vec<Server>,
    numbers: BTreeMap<ServerId, usize>,
    balancers: Balancers,
    watchers: Vec<(usize, Suspicion)>,
    /// What PostgreSQL has: each tunnel's server and epoch, and the servers that were declared lost.
    at: Vec<(usize, Epoch)>,
    declared: Vec<bool>,
    /// When PostgreSQL and the broker are done with what they have to do.
    database_free: Duration,
    broker_free: Duration,
    processes: i32,
    lost: usize,
    back: HashMap<u32, Duration>,
    declared_at: Option<Duration>,
    logins: HashMap<u64, u32>,
    messages: HashMap<u64, u32>,
    busiest: u32,
    failed: u32,
}

impl World {
    /// A fleet at rest, of which so many servers are lost at once.
    ///
    /// # Errors
    /// When the fleet cannot hold its tunnels, or nothing would be left.
    pub(super) fn new(args: &Args, lost: u32, how: Loss) -> Result<Self> {
        ensure!(
            lost < args.servers,
            "of {} servers {lost} cannot be lost; some have to be left",
            args.servers
        );
        ensure!(args.balancers > 0, "there has to be a load balancer");
        seed(args.seed);
        let count = args.servers as usize;
        let agenda = Agenda::new();
        let limits = Limits {
            claim_within: Duration::from_secs(10),
            rest: Duration::from_secs(130),
        };
        let mut servers = Vec::with_capacity(count);
        for n in 0..count {
            servers.push(Server {
                id: format!("s{n}").parse()?,
                alive: true,
                leases: Leases::new(PORTS, limits),
                counter: 1,
                connections: 0,
                startups: 0,
                waiting: VecDeque::new(),
                busy: 0,
                sessions: HashMap::new(),
                second: (0, 0),
            });
        }
        let numbers = servers
            .iter()
            .enumerate()
            .map(|(n, server)| (server.id.clone(), n))
            .collect();
        let mut world = Self {
            how,
            agenda,
            devices: HashMap::new(),
            servers,
            numbers,
            balancers: Balancers::new(args.balancers as usize, count),
            watchers: Vec::new(),
            at: Vec::with_capacity(args.devices as usize),
            declared: vec![false; count],
            database_free: Duration::ZERO,
            broker_free: Duration::ZERO,
            processes: 1000,
            lost: 0,
            back: HashMap::new(),
            declared_at: None,
            logins: HashMap::new(),
            messages: HashMap::new(),
            busiest: 0,
            failed: 0,
        };
        for device in 0..args.devices {
            world.settle(device, device as usize % count)?;
        }
        world.beat()?;
        for watcher in (count - 1).saturating_sub(WATCHERS - 1).max(lost as usize)..count {
            world.watchers.push((watcher, Suspicion::new(TTL, HEALTH_WITHIN)));
            world.look(world.watchers.len() - 1);
        }
        for server in 0..lost as usize {
            world.lose(server)?;
        }
        Ok(world)
    }

    /// Lets time pass until every lost tunnel is back.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub(super) fn run(mut self) -> Result<Outcome> {
        while self.back.len() < self.lost {
            let Some(event) = self.agenda.next() else {
                bail!(
                    "nothing happens any more, and {} of {} tunnels are back",
                    self.back.len(),
                    self.lost
                );
            };
            ensure!(
                self.agenda.elapsed() < GIVE_UP,
                "{} of {} tunnels are back after {} s",
                self.back.len(),
                self.lost,
                GIVE_UP.as_secs()
            );
            self.handle(event)?;
        }
        let held = self
            .servers
            .iter()
            .filter(|server| server.alive)
            .map(|server| server.leases.counts().held);
        let spread = held.fold((usize::MAX, 0), |(least, most), held| (least.min(held), most.max(held)));
        let most = |counts: &HashMap<u64, u32>| counts.values().copied().max().unwrap_or(0);
        let mut back: Vec<(u32, Duration)> = self.back.into_iter().collect();
        back.sort_unstable();
        Ok(Outcome {
            back: back.into_iter().map(|(_, at)| at).collect(),
            lost: self.lost,
            declared: self.declared_at,
            logins_per_s: most(&self.logins),
            server_logins_per_s: self.busiest,
            messages_per_s: most(&self.messages),
            failed: self.failed,
            spread,
        })
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let now = self.agenda.now();
        match event {
            Event::DeviceDue(device) => self.tell(device, |tunnels| tunnels.handle_timeout(now))?,
            Event::Ordered(device, window) => {
                // It landed elsewhere while the order was on its way.
                let order = self.order(device, window)?;
                self.tell(device, |tunnels| tunnels.handle_open(order, now))?;
            }
            Event::Over(device, attempt, ended) => {
                self.tell(device, |tunnels| tunnels.handle_ended(attempt, ended, now))?;
            }
            Event::Admitted(login) => self.admitted(login)?,
            Event::Arrives(server, login) => self.arrives(server, login)?,
            Event::Claims(server, session) => self.claims(server, session)?,
            Event::Granted(server, session) => self.granted(server, session)?,
            Event::Landed(device, attempt, claimed) => {
                self.tell(device, |tunnels| tunnels.handle_landed(attempt, &claimed))?;
                let at = self.agenda.elapsed();
                if let Some(known) = self.devices.get_mut(&device)
                    && !known.tunnels.held().is_empty()
                {
                    known.up = true;
                    self.back.entry(device).or_insert(at);
                }
            }
            Event::SessionOver(server, process) => self.session_over(server, process)?,
            Event::Down(server) => {
                self.balancers.handle_down(server);
                self.balancers.weigh(&self.numbers)?;
            }
            Event::Beats => self.beat()?,
            Event::Looks(watcher) => self.look(watcher),
            Event::Checked(watcher, silent) => self.checked(watcher, &silent)?,
        }
        Ok(())
    }
}

fn name(device: u32) -> Result<DeviceId> {
    Ok(format!("device-{device}").parse()?)
}

fn tunnel(device: u32) -> Result<TunnelId> {
    Ok(format!("01940000-0000-7000-8000-{device:012x}").parse()?)
}

fn address(server: usize) -> IpAddr {
    let [.., high, middle, low] = (server + 1).to_be_bytes();
    Ipv4Addr::new(10, high, middle, low).into()
}

fn terms(epoch: Epoch) -> Terms {
    Terms {
        epoch,
        ttl: Duration::from_secs(TTL_S.into()),
        idle: None,
    }
}

fn failed(why: &str) -> Ended {
    Ended::Failed(Fault::passing(why))
}
