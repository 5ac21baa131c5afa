//! The fleet: devices, servers and what lies between them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rssh_agentd::config::Targets;
use rssh_agentd::ssh::Ended;
use rssh_agentd::ssh::fault::Fault;
use rssh_agentd::tunnel::{Attempt, Command as DeviceCommand, Policy, Tunnels};
use rssh_proto::claim::Claimed;
use rssh_proto::payload::{OpenOrder, ServerState, V1};
use rssh_proto::registration::Registration;
use rssh_proto::{DeviceId, Epoch, Generation, HostPort, ServerId, Target, TunnelId};
use rssh_serverd::capacity::{Resources, capacity};
use rssh_serverd::config::PortRange;
use rssh_serverd::failover::window;
use rssh_serverd::lease::{Command as LeaseCommand, Leases, Limits, Terms};
use rssh_serverd::process::Process;
use rssh_serverd::suspicion::{Beat, Suspicion};

use super::balancer::Balancers;
use super::clock::{Agenda, jitter, random, seed};
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

    // --- at rest ---

    /// A tunnel that has been up for a while.
    fn settle(&mut self, device: u32, server: usize) -> Result<()> {
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

    fn process(&mut self) -> Process {
        self.processes += 1;
        Process {
            pid: self.processes,
            start: 1,
        }
    }

    /// A device to which something happens for the first time: its tunnel is up.
    fn wake(&mut self, device: u32) -> Result<()> {
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

    fn claimed(&self, server: usize, port: u16, epoch: Epoch) -> Claimed {
        Claimed {
            server: self.servers[server].id.clone(),
            bind: address(server),
            port,
            epoch,
        }
    }

    /// What a server orders for a tunnel that has landed before.
    fn order(&self, device: u32, window: Duration) -> Result<OpenOrder> {
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

    // --- the loss, and who finds it ---

    fn lose(&mut self, server: usize) -> Result<()> {
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
    fn beat(&mut self) -> Result<()> {
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

    fn look(&mut self, watcher: usize) {
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

    fn checked(&mut self, watcher: usize, silent: &[usize]) -> Result<()> {
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

    // --- devices ---

    /// Has a device's tunnels decide, and carries out what they say.
    fn tell(&mut self, device: u32, what: impl FnOnce(&mut Tunnels) -> Vec<DeviceCommand>) -> Result<()> {
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
            DeviceCommand::Dial { .. } | DeviceCommand::Leave { .. } => bail!("a device does what it was not asked"),
        }
        Ok(())
    }

    fn message(&mut self) {
        *self.messages.entry(self.agenda.elapsed().as_secs()).or_default() += 1;
    }

    fn is_current(&self, login: Login) -> bool {
        self.devices
            .get(&login.device)
            .is_some_and(|device| device.attempt == Some(login.attempt))
    }

    /// An attempt ends without a tunnel.
    fn refuse(&mut self, login: Login, why: &str) {
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

    // --- servers ---

    /// HAProxy gives a login to a server.
    fn admitted(&mut self, login: Login) -> Result<()> {
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

    fn arrives(&mut self, server: usize, login: Login) -> Result<()> {
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

    fn claims(&mut self, server: usize, session: Session) -> Result<()> {
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

    fn granted(&mut self, server: usize, session: Session) -> Result<()> {
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

    fn follow_leases(&mut self, server: usize, commands: Vec<LeaseCommand>) {
        for command in commands {
            // What is released or closed are rows in the database.
            if let LeaseCommand::Kill { login, .. } = command {
                self.agenda
                    .after(Duration::from_millis(10), Event::SessionOver(server, login));
            }
        }
    }

    fn session_over(&mut self, server: usize, process: Process) -> Result<()> {
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
