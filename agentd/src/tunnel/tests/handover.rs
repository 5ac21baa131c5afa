//! How tunnels pass from one agent to the next.

use super::*;

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
