//! What is known of the servers, and what HAProxy should therefore do. Pure: no clock, no input, no output.
//!
//! ```text
//!                registration            offline, draining (MQTT or registry)
//!     unknown ----------------> landing ------------------------------------> routed
//!        ^                         ^  \                                          |
//!        |                         |   \------ serving, generation >= ours ------/
//!        |                         |
//!        \-- PostgreSQL: lost, or no row and none in Redis ----------------------
//! ```
//! *Routed*: users reach its tunnels. *Landing*: devices' logins go to it too. What is missing somewhere takes nothing
//! away; only a statement does: an "offline" takes the landings, and the database's word takes the routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use rssh_proto::name::NameMaster;
use rssh_proto::payload::{ServerState, ServerStatus};
use rssh_proto::registration::{Registration, SignedRegistration};
use rssh_proto::{Generation, ServerId, UserId};

use crate::desired::{Desired, Map, PoolName, PoolServer, Rows, Serial};
use crate::verify::Verified;

/// What does not come from the registry.
#[derive(Clone)]
pub struct Local {
    pub master: NameMaster,
    pub previous: Option<NameMaster>,
    /// What PostgreSQL calls revoked, and what the operator does.
    pub revoked: BTreeSet<UserId>,
    pub revoked_users: BTreeSet<UserId>,
    pub revoked_serials: BTreeSet<Serial>,
}

/// A server's row in PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub server: ServerId,
    pub generation: Generation,
    /// Another server has found it lost, at this generation.
    pub lost: bool,
}

/// Where the registry is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Redis,
    Database,
}

/// What one server is known by.
#[derive(Debug, Clone)]
struct Entry {
    registration: Registration,
    signed: SignedRegistration,
    /// The largest capacity that it has announced since it started.
    most: u32,
    /// Whether the last look into Redis found it.
    in_redis: bool,
    /// What the last complete look into PostgreSQL found; nothing before the first that began after the entry came.
    in_database: Option<bool>,
    /// Orders the claims to an address: the first keeps it.
    claim: u64,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Routes {
    entries: BTreeMap<ServerId, Entry>,
    /// The newest MQTT status of each server; it may come before the registration.
    statuses: BTreeMap<ServerId, (Generation, ServerState)>,
    /// Servers that PostgreSQL calls lost: an entry up to this generation is a dead one's.
    lost: BTreeMap<ServerId, Generation>,
    claims: u64,
    revision: u64,
    redis_up: bool,
    database_up: bool,
}

impl Routes {
    /// Takes a verified entry. One that is not newer than a known one changes nothing, and a lost server's neither.
    pub fn handle_registration(&mut self, verified: Verified, source: Source) {
        let Verified { registration, signed } = verified;
        let server = registration.server.clone();
        if self
            .lost
            .get(&server)
            .is_some_and(|lost| registration.generation <= *lost)
        {
            return;
        }
        let age = |registration: &Registration| (registration.generation, registration.counter);
        if let Some(known) = self.entries.get_mut(&server) {
            known.in_redis |= source == Source::Redis;
            if age(&registration) <= age(&known.registration) {
                return;
            }
            if registration.address.to_canonical() != known.registration.address.to_canonical() {
                self.claims += 1;
                known.claim = self.claims;
            }
            if without_load(&registration) != without_load(&known.registration) {
                self.revision += 1;
            }
            known.most = if registration.generation == known.registration.generation {
                known.most.max(registration.capacity)
            } else {
                registration.capacity
            };
            known.registration = registration;
            known.signed = signed;
            return;
        }
        self.claims += 1;
        let entry = Entry {
            most: registration.capacity,
            registration,
            signed,
            in_redis: source == Source::Redis,
            in_database: None,
            claim: self.claims,
        };
        self.entries.insert(server, entry);
        self.revision += 1;
    }

    /// Takes which servers a complete look into Redis found, verified or not.
    pub fn handle_redis(&mut self, present: &BTreeSet<ServerId>) {
        self.redis_up = true;
        for (server, entry) in &mut self.entries {
            entry.in_redis = present.contains(server);
        }
        self.sweep();
    }

    /// Takes a complete look into PostgreSQL. `known_before` are the servers that were known when it began: of others
    /// it can say nothing.
    pub fn handle_database(&mut self, rows: &[Row], known_before: &BTreeSet<ServerId>) {
        self.database_up = true;
        self.lost = rows
            .iter()
            .filter(|row| row.lost)
            .map(|row| (row.server.clone(), row.generation))
            .collect();
        let present: BTreeSet<&ServerId> = rows.iter().map(|row| &row.server).collect();
        for (server, entry) in &mut self.entries {
            if present.contains(server) {
                entry.in_database = Some(true);
            } else if known_before.contains(server) {
                entry.in_database = Some(false);
            }
        }
        self.sweep();
    }

    /// Drops the servers that PostgreSQL calls lost, and those that neither it nor Redis has.
    fn sweep(&mut self) {
        let (lost, redis_up, before) = (&self.lost, self.redis_up, self.entries.len());
        self.entries.retain(|server, entry| {
            let lost = lost
                .get(server)
                .is_some_and(|lost| entry.registration.generation <= *lost);
            let gone = redis_up && !entry.in_redis && entry.in_database == Some(false);
            !lost && !gone
        });
        if self.entries.len() != before {
            self.revision += 1;
        }
    }

    /// Takes that a source does not answer. The routes stay.
    pub fn handle_away(&mut self, source: Source) {
        match source {
            Source::Redis => self.redis_up = false,
            Source::Database => self.database_up = false,
        }
    }

    /// Takes a server's status; one with a generation below a known one is late and means nothing.
    pub fn handle_status(&mut self, server: &ServerId, status: &ServerStatus) {
        let registered = self.entries.get(server).map(|entry| entry.registration.generation);
        let stated = self.statuses.get(server).map(|(generation, _)| *generation);
        if registered.max(stated).is_some_and(|known| status.generation < known) {
            return;
        }
        self.statuses.insert(server.clone(), (status.generation, status.state));
    }

    /// Whether a part of the registry is away, so that the routes are the last good ones.
    pub fn is_stale(&self) -> bool {
        !self.redis_up || !self.database_up
    }

    /// Grows with every change that a restart must not forget: all but loads and counters.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The servers that are known now.
    pub fn known(&self) -> BTreeSet<ServerId> {
        self.entries.keys().cloned().collect()
    }

    /// Whether anything is known of a server.
    pub fn knows(&self, server: &ServerId) -> bool {
        self.entries.contains_key(server)
    }

    /// The entries as they were signed, in the order of their claims: what to start from after a restart.
    pub fn signed(&self) -> Vec<(&ServerId, &SignedRegistration)> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.claim);
        entries
            .into_iter()
            .map(|(server, entry)| (server, &entry.signed))
            .collect()
    }

    /// Servers that are not routed because another had their address first, each with that other.
    pub fn conflicts(&self) -> Vec<(&ServerId, &ServerId)> {
        let holders = self.holders();
        self.entries
            .iter()
            .filter_map(|(server, entry)| {
                let holder = *holders.get(&entry.registration.address.to_canonical())?;
                (holder != server).then_some((server, holder))
            })
            .collect()
    }

    /// Who has each address: the first that claimed it.
    fn holders(&self) -> BTreeMap<IpAddr, &ServerId> {
        let mut holders: BTreeMap<IpAddr, (&ServerId, u64)> = BTreeMap::new();
        for (server, entry) in &self.entries {
            let address = entry.registration.address.to_canonical();
            let holder = holders.entry(address).or_insert((server, entry.claim));
            if entry.claim < holder.1 {
                *holder = (server, entry.claim);
            }
        }
        holders
            .into_iter()
            .map(|(address, (server, _))| (address, server))
            .collect()
    }

    /// What a server is doing: the newer word of registry and MQTT; of equally new ones the more cautious.
    fn state(&self, server: &ServerId, registration: &Registration) -> ServerState {
        let caution = |state: ServerState| match state {
            ServerState::Serving => 0,
            ServerState::Draining => 1,
            ServerState::Offline => 2,
        };
        match self.statuses.get(server) {
            Some((generation, state)) if *generation > registration.generation => *state,
            Some((generation, state)) if *generation == registration.generation => {
                if caution(*state) > caution(registration.state) {
                    *state
                } else {
                    registration.state
                }
            }
            _ => registration.state,
        }
    }

    /// What HAProxy should be doing.
    pub fn desired(&self, local: &Local) -> Desired {
        let mut desired = Desired {
            maps: Map::ALL.map(|map| (map, Rows::new())).into(),
            ..Desired::default()
        };
        let mut row = |map, key: &str, value: String| {
            if let Some(rows) = desired.maps.get_mut(&map) {
                rows.insert(key.to_owned(), value);
            }
        };
        for user in &local.revoked {
            row(Map::Revoked, user.as_str(), "1".to_owned());
        }
        for user in &local.revoked_users {
            row(Map::RevokedUsers, user.as_str(), "1".to_owned());
        }
        for serial in &local.revoked_serials {
            row(Map::RevokedSerials, serial.as_str(), "1".to_owned());
        }
        let holders = self.holders();
        let largest = self
            .entries
            .values()
            .map(|entry| entry.registration.capacity)
            .max()
            .unwrap_or(0);
        for (server, entry) in &self.entries {
            let registration = &entry.registration;
            let address = registration.address.to_canonical();
            if holders.get(&address) != Some(&server) {
                continue;
            }
            row(Map::Addresses, server.as_str(), address.to_string());
            row(Map::KeysCurrent, server.as_str(), local.master.key(server).to_base64());
            if let Some(previous) = &local.previous {
                row(Map::KeysPrevious, server.as_str(), previous.key(server).to_base64());
            }
            let state = self.state(server, registration);
            let lands = state == ServerState::Serving && entry.in_database != Some(false);
            let addresses = addresses(registration, entry.most);
            let weight = if lands {
                weight(registration, addresses.len(), largest)
            } else {
                0
            };
            for (index, ssh) in addresses.iter().enumerate() {
                let name = PoolName {
                    server: server.clone(),
                    index: Some(index),
                };
                let pool_server = PoolServer {
                    address: canonical(*ssh),
                    health: canonical(registration.health),
                    weight,
                    enabled: state != ServerState::Offline,
                };
                desired.pool.insert(name, pool_server);
            }
            // A full or draining server still answers HTTPS: its own port is what is checked.
            if let Some(https) = registration.https {
                let name = PoolName {
                    server: server.clone(),
                    index: None,
                };
                let pool_server = PoolServer {
                    address: canonical(https),
                    health: canonical(https),
                    weight: HTTPS_WEIGHT,
                    enabled: state != ServerState::Offline,
                };
                desired.pool.insert(name, pool_server);
            }
        }
        desired
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A registration but for what changes with every heartbeat.
fn without_load(registration: &Registration) -> Registration {
    Registration {
        counter: 0,
        tunnels: 0,
        load: 0.0,
        ..registration.clone()
    }
}

/// Every server answers as much HTTPS as every other.
const HTTPS_WEIGHT: u16 = 100;
/// How many tunnels devices bring to one of a server's ssh addresses. One address of a load balancer can hold 28,232
/// connections to it (docs/sizing.md); those that ended lately count too, and some are for logins that come to nothing.
const PER_ADDRESS: u32 = 20_000;

/// Those of a server's ssh addresses that devices are sent to: all lead to the same sshd, and HAProxy keeps some 5 KiB for
/// each, with its checks and statistics. As many as its largest capacity needs, so that one that wavers changes nothing.
fn addresses(registration: &Registration, most: u32) -> &[SocketAddr] {
    let needed = usize::try_from(most.div_ceil(PER_ADDRESS)).unwrap_or(usize::MAX).max(1);
    &registration.ssh[..needed.min(registration.ssh.len())]
}

/// The weight of an empty server. HAProxy would take 256, but keeps 768 bytes for each unit, to draw by; and a tunnel more or
/// less is to change nothing in it. Of the two that are drawn the one with fewer connections for its weight is taken, so that
/// a step only has to be smaller than what servers may differ by.
pub const MAX_WEIGHT: u16 = 8;

/// The weight of each of a server's ssh addresses: its free capacity, less what its load says is not really free, as a
/// share of the largest server's capacity. 0 only when it is full.
fn weight(registration: &Registration, addresses: usize, largest: u32) -> u16 {
    let free = registration.capacity.saturating_sub(registration.tunnels);
    if free == 0 || largest == 0 {
        return 0;
    }
    // A number that is none comes out as fully loaded.
    let idle = if registration.load.is_finite() {
        1.0 - registration.load.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let share = f64::from(free) / f64::from(largest) * f64::from(idle);
    let exact = share * f64::from(MAX_WEIGHT) / addresses.max(1) as f64;
    (exact.round() as u16).clamp(1, MAX_WEIGHT)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
