//! What a device's key is good for: to listen on the one port of its login, and nothing else.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rssh_lab::place::{HEALTH_PORT, Place, TUNNEL_ACCOUNT, server_address, socket};

use crate::thief::{Thief, robbed};
use crate::{SERVERS, all_of, lab, listeners};

#[test]
fn a_devices_key_runs_nothing_but_a_claim() {
    let lab = lab();
    let (thief, opened) = robbed(&lab, "user-17", 23);
    let tunnel = &opened.tunnel;
    for command in [
        "",
        "id",
        "/bin/sh",
        "sh -c id",
        "claim",
        "claim x; id",
        "claim $(id)",
        &format!("claim {tunnel}; id"),
        &format!("claim {tunnel}\nid"),
        &format!("claim {tunnel} && id"),
        &format!("Claim {tunnel}"),
    ] {
        let output = thief.ssh(&[], &[command]);
        let said = all_of(&output);
        assert!(!said.contains("uid="), "{command:?}: {said}");
        let refused = said.contains("\"refused\"") || said.contains("holds a control character");
        assert!(refused, "{command:?}: {said}");
    }
    for subsystem in ["sftp", "internal-sftp", "netconf"] {
        let output = thief.ssh(&["-s"], &[subsystem]);
        let said = all_of(&output);
        assert!(said.contains("subsystem request failed"), "{subsystem}: {said}");
    }
    // What the session was told of the environment is nothing.
    let output = thief.ssh(&["-o", "SetEnv=LD_PRELOAD=/x BASH_ENV=/x ENV=/x LC_ALL=x"], &["id"]);
    assert!(all_of(&output).contains("\"refused\""), "{}", all_of(&output));
}

#[test]
fn a_devices_key_gets_no_terminal_no_display_no_agent_and_no_tunnel_device() {
    let lab = lab();
    let (thief, _) = robbed(&lab, "judy", 24);
    let terminal = all_of(&thief.ssh(&["-tt"], &[]));
    assert!(terminal.contains("PTY allocation request failed"), "{terminal}");
    let asks = [
        "env",
        "DISPLAY=localhost:9",
        "ssh",
        "-F",
        thief.config(),
        "-Y",
        "lb",
        "claim x",
    ];
    let display = lab.command(&Place::Device(24), &asks).output().unwrap();
    let display = all_of(&display);
    assert!(display.contains("X11 forwarding request failed"), "{display}");
    let device = all_of(&thief.ssh(&["-N", "-w", "7:7", "-o", "ExitOnForwardFailure=yes"], &[]));
    assert!(device.contains("Tunnel forwarding failed"), "{device}");
    // The client is not told of the agent; sshd is asked.
    let script = format!(
        "ssh-agent ssh -F {} -A -o IdentityAgent=SSH_AUTH_SOCK lb 'claim x'",
        thief.config()
    );
    let agent = lab
        .command(&Place::Device(24), &["sh", "-c", &script])
        .output()
        .unwrap();
    assert!(all_of(&agent).contains("\"refused\""), "{}", all_of(&agent));
    let logs: String = (1..=SERVERS)
        .map(|n| fs::read_to_string(lab.log(&format!("sshd-{n}"))).unwrap())
        .collect();
    let asked = logs.matches("request auth-agent-req@openssh.com").count();
    assert!(asked > 0);
    assert_eq!(logs.matches("agent forwarding disabled").count(), asked);
}

#[test]
fn a_devices_key_connects_to_nothing_through_the_server() {
    let lab = lab();
    let (thief, _) = robbed(&lab, "carol", 3);
    let health = socket(server_address(1), HEALTH_PORT);
    for to in [health.as_str(), "localhost:22", "198.51.100.1:8883", "10.77.0.3:22"] {
        let output = thief.ssh(&["-W", to], &[]);
        let said = all_of(&output);
        assert!(said.contains("administratively prohibited"), "{to}: {said}");
    }
    let local = format!("127.0.0.1:9001:{health}");
    let _login = thief
        .try_login("lb", &["-L", &local, "-D", "127.0.0.1:9002"])
        .unwrap_or_else(|error| panic!("{error}"));
    // The ssh of the device listens; what comes through is nothing.
    let ask = |argv: &[&str]| {
        let curl = [&["curl", "-s", "-S", "-m", "5"], argv].concat();
        let output = lab.command(&Place::Device(3), &curl).output().unwrap();
        assert!(!output.status.success(), "{}", all_of(&output));
        assert_eq!(output.stdout, b"", "{}", all_of(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let refused = [
        ask(&["http://127.0.0.1:9001/healthz"]),
        ask(&["--socks5", "127.0.0.1:9002", &format!("http://{health}/healthz")]),
    ];
    assert!(
        refused.iter().all(|said| !said.contains("Could not connect")),
        "{refused:?}"
    );
    // Beside the servers, the same question has an answer.
    let output = lab
        .command(
            &Place::Core,
            &["curl", "-s", "-m", "5", &format!("http://{health}/healthz")],
        )
        .output()
        .unwrap();
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{}",
        all_of(&output)
    );
}

#[test]
fn a_devices_key_listens_on_the_one_port_of_its_login_and_nowhere_else() {
    let lab = lab();
    let (thief, _) = robbed(&lab, "dave", 4);
    let login = thief.login();
    let own = login.reserved.address();
    let (bind, port) = own.split_once(':').unwrap();
    let other = if login.reserved.port == 20_000 {
        20_001
    } else {
        login.reserved.port - 1
    };
    let elsewhere = server_address(login.reserved.server % SERVERS + 1);
    let socket = format!("/tmp/rssh-hostile-{}.sock", std::process::id());
    let before = listeners(&lab);
    for listen in [
        "0",
        "*:0",
        &format!("{bind}:0"),
        port,
        &format!("*:{port}"),
        &format!("0.0.0.0:{port}"),
        &format!("[::]:{port}"),
        &format!("localhost:{port}"),
        &format!("127.0.0.1:{port}"),
        &format!("[::1]:{port}"),
        &format!("198.51.100.1:{port}"),
        &format!("{elsewhere}:{port}"),
        &format!("{bind}:{other}"),
        &format!("{bind}:22"),
        &format!("{bind}:8022"),
        &socket,
    ] {
        let output = login.forward(listen);
        let refused = !output.status.success() && all_of(&output).contains("forwarding");
        let made = Path::new(&socket).exists();
        if made {
            fs::remove_file(&socket).unwrap();
        }
        assert!(refused && !made, "{listen}: {}", all_of(&output));
    }
    let output = login.forward(&own);
    assert!(output.status.success(), "{own}: {}", all_of(&output));
    let mine = |address: &&String| address.ends_with(&format!(":{port}")) || !before.contains(*address);
    let after = listeners(&lab);
    let new: Vec<_> = after
        .iter()
        .filter(mine)
        .filter(|address| address.ends_with(&format!(":{port}")))
        .collect();
    assert_eq!(new, [&own]);
    assert!(!after.contains(&format!("{bind}:{other}")) || before.contains(&format!("{bind}:{other}")));
    // One is all: no second port beside it.
    let second = login.forward(&format!("{bind}:{other}"));
    assert!(!second.status.success(), "{}", all_of(&second));
}

#[test]
fn a_key_that_nobody_registered_is_refused() {
    let lab = lab();
    let key = lab.dir().inside("devices/device-5/state/own_key");
    lab.on_device(5, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key])
        .unwrap();
    let thief = Thief::with_key(&lab, 5, &key);
    let output = thief.ssh(&["-N"], &[]);
    let said = all_of(&output);
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    // So is any other way to log in, and any other account.
    let ways = "PreferredAuthentications=none,password,keyboard-interactive,hostbased,gssapi-with-mic";
    let output = thief.ssh(
        &[
            "-N",
            "-o",
            ways,
            "-o",
            "BatchMode=no",
            "-o",
            "NumberOfPasswordPrompts=0",
        ],
        &[],
    );
    assert!(
        all_of(&output).contains("Permission denied (publickey)"),
        "{}",
        all_of(&output)
    );
    for account in ["root", "postgres"] {
        let output = Thief::of(&lab, 5).ssh(&["-N", "-l", account], &[]);
        assert!(
            all_of(&output).contains("Permission denied (publickey)"),
            "{}",
            all_of(&output)
        );
    }
    assert_eq!(thief.reserved(), []);
}

#[test]
fn a_device_that_nobody_asked_to_open_anything_cannot_log_in() {
    let lab = lab();
    let thief = Thief::of(&lab, 6);
    let refused = || {
        let output = thief.ssh(&["-N"], &[]);
        let said = all_of(&output);
        assert!(said.contains("Permission denied (publickey)"), "{said}");
    };
    refused();
    assert_eq!(thief.reserved(), []);
    // Nor once all is closed again.
    crate::open(&lab, "erin", "device-6", &[]);
    crate::said(&lab, "erin", &["rssh", "close", "device-6"]);
    refused();
}

#[test]
fn a_stranger_on_the_server_gets_no_answer_from_serverd() {
    let lab = lab();
    let key = fs::read_to_string(lab.dir().join("devices/device-7/state/ssh_key.public")).unwrap();
    crate::open(&lab, "erin", "device-7", &[]);
    let helper = lab.dir().inside("helpers/rssh-authorize");
    let socket = lab.dir().inside("servers/s1/state/run/authorize.sock");
    let mut words = key.split_ascii_whitespace();
    let (kind, key) = (words.next().unwrap(), words.next().unwrap());
    // A shell of this account runs the helper, by way of another program or not.
    let ask = |account: Option<&str>, by: &str| {
        let script = format!("{by} \"$0\" \"$@\"; true");
        let output = lab
            .programs()
            .at(lab.dir(), &Place::Server(1), account)
            // serverd takes the parent for the login, and would end this process as one that never claims.
            .args(["sh", "-c", &script, &helper, &socket, kind, key])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(Some("nobody"), ""), "");
    assert_eq!(
        ask(Some(TUNNEL_ACCOUNT), ""),
        "",
        "only a process of root's asks, as sshd's monitor does"
    );
    // As sshd asks it is answered, so the question was right.
    let sshd = format!("setpriv --reuid={TUNNEL_ACCOUNT} --regid={TUNNEL_ACCOUNT} --clear-groups --");
    let answer = ask(None, &sshd);
    assert!(
        answer.starts_with("restrict,port-forwarding,permitlisten=\""),
        "{answer:?}"
    );
    assert_eq!(answer.trim_end().lines().count(), 1, "{answer:?}");
    assert_eq!(answer.matches("permitlisten").count(), 1, "{answer:?}");
}
