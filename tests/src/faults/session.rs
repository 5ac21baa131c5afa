//! A login that stays: `ssh DEVICE cat`, with a line through it five times a second.

use std::collections::VecDeque;
use std::io::{BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::history::{Event, History};
use crate::process;
use crate::{Lab, place::device_name};

/// How often a line is sent.
const EVERY: Duration = Duration::from_millis(200);
/// How long the first line may take.
const FIRST: Duration = Duration::from_secs(20);

/// A login of a user to a device.
pub struct Session {
    pub number: u32,
    history: Arc<History>,
    child: Child,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// The user wants it to end.
    over: AtomicBool,
    ended: AtomicBool,
    echoed: AtomicU64,
    sent: Mutex<VecDeque<Instant>>,
}

impl Session {
    /// Logs in; returns once the first line has come back.
    ///
    /// # Errors
    /// When none does.
    pub fn begin(lab: &Lab, history: Arc<History>, user: &str, device: u32) -> Result<Self> {
        let place = lab.place(Some(user))?;
        let name = device_name(device);
        let mut child = lab
            .command(&place, &["ssh", &name, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let to = child.stdin.take().context("no stdin")?;
        let from = BufReader::new(child.stdout.take().context("no stdout")?);
        let number = history.number();
        let shared = Arc::new(Shared::default());
        let session = Self {
            number,
            history: history.clone(),
            child,
            shared: shared.clone(),
            threads: vec![
                thread::spawn({
                    let shared = shared.clone();
                    move || write(to, &shared)
                }),
                thread::spawn({
                    let history = history.clone();
                    move || read(from, number, &history, &shared)
                }),
            ],
        };
        let first = process::wait(FIRST, || session.echoed() > 0 || session.has_ended());
        ensure!(first && !session.has_ended(), "no login to {name}");
        history.add(Event::Session {
            session: number,
            device: name,
        });
        Ok(session)
    }

    /// Says that the fault passes through it.
    pub fn touched(&self) {
        self.history.add(Event::Touched { session: self.number });
    }

    /// How many lines have come back.
    pub fn echoed(&self) -> u64 {
        self.shared.echoed.load(Ordering::Relaxed)
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Waits until one more line has come back; says whether one did.
    pub fn goes_on(&self, limit: Duration) -> bool {
        // One that was sent before now may be on its way.
        let now = self.echoed() + 2;
        process::wait(limit, || self.echoed() >= now || self.has_ended()) && !self.has_ended()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.child.kill().ok();
        self.child.wait().ok();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn write(mut to: ChildStdin, shared: &Shared) {
    while !shared.over.load(Ordering::Relaxed) && !shared.ended.load(Ordering::Relaxed) {
        shared
            .sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Instant::now());
        if to.write_all(b"x\n").is_err() {
            return;
        }
        thread::sleep(EVERY);
    }
}

fn read(from: impl std::io::BufRead, session: u32, history: &History, shared: &Shared) {
    for line in from.lines() {
        if line.is_err() {
            break;
        }
        let sent = shared.sent.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let took = sent.map_or(0, |sent| sent.elapsed().as_millis());
        shared.echoed.fetch_add(1, Ordering::Relaxed);
        history.add(Event::Echo {
            session,
            took_ms: u64::try_from(took).unwrap_or(u64::MAX),
        });
    }
    shared.ended.store(true, Ordering::Relaxed);
    history.add(Event::Ended {
        session,
        wanted: shared.over.load(Ordering::Relaxed),
    });
}
