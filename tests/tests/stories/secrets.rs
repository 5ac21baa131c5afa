//! Secrets stay in their files, and sshd takes keys only.

use std::fs;
use std::path::Path;

use crate::{lab, open};

/// A line of each private key and shared secret below `dir`: long enough to be nothing else.
fn secrets(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !path.ends_with("postgres") && !path.ends_with("ns") {
            secrets(&path, found);
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            if text.contains("PRIVATE KEY-----") {
                // The last full line of the body: the first ones are the same in every key.
                let from = text.find("PRIVATE KEY-----").unwrap();
                let body: Vec<_> = text[from..]
                    .lines()
                    .skip(1)
                    .take_while(|line| !line.starts_with('-'))
                    .collect();
                found.push(body[body.len().saturating_sub(2)].to_owned());
            } else if path.ends_with("name-master")
                || path.extension().is_some_and(|extension| extension == "password")
                || path.ends_with("name.key")
            {
                found.push(text.trim().to_owned());
            }
        }
    }
}

#[test]
fn no_secret_is_in_a_command_line_an_environment_a_log_or_redis() {
    let lab = lab();
    open(&lab, "alice", "device-12");
    let mut found = Vec::new();
    secrets(lab.dir(), &mut found);
    // Four authorities, two servers, twelve devices with three keys each, ...
    assert!(found.len() > 50, "{}", found.len());
    assert!(found.iter().all(|secret| secret.len() > 20), "{found:?}");

    let mut seen = String::new();
    for process in lab.processes() {
        for file in ["cmdline", "environ"] {
            seen += &fs::read(format!("/proc/{}/{file}", process.pid))
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
        }
    }
    assert!(seen.contains("rssh-agentd"));
    for log in fs::read_dir(lab.dir().join("log")).unwrap().flatten() {
        seen += &String::from_utf8_lossy(&fs::read(log.path()).unwrap());
    }
    let keys = rssh_lab::parts::redis::cli(lab.dir(), 1, &["--scan"]);
    let ask = |argv: &[String]| {
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let output = lab.command(&rssh_lab::place::Place::Core, &argv).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let registry: String = ask(&keys)
        .lines()
        .map(|key| ask(&rssh_lab::parts::redis::cli(lab.dir(), 1, &["get", key])))
        .collect();
    assert!(registry.contains("signature"), "{registry}");
    seen += &registry;
    for secret in found {
        assert!(!seen.contains(&secret), "a secret is to be seen: {secret}");
    }
}

#[test]
fn sshd_takes_public_keys_only_and_forwards_one_way() {
    let lab = lab();
    let output = lab
        .command(
            &rssh_lab::place::Place::Core,
            &[
                "/usr/sbin/sshd",
                "-T",
                "-f",
                &lab.dir().inside("servers/s1/sshd/sshd_config"),
            ],
        )
        .output()
        .unwrap();
    let settings = String::from_utf8(output.stdout).unwrap();
    for line in [
        "authenticationmethods publickey",
        "pubkeyauthentication yes",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "hostbasedauthentication no",
        "gssapiauthentication no",
        "allowtcpforwarding remote",
        "allowstreamlocalforwarding no",
        "allowagentforwarding no",
        "x11forwarding no",
        "permittty no",
        "permituserenvironment no",
        "permittunnel no",
        "authorizedkeysfile none",
    ] {
        assert!(
            settings.lines().any(|setting| setting == line),
            "{line} is not in:\n{settings}"
        );
    }
}
