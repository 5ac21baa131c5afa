//! `rssh open`.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_proto::payload::{Operation, Rank, ReplyBody, Which};
use rssh_proto::{Failure, FailureKind, Target};
use serde_json::Value;

use crate::balancer::{Act, BANNER};
use crate::pki::Authority;
use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::{info, opens, refuses_the_target, reply};

const HOST: &str = "s1-20000-1999999000-0.proxy.test";

#[test]
fn open_prints_the_name_and_port_of_a_tunnel_that_said_its_banner() {
    let rig = Rig::with(opens(HOST), SSH);
    let output = rig.rssh("open device-1").output().unwrap();
    assert_eq!(succeeded(&output), format!("{HOST} 443\n"));
    let (server, balancer) = rig.peers();
    assert_eq!(balancer.names(), [HOST]);
    let requests = server.requests();
    let [request] = &requests[..] else {
        panic!("{requests:?}");
    };
    let Operation::Open(open) = &request.op else {
        panic!("{request:?}");
    };
    assert!(open.hold && !open.new && open.target == Target::ssh());
    assert_eq!((open.ttl_s, open.idle_s), (Some(3600), None));
    assert!(
        (14_000..=15_000).contains(&request.deadline_ms),
        "{}",
        request.deadline_ms
    );
}

#[test]
fn json_is_one_object_with_the_documented_fields() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Echo);
    let line = "open device-1 --to 192.168.1.10:502 --remote-port 20000 --ttl 90s --idle 15m --new --json";
    let object: Value = serde_json::from_str(&succeeded(&rig.rssh(line).output().unwrap())).unwrap();
    let requests = rig.peers().0.requests();
    let Operation::Open(open) = &requests[0].op else {
        panic!("{requests:?}");
    };
    assert_eq!(
        (open.remote_port, open.ttl_s, open.idle_s),
        (Some(20_000), Some(90), Some(900))
    );
    assert!(open.new);
    for (field, value) in [
        ("tunnel", Value::from(requests[0].id.to_string())),
        ("device", "device-1".into()),
        ("target", "192.168.1.10:502".into()),
        ("server", "s1".into()),
        ("host", HOST.into()),
        ("port", 443.into()),
        ("state", "active".into()),
        ("expires_at", "2033-05-18T03:33:20Z".into()),
        ("host_expires_at", "2033-05-18T03:16:40Z".into()),
    ] {
        assert_eq!(object[field], value, "{field}");
    }
    let rig = Rig::with(opens(HOST), SSH);
    let object: Value = serde_json::from_str(&succeeded(&rig.rssh("open device-1 --json").output().unwrap())).unwrap();
    assert_eq!(object["banner"], BANNER);
}

#[test]
fn a_request_that_was_swallowed_is_repeated_with_its_id() {
    let answers = opens(HOST);
    let swallows = Box::new(move |request: &_, nth| if nth == 0 { vec![] } else { answers(request, nth) });
    let rig = Rig::with(swallows, SSH);
    succeeded(&rig.rssh("open device-1").output().unwrap());
    let requests = rig.peers().0.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].id, requests[1].id);
}

#[test]
fn a_waiting_request_says_so_and_lasts_as_long() {
    let rig = Rig::with(opens(HOST), SSH);
    succeeded(&rig.rssh("open device-1 --wait=2h").output().unwrap());
    let requests = rig.peers().0.requests();
    let Operation::Open(open) = &requests[0].op else {
        panic!("{requests:?}");
    };
    assert!(open.wait);
    assert!(
        (7_190_000..=7_200_000).contains(&requests[0].deadline_ms),
        "{requests:?}"
    );
}

#[test]
fn without_a_server_nobody_serves() {
    let rig = Rig::new().broker();
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        69,
        &["no server takes requests"],
    );
}

#[test]
fn a_servers_failure_is_told_as_it_came_but_for_what_steers_a_terminal() {
    let offline = Box::new(|request: &_, _| {
        let failure = Failure::new(FailureKind::Offline, "device-1 is offline\x1b[2J; try later");
        vec![reply(request, 0, Rank::Final, ReplyBody::Failed(failure))]
    });
    let rig = Rig::with(offline, SSH);
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        80,
        &["device-1 is offline?[2J; try later"],
    );
    assert_eq!(rig.peers().0.closes(), []);
}

#[test]
fn a_certificate_of_another_authority_is_named_by_the_broker_and_by_the_load_balancer() {
    let mut rig = Rig::with(opens(HOST), SSH);
    let strangers = Authority::new(&rig.path(""), "strangers").issue("alice", &[], &rig.servers.file);
    let alice = std::mem::replace(&mut rig.alice, strangers);
    rig.write_profile();
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        86,
        &["broker", "certificate"],
    );
    // The broker takes servers' certificates too; the load balancer takes users' only.
    rig.alice = rig.servers.issue("alice", &[], &alice.ca);
    rig.write_profile();
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        86,
        &["load balancer", "certificate"],
    );
    assert_eq!(rig.peers().0.closes().len(), 1);
}

#[test]
fn a_broker_of_another_authority_is_not_trusted() {
    let mut rig = Rig::with(opens(HOST), SSH);
    rig.alice.ca = rig.users.file.clone();
    rig.write_profile();
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        86,
        &["broker", "certificate"],
    );
    assert_eq!(rig.peers().0.requests(), []);
}

#[test]
fn a_name_that_routers_learn_late_is_tried_again() {
    let rig = Rig::with(opens(HOST), |_, nth| if nth < 3 { Act::Refuse } else { Act::Ssh });
    succeeded(&rig.rssh("open device-1").output().unwrap());
    let (server, balancer) = rig.peers();
    assert_eq!(balancer.names().len(), 4);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_refused_name_ends_the_open_and_gives_the_tunnel_up() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Refuse);
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        85,
        &["device-1", "closes connections"],
    );
    let (server, _) = rig.peers();
    let closes = server.closes();
    assert_eq!(closes.len(), 1);
    assert_eq!(closes[0].which, Which::Tunnel(server.requests()[0].id));
    assert!(!closes[0].force);
    assert_eq!(rig.names_cached(), 0);
}

#[test]
fn a_target_that_the_device_found_closed_is_named_by_the_server() {
    let rig = Rig::with(refuses_the_target(), |_, _| Act::Refuse);
    let output = rig.rssh("open device-1 --port 8080").output().unwrap();
    failed(&output, 83, &["nothing answers at localhost:8080"]);
    let (server, balancer) = rig.peers();
    assert!(balancer.names().len() < 5, "it was not tried to the end");
    assert_eq!(server.closes().len(), 1);
}

#[test]
fn a_port_that_does_not_speak_ssh_is_not_proven() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Http);
    failed(
        &rig.rssh("open device-1").output().unwrap(),
        88,
        &["not SSH", "HTTP/1.1"],
    );
    assert_eq!(rig.peers().0.closes().len(), 1);
}

#[test]
fn a_silent_target_ends_at_the_deadline() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Silence);
    failed(
        &rig.rssh("open device-1 --timeout 700ms").output().unwrap(),
        84,
        &["did not answer"],
    );
    assert_eq!(rig.peers().0.closes().len(), 1);
}

#[test]
fn a_load_balancer_that_is_not_there_is_named() {
    let rig = Rig::new().broker().server(opens(HOST));
    let output = rig.rssh("open device-1").output().unwrap();
    failed(&output, 69, &["cannot reach the load balancer", "lb in the profile"]);
}

#[test]
fn a_missed_deadline_names_the_last_stage_and_gives_the_tunnel_up() {
    let answers = opens(HOST);
    let slow = Box::new(move |request: &_, nth| answers(request, nth).into_iter().take(2).collect());
    let rig = Rig::with(slow, SSH);
    let output = rig.rssh("open device-1 --timeout 500ms").output().unwrap();
    failed(&output, 84, &["device-1 answered", "within 500ms"]);
    assert_eq!(rig.peers().0.closes().len(), 1);
}

#[test]
fn an_interrupted_open_gives_its_tunnel_up() {
    let answers = opens(HOST);
    let (asked, was_asked) = std::sync::mpsc::channel();
    let never = Box::new(move |request: &rssh_proto::payload::Request, nth| {
        let _ = asked.send(());
        match request.op {
            Operation::Open(_) => answers(request, nth).into_iter().take(1).collect(),
            _ => answers(request, nth),
        }
    });
    let rig = Rig::with(never, SSH);
    let mut command = rig.process("open device-1");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    was_asked.recv_timeout(Duration::from_secs(30)).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    failed(&child.wait_with_output().unwrap(), 130, &["interrupted"]);
    assert_eq!(rig.peers().0.closes().len(), 1);
}

#[test]
fn an_answer_that_is_not_a_name_reaches_neither_tls_nor_the_terminal() {
    let rig = Rig::with(opens("a b\x1b[2J"), SSH);
    let line = failed(&rig.rssh("open device-1").output().unwrap(), 70, &["host name"]);
    assert!(!line.contains('\x1b'), "{line:?}");
}

#[test]
fn another_devices_tunnel_is_refused() {
    let wrong = Box::new(|request: &rssh_proto::payload::Request, _| match &request.op {
        Operation::Open(open) => {
            let mut info = info(request.id, open, HOST);
            info.device = "device-2".parse().unwrap();
            vec![reply(request, 1, Rank::Final, ReplyBody::Opened(info))]
        }
        _ => vec![reply(request, 0, Rank::Final, ReplyBody::Closed { items: vec![] })],
    });
    let rig = Rig::with(wrong, SSH);
    failed(&rig.rssh("open device-1").output().unwrap(), 70, &["device-2"]);
    assert_eq!(rig.peers().1.names(), Vec::<String>::new());
}
