//! What a case is, and what comes of one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::check::{Violation, check};
use super::history::{Event, Record};
use super::inotify::Raised;
use super::scene::Scene;
use crate::{Options, run};

/// One fault on the real stack.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// What is done.
    pub injects: &'static str,
    /// What is measured, and has to be at most the limit.
    pub bound: Bound,
    /// What makes the case hold.
    pub defence: &'static str,
    /// How that is switched off, to show that the case fails without it.
    pub switch: Option<&'static str>,
    pub servers: u32,
    pub devices: u32,
    /// Whether the lab has every store, broker and load balancer twice.
    pub ha: bool,
    pub run: fn(&Scene) -> Result<Measured>,
}

/// A limit and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    pub what: &'static str,
    pub limit: f64,
    pub unit: &'static str,
}

impl Bound {
    /// So many seconds.
    pub const fn seconds(what: &'static str, limit: f64) -> Self {
        Self { what, limit, unit: "s" }
    }

    /// So many of something.
    pub const fn count(what: &'static str, limit: f64) -> Self {
        Self { what, limit, unit: "" }
    }
}

/// How a case is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// With its defence switched off.
    pub without: bool,
    /// Keep the logs of its lab also when it holds.
    pub logs: bool,
}

/// What a case measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    pub value: f64,
    pub note: String,
}

impl Measured {
    /// A span.
    pub fn seconds(span: Duration, note: impl Into<String>) -> Self {
        Self {
            value: span.as_secs_f64(),
            note: note.into(),
        }
    }

    /// A number.
    pub fn count(count: usize, note: impl Into<String>) -> Self {
        Self {
            value: count as f64,
            note: note.into(),
        }
    }
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Holds,
    /// It took longer, or cost more, than the bound says.
    Exceeds,
    /// An invariant is broken.
    Violates,
    /// The fault was not there: nothing is shown.
    NoEffect,
    /// What has to work did not.
    Fails,
}

/// A case's line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub name: &'static str,
    pub injects: &'static str,
    pub bound: Bound,
    pub defence: &'static str,
    pub measured: Option<Measured>,
    pub verdict: Verdict,
    pub violations: Vec<Violation>,
    /// Why it failed.
    pub error: Option<String>,
    /// What showed that the fault was there.
    pub effects: Vec<String>,
    /// How long the longest untouched session stood still, in milliseconds.
    pub longest_still_ms: u64,
    pub took_s: f64,
    /// Whether the defence was switched off.
    pub without: bool,
}

impl Case {
    /// Runs it in a lab of its own.
    pub fn outcome(&self, histories: &Path, how: How) -> Outcome {
        let began = Instant::now();
        let mut records = Vec::new();
        let result = self.run_in_lab(histories, how, &mut records);
        let violations = check(&records);
        let effects: Vec<(String, bool)> = records
            .iter()
            .filter_map(|record| match &record.event {
                Event::Effect { what, shown } => Some((what.clone(), *shown)),
                _ => None,
            })
            .collect();
        let shown = !effects.is_empty() && effects.iter().all(|(_, shown)| *shown);
        let verdict = match &result {
            _ if !violations.is_empty() => Verdict::Violates,
            Err(_) => Verdict::Fails,
            Ok(_) if !shown => Verdict::NoEffect,
            Ok(measured) if measured.value > self.bound.limit => Verdict::Exceeds,
            Ok(_) => Verdict::Holds,
        };
        Outcome {
            name: self.name,
            injects: self.injects,
            bound: self.bound,
            defence: self.defence,
            verdict,
            violations,
            error: result.as_ref().err().map(|error| format!("{error:#}")),
            measured: result.ok(),
            effects: effects
                .into_iter()
                .map(|(what, shown)| if shown { what } else { format!("NOT: {what}") })
                .collect(),
            longest_still_ms: longest_still(&records),
            took_s: began.elapsed().as_secs_f64(),
            without: how.without,
        }
    }

    fn run_in_lab(&self, histories: &Path, how: How, records: &mut Vec<Record>) -> Result<Measured> {
        if how.without && self.switch.is_none() {
            bail!("{} has no switch", self.name);
        }
        let options = Options {
            servers: self.servers.try_into()?,
            devices: self.devices,
            users: 3,
            ha: self.ha,
        };
        let suffix = if how.without { "-without" } else { "" };
        let path = histories.join(format!("{}{suffix}.jsonl", self.name));
        let _raised = match self.devices {
            0..100 => None,
            many => Some(Raised::for_devices(many)?),
        };
        let mut scene = Scene::begin(options, &path, how.without)?;
        let measured = (self.run)(&scene);
        scene.close();
        *records = scene.history.records();
        if how.logs || measured.is_err() || !check(records).is_empty() {
            let logs = path.with_extension("logs");
            fs::remove_dir_all(&logs).ok();
            run::checked(Command::new("cp").arg("-r").args([scene.lab.dir().join("log"), logs]))?;
        }
        measured
    }
}

/// The longest pause between two echoes of a session that the fault does not pass through.
fn longest_still(records: &[Record]) -> u64 {
    use std::collections::{HashMap, HashSet};

    let touched: HashSet<u32> = records
        .iter()
        .filter_map(|record| match record.event {
            Event::Touched { session } => Some(session),
            _ => None,
        })
        .collect();
    let mut last: HashMap<u32, u64> = HashMap::new();
    let mut longest = 0;
    for record in records {
        if let Event::Echo { session, .. } = record.event
            && !touched.contains(&session)
            && let Some(before) = last.insert(session, record.at)
        {
            longest = longest.max(record.at - before);
        }
    }
    longest
}
