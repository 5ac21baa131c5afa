//! The table of a tunnel's life, and what holds in every history.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use rssh_proto::Target;
use rssh_proto::payload::{CloseOrder, OpenOrder, V1};

use super::*;

const TTL: Duration = Duration::from_secs(600);

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
        ssh_user: "rssh-tunnel".into(),
        within_ms: 10_000,
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

#[test]
fn an_order_is_acknowledged_before_ssh_starts() {
    let mut rig = Rig::new();
    let commands = rig.open(1);
    assert!(
        matches!(
            commands[..],
            [
                Command::Report {
                    event: DeviceEventKind::Accepted,
                    epoch: Epoch(0),
                    ..
                },
                Command::Land { .. }
            ]
        ),
        "{commands:?}"
    );
}

#[test]
fn a_repeated_order_is_acknowledged_again_and_starts_nothing() {
    let mut rig = Rig::new();
    rig.up();
    for epoch in [0, 1] {
        let commands = rig.open(epoch);
        assert!(
            matches!(
                commands[..],
                [Command::Report {
                    event: DeviceEventKind::Accepted,
                    epoch: Epoch(1),
                    ..
                }]
            ),
            "{commands:?}"
        );
    }
}

#[test]
fn a_newer_order_ends_the_older_ssh_first() {
    let mut rig = Rig::new();
    let old = rig.up();
    let commands = rig.open(2);
    assert_eq!(commands.last(), Some(&Command::End { attempt: old }));
    assert_eq!(rig.tunnels.held(), []);
    let new = landed_by(&rig.tunnels.handle_ended(old, Ended::Stopped, rig.now));
    rig.tunnels.handle_landed(new, &claimed(2));
    assert_eq!(rig.tunnels.held(), [(rig.id, Epoch(2))]);
}

#[test]
fn a_landing_under_way_serves_a_newer_order_when_its_claim_is_new_enough() {
    for (epoch, holds) in [(2, true), (1, false)] {
        let mut rig = Rig::new();
        let attempt = landed_by(&rig.open(1));
        assert_eq!(events(&rig.open(2)), [&DeviceEventKind::Accepted]);
        let commands = rig.tunnels.handle_landed(attempt, &claimed(epoch));
        assert_eq!(commands.is_empty(), holds, "{commands:?}");
        assert_eq!(!rig.tunnels.held().is_empty(), holds);
    }
}

#[test]
fn a_close_ends_ssh_and_is_reported_when_it_has_ended() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    assert_eq!(
        rig.tunnels.handle_close(&close(rig.id, 0)),
        [],
        "an older session is meant"
    );
    assert_eq!(rig.tunnels.handle_close(&close(rig.id, 1)), [Command::End { attempt }]);
    assert_eq!(rig.tunnels.handle_close(&close(rig.id, 1)), [], "once is enough");
    let commands = rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(events(&commands), [&DeviceEventKind::Closed]);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_late_copy_of_an_order_does_not_open_a_closed_tunnel_again() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    rig.tunnels.handle_close(&close(rig.id, 1));
    rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(events(&rig.open(1)), [&DeviceEventKind::Closed]);
    assert!(rig.tunnels.is_empty());
    landed_by(&rig.open(2));
}

#[test]
fn a_close_that_overtakes_its_order_keeps_the_tunnel_closed() {
    let mut rig = Rig::new();
    assert_eq!(
        events(&rig.tunnels.handle_close(&close(rig.id, 1))),
        [&DeviceEventKind::Closed]
    );
    assert_eq!(events(&rig.open(1)), [&DeviceEventKind::Closed]);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_tunnel_ends_at_its_deadline() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    assert_eq!(rig.tunnels.poll_timeout(), Some(rig.now + TTL));
    assert_eq!(rig.pass(TTL), [Command::End { attempt }]);
    let commands = rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(events(&commands), [&DeviceEventKind::Closed]);
}

#[test]
fn a_lost_tunnel_comes_back_until_its_deadline() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    let commands = rig.tunnels.handle_ended(attempt, passing(), rig.now);
    assert!(
        matches!(events(&commands)[..], [DeviceEventKind::Lost { .. }]),
        "{commands:?}"
    );
    let mut tries = 0;
    while let Some(due) = rig.tunnels.poll_timeout() {
        let commands = rig.pass(due - rig.now);
        if let Some(Command::Land { attempt, .. }) = commands.first() {
            tries += 1;
            rig.tunnels.handle_ended(*attempt, passing(), rig.now);
        }
    }
    assert!((20..100).contains(&tries), "{tries}");
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_first_landing_is_tried_again_while_the_fault_may_pass_and_the_asker_waits() {
    let mut rig = Rig::new();
    let mut attempt = landed_by(&rig.open(1));
    for _ in 1..FIRST_ATTEMPTS {
        assert_eq!(rig.tunnels.handle_ended(attempt, passing(), rig.now), []);
        let due = rig.tunnels.poll_timeout().unwrap();
        attempt = landed_by(&rig.pass(due - rig.now));
    }
    let commands = rig.tunnels.handle_ended(attempt, passing(), rig.now);
    assert_eq!(failure(&commands), FailureKind::SshFailed);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_lasting_fault_ends_a_first_landing_at_once() {
    let mut rig = Rig::new();
    let attempt = landed_by(&rig.open(1));
    let ended = Ended::Failed(Fault::lasting("the host key is wrong"));
    let commands = rig.tunnels.handle_ended(attempt, ended, rig.now);
    assert_eq!(failure(&commands), FailureKind::SshFailed);
}

#[test]
fn a_refused_claim_is_told_as_the_server_said_it() {
    let mut rig = Rig::new();
    let attempt = landed_by(&rig.open(1));
    let refused = Ended::Refused(Failure::new(FailureKind::UnknownTunnel, "closed"));
    let commands = rig.tunnels.handle_ended(attempt, refused, rig.now);
    assert_eq!(failure(&commands), FailureKind::UnknownTunnel);
}

#[test]
fn an_ssh_that_hangs_is_ended_before_the_asker_gives_up() {
    let mut rig = Rig::new();
    let attempt = landed_by(&rig.open(1));
    let due = rig.tunnels.poll_timeout().unwrap();
    assert!(due - rig.now < Duration::from_secs(10));
    assert_eq!(rig.pass(due - rig.now), [Command::End { attempt }]);
    let commands = rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(failure(&commands), FailureKind::Deadline);
}

#[test]
fn targets_are_looked_up_in_the_devices_own_list() {
    for (target, to) in [
        ("22", Some("localhost:22")),
        ("plc-1", Some("192.168.1.10:502")),
        ("192.168.1.10:502", Some("192.168.1.10:502")),
        ("23", None),
        ("192.168.1.10:22", None),
        ("plc-2", None),
    ] {
        let mut rig = Rig::new();
        let order = OpenOrder {
            target: target.parse().unwrap(),
            ..order(rig.id, 1)
        };
        let commands = rig.tunnels.handle_open(order, rig.now);
        let Some(to) = to else {
            assert_eq!(failure(&commands), FailureKind::TargetNotAllowed, "{target}");
            continue;
        };
        let leads_to = match &commands[1] {
            Command::Land { landing, .. } => landing.to.to_string(),
            Command::Dial { to, .. } => to.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(leads_to, to);
    }
}

#[test]
fn a_target_that_is_not_ssh_is_dialled_first() {
    let mut rig = Rig::new();
    let plc = OpenOrder {
        target: "plc-1".parse().unwrap(),
        ..order(rig.id, 1)
    };
    let commands = rig.tunnels.handle_open(plc.clone(), rig.now);
    let Command::Dial { attempt, .. } = commands[1] else {
        panic!("{commands:?}")
    };
    let commands = rig.tunnels.handle_dialed(attempt, Ok(()), rig.now);
    landed_by(&commands);

    let mut rig = Rig::new();
    let plc = OpenOrder { tunnel: rig.id, ..plc };
    let commands = rig.tunnels.handle_open(plc, rig.now);
    let Command::Dial { attempt, .. } = commands[1] else {
        panic!("{commands:?}")
    };
    let commands = rig
        .tunnels
        .handle_dialed(attempt, Err("connection refused".into()), rig.now);
    assert_eq!(failure(&commands), FailureKind::TargetRefused);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_dead_target_is_told_now_and_then_and_the_tunnel_stays() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    let commands = rig.tunnels.handle_refused(attempt, rig.now);
    assert_eq!(failure(&commands), FailureKind::TargetRefused);
    let [
        Command::Report {
            epoch: Epoch(1),
            event: DeviceEventKind::Failed(failure),
            ..
        },
    ] = &commands[..]
    else {
        panic!("{commands:?}")
    };
    assert_eq!(
        failure.message(),
        "nothing answers at localhost:22 on device-1; is sshd running there?"
    );
    rig.now += Duration::from_millis(1999);
    assert_eq!(rig.tunnels.handle_refused(attempt, rig.now), []);
    rig.now += Duration::from_millis(1);
    assert_eq!(rig.tunnels.handle_refused(attempt, rig.now).len(), 1);
    assert_eq!(rig.tunnels.held(), [(rig.id, Epoch(1))]);
}

#[test]
fn one_tunnel_too_many_is_refused_and_the_others_stay() {
    let mut rig = Rig::new();
    for _ in 0..policy().max {
        rig.id = TunnelId::generate();
        rig.up_beside();
    }
    let held = rig.tunnels.held();
    rig.id = TunnelId::generate();
    assert_eq!(failure(&rig.open(1)), FailureKind::DeviceLimit);
    assert_eq!(rig.tunnels.held(), held);
}

impl Rig {
    fn up_beside(&mut self) {
        let attempt = landed_by(&self.open(1));
        self.tunnels.handle_landed(attempt, &claimed(1));
    }
}

#[test]
fn a_window_spreads_the_return_of_a_fleet() {
    let mut rig = Rig::new();
    let spread = OpenOrder {
        jitter_ms: 5000,
        within_ms: 1000,
        ..order(rig.id, 1)
    };
    let commands = rig.tunnels.handle_open(spread, rig.now);
    assert_eq!(events(&commands), [&DeviceEventKind::Accepted]);
    assert_eq!(commands.len(), 1);
    assert_eq!(rig.tunnels.poll_timeout(), Some(rig.now + Duration::from_secs(5)));
    landed_by(&rig.pass(Duration::from_secs(5)));
}

#[test]
fn an_account_that_could_be_an_option_is_refused() {
    let mut rig = Rig::new();
    let hostile = OpenOrder {
        ssh_user: "-oProxyCommand=id".into(),
        ..order(rig.id, 1)
    };
    let commands = rig.tunnels.handle_open(hostile, rig.now);
    assert_eq!(failure(&commands), FailureKind::BadRequest);
}

#[test]
fn shutdown_ends_everything_and_takes_no_more_orders() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    assert_eq!(rig.tunnels.handle_shutdown(), [Command::End { attempt }]);
    let id = std::mem::replace(&mut rig.id, TunnelId::generate());
    assert_eq!(events(&rig.open(1)), [&DeviceEventKind::Closed]);
    rig.id = id;
    let commands = rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(events(&commands), [&DeviceEventKind::Closed]);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_tunnel_passes_to_the_next_agent_with_its_epoch_and_deadline() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    let (landing, deadline) = rig.tunnels.carried(attempt).unwrap();
    let landing = landing.clone();
    assert_eq!(rig.tunnels.handle_departure(), [Command::Leave { attempt }]);
    assert_eq!(rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now), []);
    assert!(rig.tunnels.is_empty());

    let mut next = Tunnels::new(policy());
    let attempt = next.adopt(landing, Epoch(1), deadline).unwrap();
    assert_eq!(next.held(), [(rig.id, Epoch(1))]);
    assert_eq!(next.poll_timeout(), Some(deadline));
    let commands = next.handle_ended(attempt, passing(), rig.now);
    assert!(matches!(events(&commands)[..], [DeviceEventKind::Lost { .. }]));
}

#[test]
fn what_is_not_up_is_given_up_silently_at_a_handover() {
    let mut rig = Rig::new();
    let attempt = landed_by(&rig.open(1));
    assert_eq!(rig.tunnels.handle_departure(), [Command::End { attempt }]);
    assert_eq!(rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now), []);
    assert!(rig.tunnels.is_empty());
}

#[test]
fn a_tunnel_to_where_the_device_no_longer_lets_is_not_taken_over() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    let (landing, deadline) = rig.tunnels.carried(attempt).unwrap();
    let landing = landing.clone();
    for targets in [
        Targets {
            allow: vec![],
            ..Targets::default()
        },
        Targets {
            localhost: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))),
            ..Targets::default()
        },
    ] {
        let mut next = Tunnels::new(Policy { targets, ..policy() });
        let failure = next.adopt(landing.clone(), Epoch(1), deadline).unwrap_err();
        assert_eq!(failure.kind, FailureKind::TargetNotAllowed);
        assert!(next.is_empty());
    }
}

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
        2 => (0..8_usize, any::<bool>()).prop_map(|(which, open)| Step::Dialed { which, open }),
        4 => (0..8_usize, 0..3_u64).prop_map(|(which, ahead)| Step::Landed { which, ahead }),
        3 => (0..8_usize, 0..5_usize).prop_map(|(which, how)| Step::Ended { which, how }),
        3 => (0..20_000_u64).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Pass { millis: 0 }),
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
