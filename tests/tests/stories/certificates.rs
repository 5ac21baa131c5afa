//! Certificates: short-lived ones by which ssh logs in, and all others, which renew by themselves.

use std::fs;
use std::process::Output;
use std::time::{Duration, SystemTime};

use rssh_lab::Lab;
use rssh_lab::control::Action;
use rssh_lab::place::Place;
use rssh_lab::testing::{self, briefly};

use crate::{all_of, lab, open, said, within};

/// How long a renewal may take on a busy machine, past its moment.
const PATIENCE: Duration = Duration::from_secs(60);
/// The days for which a certificate lives when nobody says otherwise.
const DAYS: u64 = 90;

/// A shell at a user's.
fn shell(lab: &Lab, user: &str, script: &str) -> Output {
    lab.exec(user, &["sh", "-c", script]).unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", all_of(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The end of a certificate in a file, in Unix seconds.
fn end_of(lab: &Lab, path: &str) -> u64 {
    testing::end_of(lab, &format!("cat {}", lab.dir().inside(path)))
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// Gives device `n` a certificate with a short life, for the key that it has.
fn shorten_device(lab: &Lab, n: u32, lifetime: &str) {
    let state = lab.dir().inside(format!("devices/device-{n}/state"));
    let csr = format!("openssl req -new -key {state}/device.key -subj /CN=device-{n} -out {state}/device.csr");
    succeeds(&lab.command(&Place::Core, &["sh", "-c", &csr]).output().unwrap());
    briefly(
        lab,
        1,
        lifetime,
        &format!(
            "device add device-{n} --csr {state}/device.csr --ssh-key {state}/ssh_key.public --cert-out {state}/device.pem"
        ),
    );
}

#[test]
fn ssh_logs_in_by_user_certificate_and_knows_the_device_without_ever_having_seen_it() {
    let lab = lab();
    // No key of the user's own, and no host key that anyone has put here.
    let script = "mkdir -p ~/own && mv ~/.ssh/id_ed25519* ~/own/ && rssh config ssh --print > ~/only && \
        ssh -v -F ~/only -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o BatchMode=yes \
        root@device-17.rssh hostname";
    let output = shell(&lab, "olivia", script);
    assert_eq!(succeeds(&output), "device-17\n");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("ED25519-CERT"), "{log}");
    // By rssh ssh too, which needs no configuration at all.
    let plain =
        "rssh ssh root@device-17 -- -F none -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no hostname";
    assert_eq!(succeeds(&shell(&lab, "olivia", plain)), "device-17\n");

    // One that lives is used without a word to a server.
    let issued = "grep -c 'certified for ssh user=olivia' $0/log/serverd-1.log";
    let count = || {
        let dir = lab.dir().inside("");
        succeeds(&lab.command(&Place::Core, &["sh", "-c", issued, &dir]).output().unwrap())
    };
    let before = count();
    for _ in 0..3 {
        succeeds(&shell(&lab, "olivia", "rssh certify device-17"));
    }
    assert_eq!(count(), before);

    // It opens that account of that device, and nothing else.
    let with = |to: &str| {
        format!(
            "cd ~/.local/state/rssh/ssh && ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o 'ProxyCommand=rssh proxy %h %p' \
             -o IdentityFile=id_rssh -o CertificateFile=device-17-cert.pub {to} hostname"
        )
    };
    assert_eq!(succeeds(&shell(&lab, "olivia", &with("root@device-17"))), "device-17\n");
    for other in ["root@device-18", "daemon@device-17"] {
        let refused = shell(&lab, "olivia", &with(other));
        assert!(
            all_of(&refused).contains("Permission denied (publickey"),
            "{other}: {}",
            all_of(&refused)
        );
    }
}

#[test]
fn who_has_no_grant_gets_no_certificate_and_keys_of_ones_own_go_on_working() {
    let lab = lab();
    let refused = shell(&lab, "bob", "rssh certify device-2");
    assert_eq!(refused.status.code(), Some(77), "{}", all_of(&refused));
    let quiet = shell(&lab, "bob", "rssh --quiet certify device-2");
    assert_eq!(
        (quiet.status.code(), all_of(&quiet).contains("grant")),
        (Some(77), false)
    );
    assert_eq!(said(&lab, "bob", &["ssh", "device-1", "hostname"]), "device-1\n");
}

#[test]
fn a_devices_certificate_renews_itself_before_its_end() {
    let lab = lab();
    shorten_device(&lab, 19, "30s");
    lab.ctl(Action::Restart, "agentd-19").unwrap();
    let file = "devices/device-19/state/device.pem";
    within(PATIENCE, "the certificate lives for months again", || {
        end_of(&lab, file) > now() + (DAYS - 1) * 86_400
    });
    assert_eq!(open(&lab, "peggy", "device-19").state, "active");
}

#[test]
fn a_certificate_that_ended_in_storage_comes_back_by_the_devices_ssh_key() {
    let lab = lab();
    lab.ctl(Action::Kill, "agentd-20").unwrap();
    shorten_device(&lab, 20, "10s");
    let file = "devices/device-20/state/device.pem";
    let end = end_of(&lab, file);
    within(PATIENCE, "the certificate has ended", || now() > end);
    lab.ctl(Action::Start, "agentd-20").unwrap();
    within(PATIENCE, "another has come", || {
        end_of(&lab, file) > now() + (DAYS - 1) * 86_400
    });
    assert_eq!(open(&lab, "peggy", "device-20").state, "active");
}

#[test]
fn a_users_certificate_is_renewed_by_the_next_command() {
    let lab = lab();
    let profile = lab.dir().inside("users/rupert/home/.config/rssh");
    let csr = format!("openssl req -new -key {profile}/user.key -subj /CN=rupert -out {profile}/user.csr");
    succeeds(&lab.command(&Place::Core, &["sh", "-c", &csr]).output().unwrap());
    // Two thirds of it are over in a moment.
    briefly(
        &lab,
        1,
        "40s",
        &format!("user add rupert --csr {profile}/user.csr --cert-out {profile}/user.pem"),
    );
    let file = "users/rupert/home/.config/rssh/user.pem";
    within(PATIENCE, "it lives for months again", || {
        said(&lab, "rupert", &["rssh", "ls"]);
        end_of(&lab, file) > now() + (DAYS - 1) * 86_400
    });
}

#[test]
fn a_program_that_alone_has_the_authoritys_key_signs() {
    let lab = lab();
    let dir = lab.dir().inside("signer");
    let (s1, serverd) = (lab.dir().inside("servers/s1"), lab.programs().path("rssh-serverd"));
    // The authorities without their keys; those are the signer's.
    let script = format!(
        "mkdir -p {dir}/held && cp -r {pki} {dir}/pki && mv {dir}/pki/*-ca.key {dir}/held/ && cd {dir} && \
         printf '#!/bin/sh\\nexec openssl dgst -sha256 -sign {dir}/held/$1-ca.key\\n' > sign && chmod 700 sign && \
         printf '#!/bin/sh\\nexec openssl dgst -sha256 -sign {dir}/held/users-ca.key\\n' > wrong && chmod 700 wrong && \
         openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem -subj /CN=pump-9 -out k.csr && \
         ssh-keygen -q -t ed25519 -N '' -f ssh && \
         for s in sign wrong; do sed -e 's:^pki = .*:pki = \"{dir}/pki\"\\nsigner = \"{dir}/'$s'\":' {s1}/admin.toml > $s.toml; done",
        pki = lab.dir().inside("pki"),
    );
    succeeds(&lab.command(&Place::Core, &["sh", "-c", &script]).output().unwrap());
    let add = |config: &str| {
        let script = format!(
            "cd {dir} && {} device add pump-9 --csr k.csr --ssh-key ssh.pub --cert-out {config}.pem --config {config}.toml",
            serverd.display()
        );
        lab.command(&Place::Core, &["sh", "-c", &script]).output().unwrap()
    };
    succeeds(&add("sign"));
    let verify = format!("openssl verify -CAfile {dir}/pki/devices-ca.pem {dir}/sign.pem");
    succeeds(&lab.command(&Place::Core, &["sh", "-c", &verify]).output().unwrap());
    // A signature by another key is no certificate.
    let wrong = add("wrong");
    assert!(!wrong.status.success(), "{}", all_of(&wrong));
    assert!(!fs::exists(lab.dir().join("signer/wrong.pem")).unwrap());
}
