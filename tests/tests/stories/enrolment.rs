//! Enrolment: one-time tokens, and what they do not let in. The lab's own devices and users have come in by it too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use rssh_lab::Lab;
use rssh_lab::parts::server::{first_door, url};
use rssh_lab::place::Place;

use crate::{administer, all_of, lab};

/// Has the operator make a token, and puts it where its owner alone reads it; returns its path as programs see it.
fn token(lab: &Lab, args: &[&str], file: &str) -> String {
    let made = administer(lab, args);
    assert!(made.status.success(), "{}", all_of(&made));
    put(lab, file, &made.stdout)
}

fn put(lab: &Lab, file: &str, text: &[u8]) -> String {
    let path = lab.dir().join("tokens").join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    lab.dir().inside(format!("tokens/{file}"))
}

/// Enrols a device into a directory of its own, on the machine of device 12.
fn enrol(lab: &Lab, dir: &str, token: &str, more: &[&str]) -> Output {
    let agentd = lab.programs().path("rssh-agentd");
    let dir = lab.dir().inside(dir);
    let (config, state) = (format!("{dir}/agentd.toml"), format!("{dir}/state"));
    let sshd = lab.dir().inside("devices/device-12/sshd/sshd_config");
    let mut argv = vec![agentd.to_str().unwrap(), "enroll"];
    let url = url();
    argv.extend([&*url, "--config", &config, "--state-dir", &state]);
    argv.extend(["--token-file", token, "--sshd-config", &sshd]);
    argv.extend(more);
    lab.command(&Place::Device(12), &argv).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_token_enrols_one_device_once_and_its_keys_never_leave_it() {
    let lab = lab();
    let token = token(
        &lab,
        &["device", "add", "pump-1", "--tag", "site=berlin", "--tag", "role=pump"],
        "pump-1",
    );
    let first = enrol(&lab, "pump-1", &token, &[]);
    assert!(first.status.success(), "{}", all_of(&first));
    assert_eq!(String::from_utf8_lossy(&first.stdout).trim(), "pump-1");
    for secret in ["device.key", "ssh_key"] {
        assert_eq!(mode(&lab.dir().join("pump-1/state").join(secret)), 0o600, "{secret}");
    }
    let tags = lab
        .psql("SELECT string_agg(key || '=' || value, ' ' ORDER BY key) FROM device_tags WHERE device_id = 'pump-1'");
    assert_eq!(tags.unwrap(), "role=pump site=berlin");
    let host_key = fs::read_to_string(lab.dir().join("devices/device-12/sshd/ssh_host_ed25519_key.pub")).unwrap();
    let kept = lab
        .psql("SELECT host_keys[1] FROM devices WHERE id = 'pump-1'")
        .unwrap();
    assert_eq!(kept, host_key.trim());
    // Whoever lost the answer asks again, with the same key ...
    let again = enrol(&lab, "pump-1", &token, &[]);
    assert!(again.status.success(), "{}", all_of(&again));
    // ... and nobody else does.
    let thief = enrol(&lab, "pump-thief", &token, &[]);
    assert_eq!(thief.status.code(), Some(77), "{}", all_of(&thief));
    assert!(!lab.dir().join("pump-thief/state/device.pem").exists());
    // The database has the token's hash, and not the token.
    let text = fs::read_to_string(lab.dir().join("tokens/pump-1")).unwrap();
    let secret = text.trim().split('_').nth(2).unwrap().split('.').next().unwrap();
    let dump = lab
        .psql("SELECT string_agg(t::text, '') FROM enrolment_tokens t")
        .unwrap();
    assert!(!dump.contains(secret) && dump.contains("\\x"));
}

#[test]
fn a_fleets_token_names_nobody_and_takes_no_name_that_is_taken() {
    let lab = lab();
    let token = token(&lab, &["device", "add", "--uses", "2"], "valves");
    let nameless = enrol(&lab, "valve-0", &token, &[]);
    assert_eq!(nameless.status.code(), Some(64), "{}", all_of(&nameless));
    for name in ["valve-1", "valve-2"] {
        let enrolled = enrol(&lab, name, &token, &["--device", name]);
        assert!(enrolled.status.success(), "{}", all_of(&enrolled));
    }
    let used_up = enrol(&lab, "valve-3", &token, &["--device", "valve-3"]);
    assert_eq!(used_up.status.code(), Some(77), "{}", all_of(&used_up));
    let token = self::token(&lab, &["device", "add", "--uses", "9"], "more");
    for taken in ["device-12", "alice", "s1", "valve-1"] {
        let refused = enrol(&lab, "valve-4", &token, &["--device", taken]);
        assert_eq!(refused.status.code(), Some(77), "{taken}: {}", all_of(&refused));
    }
}

#[test]
fn what_is_no_good_token_opens_nothing() {
    let lab = lab();
    // The token says whose server it is: another authority's is not believed, and the secret stays here.
    let good = administer(&lab, &["device", "add", "pump-2"]).stdout;
    let text = String::from_utf8(good).unwrap();
    let (secret, authority) = text.trim().split_once('.').unwrap();
    let flipped: String = authority
        .chars()
        .enumerate()
        .map(|(n, c)| match (n, c) {
            (5, 'A') => 'B',
            (5, _) => 'A',
            (_, c) => c,
        })
        .collect();
    let pinned = put(&lab, "pump-2-other", format!("{secret}.{flipped}").as_bytes());
    let refused = enrol(&lab, "pump-2", &pinned, &[]);
    assert_eq!(refused.status.code(), Some(86), "{}", all_of(&refused));
    let unused = lab
        .psql("SELECT uses_left FROM enrolment_tokens WHERE name = 'pump-2'")
        .unwrap();
    assert_eq!(unused, "1");

    let junk = put(&lab, "junk", b"rssh_enrol_x.y\n");
    let refused = enrol(&lab, "pump-2", &junk, &[]);
    assert!(!refused.status.success());
    assert!(
        !all_of(&refused).contains("x.y"),
        "a secret is not repeated: {}",
        all_of(&refused)
    );

    let exposed = put(&lab, "exposed", text.as_bytes());
    fs::set_permissions(lab.dir().join("tokens/exposed"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = enrol(&lab, "pump-2", &exposed, &[]);
    assert!(all_of(&refused).contains("chmod 600"), "{}", all_of(&refused));

    let users = token(&lab, &["user", "add", "zoe"], "zoe");
    let refused = enrol(&lab, "zoe", &users, &[]);
    assert_eq!(refused.status.code(), Some(77), "{}", all_of(&refused));

    let token = token(&lab, &["device", "add", "pump-3"], "pump-3");
    lab.psql("UPDATE enrolment_tokens SET expires_at = clock_timestamp() WHERE name = 'pump-3'")
        .unwrap();
    let late = enrol(&lab, "pump-3", &token, &[]);
    assert_eq!(late.status.code(), Some(77), "{}", all_of(&late));
}

#[test]
fn a_server_joins_and_gets_its_own_name_key_and_no_other() {
    let lab = lab();
    let token = token(&lab, &["server", "add", "s7"], "s7");
    let (dir, serverd) = (lab.dir().inside("servers/s2"), lab.programs().path("rssh-serverd"));
    let script = format!(
        "mkdir -p {dir}/seven && sed -e 's:/s2/state:/s2/seven/state:' -e 's:/s2/sshd:/s2/seven/sshd:' \
         -e '/^ca = /d' {dir}/serverd.toml > {dir}/seven/serverd.toml && \
         {} join {} --config {dir}/seven/serverd.toml --token-file {token}",
        serverd.display(),
        url()
    );
    let joined = lab.command(&Place::Server(2), &["sh", "-c", &script]).output().unwrap();
    assert!(joined.status.success(), "{}", all_of(&joined));
    assert_eq!(String::from_utf8_lossy(&joined.stdout).trim(), "s7");
    let state = lab.dir().join("servers/s2/seven/state");
    for secret in ["server.key", "https.key", "name.key"] {
        assert_eq!(mode(&state.join(secret)), 0o600, "{secret}");
    }
    let master: rssh_proto::NameMaster = fs::read_to_string(lab.dir().join("pki/name-master"))
        .unwrap()
        .parse()
        .unwrap();
    let key = fs::read_to_string(state.join("name.key")).unwrap();
    assert_eq!(key.trim(), master.key(&"s7".parse().unwrap()).to_base64());
    let sshd = lab.dir().inside("servers/s2/seven/sshd/ssh_host_ed25519_key-cert.pub");
    let shown = lab
        .command(&Place::Server(2), &["ssh-keygen", "-L", "-f", &sshd])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("host certificate") && shown.contains("rssh-sshd"),
        "{shown}"
    );
}

#[test]
fn a_router_joins_and_is_told_the_masters_until_it_is_revoked() {
    let lab = lab();
    let token = token(&lab, &["router", "add", "lb7"], "lb7");
    let (dir, routerd) = (lab.dir().inside("router7"), lab.programs().path("rssh-routerd"));
    let url = url();
    let argv = [
        routerd.to_str().unwrap(),
        "join",
        &url,
        "--dir",
        &dir,
        "--token-file",
        &token,
    ];
    let joined = lab.command(&Place::Core, &argv).output().unwrap();
    assert!(joined.status.success(), "{}", all_of(&joined));
    assert_eq!(String::from_utf8_lossy(&joined.stdout).trim(), "lb7");
    let read = |path: &str| fs::read_to_string(lab.dir().join(path)).unwrap();
    assert_eq!(read("router7/name-master"), read("pki/name-master"));
    for secret in ["name-master", "router.key"] {
        assert_eq!(mode(&lab.dir().join("router7").join(secret)), 0o600, "{secret}");
    }

    // As long as it is one of the installation it is told what the masters are, and not a moment longer.
    let (key, cert) = (format!("{dir}/router.key"), format!("{dir}/router.pem"));
    // At the server with the authorities.
    let path = format!("https://{}/v1/router/name-masters", first_door());
    let asked = |told: fn(&str) -> bool| {
        let argv = ["curl", "-sk", "--cert", &cert, "--key", &key, "--json", "{}", &path];
        let answer = lab.command(&Place::Core, &argv).output().unwrap();
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(told(&answer), "{answer}");
    };
    asked(|answer| answer.contains("\"current\""));
    let other = administer(&lab, &["router", "revoke", "s2"]);
    assert!(!other.status.success(), "s2 is a server: {}", all_of(&other));
    let revoked = administer(&lab, &["router", "revoke", "lb7"]);
    assert!(revoked.status.success(), "{}", all_of(&revoked));
    asked(|answer| answer.contains("is not registered here") && !answer.contains("\"current\""));
}
