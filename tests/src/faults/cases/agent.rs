//! Faults of a device's agent and of its ssh.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::Scene;
use crate::place::Place;
use crate::process::{self, Process};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "agent-ssh-killed",
        injects: "SIGKILL to the ssh that carries a tunnel",
        bound: Bound::seconds("reopened", 15.0),
        defence: "the agent lands again",
        switch: Some("the agent is frozen"),
        servers: 2,
        devices: 2,
        ha: false,
        run: ssh_killed,
    },
    Case {
        name: "agent-killed",
        injects: "SIGKILL to rssh-agentd under a live session; started again",
        bound: Bound::seconds("in charge again", 10.0),
        defence: "the agent takes its running ssh over",
        switch: Some("what the agent had noted of its ssh is removed while it is dead"),
        servers: 2,
        devices: 2,
        ha: false,
        run: agent_killed,
    },
];

/// The ssh that carry tunnels of device `n`, whichever agent started them.
fn masters(scene: &Scene, n: u32) -> Vec<Process> {
    let network = process::inode(&scene.lab.networks().file(&Place::Device(n)));
    let mut processes = process::in_networks(network.as_slice());
    processes.retain(|process| {
        fs::read_to_string(format!("/proc/{}/comm", process.pid)).is_ok_and(|name| name.trim() == "ssh")
    });
    processes
}

fn ssh_killed(scene: &Scene) -> Result<Measured> {
    let opened = scene.open(1)?;
    let through = scene.session(1)?;
    let other = scene.session(2)?;
    through.touched();
    let (epoch, _) = scene.place_of(&opened.tunnel).context("the tunnel is not seen")?;
    let ssh = masters(scene, 1);
    ensure!(!ssh.is_empty(), "no ssh runs on device-1");
    if scene.without
        && let Some(agent) = scene.process("agentd-1")
    {
        agent.signal(Signal::SIGSTOP)?;
    }
    scene.fault("SIGKILL to the ssh on device-1");
    for process in &ssh {
        process.signal(Signal::SIGKILL)?;
    }
    scene.effect("the ssh has ended", process::wait_ended(&ssh, Duration::from_secs(5)));
    let (took, _) = scene.until_back(&opened.tunnel, epoch, Duration::from_secs(30))?;
    scene.login(1)?;
    ensure!(other.goes_on(Duration::from_secs(5)), "the other session stands still");
    Ok(Measured::seconds(took, ""))
}

fn agent_killed(scene: &Scene) -> Result<Measured> {
    let opened = scene.open(1)?;
    let session = scene.session(1)?;
    scene.ctl(Action::Kill, "agentd-1")?;
    ensure!(
        session.goes_on(Duration::from_secs(5)),
        "the session ended with the agent"
    );
    if scene.without {
        let state = scene.lab.dir().join("devices/device-1");
        for below in ["run", "state/run"] {
            fs::remove_dir_all(state.join(below)).ok();
        }
    }
    scene.start("agentd-1")?;
    let began = std::time::Instant::now();
    // The same tunnel serves on, and the new agent can end it.
    let again = scene.open(1)?;
    ensure!(again.tunnel == opened.tunnel, "another tunnel was opened");
    let took = began.elapsed();
    ensure!(
        session.goes_on(Duration::from_secs(5)),
        "the session ended with the new agent"
    );
    drop(session);
    let note = format!("{} ssh run", masters(scene, 1).len());
    scene.close_tunnel("alice", 1)?;
    scene.until(Duration::from_secs(10), "the agent ends its ssh", || {
        Ok(masters(scene, 1).is_empty())
    })?;
    Ok(Measured::seconds(took, note))
}
