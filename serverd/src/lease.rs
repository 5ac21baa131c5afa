//! The lease machine of one server: which login may bind which port, and who holds it for which tunnel.
//!
//! It decides; it does nothing. The daemon tells it what happened and carries out the commands that it answers with.
//!
//! ```text
//!            authorize            claim, or a listener         granted
//!  (none) -------------> Reserved ----------> Claiming ------------------> Holding
//!                           |                    |  refused                   |
//!                unclaimed  |                    v                            | evict, close, expiry, idleness
//!                in time    +----------------> Ending <-----------------------+
//!                           |                    |                            |
//!                           +---- monitor or child ended: the port rests -----+
//! ```
//!
//! The rule that everything rests on: a port belongs to one login until the kernel says that the login's process has
//! ended. sshd permits the port for as long as the connection lasts, whatever a database says meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, TunnelId};
use serde::{Deserialize, Serialize};

use crate::config::PortRange;
use crate::ports::Ports;
use crate::process::Process;

/// What the daemon has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// End the session of this login: its child if it is known, its monitor, and any child of that.
    Kill { login: Process, child: Option<Process> },
    /// Take the lease back in the database.
    Release { port: u16, tunnel: TunnelId, epoch: Epoch },
    /// Close the tunnel in the database: its life or its idle time is over.
    Close { tunnel: TunnelId, epoch: Epoch, why: Over },
}

/// Why a tunnel is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Expired,
    Idle,
}

/// The times the machine works with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a login may hold a port without claiming.
    pub claim_within: Duration,
    /// How long a port rests after a lease.
    pub rest: Duration,
}

/// How long a port rests when no name was ever signed for it: until a child that outlived its monitor has been found.
const SHORT_REST: Duration = Duration::from_secs(5);

/// How far a login has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Reserved,
    Claiming { child: Process, tunnel: TunnelId },
    Holding(Holding),
}

/// A login that holds a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holding {
    child: Process,
    tunnel: TunnelId,
    epoch: Epoch,
    expires: Instant,
    idle: Option<Idle>,
}

/// When a tunnel was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Idle {
    limit: Duration,
    since: Instant,
}

#[derive(Debug)]
struct Login {
    port: u16,
    device: DeviceId,
    /// When sshd first asked about it; `None` for one that was adopted.
    asked_at: Option<Instant>,
    /// The tunnel that the device was told the port is for: if it listens there, that claims the tunnel.
    told: Option<TunnelId>,
    /// Whether its listener claimed, and the device still has to ask what came of that.
    unasked: bool,
    /// Until when its port rests at least: a bearer name was signed for it, or an earlier lease was taken back late.
    rests_until: Option<Instant>,
    stage: Stage,
    /// Set once a kill was ordered; a repeated one is ordered when the first has not worked by then.
    ending: Option<Instant>,
    /// When this login needs attention next.
    due: Instant,
}

/// How long a killed session may take to end before it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What a tunnel brings with it when it is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub epoch: Epoch,
    pub ttl: Duration,
    pub idle: Option<Duration>,
}

/// A lease that is held now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub login: Process,
    pub child: Process,
    pub port: u16,
    pub device: DeviceId,
    pub epoch: Epoch,
    /// When sshd first asked about the login; `None` for one that was adopted.
    pub asked_at: Option<Instant>,
}

/// The lease machine.
#[derive(Debug)]
pub struct Leases {
    limits: Limits,
    ports: Ports,
    range: PortRange,
    logins: HashMap<Process, Login>,
    by_port: HashMap<u16, Process>,
    by_child: HashMap<Process, Process>,
    by_tunnel: HashMap<TunnelId, Process>,
    due: BTreeSet<(Instant, Process)>,
    /// How many logins hold a tunnel.
    held: usize,
}

impl Leases {
    /// A machine with all ports free.
    pub fn new(range: PortRange, limits: Limits) -> Self {
        Self {
            limits,
            ports: Ports::new(range),
            range,
            logins: HashMap::new(),
            by_port: HashMap::new(),
            by_child: HashMap::new(),
            by_tunnel: HashMap::new(),
            due: BTreeSet::new(),
            held: 0,
        }
    }

    /// Reserves a port for a login; the same one when sshd asks again in the same login.
    ///
    /// `wish` is the port asked for, `draw` a random number, `usable` tells whether a port can be bound now.
    ///
    /// # Errors
    /// When every port is taken or resting.
    pub fn handle_authorize(
        &mut self,
        login: Process,
        device: &DeviceId,
        wish: Option<u16>,
        mut draw: impl FnMut() -> u64,
        usable: impl Fn(u16) -> bool,
        now: Instant,
    ) -> Result<u16, Failure> {
        if let Some(known) = self.logins.get_mut(&login) {
            if known.stage != Stage::Reserved || known.ending.is_some() {
                return Err(Failure::new(
                    FailureKind::Denied,
                    "this login is past its authorization",
                ));
            }
            // sshd asks for every key that the client offers, last for the one it proves to have.
            if known.device != *device {
                known.device = device.clone();
                known.told = None;
            }
            return Ok(known.port);
        }
        self.ports.wake(now);
        let mut wished = wish.filter(|port| self.range.contains(*port) && self.ports.take(*port));
        let mut port = None;
        for _ in 0..TRIES {
            match wished.take().or_else(|| self.ports.take_any(draw())) {
                Some(taken) if usable(taken) => {
                    port = Some(taken);
                    break;
                }
                Some(unusable) => self.ports.rest(unusable, now + SHORT_REST),
                None => break,
            }
        }
        let Some(port) = port else {
            return Err(Failure::new(
                FailureKind::Busy,
                "every port of the server is leased or resting; add a server or widen sshd.ports",
            ));
        };
        let due = now + self.limits.claim_within;
        self.by_port.insert(port, login);
        self.due.insert((due, login));
        self.logins.insert(
            login,
            Login {
                port,
                device: device.clone(),
                asked_at: Some(now),
                told: None,
                unasked: false,
                rests_until: None,
                stage: Stage::Reserved,
                ending: None,
                due,
            },
        );
        Ok(port)
    }

    /// The device is to be told which tunnel the port of its login is for. Returns `false` when it has been.
    pub fn handle_told(&mut self, login: Process, tunnel: TunnelId) -> bool {
        match self.logins.get_mut(&login) {
            Some(known) if known.stage == Stage::Reserved && known.told != Some(tunnel) => {
                known.told = Some(tunnel);
                true
            }
            _ => false,
        }
    }

    /// Whether a listener of this login would claim a tunnel.
    pub fn awaits_listener(&self, login: Process) -> bool {
        self.logins
            .get(&login)
            .is_some_and(|known| known.stage == Stage::Reserved && known.told.is_some() && known.ending.is_none())
    }

    /// A login listens on its port that has not claimed: it claims what its device was told. Answers with what the daemon
    /// needs to write the lease.
    pub fn handle_listening(&mut self, login: Process, child: Process) -> Option<(u16, DeviceId, TunnelId)> {
        if !self.awaits_listener(login) {
            return None;
        }
        let known = self.logins.get_mut(&login)?;
        let tunnel = known.told?;
        known.stage = Stage::Claiming { child, tunnel };
        known.unasked = true;
        self.by_child.insert(child, login);
        Some((known.port, known.device.clone(), tunnel))
    }

    /// Whether this login's listener has claimed that very tunnel already. It is asked about once: any later claim is a
    /// second one.
    pub fn handle_asked(&mut self, login: Process, child: Process, device: &DeviceId, tunnel: TunnelId) -> bool {
        let Some(known) = self.logins.get_mut(&login) else {
            return false;
        };
        let claimed = match &known.stage {
            Stage::Reserved => return false,
            Stage::Claiming { child, tunnel } => (*child, *tunnel),
            Stage::Holding(holding) => (holding.child, holding.tunnel),
        };
        known.device == *device && claimed == (child, tunnel) && std::mem::take(&mut known.unasked)
    }

    /// Begins a claim. Answers with the port, whose lease the daemon then writes.
    ///
    /// # Errors
    /// When the login is not one that may claim.
    pub fn handle_claim(
        &mut self,
        login: Process,
        child: Process,
        device: &DeviceId,
        tunnel: TunnelId,
    ) -> Result<u16, Failure> {
        let denied = |why| Err(Failure::new(FailureKind::Denied, why));
        let Some(known) = self.logins.get_mut(&login) else {
            return denied("this login was not authorized by this server; log in again");
        };
        if known.device != *device {
            return denied("the login belongs to another device");
        }
        if known.ending.is_some() {
            return denied("the login is being ended; log in again");
        }
        if known.stage != Stage::Reserved {
            return denied("the login has claimed already; use a new one");
        }
        known.stage = Stage::Claiming { child, tunnel };
        self.by_child.insert(child, login);
        Ok(known.port)
    }

    /// The lease was written: the login holds the tunnel. An older session of the tunnel on this server is to end, and
    /// its child, if there is one, is to be waited for before the device hears of it.
    pub fn handle_granted(&mut self, login: Process, terms: Terms, now: Instant) -> (Option<Process>, Vec<Command>) {
        let Some(known) = self.logins.get(&login) else {
            // It ended meanwhile.
            return (None, Vec::new());
        };
        let Stage::Claiming { child, tunnel } = known.stage else {
            return (None, Vec::new());
        };
        let rival = self.by_tunnel.get(&tunnel).copied().filter(|rival| *rival != login);
        // Answers of the database may come out of order: the epoch decides, not the order.
        if rival
            .and_then(|rival| self.holding(rival))
            .is_some_and(|newer| newer.epoch > terms.epoch)
        {
            self.hold(login, child, tunnel, terms, now);
            return (None, self.kill(login, now));
        }
        self.by_tunnel.insert(tunnel, login);
        self.hold(login, child, tunnel, terms, now);
        match rival {
            Some(older) => (self.child_of(older), self.kill(older, now)),
            None => (None, Vec::new()),
        }
    }

    /// The lease was not written: the login has no business here any more.
    pub fn handle_refused(&mut self, login: Process, now: Instant) -> Vec<Command> {
        self.kill(login, now)
    }

    /// Takes over a session from before this process started.
    ///
    /// Returns `false` when its port is not this server's to lease, or is taken.
    pub fn adopt(
        &mut self,
        child: Process,
        port: u16,
        device: DeviceId,
        tunnel: TunnelId,
        terms: Terms,
        now: Instant,
    ) -> bool {
        if !self.ports.take(port) {
            return false;
        }
        // The monitor may be gone; the child stands for the login.
        self.by_port.insert(port, child);
        self.by_child.insert(child, child);
        self.by_tunnel.insert(tunnel, child);
        self.logins.insert(
            child,
            Login {
                port,
                device,
                asked_at: None,
                told: None,
                unasked: false,
                rests_until: None,
                stage: Stage::Reserved,
                ending: None,
                due: now,
            },
        );
        self.hold(child, child, tunnel, terms, now);
        true
    }

    /// A bearer name was signed for a tunnel's port, which then rests until it has expired at least.
    pub fn handle_named(&mut self, tunnel: TunnelId, until: Instant) {
        let login = self.by_tunnel.get(&tunnel);
        if let Some(known) = login.and_then(|login| self.logins.get_mut(login)) {
            known.rests_until = known.rests_until.max(Some(until));
        }
    }

    /// Keeps a port out of use until then at least, as the database does: it rested when this process started, or its
    /// lease was taken back later than its session had ended.
    pub fn rest(&mut self, port: u16, until: Instant) {
        if self.ports.is_resting(port) || self.ports.take(port) {
            self.ports.rest(port, until);
        } else if let Some(known) = self.by_port.get(&port).and_then(|login| self.logins.get_mut(login)) {
            known.rests_until = known.rests_until.max(Some(until));
        }
    }

    /// A process ended: a monitor before its login claimed, or the child of one that did.
    pub fn handle_ended(&mut self, process: Process, now: Instant) -> Vec<Command> {
        let login = self.by_child.get(&process).copied().unwrap_or(process);
        let ends_login = match self.logins.get(&login).map(|known| &known.stage) {
            None => false,
            Some(Stage::Reserved) => process == login,
            // The monitor may die while its child and the child's listener live on: only the child counts.
            Some(Stage::Claiming { child, .. }) => process == *child,
            Some(Stage::Holding(holding)) => process == holding.child,
        };
        if !ends_login {
            return Vec::new();
        }
        let Some(known) = self.logins.remove(&login) else {
            return Vec::new();
        };
        self.due.remove(&(known.due, login));
        self.by_port.remove(&known.port);
        self.by_child.remove(&process);
        let rest = match known.stage {
            Stage::Reserved => SHORT_REST,
            Stage::Claiming { .. } | Stage::Holding(_) => self.limits.rest,
        };
        let until = Some(now + rest).max(known.rests_until).unwrap_or(now);
        self.ports.rest(known.port, until);
        match known.stage {
            // Whether the lease of a claim gets written is not known yet; the daemon takes it back if it does.
            Stage::Reserved | Stage::Claiming { .. } => Vec::new(),
            Stage::Holding(Holding { tunnel, epoch, .. }) => {
                self.held -= 1;
                if self.by_tunnel.get(&tunnel) == Some(&login) {
                    self.by_tunnel.remove(&tunnel);
                }
                vec![Command::Release {
                    port: known.port,
                    tunnel,
                    epoch,
                }]
            }
        }
    }

    /// Whether a login is still here, for a claim whose lease has just been written.
    pub fn is_claiming(&self, login: Process) -> bool {
        matches!(
            self.logins.get(&login).map(|known| &known.stage),
            Some(Stage::Claiming { .. })
        )
    }

    /// Ends the session of a tunnel whose epoch is below this one.
    pub fn handle_evict(&mut self, tunnel: TunnelId, below: Epoch, now: Instant) -> Vec<Command> {
        match self.by_tunnel.get(&tunnel).copied() {
            Some(login) if self.holding(login).is_some_and(|holding| holding.epoch < below) => self.kill(login, now),
            _ => Vec::new(),
        }
    }

    /// The tunnels with an idle limit whose ports carry these numbers of connections now.
    pub fn handle_connections(&mut self, count: impl Fn(u16) -> u32, now: Instant) {
        for login in self.logins.values_mut() {
            if let Stage::Holding(Holding { idle: Some(idle), .. }) = &mut login.stage
                && count(login.port) > 0
            {
                idle.since = now;
            }
        }
    }

    /// Whether any tunnel has an idle limit.
    pub fn counts_connections(&self) -> bool {
        self.logins
            .values()
            .any(|login| matches!(&login.stage, Stage::Holding(Holding { idle: Some(_), .. })))
    }

    /// What has become due: unclaimed logins, expired and idle tunnels, sessions that survived a kill, rested ports.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Command> {
        self.ports.wake(now);
        let mut commands = Vec::new();
        while let Some((due, login)) = self.due.first().copied() {
            if due > now {
                break;
            }
            self.due.pop_first();
            commands.extend(self.attend(login, now));
        }
        commands
    }

    /// When [`Leases::handle_timeout`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first().map(|(due, _)| *due);
        [due, self.ports.next()].into_iter().flatten().min()
    }

    /// The lease of a tunnel that this server holds.
    pub fn held(&self, tunnel: TunnelId) -> Option<Held> {
        let login = *self.by_tunnel.get(&tunnel)?;
        let known = self.logins.get(&login).filter(|known| known.ending.is_none())?;
        let holding = self.holding(login)?;
        Some(Held {
            login,
            child: holding.child,
            port: known.port,
            device: known.device.clone(),
            epoch: holding.epoch,
            asked_at: known.asked_at,
        })
    }

    /// Whether a listener on this port is permitted: a login has it, claimed or about to.
    pub fn permits(&self, port: u16) -> bool {
        self.by_port.contains_key(&port)
    }

    /// Whether a process is the child of a login that is known.
    pub fn knows_child(&self, child: Process) -> bool {
        self.by_child.contains_key(&child)
    }

    /// Whether a process is the monitor of a login that is known.
    pub fn knows_login(&self, login: Process) -> bool {
        self.logins.contains_key(&login)
    }

    /// How many tunnels are held, how many logins are under way, how many ports are free and how many rest.
    pub fn counts(&self) -> Counts {
        Counts {
            held: self.held,
            landing: self.logins.len() - self.held,
            free: self.ports.free(),
            resting: self.ports.resting(),
        }
    }

    fn hold(&mut self, login: Process, child: Process, tunnel: TunnelId, terms: Terms, now: Instant) {
        let expires = now + terms.ttl;
        let idle = terms.idle.map(|limit| Idle { limit, since: now });
        let due = idle.map_or(expires, |idle| expires.min(now + idle.limit));
        if let Some(known) = self.logins.get_mut(&login) {
            self.due.remove(&(known.due, login));
            self.held += usize::from(!matches!(known.stage, Stage::Holding(_)));
            known.due = due;
            known.stage = Stage::Holding(Holding {
                child,
                tunnel,
                epoch: terms.epoch,
                expires,
                idle,
            });
            self.due.insert((due, login));
        }
    }

    /// Looks at a login whose time has come.
    fn attend(&mut self, login: Process, now: Instant) -> Vec<Command> {
        let Some(known) = self.logins.get_mut(&login) else {
            return Vec::new();
        };
        if known.ending.is_some() {
            return self.kill(login, now);
        }
        match &known.stage {
            Stage::Reserved => self.kill(login, now),
            Stage::Claiming { .. } => {
                // The database bounds a claim; look again when that bound has passed.
                known.due = now + self.limits.claim_within;
                self.due.insert((known.due, login));
                Vec::new()
            }
            Stage::Holding(holding) => {
                let (tunnel, epoch) = (holding.tunnel, holding.epoch);
                let idle_until = holding.idle.map(|idle| idle.since + idle.limit);
                let why = if holding.expires <= now {
                    Over::Expired
                } else if idle_until.is_some_and(|until| until <= now) {
                    Over::Idle
                } else {
                    known.due = idle_until.map_or(holding.expires, |until| holding.expires.min(until));
                    self.due.insert((known.due, login));
                    return Vec::new();
                };
                let mut commands = vec![Command::Close { tunnel, epoch, why }];
                commands.extend(self.kill(login, now));
                commands
            }
        }
    }

    fn kill(&mut self, login: Process, now: Instant) -> Vec<Command> {
        let child = self.child_of(login);
        let Some(known) = self.logins.get_mut(&login) else {
            return Vec::new();
        };
        self.due.remove(&(known.due, login));
        known.ending = Some(now);
        known.due = now + KILL_AGAIN;
        self.due.insert((known.due, login));
        vec![Command::Kill { login, child }]
    }

    fn holding(&self, login: Process) -> Option<&Holding> {
        match &self.logins.get(&login)?.stage {
            Stage::Holding(holding) => Some(holding),
            _ => None,
        }
    }

    fn child_of(&self, login: Process) -> Option<Process> {
        match &self.logins.get(&login)?.stage {
            Stage::Reserved => None,
            Stage::Claiming { child, .. } => Some(*child),
            Stage::Holding(holding) => Some(holding.child),
        }
    }
}

/// How many ports are tried before a server counts as full: strangers may sit on some.
const TRIES: usize = 16;

/// How many of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Tunnels.
    pub held: usize,
    /// Logins that have not claimed yet.
    pub landing: usize,
    /// Ports that can be leased now.
    pub free: usize,
    /// Ports that become free when the last name signed for them has expired.
    pub resting: usize,
}
