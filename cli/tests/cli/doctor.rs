//! `rssh doctor`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rssh_proto::payload::{Rank, ReplyBody};
use serde_json::Value;

use crate::pki::Authority;
use crate::rig::{Rig, SSH, succeeded};
use crate::server::{Answers, reply};

fn lists_nothing() -> Answers {
    Box::new(|request, _| {
        let body = ReplyBody::Tunnels {
            items: vec![],
            last: true,
        };
        vec![reply(request, 0, Rank::Final, body)]
    })
}

const OPENSSH: &str = "[ $1 = -V ] && echo OpenSSH_9.2p1 >&2 || echo \"proxycommand 'rssh' proxy '%h' %p\"";

/// Each check with its status, and the exit code.
fn examined(rig: &Rig) -> (Vec<(String, String)>, Option<i32>) {
    let output = rig.rssh("doctor --json --timeout 2s").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let finding = |line: &str| {
        let object: Value = serde_json::from_str(line).unwrap();
        let status = object["status"].as_str().unwrap().to_owned();
        assert_eq!(object["remedy"].is_null(), status == "ok", "{line}");
        (object["check"].as_str().unwrap().to_owned(), status)
    };
    (stdout.lines().map(finding).collect(), output.status.code())
}

fn of(findings: &[(String, String)], check: &str) -> String {
    let found = findings.iter().filter(|(name, _)| name == check);
    found.map(|(_, status)| status.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_sound_world_passes_every_check() {
    let rig = Rig::with(lists_nothing(), SSH).program("ssh", OPENSSH);
    let (findings, code) = examined(&rig);
    let checks: Vec<&str> = findings.iter().map(|(check, _)| check.as_str()).collect();
    let expected = [
        "profile",
        "key",
        "certificate",
        "broker",
        "lb",
        "clock",
        "subscription",
        "server",
        "ssh",
        "ssh config",
    ];
    assert_eq!(checks, expected);
    assert!(findings.iter().all(|(_, status)| status == "ok"), "{findings:?}");
    assert_eq!(code, Some(0));
    assert_eq!(succeeded(&rig.rssh("doctor -q").output().unwrap()), "");
    let text = succeeded(&rig.rssh("doctor").output().unwrap());
    assert!(text.starts_with("ok    profile"), "{text}");
    assert!(!text.contains('\x1b'), "colours are for terminals: {text:?}");
}

#[test]
fn what_is_not_there_fails_with_a_remedy() {
    let (findings, code) = examined(&Rig::new().program("ssh", OPENSSH));
    assert_eq!(of(&findings, "network"), "fail fail");
    assert_eq!(of(&findings, "subscription"), "fail");
    assert_eq!(of(&findings, "server"), "");
    assert_eq!(code, Some(1));

    let rig = Rig::new();
    let profile = rig.path("config/rssh/profile.toml");
    let text = fs::read_to_string(&profile).unwrap();
    let text = text.replace("brokers = [\"127.0.0.1:", "brokers = [\"nowhere.invalid:");
    fs::write(&profile, text.replace("lb = \"127.0.0.1:", "lb = \"localhost:")).unwrap();
    assert_eq!(of(&examined(&rig).0, "dns"), "fail ok");

    let (findings, _) = examined(&Rig::with(Box::new(|_, _| vec![]), SSH));
    assert_eq!(of(&findings, "server"), "fail");

    let rig = Rig::new().program("ssh", "echo Dropbear >&2");
    fs::remove_file(rig.path("config/rssh/profile.toml")).unwrap();
    let (findings, code) = examined(&rig);
    assert_eq!(of(&findings, "profile"), "fail");
    assert_eq!(of(&findings, "ssh"), "warn");
    assert_eq!(of(&findings, "ssh config"), "warn");
    assert_eq!(code, Some(1));
}

#[test]
fn an_exposed_key_and_a_strangers_certificate_are_named() {
    let rig = Rig::new();
    fs::set_permissions(&rig.alice.key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = rig.rssh("doctor").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAIL  key") && text.contains("remedy: "), "{text}");
    assert!(text.contains("chmod 600"), "{text}");

    let mut rig = Rig::with(lists_nothing(), SSH);
    rig.alice.ca = Authority::new(&rig.path(""), "strangers").file;
    rig.write_profile();
    let (findings, _) = examined(&rig);
    assert_eq!(of(&findings, "broker"), "fail");
    assert_eq!(of(&findings, "lb"), "fail");
    assert_eq!(of(&findings, "clock"), "", "nobody trusted can tell");
    assert_eq!(of(&findings, "subscription"), "fail");
}
