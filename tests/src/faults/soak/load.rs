//! What users do while it soaks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;

use super::Plan;
use crate::bench::stats::quantile;
use crate::faults::scene::{PROBER, Scene, TIMEOUT, USER};
use crate::faults::session::Session;
use crate::place::device_name;

/// Devices that nothing but opens and closes happens to.
pub(super) const CHURNED: u32 = 6;
/// Fewer than an agent takes.
pub(super) const TUNNELS_PER_DEVICE: u32 = 8;
/// Devices with a login that echoes.
const ECHOING: u32 = 8;

/// What stays: tunnels, and logins through some of them.
pub(super) struct Load {
    sessions: Vec<(u32, Session)>,
}

impl Load {
    /// Opens the tunnels and logs in.
    pub(super) fn begin(scene: &Scene, plan: &Plan, devices: u32) -> Result<Self> {
        let ttl = format!("{}s", plan.time.as_secs() * 2 + 7200);
        let next = AtomicU64::new(0);
        let open = || -> Result<()> {
            loop {
                let n = u32::try_from(next.fetch_add(1, Ordering::Relaxed))?;
                if n >= plan.tunnels {
                    return Ok(());
                }
                let name = device_name(n % devices + 1);
                // The first of a device serves its logins too.
                let mut argv = vec!["rssh", "open", &name, "--json", "--ttl", &ttl];
                if n >= devices {
                    argv.push("--new");
                }
                let answer = scene.ask(USER, &name, TIMEOUT, &argv)?;
                ensure!(answer.succeeded(), "cannot open {name}: {}", answer.stderr);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked"))))
        })?;
        let mut load = Self { sessions: Vec::new() };
        load.log_in(scene, devices)?;
        Ok(load)
    }

    /// Logs in wherever a login is missing.
    pub(super) fn log_in(&mut self, scene: &Scene, devices: u32) -> Result<()> {
        self.sessions.retain(|(_, session)| !session.has_ended());
        for device in 1..=devices.min(ECHOING) {
            if self.sessions.iter().any(|(on, _)| *on == device) {
                continue;
            }
            // What the last fault broke may be on its way back.
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                match scene.session(device) {
                    Ok(session) => {
                        self.sessions.push((device, session));
                        break;
                    }
                    Err(error) if Instant::now() > end => return Err(error),
                    Err(_) => thread::sleep(Duration::from_millis(500)),
                }
            }
        }
        Ok(())
    }

    /// Says that a fault passes through the sessions of a device, or of every one.
    pub(super) fn touched(&self, device: Option<u32>) {
        for (on, session) in &self.sessions {
            if device.is_none_or(|device| device == *on) {
                session.touched();
            }
        }
    }

    /// Ends the sessions that a fault passed through, so that new ones begin untouched.
    pub(super) fn renew(&mut self, scene: &Scene, devices: u32, device: Option<u32>) -> Result<()> {
        self.sessions
            .retain(|(on, _)| device.is_some_and(|device| device != *on));
        self.log_in(scene, devices)
    }

    /// Logs out.
    pub(super) fn end(&mut self) {
        self.sessions.clear();
    }
}

/// How opens went.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Counts {
    /// While what they need was up.
    pub all: usize,
    pub good: usize,
    /// While it was not.
    pub excused: usize,
    pub excused_good: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// What the others said.
    pub failures: Vec<String>,
}

impl Counts {
    pub(super) fn share(&self) -> f64 {
        if self.all == 0 {
            1.0
        } else {
            self.good as f64 / self.all as f64
        }
    }
}

/// Opens that go on for the whole time.
pub(super) struct Churn;

/// While above 0, opens may fail; counts also how often it changed.
static IMPAIRED: AtomicU64 = AtomicU64::new(0);

/// Opens may fail while this lives, and for some seconds more.
pub(super) struct Impaired;

impl Impaired {
    pub(super) fn begin() -> Self {
        IMPAIRED.store(u64::MAX, Ordering::Relaxed);
        Self
    }

    fn now() -> bool {
        let until = IMPAIRED.load(Ordering::Relaxed);
        until == u64::MAX || until > seconds()
    }
}

impl Drop for Impaired {
    fn drop(&mut self) {
        // Everything resumes within 10 s.
        IMPAIRED.store(seconds() + 10, Ordering::Relaxed);
    }
}

fn seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |span| span.as_secs())
}

impl Churn {
    /// Opens and closes once a second while `work` is done.
    pub(super) fn during(scene: &Scene, held: u32, work: impl FnOnce() -> Result<()>) -> (Result<()>, Counts) {
        let stop = AtomicBool::new(false);
        let results = Mutex::new((Counts::default(), Vec::new()));
        let once = |device: u32| {
            let before = Impaired::now();
            let Ok(answer) = scene.try_open(PROBER, device, TIMEOUT) else {
                return;
            };
            let excused = before || Impaired::now();
            if answer.succeeded() {
                let name = device_name(device);
                let close = ["rssh", "close", &name, "--force"];
                // One that fails is seen at the end: a tunnel is left.
                let _ = scene.ask(PROBER, &name, TIMEOUT, &close);
            }
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            let (counts, times) = &mut *results;
            match (excused, answer.succeeded()) {
                (false, good) => {
                    counts.all += 1;
                    counts.good += usize::from(good);
                    times.push(answer.took.as_secs_f64() * 1000.0);
                    if !good {
                        let at = scene.history.now();
                        counts.failures.push(format!("{at} ms: {}", answer.stderr.trim()));
                    }
                }
                (true, good) => {
                    counts.excused += 1;
                    counts.excused_good += usize::from(good);
                }
            }
        };
        let outcome = thread::scope(|scope| {
            // Each device has a thread, so that a slow open delays no other.
            for n in 0..CHURNED {
                let (stop, once) = (&stop, &once);
                scope.spawn(move || {
                    let every = Duration::from_secs(CHURNED.into());
                    thread::sleep(Duration::from_secs(n.into()));
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        once(held + 1 + n);
                        while began.elapsed() < every && !stop.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(50));
                        }
                    }
                });
            }
            let outcome = work();
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let (mut counts, times) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        counts.p50_ms = quantile(&times, 0.5);
        counts.p99_ms = quantile(&times, 0.99);
        (outcome, counts)
    }
}

/// Waits until there are as many leases, listeners and tunnels as wanted; says how many there are.
pub(super) fn settle(scene: &Scene, wanted: [usize; 3], limit: Duration) -> [usize; 3] {
    let mut there = [0; 3];
    crate::process::wait(limit, || {
        if let Ok(seen) = scene.seen()
            && let Some(rows) = &seen.rows
        {
            let active = rows.tunnels.iter().filter(|tunnel| tunnel.state == "active");
            // One that is on its way is no tunnel yet, but it is not nothing.
            let waiting = rows.tunnels.len() - active.clone().count();
            there = [rows.leases.len(), seen.listeners.len(), active.count() + waiting];
            return there == wanted && waiting == 0;
        }
        false
    });
    there
}

/// Closes every tunnel.
pub(super) fn close_all(scene: &Scene, devices: u32) -> Result<()> {
    for device in 1..=devices {
        scene.close_tunnel(USER, device)?;
    }
    Ok(())
}
