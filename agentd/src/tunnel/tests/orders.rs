//! Orders, repeated, late and refused.

use super::*;

#[test]
fn word_of_a_port_is_for_the_ssh_that_lands_now() {
    let mut rig = Rig::new();
    assert_eq!(rig.tunnels.handle_port(&port(rig.id)), [], "nothing is ordered");
    let attempt = landed_by(&rig.open(1));
    let at = port(rig.id).address();
    assert_eq!(
        rig.tunnels.handle_port(&port(rig.id)),
        [Command::Forward { attempt, at }]
    );
    assert_eq!(rig.tunnels.handle_port(&port(TunnelId::generate())), [], "another's");
    rig.tunnels.handle_ended(attempt, passing(), rig.now);
    assert_eq!(rig.tunnels.handle_port(&port(rig.id)), [], "it waits for its next try");
    let due = rig.tunnels.poll_timeout().unwrap();
    let attempt = landed_by(&rig.pass(due - rig.now));
    assert_eq!(
        rig.tunnels.handle_port(&port(rig.id)),
        [Command::Forward { attempt, at }]
    );
    rig.tunnels.handle_landed(attempt, &claimed(1));
    assert_eq!(rig.tunnels.handle_port(&port(rig.id)), [], "it has landed");
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
