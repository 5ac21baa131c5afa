//! Opening, using and closing.

use std::collections::HashSet;
use std::fs;
use std::thread;

use rssh_lab::place::Place;

use crate::{lab, leases, open, said};

#[test]
fn a_tunnel_opens_and_ssh_logs_in() {
    let lab = lab();
    let opened = open(&lab, "alice", "device-5");
    assert_eq!(
        (opened.device.as_str(), opened.target.as_str()),
        ("device-5", "localhost:22")
    );
    assert_eq!(opened.state, "active");
    assert!(opened.host.starts_with(&format!("{}-", opened.server)), "{opened:?}");
    assert!(opened.host_expires_at <= opened.expires_at);
    assert_eq!(leases(&lab, &opened.tunnel), 1);
    assert_eq!(said(&lab, "alice", &["ssh", "device-5", "hostname"]), "device-5\n");
    // The login went through the tunnel that was there.
    assert_eq!(open(&lab, "alice", "device-5").tunnel, opened.tunnel);
    said(&lab, "alice", &["rssh", "close", "device-5", "--force"]);
}

#[test]
fn a_device_that_has_been_there_before_speaks_with_its_first_packet() {
    let lab = lab();
    let begun_early = || {
        let counted = lab.networks().inside(&Place::Device(18), || {
            fs::read_to_string("/proc/thread-self/net/netstat").unwrap()
        });
        count(&counted.unwrap(), "TCPFastOpenActive")
    };
    // The first connection brings the load balancer's cookie.
    open(&lab, "alice", "device-18");
    said(&lab, "alice", &["rssh", "close", "device-18", "--force"]);
    let before = begun_early();
    open(&lab, "alice", "device-18");
    said(&lab, "alice", &["rssh", "close", "device-18", "--force"]);
    assert!(
        begun_early() > before,
        "{before} connections took data with their first packet"
    );
}

/// A counter of proc_net(5)'s netstat: pairs of lines, names and values.
fn count(netstat: &str, name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = netstat.lines().map(|line| line.split(' ').collect()).collect();
    let value = lines.chunks_exact(2).find_map(|pair| {
        let at = pair[0].iter().position(|&title| title == name)?;
        pair[1].get(at).copied()
    });
    value.unwrap().parse().unwrap()
}

#[test]
fn ssh_alone_opens_what_it_needs() {
    let lab = lab();
    assert_eq!(said(&lab, "alice", &["ssh", "device-6", "hostname"]), "device-6\n");
    assert_eq!(
        said(&lab, "alice", &["rssh", "ssh", "device-6", "--", "hostname"]),
        "device-6\n"
    );
}

#[test]
fn forty_opens_land_on_both_servers_and_each_is_its_own_device() {
    let lab = lab();
    let opened: Vec<_> = thread::scope(|scope| {
        let devices: Vec<_> = (1..=4)
            .map(|n| {
                let lab = &lab;
                scope.spawn(move || {
                    let device = format!("device-{n}");
                    (0..10)
                        .map(|_| {
                            let opened = open(lab, "carol", &device);
                            // At this moment the port has one holder, this tunnel.
                            let holders = lab.psql(&format!(
                                "SELECT other.tunnel_id FROM live_leases mine \
                                 JOIN live_leases other USING (server_id, port) WHERE mine.tunnel_id = '{}'",
                                opened.tunnel
                            ));
                            assert_eq!(holders.unwrap(), opened.tunnel);
                            said(lab, "carol", &["rssh", "close", &device]);
                            opened
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        devices.into_iter().flat_map(|device| device.join().unwrap()).collect()
    });
    assert_eq!(opened.len(), 40);
    for tunnel in &opened {
        let banner = tunnel.banner.as_deref().unwrap_or_default();
        assert!(banner.ends_with(&format!(" {}", tunnel.device)), "{tunnel:?}");
    }
    let servers: HashSet<_> = opened.iter().map(|tunnel| tunnel.server.as_str()).collect();
    assert_eq!(servers, HashSet::from(["s1", "s2"]));
}
