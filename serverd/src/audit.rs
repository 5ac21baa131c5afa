//! The audit trail: what this server writes down, and whether what is written down still holds.
//!
//! Recording an event never waits: a task of its own hands them to the database in batches. While the database is away
//! they wait in memory, up to a limit; beyond it only the log has them, and how many is itself an event.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ring::digest;
use rssh_proto::audit::Event;
use rssh_proto::{TunnelId, text};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::store::Store;

/// The chain of the administrator's commands.
pub const ADMIN: &str = "admin";
/// How many events wait for the database at most.
const WAITING: usize = 20_000;
/// How many go to the database at once, and how long the first of them waits for others.
const BATCH: usize = 200;
const GATHER: Duration = Duration::from_millis(200);
/// How long after the database refused a batch it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the last events may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often the heads of all chains are noted in this one.
const ANCHOR: Duration = Duration::from_secs(60);

/// Where events are recorded.
#[derive(Debug, Clone)]
pub struct Recorder {
    events: mpsc::Sender<Event>,
    lost: std::sync::Arc<AtomicU64>,
}

/// The other end of a recorder.
pub struct Sealer {
    chain: String,
    events: mpsc::Receiver<Event>,
    lost: std::sync::Arc<AtomicU64>,
}

/// A sealer at work.
pub struct Sealing {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Sealing {
    /// Has what was recorded until now sealed, and ends it. Where the database is away for as long as this may take, the
    /// log alone has the rest.
    pub async fn finish(self) {
        // One that has ended already needs no word.
        let _ = self.end.send(());
        let mut task = self.task;
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the database did not take the last events; only this log has them");
        }
    }
}

/// Makes a recorder for a chain.
pub fn recorder(chain: &str) -> (Recorder, Sealer) {
    let (sender, events) = mpsc::channel(WAITING);
    let lost = std::sync::Arc::<AtomicU64>::default();
    let recorder = Recorder {
        events: sender,
        lost: lost.clone(),
    };
    let sealer = Sealer {
        chain: chain.to_owned(),
        events,
        lost,
    };
    (recorder, sealer)
}

impl Recorder {
    /// Records an event: in the log now, in the database soon.
    pub fn record(&self, event: Event) {
        if let Ok(line) = serde_json::to_string(&event) {
            tracing::info!(target: "audit", "{line}");
        }
        if self.events.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sealer {
    /// Begins to hand events to the database.
    pub fn start(self, store: Store) -> Sealing {
        let (end, ended) = oneshot::channel();
        Sealing {
            task: tokio::spawn(self.run(store, ended)),
            end,
        }
    }

    /// Hands events to the database until every recorder is gone, or no more are to be taken.
    async fn run(mut self, store: Store, mut end: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut anchored = Instant::now();
        let mut anchors = tokio::time::interval(ANCHOR);
        anchors.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ends = false;
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => batch.push(event),
                    None => return,
                },
                _ = anchors.tick(), if anchored.elapsed() >= ANCHOR => {
                    anchored = Instant::now();
                    match store.audit_anchor(&self.chain).await {
                        // A log on another machine is one more witness of where the chain stood.
                        Ok(head) => tracing::info!(
                            target: "audit", chain = self.chain, seq = head.seq, hash = text::hex(&head.hash), "head"
                        ),
                        Err(error) => tracing::warn!(%error, "cannot anchor the audit trail yet"),
                    }
                    continue;
                }
                _ = &mut end, if !ends => {
                    ends = true;
                    // What is there already still comes.
                    self.events.close();
                    continue;
                }
            }
            let gathered = tokio::time::sleep(GATHER);
            tokio::pin!(gathered);
            while batch.len() < BATCH {
                tokio::select! {
                    event = self.events.recv() => match event {
                        Some(event) => batch.push(event),
                        None => break,
                    },
                    () = &mut gathered => break,
                }
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                batch.push(Event::now("events-lost").with("count", lost));
            }
            self.seal(&store, std::mem::take(&mut batch)).await;
        }
    }

    /// Hands events to the database until it has them. One that it will never take, since there is something in it that
    /// no column holds, is not to keep the others out: that there was one, and of which kind, takes its place.
    async fn seal(&self, store: &Store, events: Vec<Event>) {
        let mut batches = vec![events];
        while let Some(mut batch) = batches.pop() {
            while let Err(error) = store.audit(&self.chain, &batch).await {
                if !error.is_for_good() {
                    tracing::warn!(%error, waiting = self.events.len(), "cannot seal the audit trail yet");
                    tokio::time::sleep(AGAIN).await;
                } else if batch.len() > 1 {
                    batches.push(batch.split_off(batch.len() / 2));
                } else {
                    tracing::error!(%error, "an event cannot be sealed; only this log has it");
                    let kind = batch.pop().map(|event| event.kind);
                    batch.push(Event::now("event-unsealable").with("kind", kind));
                }
            }
        }
    }
}

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    pub hash: Vec<u8>,
}

/// What the proof of an entry is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub text: String,
    pub own_source: Option<String>,
    pub salt: Option<Vec<u8>>,
    pub person: Option<Vec<u8>>,
    pub prev: Vec<u8>,
    pub hash: Vec<u8>,
}

/// An event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub chain: String,
    pub seq: u64,
    pub at_us: i64,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelId>,
    /// Where it came from; of a claim, where the load balancer saw the device, once that connection has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub detail: serde_json::Value,
    #[serde(skip)]
    pub sealed: Sealed,
}

/// What the rest of the trail says of its chains.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What was pruned up to where, and the end.
    pub ends: BTreeMap<String, (Head, Head)>,
    /// What other chains noted: (chain, seq) -> hash in hexadecimal.
    pub anchors: HashMap<(String, u64), String>,
    pub pseudonyms: BTreeSet<String>,
}

/// Checks chains, entry by entry in their order.
#[derive(Debug)]
pub struct Verifier {
    known: Known,
    at: BTreeMap<String, Head>,
    /// What does not hold.
    pub faults: Vec<String>,
    pub entries: u64,
    pub forgotten: u64,
}

impl Verifier {
    /// Begins with what the trail says of itself.
    pub fn new(mut known: Known) -> Self {
        // More may come after the end while the entries are read.
        for (chain, (base, end)) in &known.ends {
            if end.seq > base.seq {
                let noted = known.anchors.entry((chain.clone(), end.seq));
                noted.or_insert_with(|| text::hex(&end.hash));
            }
        }
        let at = known
            .ends
            .iter()
            .map(|(chain, (base, _))| (chain.clone(), base.clone()));
        Self {
            at: at.collect(),
            known,
            faults: Vec::new(),
            entries: 0,
            forgotten: 0,
        }
    }

    /// Takes the next entry of its chain.
    pub fn take(&mut self, entry: &Entry) {
        self.entries += 1;
        let name = format!("{}/{}", entry.chain, entry.seq);
        let Some(before) = self.at.get_mut(&entry.chain) else {
            self.faults.push(format!("{name} is of a chain that has no end"));
            return;
        };
        let sealed = &entry.sealed;
        if entry.seq != before.seq + 1 {
            self.faults.push(format!(
                "{name} follows {}/{}: some are missing",
                entry.chain, before.seq
            ));
        } else if sealed.prev != before.hash {
            self.faults
                .push(format!("{name} does not follow from the one before it"));
        }
        let mut sum = digest::Context::new(&digest::SHA256);
        sum.update(&sealed.prev);
        sum.update(sealed.text.as_bytes());
        if sum.finish().as_ref() != sealed.hash {
            self.faults.push(format!("{name} was changed"));
        }
        *before = Head {
            seq: entry.seq,
            hash: sealed.hash.clone(),
        };
        if let Some(noted) = self.known.anchors.remove(&(entry.chain.clone(), entry.seq))
            && noted != text::hex(&sealed.hash)
        {
            self.faults.push(format!("{name} is not what another chain has noted"));
        }
        self.take_person(&name, entry);
    }

    fn take_person(&mut self, name: &str, entry: &Entry) {
        let sealed = &entry.sealed;
        match (&sealed.person, &sealed.salt) {
            (None, _) if entry.user.is_none() && sealed.own_source.is_none() => {}
            (Some(person), Some(salt)) => {
                let mut sum = digest::Context::new(&digest::SHA256);
                sum.update(salt);
                sum.update(entry.user.as_deref().unwrap_or_default().as_bytes());
                sum.update(b" ");
                sum.update(sealed.own_source.as_deref().unwrap_or_default().as_bytes());
                if sum.finish().as_ref() != person {
                    self.faults.push(format!("{name}: its user or address was changed"));
                }
            }
            (Some(_), None)
                if sealed.own_source.is_none()
                    && entry
                        .user
                        .as_ref()
                        .is_some_and(|user| self.known.pseudonyms.contains(user)) =>
            {
                self.forgotten += 1;
            }
            _ => self.faults.push(format!("{name}: its user or address was taken away")),
        }
    }

    /// Takes that there are no more.
    pub fn finish(&mut self) {
        for (chain, (base, end)) in &self.known.ends {
            let reached = self.at.get(chain);
            if reached.is_none_or(|reached| reached.seq < end.seq) {
                self.faults
                    .push(format!("{chain} does not reach its end {chain}/{}", end.seq));
            }
            let missing = self
                .known
                .anchors
                .keys()
                .filter(|(other, seq)| other == chain && *seq > base.seq && *seq != end.seq);
            for (_, seq) in missing {
                self.faults
                    .push(format!("{chain}/{seq}, which another chain has noted, is missing"));
            }
        }
        for (chain, seq) in self
            .known
            .anchors
            .keys()
            .filter(|(chain, _)| !self.known.ends.contains_key(chain))
        {
            self.faults.push(format!(
                "{chain}/{seq}, which another chain has noted, is missing with its chain"
            ));
        }
    }
}
