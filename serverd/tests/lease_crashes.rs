//! Two lease machines, one database and the kernel between them, in random histories with a simulated clock: servers die
//! between any two writes, and what they tell each other comes twice, late, out of order or never.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rssh_proto::{DeviceId, Epoch, TunnelId};
use rssh_serverd::config::PortRange;
use rssh_serverd::lease::{Command, Leases, Limits, Terms};
use rssh_serverd::process::Process;

const SERVERS: usize = 2;
const LOGINS: i32 = 5;
const TUNNELS: usize = 2;
const RANGE: PortRange = PortRange {
    first: 2000,
    last: 2005,
};
const REST: Duration = Duration::from_secs(130);

/// One thing that may happen. Every write is a step of its own, so a crash may come between any two.
#[derive(Debug, Clone)]
enum Step {
    Authorize(usize, i32),
    /// The forced command asks.
    Claim(usize, i32, usize),
    /// The lease is written.
    Grant(usize, i32),
    /// The machine hears of that.
    Answer(usize, i32),
    /// A session ends by itself, or by a kill that is under way.
    End(usize, i32),
    /// One of the leases that a server has to take back is taken back in the database.
    Release(usize, usize),
    /// A message arrives; it may arrive again.
    Deliver(usize, bool),
    Lose(usize),
    /// The daemon dies and starts again; sessions live on.
    Crash(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = (0..SERVERS, 0..LOGINS);
    prop_oneof![
        5 => at.clone().prop_map(|(s, n)| Step::Authorize(s, n)),
        5 => (at.clone(), 0..TUNNELS).prop_map(|((s, n), tunnel)| Step::Claim(s, n, tunnel)),
        5 => at.clone().prop_map(|(s, n)| Step::Grant(s, n)),
        5 => at.clone().prop_map(|(s, n)| Step::Answer(s, n)),
        3 => at.prop_map(|(s, n)| Step::End(s, n)),
        3 => (0..SERVERS, 0..8_usize).prop_map(|(s, which)| Step::Release(s, which)),
        3 => (0..8_usize, prop::bool::ANY).prop_map(|(which, again)| Step::Deliver(which, again)),
        1 => (0..8_usize).prop_map(Step::Lose),
        1 => (0..SERVERS).prop_map(Step::Crash),
        1 => (0..60_u64).prop_map(Step::Wait),
    ]
}

/// A row of the database.
#[derive(Debug, Clone)]
struct Lease {
    server: usize,
    port: u16,
    tunnel: usize,
    epoch: u64,
    child: Process,
    live: bool,
    /// A newer claim wants its session ended.
    evict: bool,
    free_after: Option<Instant>,
}

/// A login that the kernel still has: what sshd permits it, it may listen on.
#[derive(Debug, Clone)]
struct Alive {
    port: u16,
    child: Process,
    /// The claim that is on its way: which tunnel, and the epoch once it is written.
    claiming: Option<(usize, Option<u64>)>,
}

struct World {
    now: Instant,
    machines: Vec<Leases>,
    rows: Vec<Lease>,
    epochs: [u64; TUNNELS],
    alive: BTreeMap<(usize, i32), Alive>,
    /// Releases that a server has not written yet; they die with it.
    unwritten: Vec<BTreeSet<(u16, usize, u64)>>,
    /// Evictions on their way: server, tunnel, below.
    messages: Vec<(usize, usize, u64)>,
    round: u64,
    tunnels: Vec<TunnelId>,
}

fn machine() -> Leases {
    let limits = Limits {
        claim_within: Duration::from_secs(10),
        rest: REST,
    };
    Leases::new(RANGE, limits)
}

fn device() -> DeviceId {
    "device-1".parse().expect("a device")
}

fn terms(epoch: u64) -> Terms {
    Terms {
        epoch: Epoch(epoch),
        ttl: Duration::from_secs(3600),
        idle: None,
    }
}

impl World {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            machines: (0..SERVERS).map(|_| machine()).collect(),
            rows: Vec::new(),
            epochs: [0; TUNNELS],
            alive: BTreeMap::new(),
            unwritten: vec![BTreeSet::new(); SERVERS],
            messages: Vec::new(),
            round: 0,
            tunnels: (0..TUNNELS).map(|_| TunnelId::generate()).collect(),
        }
    }

    fn monitor(child: Process) -> Process {
        Process {
            pid: child.pid - 1000,
            start: child.start,
        }
    }

    fn number(&self, tunnel: TunnelId) -> usize {
        self.tunnels
            .iter()
            .position(|known| *known == tunnel)
            .expect("a tunnel")
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Authorize(server, n) => self.authorize(server, n),
            Step::Claim(server, n, tunnel) => {
                let id = self.tunnels[tunnel];
                if let Some(login) = self.alive.get_mut(&(server, n))
                    && self.machines[server]
                        .handle_claim(Self::monitor(login.child), login.child, &device(), id)
                        .is_ok()
                {
                    login.claiming = Some((tunnel, None));
                }
            }
            Step::Grant(server, n) => self.grant(server, n),
            Step::Answer(server, n) => self.answer(server, n),
            Step::End(server, n) => self.end(server, n),
            Step::Release(server, which) => {
                let all: Vec<_> = self.unwritten[server].iter().copied().collect();
                if !all.is_empty() {
                    let one = all[which % all.len()];
                    self.unwritten[server].remove(&one);
                    self.release(server, one);
                }
            }
            Step::Deliver(which, again) => {
                if !self.messages.is_empty() {
                    let at = which % self.messages.len();
                    let (server, tunnel, below) = self.messages[at];
                    if !again {
                        self.messages.swap_remove(at);
                    }
                    let commands = self.machines[server].handle_evict(self.tunnels[tunnel], Epoch(below), self.now);
                    self.execute(server, commands);
                }
            }
            Step::Lose(which) => {
                if !self.messages.is_empty() {
                    let at = which % self.messages.len();
                    self.messages.swap_remove(at);
                }
            }
            Step::Crash(server) => self.crash(server),
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.tick();
            }
        }
    }

    fn tick(&mut self) {
        for server in 0..SERVERS {
            let commands = self.machines[server].handle_timeout(self.now);
            self.execute(server, commands);
        }
    }

    fn authorize(&mut self, server: usize, n: i32) {
        if self.alive.contains_key(&(server, n)) {
            return;
        }
        self.round += 1;
        let child = Process {
            pid: 2000 + n,
            start: self.round,
        };
        let draw = self.round;
        // What the daemon does: a port that something listens on is not given.
        let listening: Vec<u16> = self.ports_of(server).collect();
        let usable = |port: u16| !listening.contains(&port);
        let login = Self::monitor(child);
        if let Ok(port) = self.machines[server].handle_authorize(login, &device(), None, || draw, usable, self.now) {
            let taken = self.ports_of(server).any(|other| other == port);
            assert!(!taken, "port {port} of server {server} has two logins");
            let claiming = None;
            self.alive.insert((server, n), Alive { port, child, claiming });
        }
    }

    fn ports_of(&self, server: usize) -> impl Iterator<Item = u16> {
        let of_server = self.alive.iter().filter(move |((on, _), _)| *on == server);
        of_server.map(|(_, login)| login.port)
    }

    /// The claim's transaction: the next epoch, the older lease taken away, the new one there. A port that rests for
    /// another tunnel is refused: an old name may lead there still.
    fn grant(&mut self, server: usize, n: i32) {
        let Some(login) = self.alive.get_mut(&(server, n)) else {
            return;
        };
        let Some((tunnel, written @ None)) = &mut login.claiming else {
            return;
        };
        let (tunnel, epoch) = (*tunnel, self.epochs[*tunnel] + 1);
        let (port, now) = (login.port, self.now);
        let rests = |row: &Lease| row.tunnel != tunnel && row.free_after.is_some_and(|until| until > now);
        if self
            .rows
            .iter()
            .any(|row| (row.server, row.port) == (server, port) && rests(row))
        {
            let monitor = Self::monitor(login.child);
            login.claiming = None;
            let commands = self.machines[server].handle_refused(monitor, now);
            self.execute(server, commands);
            return;
        }
        *written = Some(epoch);
        self.epochs[tunnel] = epoch;
        for row in &mut self.rows {
            if row.live && row.tunnel == tunnel {
                row.live = false;
                row.evict = true;
                row.free_after = Some(self.now + REST);
                if row.server != server {
                    self.messages.push((row.server, tunnel, epoch));
                }
            }
        }
        self.rows.push(Lease {
            server,
            port: login.port,
            tunnel,
            epoch,
            child: login.child,
            live: true,
            evict: false,
            free_after: None,
        });
    }

    fn answer(&mut self, server: usize, n: i32) {
        let Some(login) = self.alive.get_mut(&(server, n)) else {
            return;
        };
        if let Some((_, Some(epoch))) = login.claiming {
            login.claiming = None;
            let login = Self::monitor(login.child);
            let (_, commands) = self.machines[server].handle_granted(login, terms(epoch), self.now);
            self.execute(server, commands);
        }
    }

    fn end(&mut self, server: usize, n: i32) {
        let Some(login) = self.alive.remove(&(server, n)) else {
            return;
        };
        let machine = &mut self.machines[server];
        let mut commands = machine.handle_ended(login.child, self.now);
        commands.extend(machine.handle_ended(Self::monitor(login.child), self.now));
        self.execute(server, commands);
        // The daemon takes back what was written for a login that ended meanwhile.
        if let Some((tunnel, Some(epoch))) = login.claiming {
            self.unwritten[server].insert((login.port, tunnel, epoch));
        }
    }

    /// Fenced: a release of an older epoch changes nothing.
    fn release(&mut self, server: usize, (port, tunnel, epoch): (u16, usize, u64)) {
        for row in &mut self.rows {
            if (row.server, row.port, row.tunnel, row.epoch) == (server, port, tunnel, epoch) {
                row.evict = false;
                if row.live {
                    row.live = false;
                    row.free_after = Some(self.now + REST);
                    self.machines[server].rest(port, self.now + REST);
                }
            }
        }
    }

    fn execute(&mut self, server: usize, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Kill { login, child } => {
                    let named = |alive: &Alive| {
                        Self::monitor(alive.child) == login || alive.child == login || Some(alive.child) == child
                    };
                    let known = self.alive.iter().find(|((on, _), alive)| *on == server && named(alive));
                    if let Some((server, n)) = known.map(|(at, _)| *at) {
                        self.end(server, n);
                    }
                }
                Command::Release { port, tunnel, epoch } => {
                    let tunnel = self.number(tunnel);
                    self.unwritten[server].insert((port, tunnel, epoch.0));
                }
                Command::Close { .. } => {}
            }
        }
    }

    /// The daemon starts again: it adopts the sessions that hold a lease, and ends the rest.
    fn crash(&mut self, server: usize) {
        self.unwritten[server].clear();
        self.machines[server] = machine();
        let mut lost = Vec::new();
        let mut adopted = BTreeSet::new();
        for row in self.rows.iter().filter(|row| row.server == server && row.live) {
            let lives = self
                .alive
                .iter()
                .any(|((on, _), alive)| *on == server && alive.child == row.child);
            let id = self.tunnels[row.tunnel];
            if lives && self.machines[server].adopt(row.child, row.port, device(), id, terms(row.epoch), self.now) {
                adopted.insert(row.child.start);
            } else {
                lost.push((row.port, row.tunnel, row.epoch));
            }
        }
        for lease in lost {
            self.release(server, lease);
        }
        self.alive
            .retain(|(on, _), alive| *on != server || adopted.contains(&alive.child.start));
        for alive in self.alive.values_mut() {
            if adopted.contains(&alive.child.start) {
                alive.claiming = None;
            }
        }
        for row in self.rows.iter().filter(|row| row.server == server && !row.live) {
            if let Some(until) = row.free_after.filter(|until| *until > self.now) {
                self.machines[server].rest(row.port, until);
            }
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let mut places = BTreeSet::new();
        let mut tunnels = BTreeSet::new();
        for row in self.rows.iter().filter(|row| row.live) {
            assert!(places.insert((row.server, row.port)), "two leases of one port: {row:?}");
            assert!(tunnels.insert(row.tunnel), "two leases of one tunnel: {row:?}");
            assert_eq!(row.epoch, self.epochs[row.tunnel], "a live lease of an older epoch");
        }
        for ((server, _), alive) in &self.alive {
            assert!(
                self.machines[*server].permits(alive.port),
                "a living login lost its port"
            );
        }
    }

    /// Nothing more happens but what the daemons do by themselves: they look for evictions in the database, take back
    /// what they owe, and let time pass.
    fn settle(&mut self) {
        for at in self.alive.keys().copied().collect::<Vec<_>>() {
            self.grant(at.0, at.1);
            self.answer(at.0, at.1);
        }
        self.messages.clear();
        for _ in 0..4 {
            let evict: Vec<(usize, usize, u64)> = self
                .rows
                .iter()
                .filter(|row| row.evict)
                .map(|row| (row.server, row.tunnel, row.epoch + 1))
                .collect();
            for (server, tunnel, below) in evict {
                let commands = self.machines[server].handle_evict(self.tunnels[tunnel], Epoch(below), self.now);
                self.execute(server, commands);
            }
            for server in 0..SERVERS {
                for lease in std::mem::take(&mut self.unwritten[server]) {
                    self.release(server, lease);
                }
            }
            // Longer than a login may wait with its claim.
            self.now += Duration::from_secs(20);
            self.tick();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_lost_doubled_or_cut_short_a_tunnel_has_one_holder_in_the_end(
        steps in prop::collection::vec(step(), 1..160)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.settle();
        world.check();
        // Whoever lives holds a lease, the newest of its tunnel; and every lease has an owner.
        for ((server, _), alive) in &world.alive {
            let row = world.rows.iter().find(|row| row.live && row.child == alive.child && row.server == *server);
            prop_assert!(row.is_some(), "a session without a lease: {:?}", alive);
        }
        for row in world.rows.iter().filter(|row| row.live) {
            let owner = world.alive.iter().find(|((server, _), alive)| *server == row.server && alive.child == row.child);
            prop_assert!(owner.is_some(), "a lease without an owner: {:?}", row);
        }
    }
}
