//! Parts die and come back under live tunnels; each story has a lab of its own.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU32;
use std::process::Stdio;
use std::time::Duration;

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
    let place = lab.place(Some("alice")).unwrap();
    let mut session = lab
        .command(&place, &["ssh", "device-1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = session.stdin.take().unwrap();
    let mut from = BufReader::new(session.stdout.take().unwrap());
    let mut echo = |word: &str| {
        writeln!(to, "{word}").unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    echo("before");
    let tunnels = || {
        lab.psql("SELECT tunnel_id, port, epoch FROM live_leases ORDER BY 1")
            .unwrap()
    };
    let before = tunnels();
    assert_eq!(before.lines().count(), 1);

    lab.ctl(Action::Kill, "serverd-1").unwrap();
    echo("while it is dead");
    lab.ctl(Action::Start, "serverd-1").unwrap();
    echo("after");
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
    drop(to);
    session.wait().unwrap();
}
