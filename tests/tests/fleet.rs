//! One command on many devices: a lab of its own, in which every device is there.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use rssh_lab::process::PATIENTLY;
use rssh_lab::testing::{all_of, said, shared, within};
use rssh_lab::{Action, Lab, Options};
use serde_json::Value;

/// How many devices the lab has.
const DEVICES: u32 = 50;

/// The lab that the tests share: up from the first that asks to the last that lets go.
fn lab() -> Arc<Lab> {
    let options = Options {
        servers: NonZeroU32::new(2).unwrap(),
        devices: DEVICES,
        users: 3,
        ..Options::default()
    };
    shared(options, |_| ())
}

#[test]
fn exec_runs_on_fifty_devices_and_names_the_one_that_was_killed() {
    let lab = lab();
    let dead = "device-50";
    lab.ctl(Action::Kill, "agentd-50").unwrap();
    within(PATIENTLY, "the device is offline", || {
        lab.psql("SELECT online FROM devices WHERE id = 'device-50'").unwrap() == "f"
    });
    let names: Vec<String> = (1..=DEVICES).map(|n| format!("device-{n}")).collect();
    // Each has an exit code of its own, by its number; how many run at once is seen by all of them.
    let running = lab.dir().join("running");
    std::fs::create_dir_all(&running).unwrap();
    let seen = lab.dir().inside("running");
    let script = format!(
        "d={seen}; touch $d/$(hostname); ls $d | wc -l; sleep 1; rm $d/$(hostname); exit $(hostname | tr -dc 0-9)"
    );
    let mut argv = vec!["rssh", "exec", "--json", "--parallel", "8"];
    argv.extend(names.iter().map(String::as_str));
    argv.extend(["--", script.as_str()]);
    let output = lab.exec("carol", &argv).unwrap();
    lab.ctl(Action::Start, "agentd-50").unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let outcomes: BTreeMap<String, Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .map(|outcome| (outcome["device"].as_str().unwrap().to_owned(), outcome))
        .collect();
    assert_eq!(outcomes.len(), DEVICES as usize, "{}", all_of(&output));
    let mut most = 0;
    for (n, name) in (1..).zip(&names) {
        let outcome = &outcomes[name];
        if name == dead {
            assert_eq!(outcome["outcome"], "failed", "{outcome}");
            assert_eq!(
                (&outcome["failure"]["kind"], &outcome["exit_code"]),
                (&"offline".into(), &80.into())
            );
        } else {
            assert_eq!(
                (&outcome["outcome"], &outcome["exit_code"]),
                (&"exited".into(), &n.into()),
                "{outcome}"
            );
            let at_once: u64 = outcome["stdout"].as_str().unwrap().trim().parse().unwrap();
            most = at_once.max(most);
        }
    }
    assert!((2..=8).contains(&most), "{most} at once");
    // The worst of all.
    assert_eq!(output.status.code(), Some(80), "{}", all_of(&output));
    within(PATIENTLY, "the device is back", || {
        lab.psql("SELECT online FROM devices WHERE id = 'device-50'").unwrap() == "t"
    });
}

#[test]
fn tags_select_devices_and_a_command_runs_on_those() {
    let lab = lab();
    // As enrolment stores them.
    lab.psql(
        "INSERT INTO device_tags VALUES ('device-44', 'hall', 'north'), ('device-47', 'hall', 'south'),
             ('device-48', 'hall', 'north'), ('device-48', 'role', 'gate')",
    )
    .unwrap();
    let listed = said(&lab, "alice", &["rssh", "devices", "-l", "hall=north", "--json"]);
    let devices: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(devices.len(), 2, "{listed}");
    assert_eq!(devices[1]["tags"], serde_json::json!({"hall": "north", "role": "gate"}));
    let ran = said(
        &lab,
        "alice",
        &["rssh", "exec", "-q", "-l", "hall=north", "--", "hostname"],
    );
    let mut lines: Vec<&str> = ran.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["device-44: device-44", "device-48: device-48"]);
}
