//! The load balancers: which server a login goes to. The weights are routerd's own; HAProxy's part is modelled.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rssh_proto::ServerId;
use rssh_proto::name::NameMaster;
use rssh_proto::registration::{Registration, SignedRegistration};
use rssh_routerd::route::{Local, Routes, Source};
use rssh_routerd::verify::Verified;

use super::clock::random;

/// New logins that one HAProxy lets in within a second (`[haproxy.limits] devices-rate`); more wait in its queue.
const RATE: f64 = 500.0;

/// All load balancers of the fleet, which know the same.
pub(super) struct Balancers {
    routes: Routes,
    local: Local,
    /// The servers by their numbers, with the sums of the weights so far.
    weights: Vec<(usize, u64)>,
    /// When each of them lets the next login in.
    free: Vec<Duration>,
    /// Servers whose health checks have failed.
    down: Vec<bool>,
}

impl Balancers {
    /// So many, which know no server yet.
    pub(super) fn new(count: usize, servers: usize) -> Self {
        let local = Local {
            master: NameMaster::generate(),
            previous: None,
            revoked: Default::default(),
            revoked_users: Default::default(),
            revoked_serials: Default::default(),
        };
        Self {
            routes: Routes::default(),
            local,
            weights: Vec::new(),
            free: vec![Duration::ZERO; count],
            down: vec![false; servers],
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.free.len()
    }

    /// A server says what it is; its signature has been found good elsewhere.
    pub(super) fn handle_registration(&mut self, registration: Registration) {
        let signed = SignedRegistration {
            body: String::new(),
            certificate: String::new(),
            signature: String::new(),
        };
        self.routes
            .handle_registration(Verified { registration, signed }, Source::Redis);
    }

    /// Health checks of a server fail.
    pub(super) fn handle_down(&mut self, server: usize) {
        self.down[server] = true;
        self.weights.clear();
    }

    /// Takes routerd's weights over.
    ///
    /// # Errors
    /// When a server is not one of the fleet's.
    pub(super) fn weigh(&mut self, numbers: &BTreeMap<ServerId, usize>) -> Result<()> {
        self.weights.clear();
        let mut sum = 0;
        for (name, server) in self.routes.desired(&self.local).pool {
            let number = *numbers.get(&name.server).context("an unknown server")?;
            if server.enabled && server.weight > 0 && !self.down[number] {
                sum += u64::from(server.weight);
                self.weights.push((number, sum));
            }
        }
        Ok(())
    }

    /// When a login that arrives now gets through a balancer's queue.
    pub(super) fn admit(&mut self, balancer: usize, now: Duration) -> Duration {
        let free = &mut self.free[balancer];
        let at = now.max(*free);
        *free = at + Duration::from_secs_f64(1.0 / RATE);
        at
    }

    /// Draws two servers by weight and takes the one with fewer connections (`balance random(2)`); none when none is up.
    pub(super) fn pick(&self, connections: impl Fn(usize) -> usize) -> Option<usize> {
        let total = self.weights.last()?.1;
        let draw = || {
            let mark = random() % total;
            let at = self.weights.partition_point(|(_, sum)| *sum <= mark);
            self.weights[at].0
        };
        let (one, other) = (draw(), draw());
        Some(if connections(other) < connections(one) {
            other
        } else {
            one
        })
    }
}
