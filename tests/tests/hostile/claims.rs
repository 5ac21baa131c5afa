//! What a login may claim, and what becomes of it and of its port.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use rssh_proto::FailureKind;
use rssh_proto::claim::{ClaimReply, Claimed};

use crate::thief::{Reserved, robbed};
use crate::{PATIENTLY, PROMPTLY, SERVERS, all_of, lab, lease, listeners, open, said, within};

#[track_caller]
fn granted(reply: ClaimReply) -> Claimed {
    match reply {
        ClaimReply::Claimed(claimed) => claimed,
        ClaimReply::Refused(failure) => panic!("refused: {failure}"),
    }
}

#[track_caller]
fn refused(reply: ClaimReply, kinds: &[FailureKind]) {
    match reply {
        ClaimReply::Claimed(claimed) => panic!("claimed: {claimed:?}"),
        ClaimReply::Refused(failure) => assert!(kinds.contains(&failure.kind), "{failure:?}"),
    }
}

#[test]
fn another_devices_tunnel_cannot_be_claimed() {
    let lab = lab();
    let theirs = open(&lab, "frank", "device-9", &[]);
    let (thief, own) = robbed(&lab, "frank", 8);
    let before = lease(&lab, &theirs.tunnel);
    for tunnel in [theirs.tunnel.as_str(), "01900000-0000-7000-8000-000000000000"] {
        let mut login = thief.login();
        refused(login.claim(tunnel), &[FailureKind::UnknownTunnel, FailureKind::Denied]);
        // That was its one claim; the own tunnel is not to be had in it any more.
        assert!(login.ends_within(PROMPTLY), "the login goes on");
    }
    assert_eq!(lease(&lab, &theirs.tunnel), before);
    assert_eq!(said(&lab, "frank", &["ssh", "device-9", "hostname"]), "device-9\n");
    assert!(!lease(&lab, &own.tunnel).is_empty());
}

#[test]
fn a_login_claims_once() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "grace", 10);
    let login = thief.login();
    let claimed = granted(login.claim(&opened.tunnel));
    assert_eq!((claimed.port, claimed.epoch.0), (login.reserved.port, 2));
    let held = lease(&lab, &opened.tunnel);
    assert_eq!(held, format!("{}|{}|2", claimed.server, claimed.port));
    for _ in 0..2 {
        refused(login.claim(&opened.tunnel), &[FailureKind::Denied]);
    }
    let output = login.forward(&login.reserved.address());
    assert!(output.status.success(), "{}", all_of(&output));
    assert_eq!(lease(&lab, &opened.tunnel), held);
}

#[test]
fn a_login_that_claims_nothing_is_ended_and_its_port_is_nobody_elses_meanwhile() {
    let lab = lab();
    let (thief, _) = robbed(&lab, "heidi", 11);
    let (other, _) = robbed(&lab, "heidi", 12);
    let began = Instant::now();
    let mut idle = thief.login_at(1);
    let held = idle.reserved.clone();
    // It may even listen: but no name leads there, and nobody else gets the port.
    let output = idle.forward(&held.address());
    assert!(output.status.success(), "{}", all_of(&output));
    for _ in 0..5 {
        for login in [thief.login_at(1), other.login_at(1)] {
            assert_ne!(login.reserved.port, held.port);
        }
    }
    assert!(idle.ends_within(PATIENTLY), "it is still there");
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9), "after {took:?}");
    within(PROMPTLY, "the listener is gone", || {
        !listeners(&lab).contains(&held.address())
    });
    // No login of this run has got it since; it rests for a while.
    let again = other.login_at(1);
    assert_ne!(again.reserved.port, held.port);
    let count = lab.psql(&format!(
        "SELECT count(*) FROM leases WHERE server_id = 's1' AND port = {} AND released_at IS NULL",
        held.port
    ));
    assert_eq!(count.unwrap(), "0");
}

#[test]
fn a_forward_that_was_cancelled_is_not_taken_again_after_the_lease_has_moved() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "ivan", 13);
    let mut first = thief.login();
    granted(first.claim(&opened.tunnel));
    let address = first.reserved.address();
    assert!(first.forward(&address).status.success());
    within(PATIENTLY, "the listener is there", || {
        listeners(&lab).contains(&address)
    });
    assert!(first.cancel(&address).status.success());
    within(PATIENTLY, "the listener is gone", || {
        !listeners(&lab).contains(&address)
    });

    let second = thief.login();
    let claimed = granted(second.claim(&opened.tunnel));
    // Before the second login heard of its port, the first one had ended.
    let output = first.forward(&address);
    assert!(!output.status.success(), "{}", all_of(&output));
    assert!(first.ends_within(PROMPTLY), "the first login goes on");
    assert!(!listeners(&lab).contains(&address));
    assert_ne!(address, second.reserved.address());
    assert!(second.forward(&second.reserved.address()).status.success());
    assert_eq!(
        lease(&lab, &opened.tunnel),
        format!("{}|{}|3", claimed.server, claimed.port)
    );
}

#[test]
fn the_port_of_a_cancelled_forward_goes_to_nobody_else_while_the_login_lives() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "ivan", 14);
    let first = thief.login_at(2);
    granted(first.claim(&opened.tunnel));
    let address = first.reserved.address();
    assert!(first.forward(&address).status.success());
    assert!(first.cancel(&address).status.success());
    for _ in 0..5 {
        assert_ne!(thief.login_at(2).reserved.port, first.reserved.port);
    }
    // Asked for by name, too.
    let wish = first.reserved.port.to_string();
    for device in ["device-15", "device-16"] {
        let other = open(&lab, "ivan", device, &["--remote-port", &wish]);
        assert_ne!(
            (other.server.as_str(), port_of(&lab, &other.tunnel)),
            ("s2", first.reserved.port)
        );
    }
    // It is the lease's still: the login takes it up again.
    assert!(first.forward(&address).status.success());
    assert!(listeners(&lab).contains(&address));
}

fn port_of(lab: &rssh_lab::Lab, tunnel: &str) -> u16 {
    let lease = lease(lab, tunnel);
    lease.split('|').nth(1).unwrap().parse().unwrap()
}

#[test]
fn each_login_with_one_key_has_a_port_of_its_own() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "mike", 17);
    let before = lease(&lab, &opened.tunnel);
    let logins: Vec<_> = (0..4).map(|n| thief.login_at(n % SERVERS + 1)).collect();
    let ports: HashSet<(u32, u16)> = logins
        .iter()
        .map(|login| (login.reserved.server, login.reserved.port))
        .collect();
    assert_eq!(ports.len(), 4);
    let tunnel: HashSet<String> = ports
        .iter()
        .map(|(server, port)| format!("s{server}|{port}|1"))
        .collect();
    assert!(!tunnel.contains(&before), "{before} was given out twice");
    // No login may listen on another one's port, nor on the tunnel's.
    let mut fields = before.split('|');
    let (server, port) = (fields.next().unwrap(), fields.next().unwrap());
    for login in &logins {
        let others = logins.iter().filter(|other| other.reserved != login.reserved);
        for other in others {
            assert!(!login.forward(&other.reserved.address()).status.success());
        }
        let address = login.reserved.address();
        let bind = address.split(':').next().unwrap();
        if server == format!("s{}", login.reserved.server) {
            assert!(!login.forward(&format!("{bind}:{port}")).status.success());
        }
    }
    assert_eq!(lease(&lab, &opened.tunnel), before);
}

#[test]
fn a_closed_tunnel_cannot_be_claimed_and_frees_nothing_for_the_key() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "niaj", 18);
    let waiting = thief.login();
    said(&lab, "niaj", &["rssh", "close", "device-18", "--force"]);
    refused(
        waiting.claim(&opened.tunnel),
        &[FailureKind::UnknownTunnel, FailureKind::Denied],
    );
    assert_eq!(lease(&lab, &opened.tunnel), "");
    let refusal = thief.try_login("lb", &[]).map(|login| login.reserved.clone());
    assert!(
        refusal.clone().is_err_and(|said| said.contains("Permission denied")),
        "{refusal:?}"
    );
}

/// What sshd said of the logins it took, at log level DEBUG1: for each the options in force, and the addresses.
fn permitted(log: &str) -> (Vec<&str>, Vec<&str>) {
    let after = |mark: &'static str| {
        log.lines()
            .filter_map(move |line| Some(line.split_once(mark)?.1.trim()))
            .collect()
    };
    (
        after("debug1: active: key options:"),
        after("debug1: active: permitted listen:"),
    )
}

#[test]
fn sshd_permitted_each_login_exactly_one_port() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "olivia", 19);
    let own: Vec<Reserved> = (1..=SERVERS)
        .map(|n| {
            let login = thief.login_at(n);
            granted(login.claim(&opened.tunnel));
            login.reserved.clone()
        })
        .collect();
    for reserved in &own {
        let log = fs::read_to_string(lab.log(&format!("sshd-{}", reserved.server))).unwrap();
        let (options, ports) = permitted(&log);
        assert!(options.len() > 1);
        // Every login of every test, so far; a line may be on its way still.
        assert!(
            options.len().abs_diff(ports.len()) <= 1,
            "{} {}",
            options.len(),
            ports.len()
        );
        assert!(
            options
                .iter()
                .all(|options| *options == "command permitlisten port-forwarding"),
            "{options:?}"
        );
        assert!(ports.contains(&reserved.address().as_str()), "{reserved:?} {ports:?}");
        assert!(!log.contains("active: permitted open:"));
    }
    let epochs = lab.psql(&format!(
        "SELECT count(*), count(DISTINCT (server_id, port)), max(epoch) FROM leases WHERE tunnel_id = '{}'",
        opened.tunnel
    ));
    assert_eq!(epochs.unwrap(), "3|3|3");
}
