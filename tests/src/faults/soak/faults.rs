//! One of many faults, by chance.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::load::{Impaired, Load};
use crate::Action;
use crate::faults::scene::Scene;
use crate::parts::router;
use crate::place::Place;
use crate::process;

/// How many faults there are.
const FAULTS: u32 = 14;

/// A generator of numbers (xorshift64): the same seed gives the same faults.
#[derive(Debug)]
pub(super) struct Dice {
    state: u64,
    /// Faults that have not had their turn: each comes once before one comes again.
    bag: Vec<u32>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            bag: Vec::new(),
        }
    }

    /// A fault.
    fn draw(&mut self) -> u32 {
        if self.bag.is_empty() {
            self.bag = (1..=FAULTS).collect();
        }
        let left = u32::try_from(self.bag.len()).unwrap_or(u32::MAX);
        let at = self.roll(left) as usize - 1;
        self.bag.swap_remove(at)
    }

    /// A number from 1 to `sides`.
    pub(super) fn roll(&mut self, sides: u32) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // The low bits are the least random.
        u32::try_from((self.state >> 32) % u64::from(sides)).unwrap_or(0) + 1
    }
}

/// Injects a fault and repairs it; says which.
pub(super) fn inject(scene: &Scene, dice: &mut Dice, load: &mut Load, devices: u32) -> Result<String> {
    let seconds = |n: u32| Duration::from_secs(n.into());
    let server = dice.roll(2);
    let serverd = format!("serverd-{server}");
    let device = dice.roll(devices);
    let agentd = format!("agentd-{device}");
    Ok(match dice.draw() {
        1 => {
            scene.ctl(Action::Kill, &serverd)?;
            scene.last(seconds(1));
            scene.start(&serverd)?;
            format!("{serverd} killed and started")
        }
        2 => {
            scene.ctl(Action::Restart, &serverd)?;
            format!("{serverd} restarted")
        }
        3 => {
            // Shorter than its time to live.
            scene.ctl(Action::Stop, &serverd)?;
            scene.last(seconds(3));
            scene.ctl(Action::Cont, &serverd)?;
            format!("{serverd} frozen for 3 s")
        }
        4 => {
            let _impaired = Impaired::begin();
            scene.ctl(Action::Restart, "mosquitto")?;
            "mosquitto restarted".to_owned()
        }
        5 => {
            let _impaired = Impaired::begin();
            scene.ctl(Action::Kill, "postgres")?;
            scene.last(seconds(3));
            scene.start("postgres")?;
            "postgres killed for 3 s".to_owned()
        }
        6 => {
            let _impaired = Impaired::begin();
            scene.ctl(Action::Stop, "postgres")?;
            scene.last(seconds(8));
            scene.ctl(Action::Cont, "postgres")?;
            "postgres frozen for 8 s".to_owned()
        }
        7 => {
            scene.ctl(Action::Kill, "redis")?;
            scene.last(seconds(7));
            scene.start("redis")?;
            "redis killed for 7 s".to_owned()
        }
        8 => {
            scene.ctl(Action::Kill, "routerd")?;
            scene.last(seconds(5));
            scene.start("routerd")?;
            "routerd killed for 5 s".to_owned()
        }
        9 => {
            let master = scene.process("haproxy").context("HAProxy has ended")?;
            scene.fault("reload of HAProxy");
            master.signal(Signal::SIGUSR2)?;
            "HAProxy reloaded".to_owned()
        }
        10 => {
            load.touched(None);
            scene.ctl(Action::Restart, "haproxy")?;
            load.renew(scene, devices, None)?;
            "HAProxy restarted".to_owned()
        }
        11 => {
            scene.ctl(Action::Kill, &agentd)?;
            scene.last(seconds(2));
            scene.start(&agentd)?;
            format!("{agentd} killed and started")
        }
        12 => {
            load.touched(Some(device));
            kill_ssh(scene, device)?;
            load.renew(scene, devices, Some(device))?;
            format!("every ssh of device-{device} killed")
        }
        13 => {
            load.touched(Some(device));
            cut(scene, device, "down")?;
            scene.last(seconds(10));
            cut(scene, device, "up")?;
            load.renew(scene, devices, Some(device))?;
            format!("link of device-{device} cut for 10 s")
        }
        _ => {
            load.touched(None);
            hang(scene, server)?;
            load.renew(scene, devices, None)?;
            format!("the machine of s{server} hung")
        }
    })
}

fn kill_ssh(scene: &Scene, device: u32) -> Result<()> {
    let network = process::inode(&scene.lab.networks().file(&Place::Device(device)));
    scene.fault(format!("every ssh of device-{device} killed"));
    for process in process::in_networks(network.as_slice()) {
        if fs::read_to_string(format!("/proc/{}/comm", process.pid)).is_ok_and(|name| name.trim() == "ssh") {
            process.signal(Signal::SIGKILL)?;
        }
    }
    Ok(())
}

fn cut(scene: &Scene, device: u32, state: &str) -> Result<()> {
    scene.fault(format!("link of device-{device} {state}"));
    scene
        .net(&Place::Site, &["ip", "link", "set", &format!("d{device}"), state])
        .map(drop)
}

/// A machine hangs for longer than it may, and wakes.
fn hang(scene: &Scene, server: u32) -> Result<()> {
    let (serverd, sshd) = (format!("serverd-{server}"), format!("sshd-{server}"));
    let process = scene.process(&serverd).context("serverd does not run")?;
    scene.machine(&[&serverd, &sshd], Signal::SIGSTOP)?;
    scene.last(Duration::from_secs(15));
    scene.machine(&[&sshd, &serverd], Signal::SIGCONT)?;
    // As a service manager does: a fenced daemon ends, and is started again.
    process::wait_ended(&[process], Duration::from_secs(10));
    if scene.process(&serverd).is_none() {
        scene.start(&serverd)?;
    }
    scene
        .until(Duration::from_secs(30), "HAProxy sees both servers up", || {
            Ok(router::servers_up(scene.lab.dir()).is_ok_and(|up| up == 2))
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_comes_once_before_one_comes_again_and_a_seed_repeats_them() {
        let draws = |seed| {
            let mut dice = Dice::new(seed);
            (0..28).map(|_| dice.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        for round in draws(3).chunks(14) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (1..=FAULTS).collect::<Vec<_>>());
        }
    }
}
