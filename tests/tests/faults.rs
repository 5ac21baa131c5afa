//! A few cases of the fault suite, those that tell most in the least time; `make faults` runs all.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

use std::path::Path;

use rssh_lab::faults::case::How;
use rssh_lab::faults::{cases, report};

#[track_caller]
fn holds(name: &str) {
    let case = cases::all().find(|case| case.name == name).unwrap();
    let outcome = case.outcome(Path::new(env!("CARGO_TARGET_TMPDIR")), How::default());
    assert!(report::is_good(&outcome), "{}", report::table(&[outcome]));
}

#[test]
fn a_killed_ssh_is_replaced() {
    holds("agent-ssh-killed");
}

#[test]
fn a_killed_agent_takes_its_tunnels_over() {
    holds("agent-killed");
}

#[test]
fn a_device_that_lost_its_power_gets_its_tunnel_back_at_once() {
    holds("device-loses-power");
}

#[test]
fn a_frozen_server_is_fenced_and_its_tunnels_land_elsewhere() {
    holds("serverd-frozen");
}

#[test]
fn a_request_that_is_delivered_twelve_times_opens_one_tunnel() {
    holds("request-delivered-twice");
}

#[test]
fn a_killed_haproxy_comes_back_with_a_complete_map() {
    holds("haproxy-killed");
}
