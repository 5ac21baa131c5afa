//! The lease machine by table, and by random histories with a simulated clock.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rssh_proto::{DeviceId, Epoch, FailureKind, TunnelId};
use rssh_serverd::config::PortRange;
use rssh_serverd::lease::{Command, Leases, Limits, Over, Terms};
use rssh_serverd::process::Process;

const RANGE: PortRange = PortRange {
    first: 2000,
    last: 2003,
};
const CLAIM_WITHIN: Duration = Duration::from_secs(10);
const REST: Duration = Duration::from_secs(130);

fn machine() -> Leases {
    let limits = Limits {
        claim_within: CLAIM_WITHIN,
        rest: REST,
    };
    Leases::new(RANGE, limits)
}

fn monitor(n: i32) -> Process {
    Process {
        pid: 1000 + n,
        start: 7,
    }
}

fn child(n: i32) -> Process {
    Process {
        pid: 2000 + n,
        start: 7,
    }
}

fn device() -> DeviceId {
    "device-1".parse().unwrap()
}

fn terms(epoch: u64) -> Terms {
    Terms {
        epoch: Epoch(epoch),
        ttl: Duration::from_secs(3600),
        idle: None,
    }
}

fn authorize(leases: &mut Leases, n: i32, now: Instant) -> u16 {
    leases
        .handle_authorize(monitor(n), &device(), None, || 0, |_| true, now)
        .unwrap()
}

/// A login that holds a tunnel.
fn holding(leases: &mut Leases, n: i32, tunnel: TunnelId, epoch: u64, now: Instant) -> u16 {
    let port = authorize(leases, n, now);
    assert_eq!(leases.handle_claim(monitor(n), child(n), &device(), tunnel), Ok(port));
    leases.handle_granted(monitor(n), terms(epoch), now);
    port
}

#[test]
fn sshd_asks_twice_and_gets_the_same_port() {
    let (mut leases, now) = (machine(), Instant::now());
    let port = authorize(&mut leases, 1, now);
    assert_eq!(authorize(&mut leases, 1, now), port);
    assert_ne!(authorize(&mut leases, 2, now), port);
}

#[test]
fn a_wish_is_honoured_when_the_port_is_free_and_usable() {
    let (mut leases, now) = (machine(), Instant::now());
    let mut ask = |n, wish, usable: fn(u16) -> bool| {
        leases
            .handle_authorize(monitor(n), &device(), Some(wish), || 0, usable, now)
            .unwrap()
    };
    assert_eq!(ask(1, 2002, |_| true), 2002);
    assert_ne!(ask(2, 2002, |_| true), 2002);
    assert!(RANGE.contains(ask(3, 80, |_| true)));
    assert_ne!(ask(4, 2003, |port| port != 2003), 2003);
}

#[test]
fn a_full_server_says_busy_and_ports_that_strangers_hold_come_back() {
    let (mut leases, now) = (machine(), Instant::now());
    let refused = leases
        .handle_authorize(monitor(1), &device(), None, || 0, |_| false, now)
        .unwrap_err();
    assert_eq!(refused.kind, FailureKind::Busy);
    let later = now + Duration::from_secs(6);
    for n in 1..=4 {
        authorize(&mut leases, n, later);
    }
    assert!(
        leases
            .handle_authorize(monitor(5), &device(), None, || 0, |_| true, later)
            .is_err()
    );
}

#[test]
fn a_login_that_does_not_claim_in_time_is_killed_until_it_ends() {
    let (mut leases, now) = (machine(), Instant::now());
    let port = authorize(&mut leases, 1, now);
    assert_eq!(leases.poll_timeout(), Some(now + CLAIM_WITHIN));
    let kill = vec![Command::Kill {
        login: monitor(1),
        child: None,
    }];
    let mut at = now + CLAIM_WITHIN;
    assert_eq!(leases.handle_timeout(at), kill);
    at += Duration::from_secs(1);
    assert_eq!(leases.handle_timeout(at), kill);
    assert!(
        leases.permits(port),
        "the port is the login's until its process has ended"
    );
    assert_eq!(leases.handle_ended(monitor(1), at), vec![]);
    assert!(!leases.permits(port));
}

#[test]
fn a_claim_is_for_the_login_of_that_device_once() {
    let (mut leases, now) = (machine(), Instant::now());
    let tunnel = TunnelId::generate();
    assert!(denied(leases.handle_claim(monitor(1), child(1), &device(), tunnel)));
    authorize(&mut leases, 1, now);
    let other: DeviceId = "device-2".parse().unwrap();
    assert!(denied(leases.handle_claim(monitor(1), child(1), &other, tunnel)));
    assert!(leases.handle_claim(monitor(1), child(1), &device(), tunnel).is_ok());
    assert!(denied(leases.handle_claim(monitor(1), child(1), &device(), tunnel)));
    leases.handle_granted(monitor(1), terms(1), now);
    assert!(denied(leases.handle_claim(
        monitor(1),
        child(1),
        &device(),
        TunnelId::generate()
    )));
}

fn denied(claim: Result<u16, rssh_proto::Failure>) -> bool {
    claim.is_err_and(|failure| failure.kind == FailureKind::Denied)
}

#[test]
fn a_login_whose_device_was_told_what_its_port_is_for_claims_it_by_listening() {
    let (mut leases, now) = (machine(), Instant::now());
    let (tunnel, other) = (TunnelId::generate(), TunnelId::generate());
    let port = authorize(&mut leases, 1, now);
    assert!(!leases.awaits_listener(monitor(1)));
    assert_eq!(leases.handle_listening(monitor(1), child(1)), None, "nothing was told");
    assert!(leases.handle_told(monitor(1), tunnel));
    assert!(!leases.handle_told(monitor(1), tunnel), "once");
    assert!(
        !leases.handle_asked(monitor(1), child(1), &device(), tunnel),
        "it has not claimed"
    );
    assert!(leases.awaits_listener(monitor(1)));
    assert_eq!(
        leases.handle_listening(monitor(1), child(1)),
        Some((port, device(), tunnel))
    );
    assert!(!leases.awaits_listener(monitor(1)));
    assert_eq!(leases.handle_listening(monitor(1), child(1)), None);
    // The device asks what came of it, once; of another tunnel, or again, it is a second claim.
    assert!(!leases.handle_asked(monitor(1), child(1), &device(), other));
    assert!(!leases.handle_asked(monitor(1), child(2), &device(), tunnel));
    assert!(denied(leases.handle_claim(monitor(1), child(1), &device(), other)));
    leases.handle_granted(monitor(1), terms(1), now);
    assert_eq!(leases.held(tunnel).unwrap().port, port);
    assert!(leases.handle_asked(monitor(1), child(1), &device(), tunnel));
    assert!(!leases.handle_asked(monitor(1), child(1), &device(), tunnel));
    assert!(denied(leases.handle_claim(monitor(1), child(1), &device(), tunnel)));
}

#[test]
fn a_listener_claims_nothing_for_a_login_that_claims_itself_is_ended_or_belongs_to_another_device() {
    let (mut leases, now) = (machine(), Instant::now());
    let (tunnel, other) = (TunnelId::generate(), TunnelId::generate());
    authorize(&mut leases, 1, now);
    assert!(leases.handle_told(monitor(1), tunnel));
    leases.handle_claim(monitor(1), child(1), &device(), other).unwrap();
    assert_eq!(leases.handle_listening(monitor(1), child(1)), None);
    assert!(!leases.handle_told(monitor(1), tunnel));
    assert!(!leases.handle_asked(monitor(1), child(1), &device(), other));

    authorize(&mut leases, 2, now);
    assert!(leases.handle_told(monitor(2), tunnel));
    leases.handle_timeout(now + CLAIM_WITHIN);
    assert_eq!(leases.handle_listening(monitor(2), child(2)), None);

    authorize(&mut leases, 3, now);
    assert!(leases.handle_told(monitor(3), tunnel));
    let another: DeviceId = "device-2".parse().unwrap();
    leases
        .handle_authorize(monitor(3), &another, None, || 0, |_| true, now)
        .unwrap();
    assert_eq!(leases.handle_listening(monitor(3), child(3)), None);
}

#[test]
fn a_newer_epoch_ends_the_older_session_and_the_older_end_leaves_the_newer_alone() {
    let (mut leases, now) = (machine(), Instant::now());
    let tunnel = TunnelId::generate();
    let old_port = holding(&mut leases, 1, tunnel, 1, now);
    let new_port = authorize(&mut leases, 2, now);
    leases.handle_claim(monitor(2), child(2), &device(), tunnel).unwrap();
    let (older, commands) = leases.handle_granted(monitor(2), terms(2), now);
    assert_eq!(older, Some(child(1)));
    assert_eq!(
        commands,
        vec![Command::Kill {
            login: monitor(1),
            child: Some(child(1))
        }]
    );
    assert_ne!(old_port, new_port);

    let release = Command::Release {
        port: old_port,
        tunnel,
        epoch: Epoch(1),
    };
    assert_eq!(leases.handle_ended(child(1), now), vec![release]);
    let held = leases.held(tunnel).unwrap();
    assert_eq!((held.port, held.epoch, held.child), (new_port, Epoch(2), child(2)));
    assert_eq!(leases.handle_evict(tunnel, Epoch(2), now), vec![]);
    assert_eq!(leases.handle_evict(tunnel, Epoch(3), now).len(), 1);
}

#[test]
fn an_older_grant_that_is_heard_late_does_not_end_the_newer_session() {
    let (mut leases, now) = (machine(), Instant::now());
    let tunnel = TunnelId::generate();
    authorize(&mut leases, 1, now);
    leases.handle_claim(monitor(1), child(1), &device(), tunnel).unwrap();
    let port = holding(&mut leases, 2, tunnel, 2, now);
    let (older, commands) = leases.handle_granted(monitor(1), terms(1), now);
    assert_eq!(older, None);
    assert_eq!(
        commands,
        vec![Command::Kill {
            login: monitor(1),
            child: Some(child(1))
        }]
    );
    assert_eq!(leases.handle_ended(child(1), now).len(), 1);
    assert_eq!(leases.held(tunnel).map(|held| held.port), Some(port));
}

#[test]
fn the_monitors_death_leaves_a_claimed_session_alone() {
    let (mut leases, now) = (machine(), Instant::now());
    let tunnel = TunnelId::generate();
    let port = holding(&mut leases, 1, tunnel, 1, now);
    assert_eq!(leases.handle_ended(monitor(1), now), vec![]);
    assert!(leases.permits(port) && leases.held(tunnel).is_some());
    assert_eq!(leases.handle_ended(child(1), now).len(), 1);
    assert!(!leases.permits(port));
}

#[test]
fn a_tunnel_is_closed_when_its_life_or_its_idle_time_is_over() {
    let (mut leases, now) = (machine(), Instant::now());
    let (mortal, idle) = (TunnelId::generate(), TunnelId::generate());
    holding(&mut leases, 1, mortal, 1, now);
    let port = authorize(&mut leases, 2, now);
    leases.handle_claim(monitor(2), child(2), &device(), idle).unwrap();
    let minute = Duration::from_secs(60);
    leases.handle_granted(
        monitor(2),
        Terms {
            idle: Some(minute),
            ..terms(1)
        },
        now,
    );
    assert!(leases.counts_connections());

    leases.handle_connections(|used| u32::from(used == port), now + minute / 2);
    assert_eq!(leases.handle_timeout(now + minute), vec![]);
    let commands = leases.handle_timeout(now + minute * 3 / 2);
    assert_eq!(
        commands[0],
        Command::Close {
            tunnel: idle,
            epoch: Epoch(1),
            why: Over::Idle
        }
    );
    assert_eq!(
        commands[1],
        Command::Kill {
            login: monitor(2),
            child: Some(child(2))
        }
    );
    leases.handle_ended(child(2), now + minute * 2);
    let commands = leases.handle_timeout(now + Duration::from_secs(3600));
    assert_eq!(
        commands[0],
        Command::Close {
            tunnel: mortal,
            epoch: Epoch(1),
            why: Over::Expired
        }
    );
}

#[test]
fn an_adopted_session_is_held_like_any_other() {
    let (mut leases, now) = (machine(), Instant::now());
    let tunnel = TunnelId::generate();
    assert!(leases.adopt(child(1), 2001, device(), tunnel, terms(4), now));
    assert!(
        !leases.adopt(child(2), 2001, device(), TunnelId::generate(), terms(1), now),
        "the port is taken"
    );
    assert!(
        !leases.adopt(child(3), 80, device(), TunnelId::generate(), terms(1), now),
        "not a port to lease"
    );
    assert_eq!(leases.held(tunnel).unwrap().port, 2001);
    let release = Command::Release {
        port: 2001,
        tunnel,
        epoch: Epoch(4),
    };
    assert_eq!(leases.handle_ended(child(1), now), vec![release]);
}

#[test]
fn a_session_that_ends_while_its_claim_is_written_frees_its_port_after_a_rest() {
    let (mut leases, now) = (machine(), Instant::now());
    let port = authorize(&mut leases, 1, now);
    leases
        .handle_claim(monitor(1), child(1), &device(), TunnelId::generate())
        .unwrap();
    assert!(leases.is_claiming(monitor(1)));
    assert_eq!(leases.handle_ended(child(1), now), vec![]);
    assert!(
        !leases.is_claiming(monitor(1)),
        "the daemon takes the lease back itself"
    );
    assert!(!leases.permits(port));
    assert_eq!(leases.counts().resting, 1);
}

/// One thing that may happen.
#[derive(Debug, Clone)]
enum Step {
    Authorize(i32),
    Claim(i32, usize),
    /// It listens, after its device was told what for.
    Listen(i32, usize),
    Answer(i32, bool),
    Monitor(i32),
    Child(i32),
    Evict(usize, u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let login = 0..8_i32;
    prop_oneof![
        4 => login.clone().prop_map(Step::Authorize),
        4 => (login.clone(), 0..3_usize).prop_map(|(n, tunnel)| Step::Claim(n, tunnel)),
        2 => (login.clone(), 0..3_usize).prop_map(|(n, tunnel)| Step::Listen(n, tunnel)),
        4 => (login.clone(), prop::bool::weighted(0.8)).prop_map(|(n, granted)| Step::Answer(n, granted)),
        1 => login.clone().prop_map(Step::Monitor),
        2 => login.prop_map(Step::Child),
        1 => (0..3_usize, 0..6_u64).prop_map(|(tunnel, below)| Step::Evict(tunnel, below)),
        2 => (0..200_u64).prop_map(Step::Wait),
    ]
}

/// What the world looks like beside the machine: which login's process may still listen on which port.
#[derive(Default)]
struct World {
    /// Login -> port that sshd permits it, for as long as its process lives.
    permitted: HashMap<i32, u16>,
    claiming: HashMap<i32, TunnelId>,
    held: HashMap<i32, (TunnelId, Epoch)>,
    epochs: HashMap<TunnelId, u64>,
    /// Port -> when the last name signed for it has expired.
    named_until: HashMap<u16, Instant>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_history_gives_a_port_to_two_logins_or_frees_it_while_a_name_leads_there(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut leases = machine();
        let mut world = World::default();
        let mut now = Instant::now();
        let tunnels: Vec<TunnelId> = (0..3).map(|_| TunnelId::generate()).collect();
        // A process id is used once: the kernel tells holders apart by their start.
        let mut round: HashMap<i32, u64> = HashMap::new();
        let process = |kind: fn(i32) -> Process, n: i32, round: &HashMap<i32, u64>| {
            Process { start: *round.get(&n).unwrap_or(&0), ..kind(n) }
        };
        for step in steps {
            let mut commands = Vec::new();
            match step {
                Step::Authorize(n) => {
                    let login = process(monitor, n, &round);
                    let outcome = leases.handle_authorize(login, &device(), None, || now.elapsed().subsec_nanos().into(), |_| true, now);
                    if let Ok(port) = outcome {
                        if let Some(known) = world.permitted.get(&n) {
                            prop_assert_eq!(*known, port);
                        } else {
                            prop_assert!(!world.permitted.values().any(|taken| *taken == port), "port {} has two logins", port);
                            let named = world.named_until.get(&port);
                            prop_assert!(named.is_none_or(|until| *until <= now), "port {} is still named", port);
                            world.permitted.insert(n, port);
                        }
                    }
                }
                Step::Claim(n, which) => {
                    let (login, child) = (process(monitor, n, &round), process(child, n, &round));
                    let outcome = leases.handle_claim(login, child, &device(), tunnels[which]);
                    if let Ok(port) = outcome {
                        prop_assert_eq!(world.permitted.get(&n), Some(&port));
                        prop_assert!(!world.held.contains_key(&n) && !world.claiming.contains_key(&n));
                        world.claiming.insert(n, tunnels[which]);
                    }
                }
                Step::Listen(n, which) => {
                    let (login, child) = (process(monitor, n, &round), process(child, n, &round));
                    leases.handle_told(login, tunnels[which]);
                    if let Some((port, _, told)) = leases.handle_listening(login, child) {
                        prop_assert_eq!(told, tunnels[which]);
                        prop_assert_eq!(world.permitted.get(&n), Some(&port));
                        prop_assert!(!world.held.contains_key(&n) && !world.claiming.contains_key(&n));
                        world.claiming.insert(n, told);
                    }
                }
                Step::Answer(n, granted) => {
                    if let Some(tunnel) = world.claiming.remove(&n) {
                        let login = process(monitor, n, &round);
                        prop_assert!(leases.is_claiming(login));
                        if granted {
                            let epoch = world.epochs.entry(tunnel).or_default();
                            *epoch += 1;
                            let (_, ordered) = leases.handle_granted(login, terms(*epoch), now);
                            commands = ordered;
                            for (other, _) in world.held.iter().filter(|(_, (held, _))| *held == tunnel) {
                                let killed = commands.iter().any(|command| {
                                    matches!(command, Command::Kill { login, .. } if *login == process(monitor, *other, &round))
                                });
                                let ending = leases.held(tunnel).is_some_and(|held| held.epoch == Epoch(*epoch));
                                prop_assert!(killed || ending);
                            }
                            world.held.insert(n, (tunnel, Epoch(*epoch)));
                        } else {
                            commands = leases.handle_refused(login, now);
                        }
                    }
                }
                Step::Monitor(n) => {
                    let unclaimed = !world.held.contains_key(&n) && !world.claiming.contains_key(&n);
                    commands = leases.handle_ended(process(monitor, n, &round), now);
                    prop_assert!(commands.is_empty());
                    if unclaimed && !leases.knows_login(process(monitor, n, &round)) {
                        world.permitted.remove(&n);
                        *round.entry(n).or_default() += 1;
                    }
                }
                Step::Child(n) => {
                    let ended = process(child, n, &round);
                    if leases.knows_child(ended) {
                        commands = leases.handle_ended(ended, now);
                        let port = world.permitted.remove(&n).expect("a child's login has a port");
                        world.claiming.remove(&n);
                        match world.held.remove(&n) {
                            Some((tunnel, epoch)) => {
                                prop_assert_eq!(&commands, &vec![Command::Release { port, tunnel, epoch }]);
                                world.named_until.insert(port, now + REST);
                            }
                            None => prop_assert!(commands.is_empty()),
                        }
                        *round.entry(n).or_default() += 1;
                    }
                }
                Step::Evict(which, below) => {
                    commands = leases.handle_evict(tunnels[which], Epoch(below), now);
                    let newest = world.held.values().filter(|(held, _)| *held == tunnels[which]).map(|(_, epoch)| *epoch).max();
                    prop_assert!(commands.is_empty() || newest.is_some_and(|epoch| epoch < Epoch(below)));
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    commands = leases.handle_timeout(now);
                    prop_assert!(leases.poll_timeout().is_none_or(|due| due > now));
                }
            }
            for command in commands {
                if let Command::Kill { login, .. } = command {
                    prop_assert!(leases.knows_login(login), "a stranger would be killed");
                }
            }
            for port in world.permitted.values() {
                prop_assert!(leases.permits(*port), "a living login lost port {}", port);
            }
        }

        // Everything ends, and every port comes back.
        for n in 0..8 {
            leases.handle_ended(process(child, n, &round), now);
            leases.handle_ended(process(monitor, n, &round), now);
        }
        now += REST;
        leases.handle_timeout(now);
        let counts = leases.counts();
        prop_assert_eq!((counts.held, counts.landing, counts.free, counts.resting), (0, 0, 4, 0));
    }
}
