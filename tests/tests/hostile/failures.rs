//! Each way to fail: one line that names the object and a remedy, an exit code of its own, and nothing half open.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rssh_lab::component::Record;
use rssh_lab::parts::router;
use rssh_lab::{Action, Lab};
use rssh_proto::FailureKind;

use crate::{PATIENTLY, SERVERS, all_of, fails, health, lab, lab_alone, open, said, within};

/// A fault that is named by its cause is named well before a request's deadline.
const SOON: Duration = Duration::from_secs(10);

/// Waits until a user's failed request for a device has left nothing: no tunnel, no lease, no login, no ssh.
#[track_caller]
fn nothing_is_left(lab: &Lab, user: &str, n: u32) {
    let leases =
        format!("SELECT count(*) FROM live_leases JOIN tunnels t ON t.id = tunnel_id WHERE t.user_id = '{user}'");
    within(PATIENTLY, "no lease is left", || lab.psql(&leases).unwrap() == "0");
    let live = format!("SELECT count(*) FROM tunnels WHERE user_id = '{user}' AND state NOT IN ('closed', 'failed')");
    within(PATIENTLY, "no tunnel is left", || lab.psql(&live).unwrap() == "0");
    within(PATIENTLY, "no ssh is left on the device", || device_ssh(lab, n) == 0);
}

/// How many ssh processes the agent of device `n` has.
fn device_ssh(lab: &Lab, n: u32) -> usize {
    let agent = Record::read(lab.dir(), &format!("agentd-{n}")).unwrap();
    let mut processes = agent.members(&lab.networks().inodes());
    processes.retain(|process| process.pid != agent.process.pid);
    processes.len()
}

#[test]
fn an_unknown_device_is_named_at_once() {
    let lab = lab();
    for argv in [
        &["rssh", "open", "device-999"][..],
        &["rssh", "open", "device-999", "--port", "80", "--json"],
        &["rssh", "proxy", "device-999"],
    ] {
        let took = fails(&lab, "user-41", argv, FailureKind::UnknownDevice, "device-999");
        assert!(took < SOON, "{took:?}");
    }
    assert_eq!(said(&lab, "user-41", &["rssh", "ls", "--json"]), "");
}

#[test]
fn an_offline_device_is_named_and_when_it_was_last_seen() {
    let lab = lab();
    lab.ctl(Action::Term, "agentd-29").unwrap();
    let took = fails(
        &lab,
        "user-20",
        &["rssh", "open", "device-29"],
        FailureKind::Offline,
        "device-29",
    );
    assert!(took < SOON, "{took:?}");
    nothing_is_left(&lab, "user-20", 29);
    // Coming back, it opens nothing that nobody waits for.
    lab.ctl(Action::Start, "agentd-29").unwrap();
    assert_eq!(open(&lab, "user-20", "device-29", &[]).device, "device-29");
    let count = lab.psql("SELECT count(*) FROM tunnels WHERE device_id = 'device-29' AND state = 'active'");
    assert_eq!(count.unwrap(), "1");
    said(&lab, "user-20", &["rssh", "close", "device-29"]);
    nothing_is_left(&lab, "user-20", 29);
}

#[test]
fn a_device_that_does_not_answer_is_told_from_one_that_is_offline() {
    let lab = lab();
    lab.ctl(Action::Stop, "agentd-30").unwrap();
    let took = fails(
        &lab,
        "user-21",
        &["rssh", "open", "device-30"],
        FailureKind::NotAnswering,
        "device-30",
    );
    assert!(took < SOON, "{took:?}");
    let state = || {
        lab.psql("SELECT state, failure_kind FROM tunnels WHERE device_id = 'device-30'")
            .unwrap()
    };
    assert_eq!(state(), "failed|not-answering");
    // It wakes, and finds orders that nobody waits for any more.
    lab.ctl(Action::Cont, "agentd-30").unwrap();
    nothing_is_left(&lab, "user-21", 30);
    assert_eq!(state(), "failed|not-answering");
    assert_eq!(said(&lab, "user-21", &["ssh", "device-30", "hostname"]), "device-30\n");
}

#[test]
fn a_deadline_is_kept() {
    let lab = lab();
    lab.ctl(Action::Stop, "agentd-31").unwrap();
    let argv = ["rssh", "open", "device-31", "--timeout", "1s"];
    let took = fails(&lab, "user-22", &argv, FailureKind::Deadline, "device-31");
    assert!(took < SOON, "{took:?}");
    lab.ctl(Action::Cont, "agentd-31").unwrap();
    nothing_is_left(&lab, "user-22", 31);
}

#[test]
fn a_target_that_the_device_does_not_list_is_refused_by_the_device() {
    let lab = lab();
    for (to, object) in [
        (&["--port", "23"][..], "localhost:23"),
        (&["--to", "198.51.100.1:8883"], "198.51.100.1:8883"),
        (&["--to", "127.0.0.2:22"], "127.0.0.2:22"),
        (&["--to", "plc-9"], "plc-9"),
    ] {
        let argv = [&["rssh", "open", "device-32"], to].concat();
        fails(&lab, "user-22", &argv, FailureKind::TargetNotAllowed, object);
    }
    nothing_is_left(&lab, "user-22", 32);
}

#[test]
fn a_target_where_nothing_listens_is_told_from_one_that_is_not_allowed() {
    let lab = lab();
    let file = lab.dir().join("devices/device-33/agentd.toml");
    let config = fs::read_to_string(&file).unwrap();
    let targets =
        "\n[targets]\nallow = [\"localhost:22\", \"localhost:9\"]\n[targets.named]\nplc-1 = \"127.0.0.1:502\"\n";
    fs::write(&file, config + targets).unwrap();
    lab.ctl(Action::Restart, "agentd-33").unwrap();
    for (to, object) in [(["--port", "9"], "localhost:9"), (["--to", "plc-1"], "127.0.0.1:502")] {
        let argv = [&["rssh", "open", "device-33"][..], &to].concat();
        let took = fails(&lab, "user-23", &argv, FailureKind::TargetRefused, object);
        assert!(took < SOON, "{took:?}");
    }
    nothing_is_left(&lab, "user-23", 33);
}

#[test]
fn a_device_whose_own_sshd_is_gone_is_told_so() {
    let lab = lab();
    lab.ctl(Action::Kill, "target-34").unwrap();
    let took = fails(
        &lab,
        "user-24",
        &["rssh", "open", "device-34"],
        FailureKind::TargetRefused,
        "device-34",
    );
    assert!(took < SOON, "{took:?}");
    nothing_is_left(&lab, "user-24", 34);
    lab.ctl(Action::Start, "target-34").unwrap();
    assert_eq!(said(&lab, "user-24", &["ssh", "device-34", "hostname"]), "device-34\n");
}

#[test]
fn a_name_that_was_forged_or_is_stale_in_the_cache_is_replaced_and_leads_nowhere_else() {
    let lab = lab();
    open(&lab, "user-25", "device-35", &[]);
    let file = lab
        .dir()
        .join("users/user-25/home/.cache/rssh/names/device-35_localhost:22.json");
    let good = fs::read_to_string(&file).unwrap();
    let name: serde_json::Value = serde_json::from_str(&good).unwrap();
    let host = name["host"].as_str().unwrap();
    let fields: Vec<&str> = host.split('.').next().unwrap().split('-').collect();
    let [server, port, exp, mac] = fields[..] else {
        panic!("{host}");
    };
    let other = if server == "s1" { "s2" } else { "s1" };
    let later = (exp.parse::<u64>().unwrap() + 600).to_string();
    let earlier = (exp.parse::<u64>().unwrap() - 600).to_string();
    let zeros = "0".repeat(32);
    for label in [
        [server, port, exp, &zeros],
        [server, port, &later, mac],
        [server, port, &earlier, mac],
        [other, port, exp, mac],
        [server, "22", exp, mac],
    ] {
        let forged = good.replace(host, &host.replace(&fields.join("-"), &label.join("-")));
        assert_ne!(forged, good);
        fs::write(&file, &forged).unwrap();
        assert_eq!(said(&lab, "user-25", &["ssh", "device-35", "hostname"]), "device-35\n");
        assert_ne!(
            fs::read_to_string(&file).unwrap(),
            forged,
            "{label:?} is still in the cache"
        );
    }
    for junk in ["", "{", "null", &good.replace("\"host\"", "\"ghost\"")] {
        fs::write(&file, junk).unwrap();
        assert_eq!(said(&lab, "user-25", &["ssh", "device-35", "hostname"]), "device-35\n");
    }
}

/// A profile of a user's with other files in it.
fn profile(lab: &Lab, user: &str, name: &str, change: impl Fn(String) -> String) -> String {
    let dir = lab.dir().join(format!("users/{user}/home/.config/rssh"));
    let text = fs::read_to_string(dir.join("profile.toml")).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    fs::write(dir.join(name), changed).unwrap();
    lab.dir().inside(format_args!("users/{user}/home/.config/rssh/{name}"))
}

/// Makes an authority of nobody's, and a certificate for `user` from it, beside the user's own.
fn strange_certificate(lab: &Lab, user: &str) {
    let script = "cd ~/.config/rssh && echo basicConstraints=CA:FALSE >own.ext && \
        openssl ecparam -name prime256v1 -genkey -noout -out strange-ca.key && \
        openssl req -x509 -new -key strange-ca.key -subj /CN=users -days 2 -out strange-ca.pem && \
        openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out strange.key && \
        openssl req -new -key strange.key -subj \"/CN=$0\" -out strange.csr && \
        openssl x509 -req -in strange.csr -CA strange-ca.pem -CAkey strange-ca.key -CAcreateserial -days 2 -out strange.pem \
        -extfile own.ext";
    said(lab, user, &["sh", "-ec", script, user]);
}

#[test]
fn a_wrong_certificate_is_named_as_such() {
    let lab = lab();
    let user = "user-26";
    strange_certificate(&lab, user);
    let device = lab.dir().join("devices/device-36/state");
    let dir = lab.dir().join(format!("users/{user}/home/.config/rssh"));
    for name in ["device.pem", "device.key"] {
        fs::copy(device.join(name), dir.join(name)).unwrap();
    }
    let own = |name: &str| format!("\"{name}\"");
    for (name, from, to) in [
        // Nobody's authority has signed it.
        ("strange.toml", ["user.pem", "user.key"], ["strange.pem", "strange.key"]),
        // Ours has, for a device.
        ("device.toml", ["user.pem", "user.key"], ["device.pem", "device.key"]),
        // The servers' authority is another one.
        ("servers.toml", ["servers-ca.pem", "x"], ["strange-ca.pem", "x"]),
        // It is another user's.
        ("other.toml", ["user = \"user-26\"", "x"], ["user = \"alice\"", "x"]),
    ] {
        let profile = profile(&lab, user, name, |text| {
            if from[0].contains(' ') {
                return text.replace(from[0], to[0]);
            }
            text.replace(&own(from[0]), &own(to[0]))
                .replace(&own(from[1]), &own(to[1]))
        });
        let argv = ["rssh", "--profile", &profile, "open", "device-36"];
        let took = fails(&lab, user, &argv, FailureKind::WrongCertificate, "certificate");
        assert!(took < SOON, "{name}: {took:?}");
    }
    nothing_is_left(&lab, user, 36);
    // The wrong key for the certificate is a wrong profile.
    let profile = profile(&lab, user, "key.toml", |text| text.replace("user.key", "strange.key"));
    let argv = ["rssh", "--profile", &profile, "open", "device-36"];
    fails(&lab, user, &argv, FailureKind::Configuration, "user.pem");
}

#[test]
fn nobody_serving_is_told_soon_and_by_its_cause() {
    let lab = lab_alone();
    let user = "user-27";
    let argv = ["rssh", "open", "device-37"];
    for n in 1..=SERVERS {
        lab.ctl(Action::Kill, &format!("serverd-{n}")).unwrap();
    }
    let took = fails(&lab, user, &argv, FailureKind::NobodyServing, "no server");
    assert!(took < SOON, "{took:?}");
    for n in 1..=SERVERS {
        lab.ctl(Action::Start, &format!("serverd-{n}")).unwrap();
    }
    nothing_is_left(&lab, user, 37);

    // Frozen ones swallow the request: only the deadline tells.
    for n in 1..=SERVERS {
        lab.ctl(Action::Stop, &format!("serverd-{n}")).unwrap();
    }
    let patient = [&argv[..], &["--timeout", "2s"]].concat();
    let took = fails(&lab, user, &patient, FailureKind::Deadline, "device-37");
    assert!(took < SOON, "{took:?}");
    for n in 1..=SERVERS {
        lab.ctl(Action::Cont, &format!("serverd-{n}")).unwrap();
    }
    within(PATIENTLY, "the servers serve", || {
        health(&lab).iter().all(|health| health["fault"].is_null())
    });
    nothing_is_left(&lab, user, 37);

    lab.ctl(Action::Kill, "mosquitto").unwrap();
    let took = fails(&lab, user, &argv, FailureKind::NobodyServing, "198.51.100.1:8883");
    assert!(took < SOON, "{took:?}");
    lab.ctl(Action::Start, "mosquitto").unwrap();
    within(PATIENTLY, "the device is reached again", || {
        lab.exec(user, &["rssh", "open", "device-37"]).unwrap().status.success()
    });
    said(&lab, user, &["rssh", "close", "device-37", "--force"]);
    nothing_is_left(&lab, user, 37);

    lab.ctl(Action::Kill, "haproxy").unwrap();
    let output = lab
        .exec(user, &["rssh", "open", "device-37", "--timeout", "4s"])
        .unwrap();
    let code = output.status.code().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let kinds = [
        FailureKind::NobodyServing,
        FailureKind::SshFailed,
        FailureKind::Deadline,
    ];
    assert!(
        kinds.iter().any(|kind| code == i32::from(kind.exit_code())),
        "{}",
        all_of(&output)
    );
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    lab.ctl(Action::Start, "haproxy").unwrap();
    lab.ctl(Action::Restart, "routerd").unwrap();
    nothing_is_left(&lab, user, 37);
    within(PATIENTLY, "the load balancer sends devices on", || {
        router::servers_up(lab.dir()).is_ok_and(|up| up == SERVERS as usize)
    });
    assert_eq!(open(&lab, user, "device-37", &[]).device, "device-37");
}

#[test]
fn a_name_that_the_load_balancer_refuses_is_named_so() {
    let lab = lab_alone();
    let map = lab.dir().inside("router/haproxy/maps/keys-current.map");
    assert!(Path::new(&lab.dir().join("router/haproxy/maps/keys-current.map")).exists());
    // Its keys are gone, and nobody is there to bring them back.
    lab.ctl(Action::Stop, "routerd").unwrap();
    rssh_lab::setup::ask_haproxy(lab.dir(), "router/haproxy/admin.sock", &format!("clear map {map}")).unwrap();
    let took = fails(
        &lab,
        "user-28",
        &["rssh", "open", "device-38"],
        FailureKind::NameRefused,
        "device-38",
    );
    assert!(took < SOON, "{took:?}");
    nothing_is_left(&lab, "user-28", 38);
    lab.ctl(Action::Cont, "routerd").unwrap();
    lab.ctl(Action::Restart, "routerd").unwrap();
    assert_eq!(open(&lab, "user-28", "device-38", &[]).device, "device-38");
}
