//! What to tell HAProxy, given what it does and what it should do. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::desired::{Desired, Map, PoolName, PoolServer, Rows};

/// A server of the pool as HAProxy has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualServer {
    pub address: SocketAddr,
    /// Absent when HAProxy was never told.
    pub health: Option<SocketAddr>,
    pub weight: u16,
    pub enabled: bool,
    /// Whether health checks are on.
    pub checked: bool,
    /// HAProxy would not delete it yet: connections go through it.
    pub leaving: bool,
}

/// What HAProxy does.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// By name; one that is not ours may be among them.
    pub pool: BTreeMap<String, ActualServer>,
    pub maps: BTreeMap<Map, ActualRows>,
}

/// A map's rows as HAProxy has them: there, a key may come twice.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ActualRows {
    pub rows: Rows,
    pub duplicates: bool,
}

/// One thing to tell HAProxy.
#[derive(Clone, PartialEq, Eq)]
pub enum Command {
    /// Replaces all rows in one step.
    MapReplace(Map, Rows),
    MapAdd(Map, String, String),
    MapSet(Map, String, String),
    MapDelete(Map, String),
    /// Adds it disabled and unchecked, as HAProxy does.
    ServerAdd(PoolName, PoolServer),
    ServerAddress(PoolName, SocketAddr),
    ServerHealth(PoolName, SocketAddr),
    ServerWeight(PoolName, u16),
    ServerCheck(PoolName),
    ServerEnable(PoolName),
    ServerDisable(String),
    ServerDelete(String),
}

impl std::fmt::Debug for Command {
    /// Shows no map values: they may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MapReplace(map, rows) => write!(f, "replace {} with {} rows", map.file(), rows.len()),
            Self::MapAdd(map, key, _) => write!(f, "add {key} to {}", map.file()),
            Self::MapSet(map, key, _) => write!(f, "set {key} in {}", map.file()),
            Self::MapDelete(map, key) => write!(f, "delete {key} from {}", map.file()),
            Self::ServerAdd(name, server) => write!(f, "add server {name} at {}", server.address),
            Self::ServerAddress(name, address) => write!(f, "move server {name} to {address}"),
            Self::ServerHealth(name, address) => write!(f, "check server {name} at {address}"),
            Self::ServerWeight(name, weight) => write!(f, "weigh server {name} {weight}"),
            Self::ServerCheck(name) => write!(f, "check server {name}"),
            Self::ServerEnable(name) => write!(f, "enable server {name}"),
            Self::ServerDisable(name) => write!(f, "disable server {name}"),
            Self::ServerDelete(name) => write!(f, "delete server {name}"),
        }
    }
}

/// More changed rows than this and the whole map is replaced: one step, however many rows.
const SINGLE_ROWS: usize = 16;

/// The commands that make `actual` equal to `desired`, in an order in which each intermediate state is safe: routes and
/// landings that must go do so first.
pub fn plan(desired: &Desired, actual: &Actual) -> Vec<Command> {
    let mut commands = Vec::new();
    let wanted: BTreeSet<String> = desired.pool.keys().map(PoolName::to_string).collect();
    for (name, server) in &actual.pool {
        if server.enabled && !wanted.contains(name) {
            commands.push(Command::ServerDisable(name.clone()));
        }
    }
    for map in Map::ALL {
        let none = Rows::new();
        plan_map(
            map,
            desired.maps.get(&map).unwrap_or(&none),
            actual.maps.get(&map),
            &mut commands,
        );
    }
    for (name, wanted) in &desired.pool {
        plan_server(name, wanted, actual.pool.get(&name.to_string()), &mut commands);
    }
    // Last: it can fail while connections go through the server.
    for (name, server) in &actual.pool {
        if !server.leaving && !wanted.contains(name) {
            commands.push(Command::ServerDelete(name.clone()));
        }
    }
    commands
}

fn plan_map(map: Map, wanted: &Rows, actual: Option<&ActualRows>, commands: &mut Vec<Command>) {
    let empty = ActualRows::default();
    let actual = actual.unwrap_or(&empty);
    let mut changes = Vec::new();
    for key in actual.rows.keys().filter(|key| !wanted.contains_key(*key)) {
        changes.push(Command::MapDelete(map, key.clone()));
    }
    for (key, value) in wanted {
        match actual.rows.get(key) {
            Some(known) if known == value => {}
            Some(_) => changes.push(Command::MapSet(map, key.clone(), value.clone())),
            None => changes.push(Command::MapAdd(map, key.clone(), value.clone())),
        }
    }
    if actual.duplicates || changes.len() > SINGLE_ROWS {
        commands.push(Command::MapReplace(map, wanted.clone()));
    } else {
        commands.append(&mut changes);
    }
}

fn plan_server(name: &PoolName, wanted: &PoolServer, actual: Option<&ActualServer>, commands: &mut Vec<Command>) {
    let Some(actual) = actual else {
        commands.push(Command::ServerAdd(name.clone(), wanted.clone()));
        commands.push(Command::ServerCheck(name.clone()));
        if wanted.enabled {
            commands.push(Command::ServerEnable(name.clone()));
        }
        return;
    };
    if actual.enabled && !wanted.enabled {
        commands.push(Command::ServerDisable(name.to_string()));
    }
    if actual.address != wanted.address {
        commands.push(Command::ServerAddress(name.clone(), wanted.address));
    }
    if actual.health != Some(wanted.health) {
        commands.push(Command::ServerHealth(name.clone(), wanted.health));
    }
    if actual.weight != wanted.weight {
        commands.push(Command::ServerWeight(name.clone(), wanted.weight));
    }
    if !actual.checked {
        commands.push(Command::ServerCheck(name.clone()));
    }
    if !actual.enabled && wanted.enabled {
        commands.push(Command::ServerEnable(name.clone()));
    }
}

impl Command {
    /// Whether it can wait: a weight that only moves a little of the load. From or to 0 it is a matter of landings.
    pub fn can_wait(&self, actual: &Actual) -> bool {
        match self {
            Self::ServerWeight(name, weight) => {
                let now = actual.pool.get(&name.to_string()).map_or(0, |server| server.weight);
                *weight != 0 && now != 0
            }
            Self::ServerDelete(_) => true,
            _ => false,
        }
    }
}

impl Actual {
    /// What HAProxy does once it has carried out `command`.
    pub fn apply(&mut self, command: &Command) {
        let mut server = |name: &str, change: &dyn Fn(&mut ActualServer)| {
            if let Some(server) = self.pool.get_mut(name) {
                change(server);
            }
        };
        match command {
            Command::MapReplace(map, rows) => {
                let rows = rows.clone();
                self.maps.insert(
                    *map,
                    ActualRows {
                        rows,
                        duplicates: false,
                    },
                );
            }
            Command::MapAdd(map, key, value) => {
                let map = self.maps.entry(*map).or_default();
                map.duplicates |= map.rows.insert(key.clone(), value.clone()).is_some();
            }
            Command::MapSet(map, key, value) => {
                self.maps
                    .entry(*map)
                    .or_default()
                    .rows
                    .insert(key.clone(), value.clone());
            }
            Command::MapDelete(map, key) => {
                self.maps.entry(*map).or_default().rows.remove(key);
            }
            Command::ServerAdd(name, wanted) => {
                let added = ActualServer {
                    address: wanted.address,
                    health: Some(wanted.health),
                    weight: wanted.weight,
                    enabled: false,
                    checked: false,
                    leaving: false,
                };
                self.pool.insert(name.to_string(), added);
            }
            Command::ServerAddress(name, address) => server(&name.to_string(), &|s| s.address = *address),
            Command::ServerHealth(name, address) => server(&name.to_string(), &|s| s.health = Some(*address)),
            Command::ServerWeight(name, weight) => server(&name.to_string(), &|s| s.weight = *weight),
            Command::ServerCheck(name) => server(&name.to_string(), &|s| s.checked = true),
            Command::ServerEnable(name) => server(&name.to_string(), &|s| (s.enabled, s.leaving) = (true, false)),
            Command::ServerDisable(name) => server(name, &|s| s.enabled = false),
            Command::ServerDelete(name) => {
                self.pool.remove(name);
            }
        }
    }

    /// Notes that HAProxy would not delete a server yet.
    pub fn still_leaving(&mut self, name: &str) {
        if let Some(server) = self.pool.get_mut(name) {
            server.leaving = true;
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
