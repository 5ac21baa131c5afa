//! Wrong lines, wrong profiles, and nobody there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::rig::{Rig, failed, succeeded};

#[test]
fn a_wrong_line_is_a_usage_error_in_one_line() {
    let rig = Rig::new();
    for line in [
        "open device-1 --port 22 --to plc-1",
        "open device-1 --port 0",
        "open -- -oProxyCommand=x",
        "open device-1;id",
        "proxy %h",
        "ssh -oX@device-1",
        "fly",
    ] {
        failed(&rig.rssh(line).output().unwrap(), 64, &["--help"]);
    }
    let tunnel = rssh_proto::TunnelId::generate();
    let line = format!("close {tunnel} --port 22");
    failed(&rig.rssh(&line).output().unwrap(), 64, &["one target"]);
}

#[test]
fn help_lists_the_commands_and_the_exit_codes_on_stdout() {
    let help = succeeded(&Rig::new().rssh("--help").output().unwrap());
    for word in ["open", "close", "ls", "proxy", "ssh", "init", "Exit codes:", "86  "] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn a_missing_profile_is_a_configuration_error_with_its_remedy() {
    let rig = Rig::new();
    fs::remove_file(rig.path("config/rssh/profile.toml")).unwrap();
    for line in [
        "open device-1",
        "ls",
        "close device-1",
        "proxy device-1",
        "ssh device-1",
    ] {
        failed(
            &rig.rssh(line).output().unwrap(),
            78,
            &["profile.toml", "rssh login URL", "rssh init"],
        );
    }
    let output = rig.rssh("ls --profile /nowhere/p.toml").output().unwrap();
    failed(&output, 78, &["/nowhere/p.toml"]);
    let output = rig.rssh("ls").env("RSSH_PROFILE", "/nowhere/q.toml").output().unwrap();
    failed(&output, 78, &["/nowhere/q.toml"]);
}

#[test]
fn a_key_that_others_may_read_is_not_used() {
    let rig = Rig::new();
    fs::set_permissions(&rig.alice.key, fs::Permissions::from_mode(0o644)).unwrap();
    failed(&rig.rssh("ls").output().unwrap(), 78, &["chmod 600"]);
}

#[test]
fn a_broker_that_is_not_there_is_told_at_once() {
    let start = Instant::now();
    failed(
        &Rig::new().rssh("open device-1").output().unwrap(),
        69,
        &["broker", "brokers in the profile"],
    );
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn init_makes_a_key_once_and_a_request_for_its_certificate() {
    let rig = Rig::new();
    let directory = rig.path("new");
    let line = format!("init -q --user alice --dir {}", directory.display());
    let request = succeeded(&rig.rssh(&line).output().unwrap());
    assert_eq!(request.trim_end(), directory.join("user.csr").to_str().unwrap());
    assert!(
        fs::read_to_string(request.trim_end())
            .unwrap()
            .contains("CERTIFICATE REQUEST")
    );
    let key = directory.join("user.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let made = fs::read(&key).unwrap();
    succeeded(&rig.rssh(&line).output().unwrap());
    assert_eq!(fs::read(&key).unwrap(), made);
}

#[test]
fn init_without_a_name_asks_nobody_when_there_is_no_terminal() {
    let rig = Rig::new();
    let line = format!("init --dir {}", rig.path("new").display());
    failed(&rig.rssh(&line).output().unwrap(), 64, &["--user"]);
    assert!(!rig.path("new").exists());
}
