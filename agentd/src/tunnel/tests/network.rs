//! Changes of the device's network.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_tunnel_whose_address_is_gone_lands_again_once_its_ssh_has_ended() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    let commands = rig.tunnels.handle_network(&BTreeSet::from([attempt]), rig.now);
    assert!(
        matches!(events(&commands)[..], [DeviceEventKind::Lost { .. }]),
        "{commands:?}"
    );
    assert_eq!(commands.last(), Some(&Command::End { attempt }));
    assert_eq!(rig.tunnels.held(), []);
    assert_eq!(rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now), []);
    let next = landed_by(&rig.pass(Duration::from_secs(1)));
    rig.tunnels.handle_landed(next, &claimed(2));
    assert_eq!(rig.tunnels.held(), [(rig.id, Epoch(2))]);
}

#[test]
fn a_landing_from_an_address_that_is_gone_begins_anew_and_the_asker_waits_on() {
    let mut rig = Rig::new();
    let attempt = landed_by(&rig.open(1));
    let commands = rig.tunnels.handle_network(&BTreeSet::from([attempt]), rig.now);
    assert_eq!(commands, [Command::End { attempt }]);
    assert_eq!(rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now), []);
    landed_by(&rig.pass(Duration::from_secs(1)));
}

#[test]
fn what_still_has_its_address_stays() {
    let mut rig = Rig::new();
    rig.up();
    assert_eq!(rig.tunnels.handle_network(&BTreeSet::new(), rig.now), []);
    assert_eq!(rig.tunnels.held(), [(rig.id, Epoch(1))]);
}

#[test]
fn a_tunnel_that_waits_after_failures_tries_at_once_in_a_new_network() {
    let mut rig = Rig::new();
    let mut attempt = rig.up();
    for _ in 0..10 {
        rig.tunnels.handle_ended(attempt, passing(), rig.now);
        let due = rig.tunnels.poll_timeout().unwrap();
        attempt = landed_by(&rig.pass(due - rig.now));
    }
    rig.tunnels.handle_ended(attempt, passing(), rig.now);
    assert!(rig.tunnels.poll_timeout().unwrap() > rig.now + Duration::from_secs(10));
    assert_eq!(rig.tunnels.handle_network(&BTreeSet::new(), rig.now), []);
    landed_by(&rig.pass(Duration::from_secs(1)));
}

#[test]
fn a_window_that_servers_set_is_kept_in_a_new_network() {
    let mut rig = Rig::new();
    let spread = OpenOrder {
        jitter_ms: 5000,
        ..order(rig.id, 1)
    };
    rig.tunnels.handle_open(spread, rig.now);
    rig.tunnels.handle_network(&BTreeSet::new(), rig.now);
    assert_eq!(rig.tunnels.poll_timeout(), Some(rig.now + Duration::from_secs(5)));
}
