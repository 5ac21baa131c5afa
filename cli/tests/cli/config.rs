//! `rssh config ssh`, read by the system's ssh.

use std::fs;
use std::process::Command;

use crate::rig::{Rig, SSH, failed, succeeded};
use crate::server::opens;

/// What ssh makes of a host by the configuration in the rig's directory.
fn resolved(rig: &Rig, host: &str) -> Vec<String> {
    let output = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(rig.path("ssh/config"))
        .arg(host)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn ssh_finds_every_device_by_its_suffix_and_known_ones_by_name() {
    let rig = Rig::with(opens("s1-20000-1999999000-0.proxy.test"), SSH);
    succeeded(&rig.rssh("open device-1").output().unwrap());
    let line = format!("config ssh --install -q --dir {}", rig.path("ssh").display());
    fs::create_dir(rig.path("ssh")).unwrap();
    fs::write(rig.path("ssh/config"), "Host *\n  HostName other-%h\n").unwrap();
    succeeded(&rig.rssh(&line).output().unwrap());
    let program = assert_cmd::cargo::cargo_bin!("rssh");
    let command = format!("proxycommand '{}' proxy '%h' %p", program.display());
    for host in ["device-1", "device-1.rssh", "device-2.rssh"] {
        let options = resolved(&rig, host);
        assert!(options.contains(&command), "{host}: {options:?}");
        assert!(options.contains(&"serveraliveinterval 15".to_owned()), "{host}");
        assert!(options.contains(&format!("hostname {host}")), "{host}");
        let alias = options.contains(&"hostkeyalias device-1".to_owned());
        assert_eq!(alias, host.starts_with("device-1"), "{host}");
    }
    for stranger in ["device-2", "rssh", "example.com"] {
        assert!(!resolved(&rig, stranger).contains(&command), "{stranger}");
    }
}

#[test]
fn a_host_name_that_would_break_out_of_its_quotes_leads_nowhere() {
    let rig = Rig::new();
    let line = format!("config ssh --install --dir {}", rig.path("ssh").display());
    rig.rssh(&line).output().unwrap();
    // ssh itself refuses such names from the command line since 9.6.
    let options = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(rig.path("ssh/config"))
        .arg("x'$(touch y)'.rssh")
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&options.stdout).contains("proxycommand"));
}

#[test]
fn installing_twice_changes_nothing_and_removing_restores_the_file() {
    let rig = Rig::new();
    let before = "Host mine\n    User me";
    fs::create_dir(rig.path("ssh")).unwrap();
    fs::write(rig.path("ssh/real"), before).unwrap();
    std::os::unix::fs::symlink("real", rig.path("ssh/config")).unwrap();
    let run = |action: &str| {
        let line = format!("config ssh --json {action} --dir {}", rig.path("ssh").display());
        let object = succeeded(&rig.rssh(&line).output().unwrap());
        serde_json::from_str::<serde_json::Value>(&object).unwrap()["changed"] == true
    };
    assert!(run("--install"));
    let installed = fs::read(rig.path("ssh/config")).unwrap();
    assert!(!run("--install"));
    assert_eq!(fs::read(rig.path("ssh/config")).unwrap(), installed);
    assert!(run("--remove"));
    assert!(!run("--remove"));
    assert_eq!(fs::read_to_string(rig.path("ssh/real")).unwrap(), before);
    assert!(fs::symlink_metadata(rig.path("ssh/config")).unwrap().is_symlink());
    assert!(!rig.path("ssh/rssh.conf").exists());
}

#[test]
fn what_is_printed_is_what_would_be_installed() {
    let rig = Rig::new();
    let printed = succeeded(&rig.rssh("config ssh --print").output().unwrap());
    let line = format!("config ssh --install -q --dir {}", rig.path("ssh").display());
    succeeded(&rig.rssh(&line).output().unwrap());
    let installed = fs::read_to_string(rig.path("ssh/rssh.conf")).unwrap();
    assert_eq!(installed, printed);
}

#[test]
fn something_must_be_said_to_be_done() {
    failed(&Rig::new().rssh("config ssh").output().unwrap(), 64, &["--install"]);
}
