//! Programs that know nothing of rssh: they find the devices by ssh's configuration.

use std::fs;

use crate::{lab, said};

#[test]
fn scp_copies_both_ways() {
    let lab = lab();
    let home = lab.dir().join("users/dave/home");
    fs::write(home.join("there"), b"to the device\0").unwrap();
    said(
        &lab,
        "dave",
        &[
            "sh",
            "-c",
            "scp -q ~/there device-7:there && scp -q device-7:there ~/back",
        ],
    );
    assert_eq!(fs::read(home.join("back")).unwrap(), b"to the device\0");
    assert_eq!(
        fs::read(lab.dir().join("devices/device-7/home/there")).unwrap(),
        b"to the device\0"
    );
}

#[test]
fn rsync_brings_a_directory() {
    let lab = lab();
    let home = lab.dir().join("users/erin/home");
    fs::create_dir_all(home.join("tree/below")).unwrap();
    fs::write(home.join("tree/below/file"), "x".repeat(200_000)).unwrap();
    said(
        &lab,
        "erin",
        &[
            "sh",
            "-c",
            "rsync -a ~/tree/ device-8:tree/ && rsync -a device-8:tree/ ~/again/",
        ],
    );
    assert_eq!(fs::read(home.join("again/below/file")).unwrap().len(), 200_000);
}

#[test]
fn git_clones_from_a_device() {
    let lab = lab();
    lab.on_device(
        9,
        &[
            "sh",
            "-c",
            "git init -q ~/project && cd ~/project && \
             git -c user.name=d -c user.email=d@d commit -q --allow-empty -m 'On the device'",
        ],
    )
    .unwrap();
    said(&lab, "frank", &["sh", "-c", "git clone -q device-9:project ~/clone"]);
    let log = said(&lab, "frank", &["sh", "-c", "git -C ~/clone log --format=%s"]);
    assert_eq!(log, "On the device\n");
}

#[test]
fn git_pushes_to_a_device() {
    let lab = lab();
    lab.on_device(9, &["sh", "-c", "git init -q --bare ~/bare"]).unwrap();
    said(
        &lab,
        "frank",
        &[
            "sh",
            "-c",
            "git init -q ~/work && cd ~/work && \
             git -c user.name=f -c user.email=f@f commit -q --allow-empty -m 'To the device' && \
             git push -q device-9:bare HEAD:refs/heads/pushed",
        ],
    );
    let log = lab.on_device(9, &["sh", "-c", "git -C ~/bare log --format=%s pushed"]);
    assert_eq!(log.unwrap(), "To the device\n");
}

#[test]
fn sftp_and_the_older_scp_carry_files() {
    let lab = lab();
    let home = lab.dir().join("users/dave/home");
    fs::write(home.join("by-sftp"), b"put\0").unwrap();
    fs::write(home.join("batch"), "put by-sftp\nget by-sftp again\n").unwrap();
    said(
        &lab,
        "dave",
        &[
            "sh",
            "-c",
            "cd && sftp -q -b batch device-7 && scp -q -O by-sftp device-7:by-scp && scp -q -O device-7:by-scp back-again",
        ],
    );
    for file in ["again", "back-again"] {
        assert_eq!(fs::read(home.join(file)).unwrap(), b"put\0", "{file}");
    }
}

#[test]
fn ssh_forwards_ports_on_top_of_a_tunnel() {
    let lab = lab();
    // Each user's programs share the servers' network: ports that nothing else has, and below those that the kernel gives
    // to connections.
    let script = "cd && ssh -M -S forwards -f -N -o ExitOnForwardFailure=yes \
                  -L 127.0.0.1:19022:localhost:22 -D 127.0.0.1:19080 device-8 && \
                  curl -s --http0.9 --max-time 20 http://127.0.0.1:19022/ | head -n 1 && \
                  curl -s --http0.9 --max-time 20 --socks5-hostname 127.0.0.1:19080 http://localhost:22/ | head -n 1; \
                  ssh -S forwards -O exit device-8 2>/dev/null";
    let banners = said(&lab, "erin", &["sh", "-c", script]);
    let lines: Vec<&str> = banners.lines().map(str::trim_end).collect();
    assert_eq!(lines.len(), 2, "{banners}");
    assert!(lines.iter().all(|line| line.ends_with(" device-8")), "{banners}");
}

#[test]
fn ssh_knows_a_device_on_first_contact_by_the_key_in_the_registry() {
    let lab = lab();
    let key = fs::read_to_string(lab.dir().join("devices/device-16/sshd/ssh_host_ed25519_key.pub")).unwrap();
    let key = key.split(' ').take(2).collect::<Vec<_>>().join(" ");
    // As enrolment stores what the device reports.
    let store = |key: &str| {
        lab.psql(&format!(
            "UPDATE devices SET host_keys = ARRAY['{key}'] WHERE id = 'device-16'"
        ))
        .unwrap()
    };
    store(&key);
    assert_eq!(
        said(&lab, "niaj", &["rssh", "known-hosts", "device-16"]),
        format!("device-16,device-16.rssh {}\n", key.trim())
    );
    said(&lab, "niaj", &["sh", "-c", "rssh config ssh --install --dir ~/first"]);
    let login = "ssh -F ~/first/config -l root -i ~/.ssh/id_ed25519 -o BatchMode=yes -o UserKnownHostsFile=/dev/null \
                 -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes device-16.rssh hostname";
    assert_eq!(said(&lab, "niaj", &["sh", "-c", login]), "device-16\n");
    let by_rssh = "rssh ssh root@device-16 -- -F none -o BatchMode=yes -o UserKnownHostsFile=/dev/null \
                   -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes hostname";
    assert_eq!(said(&lab, "niaj", &["sh", "-c", by_rssh]), "device-16\n");
    // Another key in its place, and nobody logs in.
    let other = fs::read_to_string(lab.dir().join("devices/device-15/sshd/ssh_host_ed25519_key.pub")).unwrap();
    store(&other.split(' ').take(2).collect::<Vec<_>>().join(" "));
    said(&lab, "niaj", &["sh", "-c", "rm -r ~/.cache/rssh/host-keys"]);
    let refused = lab.exec("niaj", &["sh", "-c", login]).unwrap();
    store(&key);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("Host key verification failed"), "{told}");
}
