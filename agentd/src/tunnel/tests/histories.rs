//! What holds in every history.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One thing that may happen; which ssh or tunnel it happens to is an index into those there are.
#[derive(Debug, Clone)]
enum Step {
    Open {
        tunnel: usize,
        epoch: u64,
        target: &'static str,
        within_ms: u32,
        ttl_s: u32,
        jitter_ms: u32,
    },
    Close {
        tunnel: usize,
        epoch: u64,
    },
    /// Word of a port comes, however late.
    Port {
        tunnel: usize,
    },
    Dialed {
        which: usize,
        open: bool,
    },
    Landed {
        which: usize,
        ahead: u64,
    },
    Ended {
        which: usize,
        how: usize,
    },
    Pass {
        millis: u64,
    },
    /// The network changes; the connections of those whose bit is set are stranded.
    Network {
        stranded: u8,
    },
    Shutdown,
    /// The agent goes and another comes; it finds the ssh that is up, or ends it.
    Restart {
        killed: bool,
        found: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let target = prop::sample::select(vec!["22", "22", "plc-1", "23"]);
    prop_oneof![
        4 => (0..4_usize, 0..5_u64, target, 0..12_000_u32, 0..60_u32, prop_oneof![Just(0), 0..3000_u32]).prop_map(
            |(tunnel, epoch, target, within_ms, ttl_s, jitter_ms)| Step::Open {
                tunnel, epoch, target, within_ms, ttl_s, jitter_ms
            }
        ),
        1 => (0..4_usize, 0..5_u64).prop_map(|(tunnel, epoch)| Step::Close { tunnel, epoch }),
        2 => (0..4_usize).prop_map(|tunnel| Step::Port { tunnel }),
        2 => (0..8_usize, any::<bool>()).prop_map(|(which, open)| Step::Dialed { which, open }),
        4 => (0..8_usize, 0..3_u64).prop_map(|(which, ahead)| Step::Landed { which, ahead }),
        3 => (0..8_usize, 0..5_usize).prop_map(|(which, how)| Step::Ended { which, how }),
        3 => (0..20_000_u64).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Pass { millis: 0 }),
        2 => any::<u8>().prop_map(|stranded| Step::Network { stranded }),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(killed, found)| Step::Restart { killed, found }),
        1 => prop::num::u8::ANY.prop_map(|n| if n < 8 { Step::Shutdown } else { Step::Pass { millis: 1 } }),
    ]
}

/// The world around the machine: processes that run, dials that are under way, and what was reported.
struct World {
    tunnels: Tunnels,
    ids: Vec<TunnelId>,
    now: Instant,
    running: Vec<Attempt>,
    told_to_end: Vec<Attempt>,
    told_to_leave: Vec<Attempt>,
    /// What is kept for the next agent: what was landed, by which epoch and until when.
    records: Vec<(Attempt, Landing, Epoch, Instant)>,
    dials: Vec<Attempt>,
    /// Orders that wait for an event.
    unanswered: Vec<TunnelId>,
}

impl World {
    fn new() -> Self {
        Self {
            tunnels: Tunnels::new(policy()),
            ids: (0..4).map(|_| TunnelId::generate()).collect(),
            now: Instant::now(),
            running: vec![],
            told_to_end: vec![],
            told_to_leave: vec![],
            records: vec![],
            dials: vec![],
            unanswered: vec![],
        }
    }

    fn execute(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Report { tunnel, .. } => self.unanswered.retain(|id| *id != tunnel),
                Command::Dial { attempt, .. } => self.dials.push(attempt),
                Command::Land { attempt, .. } => {
                    let beside = self.running.iter().find(|running| running.tunnel == attempt.tunnel);
                    assert_eq!(beside, None, "a second ssh for one tunnel");
                    self.running.push(attempt);
                }
                Command::Forward { attempt, .. } => {
                    assert!(self.running.contains(&attempt), "nothing to forward");
                    assert!(!self.told_to_end.contains(&attempt), "it is being ended");
                }
                Command::End { attempt } => {
                    assert!(self.running.contains(&attempt), "nothing to end");
                    assert!(!self.told_to_end.contains(&attempt), "told twice");
                    self.told_to_end.push(attempt);
                }
                Command::Leave { attempt } => {
                    assert!(self.running.contains(&attempt), "nothing to leave");
                    self.told_to_leave.push(attempt);
                }
            }
        }
        let held = self.tunnels.held();
        for (id, _) in &held {
            assert!(
                self.running.iter().any(|running| running.tunnel == *id),
                "held without an ssh"
            );
        }
        assert!(held.len() <= policy().max, "over the limit");
    }

    fn epoch_of(&self, attempt: Attempt) -> Epoch {
        let held = self.tunnels.held();
        held.iter().find(|held| held.0 == attempt.tunnel).expect("it is up").1
    }

    fn restart(&mut self, killed: bool, found: bool) {
        let held = self.tunnels.held();
        if !killed {
            let commands = self.tunnels.handle_departure();
            self.execute(commands);
            while let Some(attempt) = self.told_to_end.first().copied() {
                self.end(attempt, Ended::Stopped);
            }
            for attempt in std::mem::take(&mut self.told_to_leave) {
                let commands = self.tunnels.handle_ended(attempt, Ended::Stopped, self.now);
                self.execute(commands);
            }
            assert!(self.tunnels.is_empty(), "{:?}", self.tunnels);
        }
        self.tunnels = Tunnels::new(policy());
        self.told_to_end.clear();
        self.dials.clear();
        self.unanswered.clear();
        let running = std::mem::take(&mut self.running);
        for (attempt, landing, epoch, deadline) in std::mem::take(&mut self.records) {
            if found && running.contains(&attempt) {
                let adopted = self.tunnels.adopt(landing.clone(), epoch, deadline).unwrap();
                self.records.push((adopted, landing, epoch, deadline));
                self.running.push(adopted);
            }
        }
        if found {
            let now_held = self.tunnels.held();
            assert!(held.iter().all(|held| now_held.contains(held)), "lost by the restart");
        }
    }

    fn end(&mut self, attempt: Attempt, ended: Ended) {
        self.running.retain(|running| *running != attempt);
        self.told_to_end.retain(|told| *told != attempt);
        let commands = self.tunnels.handle_ended(attempt, ended, self.now);
        self.execute(commands);
    }

    /// Lets time pass, with every timeout handled when it is due, and a killed ssh ending at once.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            while let Some(attempt) = self.told_to_end.first().copied() {
                self.end(attempt, Ended::Stopped);
            }
            let Some(due) = self.tunnels.poll_timeout().filter(|due| *due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            let commands = self.tunnels.handle_timeout(self.now);
            self.execute(commands);
            let next = self.tunnels.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "a timeout that stays due");
        }
        self.now = until;
    }

    fn step(&mut self, step: Step) {
        let nth = |list: &[Attempt], which: usize| list.get(which % list.len().max(1)).copied();
        match step {
            Step::Open {
                tunnel,
                epoch,
                target,
                within_ms,
                ttl_s,
                jitter_ms,
            } => {
                let order = OpenOrder {
                    target: target.parse().unwrap(),
                    within_ms,
                    ttl_s,
                    jitter_ms,
                    ..order(self.ids[tunnel], epoch)
                };
                self.unanswered.push(order.tunnel);
                let commands = self.tunnels.handle_open(order, self.now);
                self.execute(commands);
            }
            Step::Close { tunnel, epoch } => {
                let commands = self.tunnels.handle_close(&close(self.ids[tunnel], epoch));
                self.execute(commands);
            }
            Step::Port { tunnel } => {
                let commands = self.tunnels.handle_port(&port(self.ids[tunnel]));
                self.execute(commands);
            }
            Step::Dialed { which, open } => {
                if let Some(attempt) = nth(&self.dials, which) {
                    self.dials.retain(|dial| *dial != attempt);
                    let outcome = if open { Ok(()) } else { Err("refused".to_owned()) };
                    let commands = self.tunnels.handle_dialed(attempt, outcome, self.now);
                    self.execute(commands);
                }
            }
            Step::Landed { which, ahead } => {
                if let Some(attempt) = nth(&self.running, which) {
                    let commands = self.tunnels.handle_landed(attempt, &claimed(1 + ahead));
                    if let Some((landing, deadline)) = self.tunnels.carried(attempt) {
                        self.records.retain(|record| record.0 != attempt);
                        self.records
                            .push((attempt, landing.clone(), self.epoch_of(attempt), deadline));
                    }
                    self.execute(commands);
                }
            }
            Step::Ended { which, how } => {
                if let Some(attempt) = nth(&self.running, which) {
                    let ended = match how {
                        0 => Ended::Failed(Fault::lasting("x")),
                        1 => Ended::Refused(Failure::new(FailureKind::UnknownTunnel, "x")),
                        2 => Ended::Refused(Failure::new(FailureKind::Busy, "x")),
                        _ => passing(),
                    };
                    self.end(attempt, ended);
                }
            }
            Step::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Step::Restart { killed, found } => self.restart(killed, found),
            Step::Network { stranded } => {
                let running = self.running.iter().enumerate();
                let stranded: BTreeSet<Attempt> = running
                    .filter(|(nth, _)| stranded >> (nth % 8) & 1 == 1)
                    .map(|(_, attempt)| *attempt)
                    .collect();
                let commands = self.tunnels.handle_network(&stranded, self.now);
                self.execute(commands);
            }
            Step::Shutdown => {
                let commands = self.tunnels.handle_shutdown();
                self.execute(commands);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn in_every_history_a_tunnel_has_one_ssh_at_most_and_ends_by_its_deadline(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // Longer than any deadline in the history.
        world.pass(Duration::from_secs(120));
        prop_assert!(world.tunnels.is_empty(), "{:?}", world.tunnels);
        prop_assert_eq!(&world.running, &[], "an ssh is left");
        prop_assert_eq!(&world.unanswered, &[], "an order without an event");
    }
}
