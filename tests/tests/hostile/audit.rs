//! What is written down of what happens in the lab.

use std::time::Duration;

use rssh_proto::FailureKind;
use serde_json::Value;

use crate::administration::administered;
use crate::{fails, lab, open, said, within};

/// Longer than a batch waits.
const SOON: Duration = Duration::from_secs(30);

fn events(lab: &rssh_lab::Lab, more: &[&str]) -> Vec<Value> {
    administered(lab, &[&["audit", "--json"], more].concat())
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn what_a_user_does_and_is_refused_is_written_down_and_holds() {
    let lab = lab();
    let user = "user-38";
    administered(&lab, &["device", "tag", "device-54", "site=berlin"]);
    let opened = open(&lab, user, "device-54", &["--new"]);
    assert_eq!(said(&lab, user, &["ssh", "device-54", "hostname"]), "device-54\n");
    said(&lab, user, &["rssh", "close", "device-54", "--force"]);
    fails(
        &lab,
        "bob",
        &["rssh", "open", "device-54"],
        FailureKind::Denied,
        "device-54",
    );

    let kinds = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .map(|event| event["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    within(SOON, "each step is there", || {
        let seen = kinds(&events(&lab, &["--user", user]));
        ["user-enrolled", "grant-added", "request", "claim", "active", "closed"]
            .iter()
            .all(|kind| seen.iter().any(|seen| seen == kind))
    });
    // Beside it there are the connections that prove a tunnel, which see a banner at most.
    let sessions = |events: Vec<Value>| -> Vec<Value> {
        let has_bytes = |event: &Value| event["detail"]["to_client"].as_u64() > Some(500);
        let of_session = |event: &Value| event["kind"] == "connection" && has_bytes(event);
        events.into_iter().filter(of_session).collect()
    };
    within(SOON, "the session is there", || {
        !sessions(events(&lab, &["--user", user])).is_empty()
    });
    let of_user = events(&lab, &["--user", user, "--since", "1h"]);
    let connection = &sessions(of_user.clone())[0];
    assert!(connection["source"].as_str().unwrap().contains(':'), "{connection}");
    assert!(connection["detail"]["ms"].as_u64() > Some(0), "{connection}");
    // Another server may have refused; each seals its own events when it comes to it.
    within(SOON, "each step of the device is there", || {
        let seen = kinds(&events(&lab, &["--device", "device-54"]));
        ["device-enrolled", "device-tagged", "authorize", "request-refused"]
            .iter()
            .all(|kind| seen.iter().any(|seen| seen == kind))
    });
    let of_device = events(&lab, &["--device", "device-54"]);
    let refused = of_device
        .iter()
        .find(|event| event["kind"] == "request-refused")
        .unwrap();
    assert_eq!(
        (&refused["user"], &refused["detail"]["why"]),
        (&"bob".into(), &"denied".into())
    );
    // The device's own address, as the load balancer saw it, stands at its claim once the connection is over.
    within(SOON, "the claim has the device's address", || {
        events(&lab, &["--device", "device-54"]).iter().any(|event| {
            event["kind"] == "claim"
                && event["tunnel"] == opened.tunnel.as_str()
                && event["source"]
                    .as_str()
                    .is_some_and(|source| event["detail"]["via"] != source)
        })
    });
    let verified = administered(&lab, &["audit", "--verify"]);
    assert!(verified.contains("events hold"), "{verified}");
    // Nobody's name or right to connect is in a detail.
    for event in &of_user {
        assert!(!event["detail"].to_string().contains(user), "{event}");
    }
}

#[test]
fn no_secret_is_in_the_database() {
    let lab = lab();
    open(&lab, "user-38", "device-54", &["--new"]);
    let dump = lab
        .command(&rssh_lab::place::Place::Core, &["pg_dump", "--data-only", "--inserts"])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", crate::all_of(&dump));
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(dump.contains("device-54"), "nothing was dumped");
    assert!(!dump.contains("PRIVATE KEY"));
    let mut secrets = 0;
    for file in [
        "pki/name-master",
        "servers/s1/state/name.key",
        "servers/s2/state/name.key",
    ] {
        let Ok(secret) = std::fs::read_to_string(lab.dir().join(file)) else {
            continue;
        };
        secrets += 1;
        assert!(!dump.contains(secret.trim()), "{file}");
    }
    assert!(secrets > 1, "{secrets}");
}
