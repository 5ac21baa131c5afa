//! Bearer names: whoever has one gets in, from one address, for a short time, and nobody else by any other.

use rssh_lab::place::{LB_BEARER, LB_USERS, Place};
use rssh_proto::FailureKind;
use serde::Deserialize;

use crate::{PATIENTLY, fails, first_line, greeting, lab, open, said, within};

/// What `rssh share --json` prints, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Shared {
    url: String,
    host: String,
    port: u16,
}

fn share(lab: &rssh_lab::Lab, user: &str, device: &str, more: &[&str]) -> Shared {
    let text = said(lab, user, &[&["rssh", "share", device, "22", "--json"], more].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_shared_name_admits_the_first_address_that_uses_it_and_no_other() {
    let lab = lab();
    let shared = share(&lab, "user-29", "device-45", &[]);
    assert_eq!(shared.port, LB_BEARER);
    assert_eq!(shared.url, format!("https://{}:{LB_BEARER}/", shared.host));
    let from = |place: &Place, host: &str| first_line(&lab, place, LB_BEARER, host, &[]);
    let visitor = lab.place(Some("alice")).unwrap();
    // No certificate, and not even the user who shared it.
    for _ in 0..2 {
        assert!(from(&visitor, &shared.host).ends_with(" device-45"));
    }
    assert_eq!(
        from(&Place::Device(46), &shared.host),
        "",
        "another address came second"
    );
    assert!(
        from(&visitor, &shared.host).ends_with(" device-45"),
        "the first goes on"
    );
    // Another name is another's to use first.
    let second = share(&lab, "user-29", "device-45", &["--for", "9m"]);
    assert!(from(&Place::Device(46), &second.host).ends_with(" device-45"));
    assert_eq!(from(&visitor, &second.host), "");
}

#[test]
fn a_shared_name_expires_and_none_is_made_that_lives_for_long() {
    let lab = lab();
    let visitor = lab.place(Some("alice")).unwrap();
    let shared = share(&lab, "user-30", "device-46", &["--for", "30s"]);
    assert!(first_line(&lab, &visitor, LB_BEARER, &shared.host, &[]).ends_with(" device-46"));
    within(PATIENTLY * 2, "the name expires", || {
        first_line(&lab, &visitor, LB_BEARER, &shared.host, &[]).is_empty()
    });
    // Its tunnel lives on, for its user.
    let own = open(&lab, "user-30", "device-46", &[]);
    assert!(greeting(&lab, "user-30", &own.host).ends_with(" device-46"));
    fails(
        &lab,
        "user-30",
        &["rssh", "share", "device-46", "22", "--for", "11m"],
        FailureKind::BadRequest,
        "10m",
    );
}

#[test]
fn no_door_takes_the_names_of_another_and_no_name_is_made_up() {
    let lab = lab();
    let visitor = lab.place(Some("user-31")).unwrap();
    let shared = share(&lab, "user-31", "device-47", &[]);
    let own = open(&lab, "user-31", "device-47", &[]);
    let at = |door, host: &str| first_line(&lab, &visitor, door, host, &[]);
    assert_eq!(at(LB_BEARER, &own.host), "", "a user's name at the bearers' door");
    assert_eq!(
        greeting(&lab, "user-31", &shared.host),
        "",
        "a bearer's name at the users' door"
    );
    assert_eq!(at(LB_USERS, &shared.host), "", "nobody at the users' door");
    // The fields of a good name, changed one by one.
    let fields: Vec<&str> = shared.host.split(['-', '.']).collect();
    let [server, port, exp, mac] = fields[..4] else {
        panic!("{}", shared.host);
    };
    let domain = shared.host.split_once('.').unwrap().1;
    let later = exp.parse::<u64>().unwrap() + 60;
    let other_port = port.parse::<u16>().unwrap() + 1;
    let other_server = if server == "s1" { "s2" } else { "s1" };
    let flipped = if mac.starts_with('0') { "1" } else { "0" }.to_owned() + &mac[1..];
    for forged in [
        format!("{server}-{port}-{later}-{mac}"),
        format!("{server}-{other_port}-{exp}-{mac}"),
        format!("{other_server}-{port}-{exp}-{mac}"),
        format!("{server}-{port}-{exp}-{flipped}"),
        format!("{server}-{port}-{exp}-"),
    ] {
        assert_eq!(at(LB_BEARER, &format!("{forged}.{domain}")), "", "{forged}");
    }
    assert!(
        at(LB_BEARER, &shared.host).ends_with(" device-47"),
        "the good one still is"
    );
}

#[test]
fn nobody_shares_what_they_may_not_open_nor_anothers_tunnel() {
    let lab = lab();
    let alices = open(&lab, "alice", "device-48", &[]);
    fails(
        &lab,
        "bob",
        &["rssh", "share", "device-48", "22"],
        FailureKind::Denied,
        "device-48",
    );
    let bob = crate::broker::Peer::user(&lab, "bob");
    let id = rssh_proto::TunnelId::generate().to_string();
    let ask = serde_json::json!({"op": "share", "tunnel": alices.tunnel, "valid_s": 60});
    let body = bob.request("bob", &id, &ask);
    assert_eq!(body["failed"]["kind"], "unknown-tunnel", "{body}");
}

#[test]
fn a_port_rests_until_the_last_name_shared_for_it_has_expired() {
    let lab = lab();
    let shared = share(&lab, "user-29", "device-49", &[]);
    let exp: i64 = shared.host.split('-').nth(2).unwrap().parse().unwrap();
    let named = |what: &str| {
        let row = lab.psql(&format!(
            "SELECT {what} FROM leases l JOIN tunnels t ON t.id = l.tunnel_id
             WHERE t.user_id = 'user-29' AND t.device_id = 'device-49'"
        ));
        row.unwrap()
    };
    said(&lab, "user-29", &["rssh", "close", "device-49", "--force"]);
    within(PATIENTLY, "the lease is released", || {
        named("released_at IS NOT NULL") == "t"
    });
    assert_eq!(named(&format!("free_after >= to_timestamp({exp})")), "t");
}
