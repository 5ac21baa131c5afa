//! A device whose own sshd is dropbear, which knows no certificates.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::time::Duration;

use rssh_lab::Action;
use rssh_lab::component::Component;
use rssh_lab::place::Place;
use rssh_lab::ready::Ready;

use crate::{administer, all_of, lab, said, within};

/// The device asks every ten seconds; a noisy machine gets more.
const SOON: Duration = Duration::from_secs(60);
/// A line that its owner has put there.
const OWN: &str = "# what was here before\n";

#[test]
fn a_dropbear_lets_users_in_by_their_grants_and_no_longer_once_those_are_gone() {
    let lab = lab();
    let (outside, inside) = (
        lab.dir().join("devices/device-14"),
        lab.dir().inside("devices/device-14"),
    );
    let on_device = |script: &str| lab.command(&Place::Device(14), &["sh", "-c", script]).output().unwrap();
    // Debian's dropbear takes the place of the device's sshd, and its host key.
    let host_key = format!("{inside}/sshd/dropbear_host_key");
    let converted = on_device(&format!(
        "dropbearconvert openssh dropbear {inside}/sshd/ssh_host_ed25519_key {host_key}"
    ));
    assert!(converted.status.success(), "{}", all_of(&converted));
    let pid_file = format!("{inside}/run/dropbear.pid");
    Component::new(
        "target-14",
        Place::Device(14),
        &[
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
        ],
    )
    .ready(Ready::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 22)))
    .write(lab.dir())
    .unwrap();
    lab.ctl(Action::Restart, "target-14").unwrap();
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
    lab.ctl(Action::Restart, "agentd-14").unwrap();

    // No key of the user's own.
    let log_in = "mkdir -p ~/own && mv ~/.ssh/id_ed25519* ~/own/ && rssh config ssh --print > ~/only && \
        ssh -F ~/only -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o BatchMode=yes \
        root@device-14.rssh hostname";
    assert_eq!(said(&lab, "sybil", &["sh", "-c", log_in]), "device-14\n");
    let text = fs::read_to_string(&keys).unwrap();
    assert!(text.starts_with(OWN) && text.contains(" rssh:sybil\n"), "{text}");
    assert_eq!(fs::metadata(&keys).unwrap().mode() & 0o777, 0o600);
    // The key itself opens the device, whatever leads there.
    let key = lab.dir().inside("users/sybil/home/.local/state/rssh/ssh/id_rssh");
    let by_key = format!(
        "ssh -F none -i {key} -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null root@localhost hostname"
    );
    assert_eq!(String::from_utf8_lossy(&on_device(&by_key).stdout), "device-14\n");

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
