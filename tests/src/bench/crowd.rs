//! A lab of many devices with many tunnels, and what all of that takes.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::memory;
use super::rig::{USER, words};
use super::worker::Worker;
use crate::component::{Component, Record};
use crate::place::{Place, device_name};
use crate::process::Process;
use crate::{Action, Lab, Options, files, run};

/// How many askers open tunnels at once.
const ASKERS: u32 = 6;
/// How many tunnels one agent may hold at most.
const EACH: usize = 64;

/// A lab of its own for a group.
#[derive(Debug)]
pub struct Crowd {
    pub lab: Lab,
    devices: u32,
}

/// What came of opening many tunnels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opened {
    pub opened: u32,
    pub failed: u32,
    pub took: Duration,
}

impl Crowd {
    /// Brings it up, with limits that are no hindrance.
    ///
    /// # Errors
    /// When the lab does not come up.
    pub fn up(servers: u32, devices: u32) -> Result<Self> {
        let options = Options {
            servers: NonZeroU32::new(servers).unwrap_or(NonZeroU32::MIN),
            devices,
            users: 1,
            ..Options::default()
        };
        let lab = Lab::temporary(options)?;
        let serverd = lab.programs().path("rssh-serverd");
        let (serverd, config) = (serverd.to_string_lossy(), lab.dir().inside("servers/s1/admin.toml"));
        let limit = [
            &serverd,
            "user",
            "limit",
            USER,
            "--max-tunnels",
            "60000",
            "--opens-per-minute",
            "60000",
            "--config",
            &config,
        ];
        run::checked(&mut lab.command(&Place::Core, &limit))?;
        at_once(1..=devices, |n| {
            let config = lab.dir().join(format!("devices/{}/agentd.toml", device_name(n)));
            let text = files::read(&config)?;
            files::write(&config, format!("{text}\n[tunnels]\nmax = {EACH}\n"))?;
            lab.ctl(Action::Restart, &format!("agentd-{n}"))
        })?;
        Ok(Self { lab, devices })
    }

    /// Opens so many more tunnels, the devices by turns; each is proven through the load balancer.
    ///
    /// # Errors
    /// When an asker cannot be started; an open that fails is counted.
    pub fn open(&self, count: u32) -> Result<Opened> {
        let begin = Instant::now();
        let (next, failed) = (AtomicU32::new(0), AtomicU32::new(0));
        at_once(0..ASKERS, |_| {
            let mut asker = Worker::start(&self.lab, &self.lab.place(Some(USER))?)?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok(());
                }
                let device = device_name(n % self.devices + 1);
                let argv = words(&["rssh", "open", &device, "--new", "--json", "--timeout", "30s"]);
                let ran = asker.run(&argv)?;
                if ran.code != Some(0) {
                    eprintln!("{device}: {}{}", ran.stdout, ran.stderr);
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
        let failed = failed.into_inner();
        Ok(Opened {
            opened: count - failed,
            failed,
            took: begin.elapsed(),
        })
    }

    /// How many tunnels are up now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub fn active(&self) -> Result<u32> {
        let count = self.lab.psql("SELECT count(*) FROM tunnels WHERE state = 'active'")?;
        count.parse().context("the database has no number of tunnels")
    }

    /// Every process of the lab by the component that started it, without its number: `sshd`, `serverd`, `agentd`.
    ///
    /// # Errors
    /// When the lab has no components.
    pub fn by_component(&self) -> Result<BTreeMap<String, Vec<Process>>> {
        let mut names = BTreeMap::new();
        for component in Component::all(self.lab.dir())? {
            if let Some(record) = Record::read(self.lab.dir(), &component.name) {
                let kind = component
                    .name
                    .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
                names.insert(record.mounts, kind.to_owned());
            }
        }
        let mut found: BTreeMap<String, Vec<Process>> = BTreeMap::new();
        for process in self.lab.processes() {
            if let Some(name) = process.namespace("mnt").and_then(|mounts| names.get(&mounts)) {
                found.entry(name.clone()).or_default().push(process);
            }
        }
        Ok(found)
    }

    /// What the lab takes now, in bytes and in processes, by component.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn takes(&self) -> Result<Takes> {
        let found = self.by_component()?;
        let each = found
            .iter()
            .map(|(name, processes)| (name.clone(), (memory::pss_of(processes), processes.len())))
            .collect();
        Ok(Takes {
            each,
            available: memory::available()?,
            kernels: memory::kernels()?,
        })
    }

    /// Processor time that a component's own processes have used so far, such as all `serverd` of the lab.
    ///
    /// # Errors
    /// When there is none.
    pub fn used(&self, kind: &str) -> Result<Duration> {
        let components = Component::all(self.lab.dir())?;
        let of_kind = components.iter().filter(|component| component.name.starts_with(kind));
        of_kind
            .filter_map(|component| Record::read(self.lab.dir(), &component.name))
            .filter(|record| record.process.is_alive())
            .map(|record| processor_time(record.process))
            .sum()
    }

    /// Takes it down, whatever it holds.
    ///
    /// # Errors
    /// When a process is left.
    pub fn down(self) -> Result<()> {
        self.lab.take_down()
    }
}

/// What a lab takes at one time.
#[derive(Debug, Clone)]
pub struct Takes {
    /// Bytes of PSS, and processes.
    each: BTreeMap<String, (f64, usize)>,
    pub available: f64,
    pub kernels: f64,
}

impl Takes {
    /// The PSS of some components, in bytes.
    pub fn pss(&self, kinds: &[&str]) -> f64 {
        kinds
            .iter()
            .filter_map(|kind| self.each.get(*kind))
            .map(|(pss, _)| pss)
            .sum()
    }

    /// How many processes some components have.
    pub fn processes(&self, kinds: &[&str]) -> usize {
        kinds
            .iter()
            .filter_map(|kind| self.each.get(*kind))
            .map(|(_, count)| count)
            .sum()
    }
}

/// User and system time of a process (proc(5)).
fn processor_time(process: Process) -> Result<Duration> {
    let text = fs::read_to_string(Path::new(&format!("/proc/{}/stat", process.pid)))?;
    let after = text.rfind(')').map_or("", |at| &text[at + 1..]);
    let ticks: u64 = after
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // sysconf(_SC_CLK_TCK) is 100 on every Linux that Rust runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// Does something for each, all at once; an error comes out once all have ended.
///
/// # Errors
/// The first of theirs.
pub fn at_once<T: Send>(many: impl IntoIterator<Item = T>, work: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = many.into_iter().map(|one| scope.spawn(move || work(one))).collect();
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread of the bench panicked"),
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}
