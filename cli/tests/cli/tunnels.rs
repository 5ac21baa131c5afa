//! `rssh ls` and `rssh close`.

use rssh_proto::TunnelId;
use rssh_proto::payload::{
    CloseRequest, ClosedTunnel, OpenRequest, Operation, Rank, ReplyBody, Request, TunnelInfo, Which,
};
use serde_json::Value;

use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::{info, reply};

pub(crate) fn tunnel(device: &str) -> TunnelInfo {
    let open = OpenRequest::new(device.parse().unwrap(), "8080".parse().unwrap());
    info(TunnelId::generate(), &open, "s1.proxy.test")
}

fn lists(pages: Vec<Vec<TunnelInfo>>) -> Rig {
    let answer = Box::new(move |request: &Request, _| {
        let count = pages.len();
        let page = |(nth, items): (usize, &Vec<TunnelInfo>)| {
            let items = items.clone();
            let last = nth + 1 == count;
            reply(request, 0, Rank::Final, ReplyBody::Tunnels { items, last })
        };
        pages.iter().enumerate().map(page).collect()
    });
    Rig::new().broker().server(answer)
}

#[test]
fn ls_shows_an_aligned_table_of_all_pages() {
    let rig = lists(vec![vec![tunnel("device-2")], vec![tunnel("device-10")]]);
    let table = succeeded(&rig.rssh("ls").output().unwrap());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("DEVICE     TARGET "), "{table}");
    assert!(
        lines[1].starts_with("device-10  localhost:8080  active  s1 "),
        "{table}"
    );
    assert!(
        lines[2].starts_with("device-2   localhost:8080  active  s1 "),
        "{table}"
    );
}

#[test]
fn ls_json_is_one_object_per_line() {
    let rig = lists(vec![vec![tunnel("device-2"), tunnel("device-10")]]);
    let lines = succeeded(&rig.rssh("ls --json").output().unwrap());
    let devices: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["device"].clone())
        .collect();
    assert_eq!(devices, ["device-10", "device-2"]);
}

#[test]
fn no_tunnels_are_no_data() {
    let rig = lists(vec![vec![]]);
    assert_eq!(succeeded(&rig.rssh("ls -q").output().unwrap()), "");
    assert_eq!(succeeded(&rig.rssh("ls --json").output().unwrap()), "");
    let output = rig.rssh("ls").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert_eq!(output.stderr, b"rssh: no open tunnels\n");
}

fn closes(holders_left: u32) -> Rig {
    let answer = Box::new(move |request: &Request, _| {
        let tunnel = tunnel("device-1");
        let items = match &request.op {
            Operation::Close(CloseRequest {
                which: Which::Device { device, .. },
                ..
            }) if device.as_str() == "device-1" => vec![ClosedTunnel {
                tunnel: tunnel.tunnel,
                device: tunnel.device,
                target: tunnel.target,
                holders_left,
            }],
            _ => vec![],
        };
        vec![reply(request, 0, Rank::Final, ReplyBody::Closed { items })]
    });
    Rig::with(answer, SSH)
}

#[test]
fn close_says_what_it_closed_and_what_others_hold() {
    let rig = closes(0);
    let told = succeeded(&rig.rssh("close device-1 --port 8080 --force").output().unwrap());
    assert_eq!(told, "closed device-1 localhost:8080\n");
    let asked = rig.peers().0.closes();
    let Which::Device { target, .. } = &asked[0].which else {
        panic!("{asked:?}");
    };
    assert_eq!(*target, Some("8080".parse().unwrap()));
    assert!(asked[0].force);

    let rig = closes(1);
    let told = succeeded(&rig.rssh("close device-1").output().unwrap());
    assert!(
        told.starts_with("left open device-1 localhost:8080") && told.contains("--force"),
        "{told}"
    );
    let object = succeeded(&rig.rssh("close device-1 --json").output().unwrap());
    let object: Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object["holders_left"], 1);
}

#[test]
fn closing_what_is_not_open_is_a_named_failure() {
    let rig = closes(0);
    failed(
        &rig.rssh("close device-2").output().unwrap(),
        89,
        &["no open tunnel to device-2", "rssh ls"],
    );
    let tunnel = TunnelId::generate();
    let output = rig.rssh(&format!("close {tunnel}")).output().unwrap();
    failed(&output, 89, &[&tunnel.to_string()]);
    assert_eq!(rig.peers().0.closes()[1].which, Which::Tunnel(tunnel));
}
