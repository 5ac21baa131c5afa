//! A device whose own sshd is dropbear, which knows no certificates.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::time::Duration;

use rssh_lab::component::Component;
use rssh_lab::place::Place;
use rssh_lab::ready::Ready;
use rssh_lab::{Action, Lab};

use crate::{administer, all_of, lab, said, within};

/// The device asks every ten seconds; a noisy machine gets more.
const SOON: Duration = Duration::from_secs(60);
/// A line that its owner has put there.
const OWN: &str = "# what was here before\n";

/// Puts Debian's dropbear in the place of a device's sshd, with its host key.
fn replace_sshd(lab: &Lab, n: u32) {
    let sshd = lab.dir().inside(format!("devices/device-{n}/sshd"));
    let host_key = format!("{sshd}/dropbear_host_key");
    let convert = [
        "dropbearconvert",
        "openssh",
        "dropbear",
        &format!("{sshd}/ssh_host_ed25519_key"),
        &host_key,
    ];
    lab.on_device(n, &convert).unwrap();
    let target = format!("target-{n}");
    let pid_file = format!("{sshd}/dropbear.pid");
    let argv = [
        "/usr/sbin/dropbear",
        "-F",
        "-E",
        "-s",
        "-p",
        "127.0.0.1:22",
        "-r",
        &host_key,
        "-P",
        &pid_file,
    ];
    Component::new(&target, Place::Device(n), &argv)
        .ready(Ready::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 22)))
        .write(lab.dir())
        .unwrap();
    lab.ctl(Action::Restart, &target).unwrap();
}

#[test]
fn a_device_whose_ssh_server_is_dropbear_is_reached_alike() {
    let lab = lab();
    let sshd = lab.dir().inside("devices/device-15/sshd");
    let keys = format!(
        "mkdir -p ~/.ssh; cp {sshd}/authorized_keys ~/.ssh/authorized_keys; chmod 700 ~ ~/.ssh; chmod 600 ~/.ssh/*"
    );
    lab.on_device(15, &["sh", "-c", &keys]).unwrap();
    replace_sshd(&lab, 15);
    let banner = said(&lab, "mike", &["rssh", "open", "device-15", "--json"]);
    assert!(banner.contains("dropbear"), "{banner}");
    assert_eq!(said(&lab, "mike", &["ssh", "device-15", "hostname"]), "device-15\n");
    said(&lab, "mike", &["rssh", "close", "device-15", "--force"]);
}

#[test]
fn a_dropbear_lets_users_in_by_their_grants_and_no_longer_once_those_are_gone() {
    let lab = lab();
    let (outside, inside) = (
        lab.dir().join("devices/device-22"),
        lab.dir().inside("devices/device-22"),
    );
    let on_device = |script: &str| lab.command(&Place::Device(22), &["sh", "-c", script]).output().unwrap();
    replace_sshd(&lab, 22);
    // Nobody's key is there.
    let keys = outside.join("home/.ssh/authorized_keys");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(outside.join("home/.ssh"))
        .unwrap();
    fs::write(&keys, OWN).unwrap();
    let config = outside.join("agentd.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    text += &format!("\n[authorized-keys]\nroot = \"{inside}/home/.ssh/authorized_keys\"\n");
    fs::write(&config, text).unwrap();
    lab.ctl(Action::Restart, "agentd-22").unwrap();

    // No key of the user's own.
    let log_in = "mkdir -p ~/own && mv ~/.ssh/id_ed25519* ~/own/ && rssh config ssh --print > ~/only && \
        ssh -F ~/only -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o BatchMode=yes \
        root@device-22.rssh hostname";
    assert_eq!(said(&lab, "sybil", &["sh", "-c", log_in]), "device-22\n");
    let text = fs::read_to_string(&keys).unwrap();
    assert!(text.starts_with(OWN) && text.contains(" rssh:sybil\n"), "{text}");
    assert_eq!(fs::metadata(&keys).unwrap().mode() & 0o777, 0o600);
    // The key itself opens the device, whatever leads there.
    let key = lab.dir().inside("users/sybil/home/.local/state/rssh/ssh/id_rssh");
    let by_key = format!(
        "ssh -F none -i {key} -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null root@localhost hostname"
    );
    assert_eq!(String::from_utf8_lossy(&on_device(&by_key).stdout), "device-22\n");

    let grants = administer(&lab, &["grant", "list", "--user", "sybil", "--json"]);
    let grant: serde_json::Value = String::from_utf8(grants.stdout)
        .unwrap()
        .lines()
        .next()
        .map(|line| serde_json::from_str(line).unwrap())
        .unwrap();
    let removed = administer(&lab, &["grant", "remove", &grant["id"].to_string()]);
    assert!(removed.status.success(), "{}", all_of(&removed));
    within(SOON, "the key is gone, and nothing else", || {
        fs::read_to_string(&keys).unwrap() == OWN
    });
    let refused = on_device(&by_key);
    assert!(
        all_of(&refused).contains("Permission denied (publickey"),
        "{}",
        all_of(&refused)
    );
}
