//! Leases end with what they stand for.

use nix::sys::signal::Signal;
use rssh_lab::component::Record;

use crate::{PROMPTLY, lab, leases, open, said, within};

#[test]
fn a_closed_tunnel_has_no_lease_and_leaves_no_ssh() {
    let lab = lab();
    let opened = open(&lab, "heidi", "device-10");
    assert_eq!(leases(&lab, &opened.tunnel), 1);
    said(&lab, "heidi", &["rssh", "close", "device-10"]);
    within(PROMPTLY, "the lease is released", || leases(&lab, &opened.tunnel) == 0);
    within(PROMPTLY, "the device's ssh has ended", || {
        device_ssh(&lab, 10).is_empty()
    });
}

#[test]
fn a_lease_ends_when_the_devices_ssh_is_killed() {
    let lab = lab();
    let opened = open(&lab, "heidi", "device-11");
    let epoch = |tunnel: &str| {
        lab.psql(&format!("SELECT epoch FROM live_leases WHERE tunnel_id = '{tunnel}'"))
            .unwrap()
    };
    let before = epoch(&opened.tunnel);
    assert_eq!(before, "1");
    let ssh = device_ssh(&lab, 11);
    assert!(!ssh.is_empty());
    for process in ssh {
        process.signal(Signal::SIGKILL).unwrap();
    }
    // Gone, or already held again by the same tunnel's next claim.
    within(PROMPTLY, "the lease is released", || epoch(&opened.tunnel) != before);
}

/// The ssh processes that the agent of device `n` drives.
fn device_ssh(lab: &rssh_lab::Lab, n: u32) -> Vec<rssh_lab::process::Process> {
    let agent = Record::read(lab.dir(), &format!("agentd-{n}")).unwrap();
    let mut processes = agent.members(&lab.networks().inodes());
    processes.retain(|process| process.pid != agent.process.pid);
    processes
}

#[test]
fn sshds_log_shows_the_one_port_that_each_login_was_permitted() {
    let lab = lab();
    let opened = open(&lab, "heidi", "device-12");
    let lease = lab.psql(&format!(
        "SELECT server_id, port FROM live_leases WHERE tunnel_id = '{}'",
        opened.tunnel
    ));
    let lease = lease.unwrap();
    let (server, port) = lease.trim().split_once('|').unwrap();
    let n: u32 = server.trim_start_matches('s').parse().unwrap();
    let address = format!("{}:", rssh_lab::place::server_address(n));
    let logins = || -> Vec<String> {
        let log = std::fs::read_to_string(lab.log(&format!("sshd-{n}"))).unwrap();
        let logins = log.lines().filter(|line| line.contains("forced-command"));
        logins.map(str::to_owned).collect()
    };
    let permitted = format!(" device-12 {address}{port}'");
    within(PROMPTLY, "sshd logs the login", || {
        logins().iter().filter(|line| line.contains(&permitted)).count() == 1
    });
    for line in logins() {
        assert_eq!(line.matches(&address).count(), 1, "{line}");
    }
    said(&lab, "heidi", &["rssh", "close", "device-12"]);
}
