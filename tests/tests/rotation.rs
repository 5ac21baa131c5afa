//! What an installation's trust hangs on changes while it runs: no connection ends by it. All stories share one lab.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use rssh_lab::place::{DOMAIN, Place};
use rssh_lab::process::{PATIENTLY, Process};
use rssh_lab::testing::{Login, administer, all_of, briefly, end_of, greeting, said, shared, within};
use rssh_lab::{Action, Lab, Options};
use rssh_proto::{NameKey, SignedName};

fn lab() -> Arc<Lab> {
    let options = Options {
        servers: NonZeroU32::new(2).unwrap(),
        devices: 2,
        users: 2,
        ..Options::default()
    };
    shared(options, |_| ())
}

/// The processes of HAProxy, told apart from later ones with the same numbers.
fn haproxy(lab: &Lab) -> Vec<Process> {
    let all = lab.processes().into_iter();
    let mut all: Vec<Process> = all
        .filter(|process| process.command_line().starts_with("haproxy"))
        .collect();
    all.sort_by_key(|process| process.pid);
    all
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// The name of a tunnel's end, as a user is told it.
fn name_of(lab: &Lab, user: &str, device: &str) -> SignedName {
    let opened = said(lab, user, &["rssh", "open", device, "--json"]);
    let opened: serde_json::Value = serde_json::from_str(&opened).unwrap();
    opened["host"].as_str().unwrap().parse().unwrap()
}

fn name_key(lab: &Lab, server: &str) -> NameKey {
    let path = lab.dir().join(format!("servers/{server}/state/name.key"));
    fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn the_name_keys_change_and_neither_a_connection_nor_a_good_name_is_lost() {
    let lab = lab();
    let mut login = Login::new(&lab, "alice", "device-1");
    login.answers("before");
    let balancer = haproxy(&lab);
    assert!(balancer.len() >= 2, "a master and a worker: {balancer:?}");
    let before = ["s1", "s2"].map(|server| name_key(&lab, server));

    // A name as a server gave it, but one that lives for as long as this story does.
    let given = name_of(&lab, "alice", "device-1");
    let held_by = if given.server.as_str() == "s1" { 0 } else { 1 };
    let alice = "alice".parse().unwrap();
    let signed = |key: &NameKey| {
        let name = SignedName::sign(key, &given.server, given.port, now() + 3600, Some(&alice));
        name.host(&DOMAIN.parse().unwrap())
    };
    let old = signed(&before[held_by]);
    let admitted = |host: &str| greeting(&lab, "alice", host).starts_with("SSH-2.0-");
    assert!(admitted(&old));

    let rotated = administer(&lab, &["names", "rotate"]);
    assert!(rotated.status.success(), "{}", all_of(&rotated));
    let again = administer(&lab, &["names", "rotate"]);
    assert!(
        !again.status.success() && all_of(&again).contains("names retire"),
        "{}",
        all_of(&again)
    );
    // All the while what a user is told works: opening proves it through HAProxy.
    within(PATIENTLY, "both servers have another key", || {
        said(&lab, "alice", &["rssh", "open", "device-1", "--json"]);
        let keys = ["s1", "s2"].map(|server| name_key(&lab, server));
        keys.iter().zip(&before).all(|(now, before)| now != before)
    });
    let key = name_key(&lab, given.server.as_str());
    within(PATIENTLY, "names are signed by the new key", || {
        let name = name_of(&lab, "alice", "device-1");
        name == SignedName::sign(&key, &name.server, name.port, name.expires_at, Some(&alice))
    });
    let new = signed(&key);
    assert!(admitted(&new), "a name by the new key is refused");
    assert!(admitted(&old), "a name by the key before is refused in the overlap");
    login.answers("in the overlap");
    for secret in [
        "pki/name-master-before",
        "router/name-master-previous",
        "router/name-master",
    ] {
        let mode = fs::metadata(lab.dir().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }

    let retired = administer(&lab, &["names", "retire"]);
    assert!(retired.status.success(), "{}", all_of(&retired));
    within(PATIENTLY, "a name by the key before is refused", || !admitted(&old));
    assert!(admitted(&new));
    let nothing_left = administer(&lab, &["names", "retire"]);
    assert!(!nothing_left.status.success(), "{}", all_of(&nothing_left));

    login.answers("after");
    login.ends_well();
    assert_eq!(haproxy(&lab), balancer, "HAProxy was reloaded");
    let written = administer(&lab, &["audit", "--json"]);
    let written = String::from_utf8(written.stdout).unwrap();
    for event in ["names-rotated", "names-retired"] {
        assert!(written.contains(event), "{event} is not written down");
    }
    // Whoever is no router or server gets no key.
    for (path, who) in [("server/name-key", "servers"), ("router/name-masters", "routers")] {
        let state = lab.dir().inside("devices/device-2/state");
        let url = format!("{}/v1/{path}", rssh_lab::parts::server::url());
        let argv = [
            "curl",
            "-sk",
            "--cert",
            &format!("{state}/device.pem"),
            "--key",
            &format!("{state}/device.key"),
            "--json",
            "{}",
            &url,
        ];
        let answer = lab.command(&Place::Device(2), &argv).output().unwrap();
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(answer.contains(&format!("only {who}")), "{path}: {answer}");
    }
}

/// The key by which servers know a device, and the one before.
fn registered(lab: &Lab, device: &str) -> (String, String) {
    let keys = format!("SELECT ssh_key || '|' || coalesce(ssh_key_before, '') FROM devices WHERE id = '{device}'");
    let keys = lab.psql(&keys).unwrap();
    let (key, before) = keys.split_once('|').unwrap();
    (key.to_owned(), before.to_owned())
}

#[test]
fn a_devices_ssh_key_changes_and_its_tunnels_live_on() {
    let lab = lab();
    let state = lab.dir().join("devices/device-2/state");
    let (agentd, config) = (
        lab.programs().path("rssh-agentd"),
        lab.dir().inside("devices/device-2/agentd.toml"),
    );
    let public = || {
        fs::read_to_string(state.join("ssh_key.public"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let of_private = || {
        let key = lab.dir().inside("devices/device-2/state/ssh_key");
        lab.on_device(2, &["ssh-keygen", "-y", "-f", &key])
            .unwrap()
            .trim()
            .to_owned()
    };
    let mut login = Login::new(&lab, "alice", "device-2");
    login.answers("before");
    let first = public();

    lab.on_device(2, &[agentd.to_str().unwrap(), "rotate-key", "--config", &config])
        .unwrap();
    let second = public();
    assert_ne!(second, first);
    assert_eq!(of_private(), second);
    assert_eq!(registered(&lab, "device-2"), (second.clone(), first));
    let mode = fs::metadata(state.join("ssh_key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // With the overlap over, a landing is by the new key, and what landed by the one before is still there.
    lab.psql("UPDATE devices SET ssh_key_before_until = clock_timestamp() WHERE id = 'device-2'")
        .unwrap();
    said(&lab, "alice", &["rssh", "open", "device-2", "--new", "--json"]);
    login.answers("after");
    login.ends_well();

    // A change that was cut short is carried on when the agent starts.
    let next = lab.dir().inside("devices/device-2/state/ssh_key.next");
    lab.on_device(
        2,
        &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &next],
    )
    .unwrap();
    let third = fs::read_to_string(state.join("ssh_key.next.pub"))
        .unwrap()
        .trim()
        .to_owned();
    fs::remove_file(state.join("ssh_key.next.pub")).unwrap();
    lab.ctl(Action::Restart, "agentd-2").unwrap();
    within(PATIENTLY, "the next key is the key", || {
        !state.join("ssh_key.next").exists() && state.join("ssh_key.public").exists() && public() == third
    });
    assert_eq!(registered(&lab, "device-2"), (third.clone(), second));
    said(&lab, "alice", &["rssh", "open", "device-2", "--new", "--json"]);

    // A key that is older than it may be is changed by the agent itself.
    let script = format!(
        "sed -i 's/^\\[ssh\\]$/&\\nrotate-after = \"30d\"/' {config} && touch -d '31 days ago' {}",
        lab.dir().inside("devices/device-2/state/ssh_key")
    );
    lab.on_device(2, &["sh", "-c", &script]).unwrap();
    lab.ctl(Action::Restart, "agentd-2").unwrap();
    within(PATIENTLY, "the old key is changed", || {
        let (key, before) = registered(&lab, "device-2");
        key != third && before == third && state.join("ssh_key.public").exists() && public() == key
    });
    said(&lab, "alice", &["rssh", "open", "device-2", "--new", "--json"]);
}

/// How often a component has logged something.
fn times(lab: &Lab, component: &str, what: &str) -> usize {
    fs::read_to_string(lab.log(component)).unwrap().matches(what).count()
}

#[test]
fn certificates_of_servers_and_routers_renew_themselves_and_all_goes_on() {
    const MONTHS: u64 = 60 * 86_400;
    const CONNECTED: &str = "connected to the broker";
    let lab = lab();
    let inside = |below: &str| lab.dir().inside(below);
    let https = format!(
        "openssl s_client -connect {} </dev/null 2>/dev/null",
        rssh_lab::place::socket(rssh_lab::place::server_address(2), rssh_lab::place::HTTPS_PORT)
    );
    let server = format!("cat {}", inside("servers/s2/state/server.pem"));
    let router = format!("cat {}", inside("router/router.pem"));
    let mut login = Login::new(&lab, "bob", "device-1");
    login.answers("before");

    briefly(&lab, 2, "45s", "server init");
    let (csr, pem) = (inside("router/router.csr"), inside("router/router.pem"));
    let request = format!(
        "openssl req -new -key {} -subj /CN=lb1 -out {csr}",
        inside("router/router.key")
    );
    let requested = lab.command(&Place::Core, &["sh", "-c", &request]).output().unwrap();
    assert!(requested.status.success(), "{}", all_of(&requested));
    briefly(&lab, 1, "45s", &format!("router add lb1 --csr {csr} --cert-out {pem}"));
    let before = times(&lab, "serverd-2", CONNECTED);
    // They know their certificates from their start on.
    lab.ctl(Action::Restart, "serverd-2").unwrap();
    lab.ctl(Action::Restart, "routerd").unwrap();
    within(PATIENTLY, "serverd-2 is connected", || {
        times(&lab, "serverd-2", CONNECTED) > before
    });
    let balancer = haproxy(&lab);
    let connected = times(&lab, "serverd-2", CONNECTED);
    let refused = times(&lab, "routerd", "registration refused");
    let first_end = end_of(&lab, &server)
        .max(end_of(&lab, &router))
        .max(end_of(&lab, &https));
    assert!(first_end < now() + 60, "the certificates live long already");

    for (what, certificate) in [("server's", &server), ("router's", &router), ("HTTPS", &https)] {
        within(
            PATIENTLY,
            &format!("the {what} certificate lives for months again"),
            || end_of(&lab, certificate) > now() + MONTHS,
        );
    }
    within(PATIENTLY, "the certificates from before have ended", || {
        now() > first_end
    });
    // What those signed would be refused now; what is registered goes on, by the new ones and on the same connections.
    login.answers("after");
    login.ends_well();
    let beat = || {
        lab.psql("SELECT counter FROM server_heartbeats WHERE server_id = 's2'")
            .unwrap()
    };
    let at = beat();
    within(PATIENTLY, "s2 goes on", || beat() != at);
    assert_eq!(rssh_lab::parts::router::servers_up(lab.dir()).unwrap(), 2);
    assert_eq!(
        times(&lab, "serverd-2", CONNECTED),
        connected,
        "the broker's session broke"
    );
    assert_eq!(times(&lab, "routerd", "registration refused"), refused);
    assert_eq!(haproxy(&lab), balancer, "HAProxy was reloaded");
    said(&lab, "bob", &["rssh", "open", "device-1", "--new", "--json"]);
}
