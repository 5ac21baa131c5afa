//! `rssh proxy`.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_proto::payload::{Operation, Rank, ReplyBody, Request};

use crate::balancer::{Act, BANNER};
use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::{Answers, info, opens, refuses_the_target, reply};

const HOST: &str = "s1-20000-1999999000-0.proxy.test";

#[test]
fn a_session_goes_both_ways_and_each_half_ends_by_itself() {
    let rig = Rig::with(opens(HOST), SSH);
    let output = rig
        .rssh("proxy device-1")
        .write_stdin("SSH-2.0-client\r\n")
        .output()
        .unwrap();
    assert_eq!(succeeded(&output), format!("{BANNER}\r\nSSH-2.0-client\r\nbye"));
    let Operation::Open(open) = &rig.peers().0.requests()[0].op else {
        panic!("not an open");
    };
    assert!(!open.hold, "a session does not hold its tunnel");
    assert_eq!(open.idle_s, Some(900));
    assert_eq!(rig.peers().0.closes(), []);
}

#[test]
fn much_data_arrives_as_it_was() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Echo);
    let data: Vec<u8> = (0..8_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let output = rig
        .rssh("proxy device-1 8080")
        .write_stdin(data.clone())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), data.len() + 3);
    assert!(output.stdout.starts_with(&data));
}

#[test]
fn a_cached_name_spends_no_request() {
    let rig = Rig::with(opens(HOST), SSH);
    succeeded(&rig.rssh("open device-1").output().unwrap());
    for _ in 0..2 {
        let output = rig.rssh("proxy device-1 22").write_stdin("x").output().unwrap();
        assert_eq!(succeeded(&output), format!("{BANNER}\r\nxbye"));
    }
    assert_eq!(rig.peers().0.requests().len(), 1);
    assert_eq!(rig.peers().1.names().len(), 3);
}

/// A server whose names differ from open to open.
fn fresh_names() -> Answers {
    Box::new(|request: &Request, nth| match &request.op {
        Operation::Open(open) => {
            let info = info(request.id, open, &format!("name{nth}.proxy.test"));
            vec![reply(request, 1, Rank::Final, ReplyBody::Opened(info))]
        }
        _ => vec![],
    })
}

#[test]
fn a_cached_name_that_is_refused_is_replaced_and_what_the_client_said_is_kept() {
    let acts = |name: &str, nth| match (name, nth) {
        ("name0.proxy.test", 1..) => Act::Refuse,
        _ => Act::Ssh,
    };
    let rig = Rig::with(fresh_names(), acts);
    succeeded(&rig.rssh("open device-1").output().unwrap());
    let output = rig
        .rssh("proxy device-1")
        .write_stdin("SSH-2.0-client\r\n")
        .output()
        .unwrap();
    assert_eq!(succeeded(&output), format!("{BANNER}\r\nSSH-2.0-client\r\nbye"));
    let names = rig.peers().1.names();
    assert_eq!(
        names,
        ["name0", "name0", "name1"].map(|name| format!("{name}.proxy.test"))
    );
    // The fresh name is the cached one now.
    succeeded(&rig.rssh("proxy device-1").write_stdin("x").output().unwrap());
    assert_eq!(rig.peers().0.requests().len(), 2);
}

#[test]
fn a_refused_name_for_another_target_costs_the_client_nothing() {
    let acts = |name: &str, nth| match (name, nth) {
        ("name0.proxy.test", 1..) => Act::Refuse,
        _ => Act::Echo,
    };
    let rig = Rig::with(fresh_names(), acts);
    succeeded(&rig.rssh("open device-1 --port 80").output().unwrap());
    let output = rig.rssh("proxy device-1 80").write_stdin("GET /\r\n").output().unwrap();
    assert_eq!(succeeded(&output), "GET /\r\nbye");
    assert_eq!(rig.peers().1.names().len(), 3);
}

#[test]
fn a_name_refused_for_good_is_named_and_forgotten() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Refuse);
    let output = rig.rssh("proxy device-1").write_stdin("x").output().unwrap();
    failed(&output, 85, &["device-1", "closes connections"]);
    assert_eq!(rig.names_cached(), 0);
}

#[test]
fn a_target_that_the_device_found_closed_is_named_by_the_server() {
    let rig = Rig::with(refuses_the_target(), |_, _| Act::Refuse);
    let output = rig.rssh("proxy device-1 8080").write_stdin("x").output().unwrap();
    failed(&output, 83, &["nothing answers at localhost:8080"]);
    assert_eq!(rig.names_cached(), 0);
    let asked = rig.peers().0.requests();
    assert_eq!(asked.len(), 2, "an open, and one question: {asked:?}");
}

#[test]
fn the_reader_sees_the_end_while_the_writer_still_holds_on() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Http);
    let mut command = rig.process("proxy device-1 80");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");
    // Nobody is there any more to take it; the proxy ends all the same.
    let _ = stdin.write_all(b"x");
    drop(stdin);
    child.wait().unwrap();
}

#[test]
fn ssh_ends_its_proxy_by_a_signal_and_hears_nothing_of_it() {
    let rig = Rig::with(opens(HOST), SSH);
    let mut command = rig.process("proxy device-1");
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut banner = vec![0; BANNER.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut banner).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    // Its stdin stays open meanwhile.
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(129));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
