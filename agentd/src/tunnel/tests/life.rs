//! Landings, losses and ends.

use super::*;

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
fn an_ssh_that_hangs_leaves_time_for_another() {
    let mut rig = Rig::new();
    let opened = rig.now;
    let attempt = landed_by(&rig.open(1));
    let due = rig.tunnels.poll_timeout().unwrap();
    assert_eq!(rig.pass(due - rig.now), [Command::End { attempt }]);
    assert_eq!(rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now), []);
    let due = rig.tunnels.poll_timeout().unwrap();
    landed_by(&rig.pass(due - rig.now));
    assert!(rig.now - opened < PATIENCE * 2 / 3, "{:?}", rig.now - opened);
}

#[test]
fn when_every_ssh_hangs_it_is_told_before_the_asker_gives_up() {
    let mut rig = Rig::new();
    let opened = rig.now;
    let mut commands = rig.open(1);
    let mut attempts = 0;
    while !rig.tunnels.is_empty() {
        commands = match commands[..] {
            [.., Command::Land { .. }] => {
                attempts += 1;
                let due = rig.tunnels.poll_timeout().unwrap();
                rig.pass(due - rig.now)
            }
            [Command::End { attempt }] => rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now),
            _ => {
                let due = rig.tunnels.poll_timeout().unwrap();
                rig.pass(due - rig.now)
            }
        };
    }
    failure(&commands);
    assert!((2..FIRST_ATTEMPTS).contains(&attempts), "{attempts}");
    assert!(rig.now - opened < PATIENCE, "{:?}", rig.now - opened);
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
