//! Pauses.

use super::*;
use crate::control::TunnelState;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_pause_ends_tunnels_and_refuses_orders_until_it_is_over() {
    let mut rig = Rig::new();
    let attempt = rig.up();
    assert_eq!(rig.tunnels.list(rig.now)[0].state, TunnelState::Up);
    assert_eq!(rig.tunnels.handle_pause(rig.now + HOUR), [Command::End { attempt }]);
    let commands = rig.tunnels.handle_ended(attempt, Ended::Stopped, rig.now);
    assert_eq!(events(&commands), [&DeviceEventKind::Closed]);
    rig.id = TunnelId::generate();
    let commands = rig.open(1);
    assert_eq!(failure(&commands), FailureKind::Denied);
    assert_eq!(rig.tunnels.paused(rig.now), Some(HOUR));
    rig.pass(HOUR);
    assert_eq!(rig.tunnels.paused(rig.now), None);
    rig.id = TunnelId::generate();
    landed_by(&rig.open(1));
}

#[test]
fn a_pause_ends_when_it_is_said_so() {
    let mut rig = Rig::new();
    rig.tunnels.handle_pause(rig.now + HOUR);
    rig.tunnels.handle_resume();
    landed_by(&rig.open(1));
}
