//! A lab with a history: what a case does to it, and what its users do meanwhile.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::history::{Event, History, Rows, Seen};
use super::session::Session;
use super::watch::{self, Watch};
use crate::component::Record;
use crate::place::{Place, device_name};
use crate::process::{self, Process};
use crate::{Action, Lab, Options, files, run, setup};

/// Who asks, unless a case says otherwise.
pub const USER: &str = "alice";
/// Who opens and closes while a case runs.
pub const PROBER: &str = "carol";
/// How long an open may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// What `rssh open --json` prints, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Opened {
    pub tunnel: String,
    pub device: String,
    pub server: String,
    pub host: String,
    pub port: u16,
    pub banner: Option<String>,
}

impl Opened {
    /// The number of the server that it landed on.
    ///
    /// # Errors
    /// When the id is not one of a lab's.
    pub fn server_number(&self) -> Result<u32> {
        let digits = self.server.strip_prefix('s').unwrap_or_default();
        digits
            .parse()
            .with_context(|| format!("not a server of the lab: {}", self.server))
    }
}

/// Has the sshd of server `n` say other things, and starts it again; sessions live on.
///
/// # Errors
/// When its configuration has no such line, or it does not come up.
pub fn sshd_says(scene: &Scene, n: u32, said: &[&str]) -> Result<()> {
    let path = scene.lab.dir().join(format!("servers/s{n}/sshd/sshd_config"));
    let mut lines: Vec<String> = files::read(&path)?.lines().map(str::to_owned).collect();
    for new in said {
        let key = new.split(' ').next().unwrap_or_default();
        let line = lines.iter_mut().find(|line| line.split(' ').next() == Some(key));
        *line.with_context(|| format!("the sshd of s{n} says nothing of {key}"))? = (*new).to_owned();
    }
    files::write(&path, lines.join("\n") + "\n")?;
    scene.ctl(Action::Restart, &format!("sshd-{n}"))
}

/// How a program of a user ended.
#[derive(Debug, Clone)]
pub struct Answer {
    pub exit: Option<i32>,
    pub took: Duration,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Whether it did what it was asked.
    pub fn succeeded(&self) -> bool {
        self.exit == Some(0)
    }
}

/// A lab, its history, and the watch that writes it.
pub struct Scene {
    pub lab: Lab,
    pub history: Arc<History>,
    /// Whether the defence that the case tests is to be switched off.
    pub without: bool,
    watch: Option<Watch>,
}

impl Scene {
    /// Brings up a lab and begins its history.
    ///
    /// # Errors
    /// When the lab does not come up.
    pub fn begin(options: Options, history: &Path, without: bool) -> Result<Self> {
        let history = Arc::new(History::begin(history, true)?);
        Self::with(options, history, without, watch::EVERY)
    }

    /// Brings up a lab for a history that has begun, and looks at it so often.
    ///
    /// # Errors
    /// When the lab does not come up.
    pub fn with(options: Options, history: Arc<History>, without: bool, every: Duration) -> Result<Self> {
        let lab = Lab::temporary(options)?;
        let watch = Some(Watch::begin(&lab, history.clone(), every)?);
        Ok(Self {
            lab,
            history,
            without,
            watch,
        })
    }

    /// Ends the watch; what comes later is not in the history.
    pub fn close(&mut self) {
        self.watch = None;
    }

    // What users do.

    /// Runs `rssh` to its end, as a request that the history knows.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ask(&self, user: &str, device: &str, timeout: Duration, argv: &[&str]) -> Result<Answer> {
        let request = self.history.number();
        let timeout_ms = u64::try_from(timeout.as_millis())?;
        self.history.add(Event::Asked {
            request,
            device: device.to_owned(),
            timeout_ms,
            what: format!("{user}: {}", argv.join(" ")),
            proves: argv.contains(&"open"),
        });
        let began = Instant::now();
        let output = self.lab.exec(user, argv)?;
        let took = began.elapsed();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let banner = serde_json::from_str::<Opened>(&stdout)
            .ok()
            .and_then(|opened| opened.banner);
        self.history.add(Event::Answered {
            request,
            exit: output.status.code(),
            took_ms: u64::try_from(took.as_millis())?,
            banner,
            message: stderr.trim().to_owned(),
        });
        Ok(Answer {
            exit: output.status.code(),
            took,
            stdout,
            stderr,
        })
    }

    /// Asks for a tunnel, whatever comes of it.
    ///
    /// # Errors
    /// When `rssh` cannot be started.
    pub fn try_open(&self, user: &str, device: u32, timeout: Duration) -> Result<Answer> {
        let device = device_name(device);
        let limit = format!("{}ms", timeout.as_millis());
        self.ask(
            user,
            &device,
            timeout,
            &["rssh", "open", &device, "--json", "--timeout", &limit],
        )
    }

    /// Opens a tunnel.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(&self, device: u32) -> Result<Opened> {
        let answer = self.try_open(USER, device, TIMEOUT)?;
        ensure!(answer.succeeded(), "cannot open {device}: {}", answer.stderr);
        Ok(serde_json::from_str(&answer.stdout)?)
    }

    /// Opens a tunnel that lands on a certain server: by closing it and trying again.
    ///
    /// # Errors
    /// When that fails.
    pub fn open_on(&self, device: u32, server: u32) -> Result<Opened> {
        for _ in 0..30 {
            let opened = self.open(device)?;
            if opened.server_number()? == server {
                return Ok(opened);
            }
            self.close_tunnel(USER, device)?;
        }
        bail!("device-{device} never lands on s{server}")
    }

    /// Closes a user's tunnels to a device.
    ///
    /// # Errors
    /// When that fails.
    pub fn close_tunnel(&self, user: &str, device: u32) -> Result<()> {
        let device = device_name(device);
        let answer = self.ask(user, &device, TIMEOUT, &["rssh", "close", &device, "--force"])?;
        ensure!(answer.succeeded(), "cannot close {device}: {}", answer.stderr);
        Ok(())
    }

    /// Opens and closes a tunnel once a user's device answers again, and says how long that took.
    ///
    /// # Errors
    /// When it does not within the limit.
    pub fn until_opens(&self, user: &str, device: u32, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if self.try_open(user, device, Duration::from_secs(5))?.succeeded() {
                let took = began.elapsed();
                self.close_tunnel(user, device)?;
                return Ok(took);
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("device-{device} cannot be opened within {} s", limit.as_secs())
    }

    /// Logs in and has the device say its name: the proof that a tunnel leads to it.
    ///
    /// # Errors
    /// When the login fails or leads to another device.
    pub fn login(&self, device: u32) -> Result<Answer> {
        let name = device_name(device);
        let output = self.lab.exec(USER, &["timeout", "20", "ssh", &name, "hostname"])?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            output.status.success() && said == name,
            "a login to {name} says {said:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Answer {
            exit: Some(0),
            took: Duration::ZERO,
            stdout: said,
            stderr: String::new(),
        })
    }

    /// A login that stays and echoes.
    ///
    /// # Errors
    /// When it does not come about.
    pub fn session(&self, device: u32) -> Result<Session> {
        Session::begin(&self.lab, self.history.clone(), USER, device)
    }

    // What the history knows.

    /// Adds a remark.
    pub fn note(&self, what: impl Into<String>) {
        self.history.add(Event::Note { what: what.into() });
    }

    /// The latest look.
    ///
    /// # Errors
    /// When there was none yet.
    pub fn seen(&self) -> Result<Seen> {
        self.history.seen().context("nothing was looked at yet")
    }

    /// The latest look at the database.
    pub fn rows(&self) -> Rows {
        self.history.rows().unwrap_or_default()
    }

    /// The epoch of a tunnel that is active and listened for, and the server that it is on.
    pub fn place_of(&self, tunnel: &str) -> Option<(u64, u32)> {
        let seen = self.seen().ok()?;
        let rows = seen.rows?;
        let active = rows
            .tunnels
            .iter()
            .find(|row| row.id == tunnel && row.state == "active")?;
        let lease = rows
            .leases
            .iter()
            .find(|lease| lease.tunnel == tunnel && lease.epoch == active.epoch)?;
        seen.listeners
            .iter()
            .any(|listener| (listener.server, listener.port) == (lease.server, lease.port))
            .then_some((lease.epoch, lease.server))
    }

    /// Waits until a tunnel is active at an epoch above this one; says how long that took and where it is.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub fn until_back(&self, tunnel: &str, above: u64, limit: Duration) -> Result<(Duration, u32)> {
        let began = Instant::now();
        let mut server = 0;
        self.until(limit, &format!("tunnel {tunnel} is back"), || {
            let place = self.place_of(tunnel).filter(|(epoch, _)| *epoch > above);
            server = place.map_or(server, |(_, server)| server);
            Ok(place.is_some())
        })?;
        Ok((began.elapsed(), server))
    }

    /// Waits for something; says how long it took.
    ///
    /// # Errors
    /// When it does not come to pass, or cannot be looked at.
    pub fn until(&self, limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
        let began = Instant::now();
        loop {
            if holds()? {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets time pass while the fault lasts.
    pub fn last(&self, span: Duration) {
        thread::sleep(span);
    }

    // What is done to the lab.

    /// Says that a fault comes now.
    pub fn fault(&self, what: impl Into<String>) {
        self.history.add(Event::Fault { what: what.into() });
    }

    /// Says what shows that it took effect.
    pub fn effect(&self, what: impl Into<String>, shown: bool) {
        self.history.add(Event::Effect {
            what: what.into(),
            shown,
        });
    }

    /// Does something to a component, and looks at what has become of it.
    ///
    /// # Errors
    /// When the lab cannot.
    pub fn ctl(&self, action: Action, component: &str) -> Result<()> {
        let before = self.process(component);
        let what = format!("{action:?} {component}").to_lowercase();
        match action {
            Action::Cont | Action::Start => self.history.add(Event::Repair { what: what.clone() }),
            _ => self.fault(&what),
        }
        self.lab.ctl(action, component)?;
        let now = self.process(component);
        let stopped = now.and_then(|process| process.stat()).map(|stat| stat.is_stopped());
        let (says, shown) = match action {
            Action::Kill | Action::Term => ("its process has ended", now.is_none()),
            Action::Stop => ("its process is in state T", stopped == Some(true)),
            Action::Cont | Action::Start => ("its process runs", stopped == Some(false)),
            Action::Restart => ("another process runs", now.is_some() && now != before),
        };
        self.effect(format!("{what}: {says}"), shown);
        Ok(())
    }

    /// The process of a component, while it lives.
    pub fn process(&self, component: &str) -> Option<Process> {
        let process = Record::read(self.lab.dir(), component)?.process;
        process.is_alive().then_some(process)
    }

    /// Every process of a component.
    pub fn members(&self, component: &str) -> Vec<Process> {
        Record::read(self.lab.dir(), component)
            .map(|record| record.members(&self.lab.networks().inodes()))
            .unwrap_or_default()
    }

    /// Sends a signal to every process of some components, again until all have it: a machine that dies or hangs.
    ///
    /// # Errors
    /// When one goes on.
    pub fn machine(&self, components: &[&str], signal: Signal) -> Result<()> {
        let what = format!("{signal} to all of {}", components.join(", "));
        match signal {
            Signal::SIGCONT => self.history.add(Event::Repair { what: what.clone() }),
            _ => self.fault(&what),
        }
        let gone = process::wait(Duration::from_secs(10), || {
            let left: Vec<Process> = components
                .iter()
                .flat_map(|component| self.members(component))
                .filter(|process| match (signal, process.stat()) {
                    (_, None) => false,
                    (Signal::SIGSTOP, Some(stat)) => !stat.is_stopped(),
                    (Signal::SIGCONT, Some(stat)) => stat.is_stopped(),
                    _ => true,
                })
                .collect();
            for process in &left {
                process.signal(signal).ok();
            }
            left.is_empty()
        });
        self.effect(what, gone);
        if signal == Signal::SIGKILL {
            for component in components {
                self.buried(component)?;
            }
        }
        Ok(())
    }

    /// Waits until a killed component is dead, and forgets its mount namespace: the kernel gives the number to another.
    fn buried(&self, component: &str) -> Result<()> {
        if let Some(record) = Record::read(self.lab.dir(), component) {
            let dead = process::wait_ended(&[record.process], Duration::from_secs(10));
            ensure!(dead, "{component} does not die");
            Record { mounts: 0, ..record }.write(self.lab.dir(), component)?;
        }
        Ok(())
    }

    /// Runs a program at a place; returns what it wrote to stdout.
    ///
    /// # Errors
    /// When it fails.
    pub fn at(&self, place: &Place, argv: &[&str]) -> Result<String> {
        run::checked(&mut self.lab.command(place, argv))
    }

    /// Runs `ip` or `nft` in a place's network.
    ///
    /// # Errors
    /// When it fails.
    pub fn net(&self, place: &Place, argv: &[&str]) -> Result<String> {
        self.lab.networks().inside(place, || {
            run::checked(Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()))
        })?
    }

    /// Starts recorded components.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(&self, component: &str) -> Result<()> {
        self.ctl(Action::Start, component)
    }

    /// Asks HAProxy at its runtime socket.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn haproxy(&self, command: &str) -> Result<String> {
        setup::ask_haproxy(self.lab.dir(), "router/haproxy/admin.sock", command)
    }

    /// A component's log since a length of it.
    pub fn log_since(&self, component: &str, from: usize) -> String {
        let bytes = std::fs::read(self.lab.log(component)).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// How long a component's log is.
    pub fn log_length(&self, component: &str) -> usize {
        std::fs::metadata(self.lab.log(component)).map_or(0, |metadata| metadata.len() as usize)
    }

    /// Runs `work` while another user opens and closes tunnels to a device without a pause; returns also how those went.
    ///
    /// # Errors
    /// When either cannot be done.
    pub fn while_probing<T>(
        &self,
        device: u32,
        timeout: Duration,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Answer>)> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let prober = scope.spawn(|| -> Result<Vec<Answer>> {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let answer = self.try_open(PROBER, device, timeout)?;
                    let opened = answer.succeeded();
                    answers.push(answer);
                    if opened {
                        let name = device_name(device);
                        self.ask(PROBER, &name, TIMEOUT, &["rssh", "close", &name, "--force"])?;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                Ok(answers)
            });
            let done = work();
            stop.store(true, Ordering::Relaxed);
            let answers = match prober.join() {
                Ok(answers) => answers?,
                Err(_) => bail!("the prober panicked"),
            };
            Ok((done?, answers))
        })
    }
}
