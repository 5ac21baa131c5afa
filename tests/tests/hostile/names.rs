//! Names and requests of somebody else's tunnels.

use rssh_proto::{FailureKind, TunnelId};
use serde_json::json;

use crate::broker::Peer;
use crate::{all_of, fails, greeting, lab, lease, open, said};

#[test]
fn the_name_of_a_closed_tunnel_leads_to_nobody_even_when_its_port_is_wanted() {
    let lab = lab();
    let opened = open(&lab, "peggy", "device-20", &[]);
    let held = lease(&lab, &opened.tunnel);
    let mut fields = held.split('|');
    let (server, port) = (fields.next().unwrap(), fields.next().unwrap());
    assert!(greeting(&lab, "peggy", &opened.host).ends_with(" device-20"));
    said(&lab, "peggy", &["rssh", "close", "device-20"]);
    assert_eq!(greeting(&lab, "peggy", &opened.host), "");
    // The same user wants that very port for other devices, until one has landed on that server.
    let mut landed = 0;
    for round in 0..20 {
        let device = format!("device-{}", 21 + round % 2);
        let other = open(&lab, "peggy", &device, &["--new", "--remote-port", port]);
        let place = lease(&lab, &other.tunnel);
        assert!(!place.starts_with(&format!("{server}|{port}|")), "{place} rests");
        landed += u32::from(other.server == server);
        assert_eq!(greeting(&lab, "peggy", &opened.host), "");
        if landed == 2 {
            break;
        }
    }
    assert!(landed > 0, "nothing landed on {server}");
}

#[test]
fn bob_reaches_device_2_by_no_request() {
    let lab = lab();
    let alices = open(&lab, "alice", "device-2", &[]);
    let before = lease(&lab, &alices.tunnel);
    let own = open(&lab, "bob", "device-1", &[]);
    for argv in [
        &["rssh", "open", "device-2"][..],
        &["rssh", "open", "device-2", "--new"],
        &["rssh", "open", "device-2", "--port", "22"],
        &["rssh", "open", "device-2", "--to", "127.0.0.1:22"],
        &["rssh", "proxy", "device-2"],
    ] {
        fails(&lab, "bob", argv, FailureKind::Denied, "device-2");
    }
    for argv in [
        &["ssh", "device-2", "hostname"][..],
        &["rssh", "ssh", "device-2", "--", "hostname"],
    ] {
        let output = lab.exec("bob", argv).unwrap();
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{}",
            all_of(&output)
        );
    }
    for which in [alices.tunnel.as_str(), "device-2"] {
        for argv in [&["rssh", "close", which][..], &["rssh", "close", which, "--force"]] {
            fails(&lab, "bob", argv, FailureKind::UnknownTunnel, which);
        }
    }
    assert_eq!(greeting(&lab, "bob", &alices.host), "");
    // What the program does not send, others may.
    let bob = Peer::user(&lab, "bob");
    let fresh = || TunnelId::generate().to_string();
    let tunnel = &alices.tunnel;
    let target = "localhost:22";
    for (id, operation, kind) in [
        (fresh(), json!({"op": "name", "tunnel": tunnel}), "unknown-tunnel"),
        (
            tunnel.clone(),
            json!({"op": "open", "device": "device-2", "target": target}),
            "denied",
        ),
        (
            tunnel.clone(),
            json!({"op": "open", "device": "device-1", "target": target}),
            "denied",
        ),
        (
            tunnel.clone(),
            json!({"op": "name", "tunnel": tunnel}),
            "unknown-tunnel",
        ),
        (
            fresh(),
            json!({"op": "open", "device": "device-2", "target": target, "user": "alice"}),
            "denied",
        ),
    ] {
        let body = bob.request("bob", &id, &operation);
        assert_eq!(body["failed"]["kind"], kind, "{id} {operation}: {body}");
    }
    for which in [json!({"tunnel": tunnel}), json!({"device": {"device": "device-2"}})] {
        let body = bob.request("bob", &fresh(), &json!({"op": "close", "which": which, "force": true}));
        assert_eq!(body["closed"]["items"], json!([]), "{body}");
    }
    let listed = said(&lab, "bob", &["rssh", "ls", "--json"]);
    assert!(listed.contains(&own.tunnel) && !listed.contains("device-2"), "{listed}");
    assert_eq!(lease(&lab, tunnel), before);
    let count = lab.psql("SELECT count(*) FROM tunnels WHERE user_id = 'bob' AND device_id <> 'device-1'");
    assert_eq!(count.unwrap(), "0");
}
