//! Where tunnels lead.

use super::*;

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
