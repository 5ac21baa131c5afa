//! `rssh devices` and `rssh why`.

use rssh_proto::payload::{DeviceInfo, Operation, Presence, Rank, ReplyBody, Request, TunnelTrace};
use rssh_proto::{Failure, FailureKind};
use serde_json::Value;

use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::{opens, reply};
use crate::tunnels::tunnel;

pub(crate) fn device(name: &str, presence: Presence, since_s: Option<u64>, tags: &[(&str, &str)]) -> DeviceInfo {
    let tags = tags.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    DeviceInfo {
        device: name.parse().unwrap(),
        presence,
        since_s,
        tags: tags.collect(),
    }
}

fn lists() -> Rig {
    let answer = Box::new(|request: &Request, _| {
        assert_eq!(request.op, Operation::Devices);
        let there = device("device-2", Presence::Online, Some(7200), &[("site", "berlin")]);
        let gone = device(
            "device-10",
            Presence::Offline,
            None,
            &[("site", "berlin"), ("role", "gate")],
        );
        let page = |item, last| {
            let body = ReplyBody::Devices {
                items: vec![item],
                last,
            };
            reply(request, 0, Rank::Final, body)
        };
        vec![page(there, false), page(gone, true)]
    });
    Rig::new().broker().server(answer)
}

#[test]
fn devices_are_a_table_of_all_pages_and_tags_select() {
    let rig = lists();
    let table = succeeded(&rig.rssh("devices").output().unwrap());
    assert_eq!(
        table,
        "DEVICE     STATUS   SEEN    TAGS\n\
         device-10  offline  never   role=gate,site=berlin\n\
         device-2   online   for 2h  site=berlin\n"
    );
    let one = succeeded(&rig.rssh("devices -l site=berlin -l role=gate").output().unwrap());
    assert_eq!(one.lines().count(), 2, "{one}");
    assert_eq!(succeeded(&rig.rssh("devices -q -l site=paris").output().unwrap()), "");
    failed(
        &rig.rssh("devices -l berlin").output().unwrap(),
        64,
        &["not a tag", "site=berlin"],
    );
}

#[test]
fn devices_json_is_one_object_per_line() {
    let lines = succeeded(&lists().rssh("devices --json").output().unwrap());
    let objects: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 2, "{lines}");
    assert_eq!(
        (&objects[0]["device"], &objects[0]["status"]),
        (&"device-10".into(), &"offline".into())
    );
    assert_eq!(objects[0]["since"], Value::Null);
    assert_eq!(objects[1]["tags"]["site"], "berlin");
    assert!(objects[1]["since"].as_str().unwrap().ends_with('Z'), "{lines}");
}

#[test]
fn what_was_listed_is_completed() {
    let rig = lists();
    succeeded(&rig.rssh("devices").output().unwrap());
    let known = rig.path("cache/rssh/known");
    let of_alice = std::fs::read_dir(known).unwrap().next().unwrap().unwrap().path();
    let mut devices: Vec<_> = std::fs::read_dir(of_alice.join("devices"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    devices.sort();
    assert_eq!(devices, ["device-10", "device-2"]);
}

/// Opens, and tells of that tunnel.
fn opens_and_explains() -> Rig {
    let open = opens("s1-20000-1999999000-0.proxy.test");
    let answer = Box::new(move |request: &Request, nth| match &request.op {
        Operation::Latest { device, .. } => {
            let mut info = tunnel(device.as_str());
            info.target = rssh_proto::Target::ssh();
            let trace = TunnelTrace {
                info,
                requested_at: 2_000_000_000,
                answered_ms: Some(12),
                landed_ms: Some(60),
                claimed_ms: Some(71),
                active_ms: None,
                ended_ms: Some(15_000),
                claims: 1,
                failure: Some(Failure::new(
                    FailureKind::SshFailed,
                    "device-1 cannot listen; see its log",
                )),
            };
            vec![reply(request, 0, Rank::Final, ReplyBody::Trace(trace))]
        }
        _ => open(request, nth),
    });
    Rig::with(answer, SSH)
}

#[test]
fn why_tells_each_stage_with_its_time_and_what_failed() {
    let rig = opens_and_explains();
    let told = succeeded(&rig.rssh("why device-1").output().unwrap());
    let stages: Vec<&str> = told.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(&stages[2..7], ["STAGE", "accepted", "device", "ssh", "claim"], "{told}");
    assert!(told.contains("ssh       60 ms  +48 ms"), "{told}");
    assert!(
        told.contains("\nIt failed: device-1 cannot listen; see its log\n"),
        "{told}"
    );
    let object: Value = serde_json::from_str(&succeeded(&rig.rssh("why device-1 --json").output().unwrap())).unwrap();
    assert_eq!(object["stages"][2], serde_json::json!({"stage": "ssh", "at_ms": 60}));
    assert_eq!(object["failure"]["kind"], "ssh-failed");
}

#[test]
fn why_knows_of_an_open_that_was_refused_at_once() {
    let answer = Box::new(|request: &Request, _| {
        let (kind, message) = match &request.op {
            Operation::Open(_) => (FailureKind::Denied, "alice may not open localhost:22 on device-9; ask"),
            _ => (
                FailureKind::UnknownTunnel,
                "you have not opened a tunnel to device-9 yet",
            ),
        };
        vec![reply(
            request,
            0,
            Rank::Final,
            ReplyBody::Failed(Failure::new(kind, message)),
        )]
    });
    let rig = Rig::with(answer, SSH);
    failed(&rig.rssh("why device-9").output().unwrap(), 89, &["have not opened"]);
    failed(&rig.rssh("open device-9").output().unwrap(), 77, &["may not open"]);
    let told = succeeded(&rig.rssh("why device-9").output().unwrap());
    assert!(told.contains("failed before it became a tunnel"), "{told}");
    assert!(
        told.contains("It failed: alice may not open localhost:22 on device-9; ask"),
        "{told}"
    );
    // Of another target nothing was asked.
    failed(
        &rig.rssh("why device-9 --port 80").output().unwrap(),
        89,
        &["have not opened"],
    );
}

#[test]
fn exec_runs_where_the_tags_are() {
    let open = opens("s1-20000-1999999000-0.proxy.test");
    let answer = Box::new(move |request: &Request, nth| match &request.op {
        Operation::Devices => {
            let items = [("device-1", "berlin"), ("device-2", "paris"), ("device-3", "berlin")]
                .map(|(name, site)| device(name, Presence::Online, Some(1), &[("site", site)]))
                .into();
            vec![reply(request, 0, Rank::Final, ReplyBody::Devices { items, last: true })]
        }
        _ => open(request, nth),
    });
    let rig = Rig::with(answer, SSH).program(
        "ssh",
        r#"printf 'Authenticated to x\ndebug1: Exit status 0\n' > "$3"; shift 15; echo "$@""#,
    );
    let ran = rig.rssh("exec -l site=berlin --login root -- uptime").output().unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    let mut lines: Vec<&str> = told.lines().collect();
    lines.sort_unstable();
    assert!(
        ran.status.success() && lines.len() == 2,
        "{told}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(
        lines[0].starts_with("device-1: ") && lines[0].ends_with("-l root device-1 -- uptime"),
        "{told}"
    );
    assert!(lines[1].starts_with("device-3: "), "{told}");
    failed(
        &rig.rssh("exec -l site=rome -- uptime").output().unwrap(),
        68,
        &["site=rome", "rssh devices"],
    );
}

#[test]
fn host_keys_are_lines_of_known_hosts_and_nothing_else_gets_among_them() {
    let answer = Box::new(|request: &Request, _| {
        let Operation::HostKeys { device } = &request.op else {
            panic!("{request:?}");
        };
        let keys = match device.as_str() {
            "device-1" => vec!["ssh-ed25519 AAAA".into(), "ssh-rsa BBBB\n* ssh-rsa EVIL".into()],
            _ => vec![],
        };
        let device = device.clone();
        vec![reply(request, 0, Rank::Final, ReplyBody::HostKeys { device, keys })]
    });
    let rig = Rig::with(answer, SSH);
    let told = succeeded(&rig.rssh("known-hosts device-1").output().unwrap());
    assert_eq!(told, "device-1,device-1.rssh ssh-ed25519 AAAA\n");
    // ssh asks again and again.
    for host in ["device-1", "device-1.rssh"] {
        assert_eq!(
            succeeded(&rig.rssh(&format!("known-hosts --cached -- {host}")).output().unwrap()),
            told
        );
    }
    assert_eq!(rig.peers().0.requests().len(), 1);
    failed(
        &rig.rssh("known-hosts device-2").output().unwrap(),
        68,
        &["device-2 has not reported"],
    );
    assert_eq!(
        succeeded(&rig.rssh("known-hosts --cached -- device-2").output().unwrap()),
        ""
    );
}
