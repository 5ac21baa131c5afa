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
