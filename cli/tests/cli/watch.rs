//! `rssh watch`, and `rssh` alone.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_proto::payload::{DeviceInfo, Operation, Presence, Rank, ReplyBody, Request, TunnelInfo, TunnelState};
use rssh_proto::{Failure, FailureKind, Tags};
use serde_json::Value;

use crate::rig::{Rig, failed};
use crate::server::reply;
use crate::tunnels::tunnel;

/// A server whose lists are these, the last one for ever; `None` is a failure.
fn lists(lists: Vec<Option<Vec<TunnelInfo>>>) -> Rig {
    let answer = Box::new(move |request: &Request, nth: usize| {
        let list = lists.get(nth).unwrap_or_else(|| lists.last().unwrap());
        let body = match list.clone() {
            Some(items) => ReplyBody::Tunnels { items, last: true },
            None => ReplyBody::Failed(Failure::new(FailureKind::Busy, "the store is away; try again")),
        };
        vec![reply(request, 0, Rank::Final, body)]
    });
    Rig::new().broker().server(answer)
}

/// The first lines that it prints, its exit code after SIGINT and its stderr.
fn watched(rig: &Rig, line: &str, count: usize) -> (Vec<String>, Option<i32>, String) {
    let mut command = rig.process(line);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let lines = stdout.lines().take(count).map(Result::unwrap).collect();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    (lines, output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn events_come_as_json_and_a_failure_in_between_is_told_once() {
    let one = tunnel("device-1");
    let claimed = TunnelInfo {
        state: TunnelState::Claimed,
        ..one.clone()
    };
    let rig = lists(vec![Some(vec![claimed]), None, None, Some(vec![one]), Some(vec![])]);
    let (lines, code, told) = watched(&rig, "watch --json --every 20ms", 3);
    let events: Vec<(Value, Value)> = lines
        .iter()
        .map(|line| {
            let object: Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["device"], "device-1");
            assert!(object["at"].as_str().unwrap().ends_with('Z'), "{line}");
            (object["event"].clone(), object["state"].clone())
        })
        .collect();
    let expected = [("added", "claimed"), ("changed", "active"), ("removed", "active")];
    assert_eq!(events, expected.map(|(event, state)| (event.into(), state.into())));
    assert_eq!(code, Some(130));
    assert_eq!(told, "rssh: the store is away; try again\n");
}

#[test]
fn without_a_terminal_events_are_lines() {
    let rig = lists(vec![Some(vec![tunnel("device-1")])]);
    let (lines, _, _) = watched(&rig, "watch", 1);
    assert!(
        lines[0].starts_with("added device-1 localhost:8080 active "),
        "{lines:?}"
    );
}

#[test]
fn a_watch_that_cannot_begin_ends() {
    failed(
        &lists(vec![None]).rssh("watch").output().unwrap(),
        75,
        &["the store is away"],
    );
}

fn with_devices() -> Rig {
    let answer = Box::new(|request: &Request, _| {
        assert_eq!(request.op, Operation::Devices);
        let info = |device: &str, presence| DeviceInfo {
            device: device.parse().unwrap(),
            presence,
            since_s: None,
            tags: Tags::new(),
        };
        let items = vec![info("device-1", Presence::Online), info("gate", Presence::Offline)];
        vec![reply(request, 0, Rank::Final, ReplyBody::Devices { items, last: true })]
    });
    Rig::new()
        .broker()
        .server(answer)
        .program("ssh", "echo \"ssh goes to $5\"")
}

#[test]
fn rssh_alone_is_a_usage_error_without_a_terminal() {
    failed(&with_devices().rssh("").output().unwrap(), 64, &["rssh --help"]);
}

/// script(1) gives it a terminal.
#[test]
fn rssh_alone_on_a_terminal_offers_the_devices_and_logs_in_to_the_chosen_one() {
    let rig = with_devices();
    let own = rig.process("");
    let mut script = assert_cmd::Command::new("script");
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let program = assert_cmd::cargo::cargo_bin!("rssh");
    let output = script
        .env("TERM", "xterm")
        .args(["-qec", program.to_str().unwrap(), "/dev/null"])
        .write_stdin("gat\r")
        .timeout(std::time::Duration::from_secs(30))
        .output()
        .unwrap();
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(screen.contains("Log in to"), "{screen}");
    assert!(screen.contains("ssh goes to gate"), "{screen}");
}
