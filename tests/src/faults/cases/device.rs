//! Devices that are less than a server in a rack: without a clock, without a disk to write to.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Action;
use crate::component::Component;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Scene, USER};
use crate::run;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "device-clock-at-1970",
        injects: "the agent and its ssh start with a clock at 1970",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "spans are told, not times; a certificate is judged by our own where the clock is before that",
        switch: Some("the clock is at 2100 instead, where certificates have run out"),
        servers: 2,
        devices: 2,
        ha: false,
        run: clock,
    },
    Case {
        name: "device-root-read-only",
        injects: "every file system of the device is read-only, but for the agent's state directory",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "all that the agent writes is in one directory",
        switch: Some("that directory is read-only too"),
        servers: 2,
        devices: 2,
        ha: false,
        run: read_only,
    },
];

/// What the system says of a write there.
const REFUSAL: &str = "Read-only file system";

/// Has the agent of device 1 start another way; returns what it says from then on.
fn restart(scene: &Scene, change: impl FnOnce(Component) -> Component) -> Result<String> {
    change(Component::read(scene.lab.dir(), "agentd-1")?).write(scene.lab.dir())?;
    scene.ctl(Action::Kill, "agentd-1")?;
    let from = scene.log_length("agentd-1");
    let started = scene.lab.ctl(Action::Start, "agentd-1");
    // What it says shows whether it started the way it was to.
    if !scene.without {
        started?;
    }
    Ok(scene.log_since("agentd-1", from))
}

fn clock(scene: &Scene) -> Result<Measured> {
    let other = scene.session(2)?;
    let year = if scene.without { "2100" } else { "1970" };
    let said = restart(scene, |agent| {
        agent
            // The dynamic linker knows the architecture's directory.
            .env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1")
            .env("FAKETIME", format!("@{year}-01-01 00:01:00"))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    })?;
    scene.effect(
        format!("the agent's log is of {year}"),
        said.contains(&format!("{year}-01-01T00:0")),
    );
    let took = scene.until_opens(USER, 1, Duration::from_secs(60))?;
    scene.open(1)?;
    scene.login(1)?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(took, ""))
}

fn read_only(scene: &Scene) -> Result<Measured> {
    let other = scene.session(2)?;
    let lab = scene.lab.dir().mounted_at().to_owned();
    let device = scene.lab.dir().inside("devices/device-1");
    let keep = if scene.without {
        ""
    } else {
        "mount --bind $1/state $1/state; "
    };
    let script =
        format!("set -e; {keep}for at in / $0 /run; do mount -o remount,bind,ro $at; done; shift; exec \"$@\"");
    let said = restart(scene, |agent| {
        let before = ["sh", "-c", &script, &lab, &device].map(str::to_owned);
        let argv = before.into_iter().chain(agent.argv.iter().cloned()).collect();
        Component { argv, ..agent }
    })?;
    match scene.process("agentd-1") {
        Some(agent) => {
            for at in ["/", "/run", "/var/tmp", &device] {
                let pid = agent.pid.to_string();
                let file = format!("{at}/rssh-lab-was-here");
                let touched = run::checked(Command::new("nsenter").args(["-t", &pid, "-m", "touch", &file]));
                let shown = touched.is_err_and(|error| error.to_string().contains(REFUSAL));
                scene.effect(format!("{at} is read-only"), shown);
            }
        }
        None => scene.effect("the agent says so", said.contains(REFUSAL)),
    }
    let took = scene.until_opens(USER, 1, Duration::from_secs(60))?;
    scene.open(1)?;
    scene.login(1)?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session ended");
    Ok(Measured::seconds(took, ""))
}
