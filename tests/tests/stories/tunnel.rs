//! Opening, using and closing.

use std::collections::HashSet;
use std::thread;

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
