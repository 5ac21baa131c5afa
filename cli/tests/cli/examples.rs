//! What --help shows as examples runs, and what --json prints is documented.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_proto::payload::{ClosedTunnel, Operation, Presence, Rank, ReplyBody, Request, SharedName, TunnelTrace};
use serde_json::Value;

use crate::devices::device;
use crate::rig::{Rig, SSH, succeeded};
use crate::server::{Answers, opens, reply};
use crate::tunnels::tunnel;

/// Is OpenSSH to `rssh doctor`, stays for `-N`, and keeps the log that `rssh exec` reads.
const ANY_SSH: &str = r#"
case $1 in
    -V) echo OpenSSH_9.2p1 >&2; exit ;;
    -G) echo "proxycommand 'rssh' proxy '%h' %p"; exit ;;
    -N) exec sleep 60 ;;
esac
[ "$2" = -E ] && printf 'Authenticated to x\ndebug1: Exit status 0\n' > "$3"
exit 0
"#;

/// A world in which everything succeeds.
fn rig() -> Rig {
    let open = opens("s1-20000-1999999000-0.proxy.test");
    let answers: Answers = Box::new(move |request: &Request, nth| {
        let body = match &request.op {
            Operation::Open(_) => return open(request, nth),
            Operation::List => ReplyBody::Tunnels {
                items: vec![tunnel("device-42")],
                last: true,
            },
            Operation::Share { tunnel, valid_s } => ReplyBody::Shared(SharedName {
                tunnel: *tunnel,
                device: "device-42".parse().unwrap(),
                target: "80".parse().unwrap(),
                host: "s1-20000-1999999000-0.proxy.test".into(),
                port: 8444,
                expires_at: 1_999_999_000,
                valid_s: *valid_s,
            }),
            Operation::HostKeys { device } => ReplyBody::HostKeys {
                device: device.clone(),
                keys: vec!["ssh-ed25519 AAAA".into()],
            },
            Operation::Devices => ReplyBody::Devices {
                items: vec![device("device-42", Presence::Online, Some(5), &[("site", "berlin")])],
                last: true,
            },
            Operation::Latest { .. } => ReplyBody::Trace(TunnelTrace {
                info: tunnel("device-42"),
                requested_at: 2_000_000_000,
                answered_ms: Some(12),
                landed_ms: Some(60),
                claimed_ms: Some(71),
                active_ms: Some(80),
                ended_ms: None,
                claims: 1,
                failure: None,
            }),
            _ => {
                let tunnel = tunnel("device-42");
                let closed = ClosedTunnel {
                    tunnel: tunnel.tunnel,
                    device: tunnel.device,
                    target: tunnel.target,
                    holders_left: 0,
                };
                ReplyBody::Closed { items: vec![closed] }
            }
        };
        vec![reply(request, 0, Rank::Final, body)]
    });
    let rig = Rig::with(answers, SSH).program("ssh", ANY_SSH).program("jq", "cat");
    fs::write(rig.path("request.http"), "GET / HTTP/1.0\r\n\r\n").unwrap();
    rig
}

/// A shell in the rig's directory that finds `rssh`.
fn shell(rig: &Rig, line: &str) -> Command {
    let own = rig.process("");
    let program = assert_cmd::cargo::cargo_bin!("rssh");
    let mut shell = Command::new("sh");
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let path = format!(
        "{}:{}:{}",
        rig.path("bin").display(),
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    shell.env("PATH", path).current_dir(rig.path("")).args(["-c", line]);
    shell
}

/// The commands that --help lists, those below `config` included.
fn commands(rig: &Rig) -> Vec<String> {
    let help = succeeded(&rig.rssh("--help").output().unwrap());
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut names: Vec<String> = names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect();
    names.push("config ssh".into());
    names
}

fn examples(rig: &Rig, command: &str) -> Vec<String> {
    let help = succeeded(&rig.rssh(&format!("{command} --help")).output().unwrap());
    let (_, shown) = help
        .split_once("\nExample")
        .unwrap_or_else(|| panic!("{command}: {help}"));
    let lines = shown.lines().skip(1).map(str::trim).take_while(|line| !line.is_empty());
    // What follows two spaces is a remark.
    lines.map(|line| line.split("  ").next().unwrap().to_owned()).collect()
}

#[test]
fn every_example_in_every_help_runs() {
    let rig = rig();
    let commands = commands(&rig);
    assert!(commands.len() >= 19, "{commands:?}");
    for command in &commands {
        let examples = examples(&rig, command);
        assert!(!examples.is_empty(), "{command}");
        for example in examples {
            // These take a server that answers HTTPS: the stories on the real stack run them.
            if ["rssh login", "rssh certify"]
                .iter()
                .any(|start| example.starts_with(start))
            {
                continue;
            }
            if ["rssh forward", "rssh watch"]
                .iter()
                .any(|start| example.starts_with(start))
                || example.ends_with(" --watch")
            {
                runs_until_interrupted(&rig, &example);
                continue;
            }
            // The account's own configuration is nothing to try on.
            let line = match example.strip_prefix("rssh config ssh") {
                Some(rest) => format!("rssh config ssh --dir ssh{rest}"),
                None => example.clone(),
            };
            let output = shell(&rig, &line).stdin(Stdio::null()).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{example}: {told}");
        }
    }
}

fn runs_until_interrupted(rig: &Rig, example: &str) {
    let alone = example.split(" | ").next().unwrap();
    // Any free port does for a test.
    let alone = alone
        .replace(" 8080:", " 0:")
        .replace(" 5020:", " 0:")
        .replace(" 5432", " 0:5432");
    let mut shell = shell(rig, &format!("exec {alone}"));
    let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!line.is_empty(), "{example}: {told}");
    assert_eq!(output.status.code(), Some(130), "{example}: {told}");
}

#[test]
fn every_field_that_is_printed_is_documented() {
    let documentation = include_str!("../../../docs/cli-json.md");
    let rig = rig();
    for line in [
        "open device-42 --json",
        "ls --json",
        "devices --json",
        "devices --watch --json",
        "why device-42 --json",
        "share device-42 --json",
        "known-hosts device-42 --json",
        "close device-42 --json",
        "exec device-42 --json -- id",
        "doctor --json",
        "config ssh --remove --dir ssh --json",
        "watch --json",
        "forward device-42 0:80 --json",
    ] {
        let mut command = rig.process(line);
        let mut child = command
            .stdout(Stdio::piped())
            .current_dir(rig.path(""))
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT);
        child.wait().unwrap();
        let object: Value = serde_json::from_str(&first).unwrap_or_else(|error| panic!("{line}: {error}: {first}"));
        for field in object.as_object().unwrap().keys() {
            assert!(documentation.contains(&format!("`{field}`")), "{line}: {field}");
        }
    }
}
