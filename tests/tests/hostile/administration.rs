//! What the administrator's word is worth, and how soon: grants, limits, revocations.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rssh_lab::Lab;
use rssh_proto::{FailureKind, TunnelId};
use serde_json::json;

use crate::broker::Peer;
use crate::thief::Thief;
use crate::{administer, all_of, fails, greeting, lab, lease, open, said, within};

/// A revocation is promised to act within five seconds; a noisy machine gets more.
const SOON: Duration = Duration::from_secs(15);

/// Runs a command of the administrator's that has to succeed; returns what it wrote to stdout.
#[track_caller]
pub(crate) fn administered(lab: &Lab, argv: &[&str]) -> String {
    let output = administer(lab, argv);
    assert!(output.status.success(), "{argv:?}: {}", all_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A session that lives until it is ended from elsewhere.
fn session(lab: &Lab, user: &str, device: &str) -> Child {
    let place = lab.place(Some(user)).unwrap();
    let mut child = lab
        .command(&place, &["ssh", device, "echo here; exec sleep 600"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut here = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut here).unwrap();
    assert_eq!(&here, b"here\n");
    child
}

#[test]
fn a_revoked_user_is_out_everywhere_within_seconds_and_nobody_else_is() {
    let lab = lab();
    let (mallory, bystander) = ("user-32", "user-33");
    let opened = open(&lab, mallory, "device-51", &[]);
    let own = open(&lab, bystander, "device-51", &[]);
    let mut live = session(&lab, mallory, "device-51");
    let peer = Peer::user(&lab, mallory);
    let (code, listener) = peer.subscribe(&format!("rssh/v1/user/{mallory}/reply/+"), &[]);
    assert!(code < 3);
    assert!(greeting(&lab, mallory, &opened.host).ends_with(" device-51"));

    let began = Instant::now();
    let told = administered(&lab, &["user", "revoke", mallory]);
    assert!(told.contains("is revoked; "), "{told}");
    // The live session ends, the tunnel with it; the broker has hung up; the name and any other lead nowhere.
    within(SOON, "the live session ends", || live.try_wait().unwrap().is_some());
    within(SOON, "the lease is gone", || lease(&lab, &opened.tunnel).is_empty());
    drop(listener);
    within(SOON, "the load balancer refuses the user", || {
        let log = std::fs::read_to_string(lab.log("haproxy")).unwrap();
        greeting(&lab, mallory, &opened.host);
        log.lines()
            .any(|line| line.contains(&format!("\"user\":\"{mallory}\"")) && line.contains("\"check\":\"revoked\""))
    });
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}");
    let refused = lab.exec(mallory, &["rssh", "ls"]).unwrap();
    assert_eq!(
        refused.status.code(),
        Some(i32::from(FailureKind::WrongCertificate.exit_code())),
        "{}",
        all_of(&refused)
    );

    assert!(!lease(&lab, &own.tunnel).is_empty());
    assert!(greeting(&lab, bystander, &own.host).ends_with(" device-51"));
    let again = administer(&lab, &["user", "unrevoke", mallory]);
    assert!(all_of(&again).contains("is valid until"), "{}", all_of(&again));
    assert_eq!(again.status.code(), Some(1));
}

#[test]
fn a_revoked_device_is_out_everywhere_within_seconds() {
    let lab = lab();
    let opened = open(&lab, "user-33", "device-52", &[]);
    let mut live = session(&lab, "user-33", "device-52");
    let thief = Thief::of(&lab, 52);
    administered(&lab, &["device", "revoke", "device-52"]);
    within(SOON, "the live session ends", || live.try_wait().unwrap().is_some());
    within(SOON, "the lease is gone", || lease(&lab, &opened.tunnel).is_empty());
    // Its key opens no login, and its certificate no connection to the broker.
    let login = all_of(&thief.ssh(&[], &[&format!("claim {}", opened.tunnel)]));
    assert!(login.contains("Permission denied (publickey)"), "{login}");
    assert!(Peer::device(&lab, 52).is_refused(), "the broker lets it in");
    fails(
        &lab,
        "user-33",
        &["rssh", "open", "device-52"],
        FailureKind::Denied,
        "device-52",
    );
    assert!(!said(&lab, "user-33", &["rssh", "devices", "--json"]).contains("device-52"));
}

#[test]
fn a_grant_taken_away_ends_the_session_that_it_allowed_and_its_names() {
    let lab = lab();
    let user = "user-34";
    let grants = administered(&lab, &["grant", "list", "--user", user, "--json"]);
    let first: serde_json::Value = serde_json::from_str(grants.lines().next().unwrap()).unwrap();
    administered(&lab, &["group", "add", "night-shift"]);
    administered(&lab, &["group", "member", "add", "night-shift", user]);
    let by_group = [
        "grant",
        "add",
        "--group",
        "night-shift",
        "--device",
        "device-51",
        "--target",
        "80",
    ];
    administered(&lab, &by_group);
    let opened = open(&lab, user, "device-51", &[]);
    let mut live = session(&lab, user, "device-51");
    let explained = administered(&lab, &["grant", "test", user, "device-51", "22"]);
    assert!(
        explained.contains("may open") && explained.contains("matches"),
        "{explained}"
    );

    administered(&lab, &["grant", "remove", &first["id"].to_string()]);
    within(SOON, "the live session ends", || live.try_wait().unwrap().is_some());
    within(SOON, "the lease is gone", || lease(&lab, &opened.tunnel).is_empty());
    fails(
        &lab,
        user,
        &["rssh", "open", "device-51"],
        FailureKind::Denied,
        "device-51",
    );
    let name = json!({"op": "name", "tunnel": opened.tunnel});
    let answer = Peer::user(&lab, user).request(user, &TunnelId::generate().to_string(), &name);
    assert_eq!(answer["failed"]["kind"], "unknown-tunnel", "{answer}");
    let test = administer(&lab, &["grant", "test", user, "device-51", "22"]);
    assert_eq!(test.status.code(), Some(77), "{}", all_of(&test));
    let why = String::from_utf8(test.stdout).unwrap();
    assert!(
        why.contains("is for another target") && why.contains("night-shift"),
        "{why}"
    );
    // What is listed is what may be opened: of the others it has never heard.
    let devices = said(&lab, user, &["rssh", "devices", "--json"]);
    assert!(
        devices.contains("device-51") && !devices.contains("device-53"),
        "{devices}"
    );
}

#[test]
fn a_user_who_floods_is_told_to_wait_and_others_are_served() {
    let lab = lab();
    let flooder = Peer::user(&lab, "user-37");
    let session = "0123456789flood1";
    let (_, heard) = flooder.subscribe(&format!("rssh/v1/user/user-37/reply/{session}"), &[]);
    let request = json!({"v": 1, "id": TunnelId::generate(), "session": session, "deadline_ms": 5000, "op": "list"});
    flooder.flood("rssh/v1/user/user-37/request", &request.to_string(), 3000);
    assert_eq!(said(&lab, "user-40", &["rssh", "ls", "--json"]), "");
    let told = heard.map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap());
    let failed = told
        .into_iter()
        .find(|reply| !reply["body"]["failed"].is_null())
        .expect("no refusal came")["body"]["failed"]
        .take();
    assert_eq!(
        (&failed["kind"], &failed["retry_after_s"]),
        (&json!("busy"), &json!(1)),
        "{failed}"
    );
}
