//! The lab itself: it leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::Command;

use rssh_lab::{Action, Lab, Options};

fn options() -> Options {
    Options {
        servers: NonZeroU32::new(1).unwrap(),
        devices: 1,
        users: 1,
        ..Options::default()
    }
}

#[test]
fn a_lab_ends_with_all_its_processes_however_they_were_left() {
    let lab = Lab::temporary(options()).unwrap_or_else(|error| panic!("{error:#}"));
    lab.exec("alice", &["rssh", "open", "device-1"]).unwrap();
    // Orphans of every kind: an agent's ssh, an sshd's login, a frozen database, a user's own program.
    lab.ctl(Action::Kill, "agentd-1").unwrap();
    lab.ctl(Action::Kill, "sshd-1").unwrap();
    lab.ctl(Action::Stop, "postgres").unwrap();
    lab.exec("alice", &["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
        .unwrap();
    let processes = lab.processes();
    assert!(
        processes
            .iter()
            .any(|process| process.command_line().contains("sleep 1000"))
    );
    let dir = lab.dir().to_owned();
    drop(lab);
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert!(!dir.exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()));
}

#[test]
fn components_are_seen_dying_freezing_and_coming_back() {
    let lab = Lab::temporary(options()).unwrap_or_else(|error| panic!("{error:#}"));
    let state = |name: &str| {
        let status = lab.status().unwrap();
        status
            .components
            .into_iter()
            .find(|component| component.name == name)
            .unwrap()
            .state
    };
    for name in [
        "postgres",
        "redis",
        "mosquitto",
        "haproxy",
        "routerd",
        "serverd-1",
        "sshd-1",
        "agentd-1",
        "target-1",
    ] {
        assert_eq!(state(name), "running", "{name}");
    }
    lab.ctl(Action::Kill, "redis").unwrap();
    assert_eq!(state("redis"), "ended");
    assert!(lab.ctl(Action::Kill, "redis").is_err());
    lab.ctl(Action::Start, "redis").unwrap();
    assert!(lab.ctl(Action::Start, "redis").is_err());
    lab.ctl(Action::Stop, "redis").unwrap();
    assert_eq!(state("redis"), "stopped");
    lab.ctl(Action::Cont, "redis").unwrap();
    lab.ctl(Action::Restart, "mosquitto").unwrap();
    lab.ctl(Action::Restart, "postgres").unwrap();
    assert_eq!(lab.psql("SELECT 1").unwrap(), "1");
    assert!(lab.ctl(Action::Kill, "nobody").is_err());
}

#[test]
fn the_verbs_work_from_the_command_line() {
    let program = env!("CARGO_BIN_EXE_rssh-lab");
    let temporary = tempfile::tempdir().unwrap();
    // Longer than the address of a unix socket may be, and closed to other accounts.
    let dir: PathBuf = temporary.path().join("x".repeat(100));
    let verb = |args: &[&str]| {
        Command::new(program)
            .args(&args[..1])
            .arg("--dir")
            .arg(&dir)
            .args(&args[1..])
            .output()
            .unwrap()
    };
    let up = verb(&["up", "--servers", "1", "--devices", "1", "--users", "2"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let again = verb(&["up"]);
    assert!(!again.status.success());
    let home = verb(&[
        "exec",
        "--user",
        "bob",
        "--",
        "sh",
        "-c",
        "echo ~; ls $LAB_SSH_CONFIG; exit 7",
    ]);
    assert_eq!(home.status.code(), Some(7));
    let home = String::from_utf8(home.stdout).unwrap();
    let mut lines = home.lines();
    let home = lines.next().unwrap();
    assert!(
        home.starts_with("/run/lab-") && home.ends_with("/users/bob/home"),
        "{home}"
    );
    assert_eq!(lines.next(), Some(format!("{home}/.ssh/config").as_str()));
    let status: serde_json::Value = serde_json::from_slice(&verb(&["status", "--json"]).stdout).unwrap();
    let components = status["components"].as_array().unwrap();
    assert!(
        components
            .iter()
            .all(|component| component["up"] == true && component["pid"].as_i64() > Some(1))
    );
    assert!(verb(&["ctl", "restart", "routerd"]).status.success());
    let down = verb(&["down"]);
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["log"]);
}
