//! What Prometheus reads of the servers.

use std::collections::HashMap;

use rssh_lab::place::{HEALTH_PORT, Place, server_address, socket};
use rssh_lab::process::PATIENTLY;

use crate::{PROMPTLY, all_of, lab, open, said, within};

/// The figures of a server, by their names with their labels.
fn figures(lab: &rssh_lab::Lab, n: u32) -> HashMap<String, f64> {
    let url = format!("http://{}/metrics", socket(server_address(n), HEALTH_PORT));
    let output = lab
        .command(&Place::Core, &["curl", "--fail", "--silent", "--max-time", "10", &url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", all_of(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// A figure of both servers together; any of them may answer a user.
fn of_both(lab: &rssh_lab::Lab, name: &str) -> f64 {
    (1..=2).map(|n| figures(lab, n)[name]).sum()
}

#[test]
fn what_became_of_an_open_is_counted() {
    const OPENED: &str = "rssh_answers_total{result=\"opened\"}";
    const STAGE: &str = "rssh_open_stage_seconds_count{stage=\"active\"}";
    const CLAIMS: &str = "rssh_helper_seconds_count{helper=\"claim\"}";
    let lab = lab();
    let before = of_both(&lab, OPENED);
    let opened = open(&lab, "heidi", "device-3");
    within(PROMPTLY, "the answer is counted", || of_both(&lab, OPENED) > before);

    let n: u32 = opened.server.trim_start_matches('s').parse().unwrap();
    let there = |name: &str| figures(&lab, n).get(name).copied().unwrap_or_default();
    within(PROMPTLY, "the stages are timed", || there(STAGE) >= 1.0);
    // What costs something is not looked up at each reading.
    within(PATIENTLY, "the fleet's figures say so", || {
        there("rssh_fleet_tunnels{state=\"active\"}") >= 1.0 && there("rssh_sshd_processes") >= 1.0
    });
    for name in [
        CLAIMS,
        "rssh_ports{state=\"held\"}",
        "rssh_fleet_devices_online",
        "rssh_broker_connects_total",
        "rssh_database_seconds_count",
        "rssh_redis_seconds_count",
        "rssh_sweep_seconds_count",
    ] {
        assert!(there(name) >= 1.0, "{name}: {:?}", figures(&lab, n));
    }
    for name in ["rssh_broker_connected", "rssh_open_for_landings"] {
        assert_eq!(there(name).to_string(), "1", "{name}");
    }
    assert!(there("rssh_capacity") >= there("rssh_ports{state=\"held\"}"));
    said(&lab, "heidi", &["rssh", "close", "device-3"]);
}

#[test]
fn a_failure_is_counted_by_its_kind() {
    const UNKNOWN: &str = "rssh_answers_total{result=\"unknown-device\"}";
    let lab = lab();
    let before = of_both(&lab, UNKNOWN);
    let output = lab.exec("heidi", &["rssh", "open", "device-99"]).unwrap();
    assert!(!output.status.success(), "{}", all_of(&output));
    within(PROMPTLY, "the failure is counted", || of_both(&lab, UNKNOWN) > before);
}
