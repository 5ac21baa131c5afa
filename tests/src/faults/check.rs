//! The invariants, checked from a history alone.
//!
//! | | |
//! |---|---|
//! | holder | one live holder per (server, port), the process that the lease names; a tunnel's epoch never falls |
//! | banner | a success means that this device's banner came through the load balancer |
//! | deadline | no tunnel later than its deadline or its life + 10 s |
//! | owner | no lease without a listener, and no listener without a lease, longer than TTL + 10 s |
//! | answer | every request ends in success or a named error by its deadline |
//! | session | sessions that the fault does not pass through live on |

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::history::{Event, Record, Rows, Seen};

/// How long a server may be silent before others may declare it lost: `redis.ttl` by default.
pub const TTL_MS: u64 = 5_000;
/// What FIELD-proven systems may take on top.
const GRACE_MS: u64 = 10_000;
/// Two looks, one at the database and one at the kernel, are not one moment.
const BETWEEN_LOOKS_MS: u64 = 3_000;
/// How much later than its deadline a program may end: it starts and ends on a busy machine.
const LATE_MS: u64 = 2_000;
/// How long an untouched session may stand still before it counts as dead.
const STILL_MS: u64 = 10_000;
/// Exit codes that name a failure (`rssh --help`); 70 is a fault of the program itself, 64 one of the test.
const NAMED: [i32; 16] = [68, 69, 75, 77, 78, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90];

/// Which invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    Holder,
    Banner,
    Deadline,
    Owner,
    Answer,
    Session,
}

/// One breach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub invariant: Invariant,
    /// Milliseconds since the history began.
    pub at: u64,
    pub what: String,
}

/// Checks a whole history.
pub fn check(history: &[Record]) -> Vec<Violation> {
    let mut checker = Checker::default();
    for record in history {
        checker.take(record);
    }
    checker.finish(history.last().map_or(0, |record| record.at))
}

/// What is known of a session.
#[derive(Debug)]
struct Login {
    device: String,
    touched: bool,
    over: bool,
    last: u64,
}

#[derive(Debug)]
struct Asked {
    at: u64,
    device: String,
    timeout: u64,
    what: String,
    proves: bool,
}

/// Checks a history piece by piece.
#[derive(Debug, Default)]
pub struct Checker {
    violations: Vec<Violation>,
    /// What lasts is told once.
    told: HashSet<(Invariant, String)>,
    asked: HashMap<u32, Asked>,
    sessions: HashMap<u32, Login>,
    epochs: HashMap<String, u64>,
    /// Tunnels that have landed.
    landed: HashSet<String>,
    /// Since when something is not as it should be.
    since: HashMap<(Invariant, String), u64>,
}

impl Checker {
    fn tell(&mut self, invariant: Invariant, at: u64, what: impl Into<String>) {
        let what = what.into();
        if self.told.insert((invariant, what.clone())) {
            self.violations.push(Violation { invariant, at, what });
        }
    }

    /// What has been found until now.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &Record) {
        let at = record.at;
        match &record.event {
            Event::Asked {
                request,
                device,
                timeout_ms,
                what,
                proves,
            } => {
                let asked = Asked {
                    at,
                    device: device.clone(),
                    timeout: *timeout_ms,
                    what: what.clone(),
                    proves: *proves,
                };
                self.asked.insert(*request, asked);
            }
            Event::Answered {
                request,
                exit,
                took_ms,
                banner,
                message,
            } => self.answered(at, *request, *exit, *took_ms, banner.as_deref(), message),
            Event::Session { session, device } => {
                let login = Login {
                    device: device.clone(),
                    touched: false,
                    over: false,
                    last: at,
                };
                self.sessions.insert(*session, login);
            }
            Event::Touched { session } => {
                if let Some(login) = self.sessions.get_mut(session) {
                    login.touched = true;
                }
            }
            Event::Echo { session, .. } => self.moved(at, *session),
            Event::Ended { session, wanted } => {
                self.moved(at, *session);
                if let Some(login) = self.sessions.get_mut(session) {
                    login.over = true;
                    if !wanted && !login.touched {
                        let what = format!("the session on {} ended, which the fault did not touch", login.device);
                        self.tell(Invariant::Session, at, what);
                    }
                }
            }
            Event::Seen(seen) => self.seen(at, seen),
            Event::Fault { .. } | Event::Effect { .. } | Event::Repair { .. } | Event::Note { .. } => {}
        }
    }

    fn answered(&mut self, at: u64, request: u32, exit: Option<i32>, took: u64, banner: Option<&str>, message: &str) {
        let Some(asked) = self.asked.remove(&request) else {
            return self.tell(
                Invariant::Answer,
                at,
                format!("an answer to request {request}, which nobody made"),
            );
        };
        let Asked {
            device,
            what,
            timeout,
            proves,
            ..
        } = asked;
        if took > timeout + LATE_MS {
            self.tell(
                Invariant::Answer,
                at,
                format!("{what} took {took} ms, its deadline was {timeout} ms"),
            );
        }
        match exit {
            Some(0) => {
                // Its last word is the device's own name.
                let says = banner.and_then(|banner| banner.rsplit(' ').next());
                if proves && says != Some(&device) {
                    self.tell(Invariant::Banner, at, format!("{what} led to {banner:?}"));
                }
            }
            Some(code) if NAMED.contains(&code) && !message.trim().is_empty() => {}
            code => self.tell(
                Invariant::Answer,
                at,
                format!("{what} ended without a named error: {code:?} {message}"),
            ),
        }
    }

    fn moved(&mut self, at: u64, session: u32) {
        let Some(login) = self.sessions.get_mut(&session) else {
            return;
        };
        let still = at - login.last;
        login.last = at;
        if still > STILL_MS && !login.touched && !login.over {
            let what = format!(
                "the session on {} stood still for {still} ms, which the fault did not touch",
                login.device
            );
            self.tell(Invariant::Session, at, what);
        }
    }

    fn seen(&mut self, at: u64, seen: &Seen) {
        // What holds only while it is looked at: whatever is not wrong now begins anew.
        let mut wrong: HashMap<(Invariant, String), u64> = HashMap::new();
        let since = std::mem::take(&mut self.since);
        let mut lasting = |invariant: Invariant, what: String| {
            let key = (invariant, what);
            let began = since.get(&key).copied().unwrap_or(at);
            wrong.insert(key, began);
            at - began
        };
        let mut found = Vec::new();
        if let Some(rows) = &seen.rows {
            for lease in &rows.leases {
                let place = format!("s{}:{}", lease.server, lease.port);
                let held = seen
                    .listeners
                    .iter()
                    .any(|listener| (listener.server, listener.port) == (lease.server, lease.port));
                // Someone has to be there to take it back.
                if !held && !seen.serving.is_empty() {
                    let what = format!("the lease of {place} has no owner");
                    if lasting(Invariant::Owner, what.clone()) > TTL_MS + GRACE_MS {
                        found.push((Invariant::Owner, what));
                    }
                }
            }
            for listener in &seen.listeners {
                let place = format!("s{}:{}", listener.server, listener.port);
                let serving = seen.serving.contains(&listener.server);
                let leased = rows
                    .leases
                    .iter()
                    .any(|lease| (lease.server, lease.port) == (listener.server, listener.port));
                if !leased && serving {
                    let what = format!("a listener on {place} without a lease");
                    if lasting(Invariant::Owner, what.clone()) > TTL_MS + GRACE_MS {
                        found.push((Invariant::Owner, what));
                    }
                }
                if leased && serving && listener.by_lease == Some(false) {
                    let what = format!("the listener on {place} is another process's than its lease says");
                    if lasting(Invariant::Holder, what.clone()) > BETWEEN_LOOKS_MS {
                        found.push((Invariant::Holder, what));
                    }
                }
            }
        }
        self.since = wrong;
        for (invariant, what) in found {
            self.tell(invariant, at, what);
        }
        let mut sockets = HashSet::new();
        for listener in &seen.listeners {
            if !sockets.insert((listener.server, listener.port)) {
                let what = format!("two listeners on s{}:{}", listener.server, listener.port);
                self.tell(Invariant::Holder, at, what);
            }
        }
        if let Some(rows) = &seen.rows {
            self.rows(at, rows, !seen.serving.is_empty());
        }
    }

    fn rows(&mut self, at: u64, rows: &Rows, served: bool) {
        let (mut places, mut tunnels) = (HashSet::new(), HashSet::new());
        for lease in &rows.leases {
            if !places.insert((lease.server, lease.port)) {
                let what = format!("two leases of s{}:{}", lease.server, lease.port);
                self.tell(Invariant::Holder, at, what);
            }
            if !tunnels.insert(&lease.tunnel) {
                self.tell(Invariant::Holder, at, format!("two leases of tunnel {}", lease.tunnel));
            }
        }
        let limit = -(GRACE_MS as i64);
        for tunnel in &rows.tunnels {
            let before = self.epochs.insert(tunnel.id.clone(), tunnel.epoch);
            if let Some(before) = before.filter(|before| *before > tunnel.epoch) {
                let what = format!(
                    "the epoch of tunnel {} fell from {before} to {}",
                    tunnel.id, tunnel.epoch
                );
                self.tell(Invariant::Holder, at, what);
            }
            let waits = tunnel.state == "requested";
            let first = !waits && self.landed.insert(tunnel.id.clone());
            if (waits && served || first) && tunnel.deadline_ms < limit && before.is_some() {
                let what = format!("tunnel {} is {} past its deadline", tunnel.id, tunnel.state);
                self.tell(Invariant::Deadline, at, what);
            }
            if served && tunnel.expires_ms < limit {
                let what = format!("tunnel {} is {} past its life", tunnel.id, tunnel.state);
                self.tell(Invariant::Deadline, at, what);
            }
        }
    }

    /// Ends the history at this moment; returns the breaches.
    #[must_use]
    pub fn finish(mut self, at: u64) -> Vec<Violation> {
        self.end(at);
        self.violations
    }

    fn end(&mut self, at: u64) {
        let left: Vec<_> = self.asked.drain().collect();
        for (_, asked) in left {
            if at > asked.at + asked.timeout + LATE_MS {
                self.tell(Invariant::Answer, at, format!("{} was never answered", asked.what));
            }
        }
        let living: Vec<u32> = self
            .sessions
            .iter()
            .filter_map(|(session, login)| (!login.over).then_some(*session))
            .collect();
        for session in living {
            self.moved(at, session);
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
