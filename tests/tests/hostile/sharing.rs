//! One tunnel for several openers, and tunnels that end by themselves.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rssh_lab::Lab;

use crate::{PATIENTLY, PROMPTLY, lab, lease, open, said, within};

fn port_of(lab: &Lab, tunnel: &str) -> String {
    lease(lab, tunnel).split('|').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_tunnel_of_two_openers_closes_with_the_second() {
    let lab = lab();
    let first = open(&lab, "user-17", "device-39", &[]);
    let second = open(&lab, "user-17", "device-39", &[]);
    assert_eq!((&first.tunnel, &first.expires_at), (&second.tunnel, &second.expires_at));
    let closed = said(&lab, "user-17", &["rssh", "close", "device-39", "--json"]);
    assert!(closed.contains("\"holders_left\":1"), "{closed}");
    assert!(!lease(&lab, &first.tunnel).is_empty());
    assert_eq!(said(&lab, "user-17", &["ssh", "device-39", "hostname"]), "device-39\n");
    let closed = said(&lab, "user-17", &["rssh", "close", "device-39", "--json"]);
    assert!(closed.contains("\"holders_left\":0"), "{closed}");
    within(PROMPTLY, "the lease is released", || {
        lease(&lab, &first.tunnel).is_empty()
    });
    // Another user's tunnel to the same device is another tunnel.
    let mine = open(&lab, "user-17", "device-39", &[]);
    let theirs = open(&lab, "user-18", "device-39", &[]);
    assert_ne!(mine.tunnel, theirs.tunnel);
    for _ in 0..2 {
        open(&lab, "user-17", "device-39", &[]);
    }
    said(&lab, "user-17", &["rssh", "close", "device-39", "--force"]);
    within(PROMPTLY, "the lease is released", || {
        lease(&lab, &mine.tunnel).is_empty()
    });
    assert!(!lease(&lab, &theirs.tunnel).is_empty());
}

#[test]
fn a_new_tunnel_is_made_when_asked_for_and_closes_alone() {
    let lab = lab();
    let first = open(&lab, "user-19", "device-40", &[]);
    let second = open(&lab, "user-19", "device-40", &["--new"]);
    assert_ne!(first.tunnel, second.tunnel);
    assert_ne!(lease(&lab, &first.tunnel), lease(&lab, &second.tunnel));
    said(&lab, "user-19", &["rssh", "close", &first.tunnel]);
    within(PROMPTLY, "the lease is released", || {
        lease(&lab, &first.tunnel).is_empty()
    });
    assert!(!lease(&lab, &second.tunnel).is_empty());
    assert!(second.banner.unwrap().ends_with(" device-40"));
}

#[test]
fn a_port_that_is_wished_for_is_given_while_it_is_free() {
    let lab = lab();
    // Of no other test: those are drawn from ten thousand.
    for wish in ["29871", "29872", "29873"] {
        let opened = open(&lab, "user-42", "device-43", &["--new", "--remote-port", wish]);
        // Of several tunnels of a device none is known to be meant.
        let given = port_of(&lab, &opened.tunnel);
        said(&lab, "user-42", &["rssh", "close", &opened.tunnel]);
        assert_eq!(given, wish);
    }
    // One that is out of range is a wish that cannot come true, and no fault.
    let opened = open(&lab, "user-42", "device-43", &["--new", "--remote-port", "22"]);
    assert_ne!(port_of(&lab, &opened.tunnel), "22");
}

/// A session through a tunnel, which repeats what it is told.
struct Echo {
    child: std::process::Child,
    to: std::process::ChildStdin,
    from: BufReader<std::process::ChildStdout>,
}

impl Echo {
    fn start(lab: &Lab, user: &str, device: &str) -> Self {
        let place = lab.place(Some(user)).unwrap();
        let mut child = lab
            .command(&place, &["ssh", device, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        let mut echo = Self { child, to, from };
        assert!(echo.answers());
        echo
    }

    /// Whether it is still there.
    fn answers(&mut self) -> bool {
        let mut line = String::new();
        writeln!(self.to, "word").is_ok() && self.from.read_line(&mut line).is_ok() && line == "word\n"
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn an_idle_tunnel_closes_and_a_used_one_stays_and_one_past_its_life_closes_either_way() {
    let lab = lab();
    let began = Instant::now();
    let idle = open(&lab, "user-21", "device-41", &["--idle", "5s"]);
    let used = open(&lab, "user-21", "device-42", &["--idle", "5s"]);
    let mut session = Echo::start(&lab, "user-21", "device-42");
    let brief = open(&lab, "user-22", "device-41", &["--ttl", "6s"]);
    let born = Instant::now();
    let mut ending = Echo::start(&lab, "user-22", "device-41");
    let over = |tunnel: &str| {
        let states = lab.psql(&format!("SELECT state FROM tunnels WHERE id = '{tunnel}'"));
        lease(&lab, tunnel).is_empty() && states.unwrap() == "closed"
    };
    within(PATIENTLY, "the idle tunnel is closed", || over(&idle.tunnel));
    let took = began.elapsed();
    assert!(took > Duration::from_secs(5), "{took:?}");
    within(PATIENTLY, "the brief tunnel is closed", || over(&brief.tunnel));
    let took = born.elapsed();
    assert!(took > Duration::from_secs(5), "{took:?}");
    assert!(!ending.answers(), "its session goes on");
    // Connected is used, even when not a byte flows.
    within(Duration::from_secs(5), "more than its idle time has passed", || {
        began.elapsed() > Duration::from_secs(9)
    });
    assert!(session.answers());
    assert!(!over(&used.tunnel));
    drop(session);
    let last = Instant::now();
    within(PATIENTLY, "the tunnel that was used is closed", || over(&used.tunnel));
    assert!(last.elapsed() > Duration::from_secs(4), "{:?}", last.elapsed());
    for (user, device) in [
        ("user-21", "device-41"),
        ("user-21", "device-42"),
        ("user-22", "device-41"),
    ] {
        let listed = said(&lab, user, &["rssh", "ls", "--json"]);
        assert!(!listed.contains(device), "{listed}");
    }
}
