//! What happened, in the order of time: one line of JSON each.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// A moment of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since the history began.
    pub at: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A fault is injected.
    Fault { what: String },
    /// What shows that it took effect, or that it did not.
    Effect { what: String, shown: bool },
    /// The fault is over.
    Repair { what: String },
    /// A user asks for something.
    Asked {
        request: u32,
        device: String,
        timeout_ms: u64,
        what: String,
        /// Whether a success comes with the device's banner.
        proves: bool,
    },
    /// The answer to a request.
    Answered {
        request: u32,
        /// None: a signal ended the program.
        exit: Option<i32>,
        took_ms: u64,
        /// The banner of the device that the tunnel led to.
        banner: Option<String>,
        /// What a failure said.
        message: String,
    },
    /// A login that stays, and echoes.
    Session { session: u32, device: String },
    /// The fault passes through this session: it may end.
    Touched { session: u32 },
    /// A line came back through a session.
    Echo { session: u32, took_ms: u64 },
    /// A session is over; whether because its user wanted it so.
    Ended { session: u32, wanted: bool },
    /// What there was at that moment.
    Seen(Seen),
    /// Something that tells a reader more.
    Note { what: String },
}

/// A look at the whole lab.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// None while the database does not answer.
    pub rows: Option<Rows>,
    pub listeners: Vec<Listener>,
    /// Numbers of the servers whose serverd runs, neither ended nor frozen.
    pub serving: Vec<u32>,
}

/// What the database says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    pub leases: Vec<Lease>,
    pub tunnels: Vec<Tunnel>,
}

/// A live lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub server: u32,
    pub port: u16,
    pub tunnel: String,
    pub epoch: u64,
    /// The process that is to own the listener.
    pub session: i32,
}

/// A tunnel that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    pub id: String,
    pub device: String,
    pub state: String,
    pub epoch: u64,
    /// Until the asker's deadline; negative when it has passed.
    pub deadline_ms: i64,
    pub expires_ms: i64,
}

/// A socket that listens on a port that servers lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub server: u32,
    pub port: u16,
    pub inode: u64,
    /// Whether the process that the lease names owns it; none when no lease is known.
    pub by_lease: Option<bool>,
}

/// A history that is being written.
#[derive(Debug)]
pub struct History {
    begin: Instant,
    inner: Mutex<Inner>,
    numbers: AtomicU32,
    /// Whether looks and echoes, which are most of it, go to the file too.
    whole: bool,
}

#[derive(Debug)]
struct Inner {
    records: Vec<Record>,
    file: BufWriter<File>,
    seen: Option<Seen>,
    rows: Option<Rows>,
}

impl History {
    /// Begins one, which goes to a file too; a long one without its looks and echoes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(path: &Path, whole: bool) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            begin: Instant::now(),
            inner: Mutex::new(Inner {
                records: Vec::new(),
                file: BufWriter::new(file),
                seen: None,
                rows: None,
            }),
            numbers: AtomicU32::new(1),
            whole,
        })
    }

    /// A number that nothing else of this history has.
    pub fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Milliseconds since it began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what has just happened.
    pub fn add(&self, event: Event) {
        let mut inner = self.inner();
        // Under the lock: so the records are in the order of time.
        let record = Record { at: self.now(), event };
        let bulk = matches!(record.event, Event::Seen(_) | Event::Echo { .. });
        if (self.whole || !bulk)
            && let Ok(line) = serde_json::to_string(&record)
        {
            // The file is for people; what is checked is in memory.
            let _ = writeln!(inner.file, "{line}");
        }
        if let Event::Seen(seen) = &record.event {
            if let Some(rows) = &seen.rows {
                inner.rows = Some(rows.clone());
            }
            inner.seen = Some(seen.clone());
        }
        inner.records.push(record);
    }

    /// Everything until now that was not taken.
    pub fn records(&self) -> Vec<Record> {
        let mut inner = self.inner();
        let _ = inner.file.flush();
        inner.records.clone()
    }

    /// Takes out everything until now: a long run checks its history piece by piece.
    pub fn take(&self) -> Vec<Record> {
        let mut inner = self.inner();
        let _ = inner.file.flush();
        std::mem::take(&mut inner.records)
    }

    /// The latest look.
    pub fn seen(&self) -> Option<Seen> {
        self.inner().seen.clone()
    }

    /// The latest look at the database that it answered.
    pub fn rows(&self) -> Option<Rows> {
        self.inner().rows.clone()
    }
}
