//! Parts die and come back under live tunnels; each story has a lab of its own.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

use std::num::NonZeroU32;
use std::time::Duration;

use rssh_lab::testing::Login;
use rssh_lab::{Action, Lab, Options};

fn lab(servers: u32, devices: u32) -> Lab {
    let options = Options {
        servers: NonZeroU32::new(servers).unwrap(),
        devices,
        users: 1,
        ..Options::default()
    };
    Lab::temporary(options).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn a_killed_serverd_loses_no_tunnel_and_no_session() {
    let lab = lab(1, 2);
    let mut login = Login::new(&lab, "alice", "device-1");
    login.answers("before");
    let tunnels = || {
        lab.psql("SELECT tunnel_id, port, epoch FROM live_leases ORDER BY 1")
            .unwrap()
    };
    let before = tunnels();
    assert_eq!(before.lines().count(), 1);

    lab.ctl(Action::Kill, "serverd-1").unwrap();
    login.answers("while it is dead");
    lab.ctl(Action::Start, "serverd-1").unwrap();
    login.answers("after");
    assert_eq!(tunnels(), before);
    // The same tunnel serves new logins, and other devices are served too.
    let ready = rssh_lab::process::wait(Duration::from_secs(10), || {
        lab.exec("alice", &["ssh", "device-2", "hostname"])
            .is_ok_and(|output| output.stdout == b"device-2\n")
    });
    assert!(ready, "device-2 cannot be reached after the restart");
    let output = lab.exec("alice", &["ssh", "device-1", "hostname"]).unwrap();
    assert_eq!(output.stdout, b"device-1\n");
    assert!(tunnels().contains(&before), "{before} is not in {}", tunnels());
    login.ends_well();
}
