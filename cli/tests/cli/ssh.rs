//! `rssh ssh`, with a program in ssh's place that tells its arguments.

use crate::rig::{Rig, succeeded};

fn rig() -> Rig {
    Rig::new().program("ssh", "printf '%s\\n' \"$@\"\nexit ${SSH_EXIT:-0}")
}

#[test]
fn ssh_gets_this_program_as_its_proxy_and_the_device_as_host_key_alias() {
    let rig = rig();
    let output = rig.rssh("ssh root@device-1 -p 2222 -- uname -a").output().unwrap();
    let told = succeeded(&output);
    let program = assert_cmd::cargo::cargo_bin!("rssh");
    let expected = [
        "-o",
        &format!("ProxyCommand='{}' proxy device-1 %p", program.display()),
        "-o",
        "HostKeyAlias=device-1",
        "-l",
        "root",
        "device-1",
        "-p",
        "2222",
    ];
    assert_eq!(told.lines().take(9).collect::<Vec<_>>(), expected);
    assert!(told.ends_with("uname\n-a\n"), "{told}");
}

#[test]
fn the_exit_code_of_ssh_passes_through() {
    let rig = rig();
    let output = rig.rssh("ssh device-1 false").env("SSH_EXIT", "42").output().unwrap();
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn a_missing_ssh_is_named_with_its_package() {
    let rig = rig();
    let output = rig
        .rssh("ssh device-1")
        .env("PATH", rig.path("nowhere"))
        .output()
        .unwrap();
    crate::rig::failed(&output, 78, &["openssh-client"]);
}
