//! How an open went, stage by stage: what this side saw, and what servers tell of it.
//!
//! Servers do not see when their answers arrive, nor what became of a name; so the last open of each device is noted
//! here. Like the names' cache it is a convenience: a fault of it is never a fault of the command.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rssh_proto::payload::{Rank, TunnelState, TunnelTrace};
use rssh_proto::{DeviceId, Failure, Target, TunnelId};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files;
use crate::profile::{self, Profile};

/// The last open of a device, as this side saw it. Times are milliseconds from its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub device: DeviceId,
    pub target: Target,
    /// The request's id, and that of a tunnel that was made for it.
    pub request: TunnelId,
    /// The tunnel that came, which may be one that lived already.
    pub tunnel: Option<TunnelId>,
    /// When it began, in Unix seconds.
    pub at: i64,
    pub sent_ms: Option<u32>,
    pub accepted_ms: Option<u32>,
    pub name_ms: Option<u32>,
    pub route_ms: Option<u32>,
    pub first_byte_ms: Option<u32>,
    pub proof_ms: Option<u32>,
    pub failure: Option<Failure>,
}

/// Where records are.
pub struct Records(Option<PathBuf>);

impl Records {
    /// Those of a profile's owner; none where there is no cache directory.
    pub fn of(profile: &Profile) -> Self {
        Self(profile::directories().map(|directories| {
            let owner = format!("{}@{}", profile.user, profile.lb);
            directories.cache_dir().join("opens").join(owner)
        }))
    }

    /// The last open of a device.
    pub fn last(&self, device: &DeviceId) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.0.as_ref()?.join(device.as_str())).ok()?).ok()
    }

    fn put(&self, record: &Record) {
        let Some(directory) = &self.0 else { return };
        let written = serde_json::to_vec(record)
            .map_err(std::io::Error::from)
            .and_then(|json| files::replace(&directory.join(record.device.as_str()), &json, 0o600));
        if let Err(error) = written {
            tracing::debug!(%error, "an open was not noted");
        }
    }
}

/// Notes an open while it goes on.
pub struct Notes {
    records: Records,
    began: Instant,
    record: Mutex<Record>,
}

impl Notes {
    /// Begins with a request that is about to be sent.
    pub fn begin(profile: &Profile, device: &DeviceId, target: &Target, request: TunnelId) -> Self {
        let record = Record {
            device: device.clone(),
            target: target.clone(),
            request,
            tunnel: None,
            at: jiff::Timestamp::now().as_second(),
            sent_ms: None,
            accepted_ms: None,
            name_ms: None,
            route_ms: None,
            first_byte_ms: None,
            proof_ms: None,
            failure: None,
        };
        Self {
            records: Records::of(profile),
            began: Instant::now(),
            record: Mutex::new(record),
        }
    }

    fn note(&self, note: impl FnOnce(&mut Record, u32)) {
        let now = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        note(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner), now);
    }

    /// A server told how far the request has come.
    pub fn stage(&self, rank: Rank) {
        if rank == Rank::Accepted {
            self.note(|record, now| record.accepted_ms = record.accepted_ms.or(Some(now)));
        }
    }

    /// The tunnel's name came; the request had been sent at that moment.
    pub fn named(&self, tunnel: TunnelId, sent: Option<Instant>) {
        let sent_ms = sent.map(|sent| sent.saturating_duration_since(self.began).as_millis());
        self.note(|record, now| {
            record.tunnel = Some(tunnel);
            record.sent_ms = sent_ms.and_then(|ms| u32::try_from(ms).ok());
            record.name_ms = Some(now);
        });
    }

    /// The load balancer took the name.
    pub fn routed(&self) {
        self.note(|record, now| record.route_ms = Some(now));
    }

    /// The device said something, or the connection stayed open: which proves the tunnel.
    pub fn proven(&self, first_byte: bool) {
        self.note(|record, now| {
            record.first_byte_ms = first_byte.then_some(now);
            record.proof_ms = Some(now);
        });
        self.keep();
    }

    /// It came to nothing.
    pub fn failed(&self, error: &Error) {
        if let Error::Failure(failure) = error {
            self.note(|record, _| record.failure = Some(failure.clone()));
        }
        self.keep();
    }

    fn keep(&self) {
        self.records
            .put(&self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The stages of an open, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Request,
    Accepted,
    Device,
    Ssh,
    Claim,
    Listener,
    Route,
    FirstByte,
    Proof,
}

impl Stage {
    /// Its name, and what it means.
    pub const fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Request => ("request", "sent by this side"),
            Self::Accepted => ("accepted", "a server checked the grant and recorded the tunnel"),
            Self::Device => ("device", "the device acknowledged its order"),
            Self::Ssh => ("ssh", "its ssh was connected, the keys exchanged"),
            Self::Claim => ("claim", "it logged in and leased a port"),
            Self::Listener => ("listener", "the server saw the port open"),
            Self::Route => ("route", "the load balancer took the signed name"),
            Self::FirstByte => ("first byte", "the device answered through the tunnel"),
            Self::Proof => ("proof", "the tunnel works"),
        }
    }
}

/// A stage that was reached, so many milliseconds after the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reached {
    pub stage: Stage,
    pub at_ms: u32,
}

/// The stages of a tunnel that were reached; those of `seen` too where it is about the making of this tunnel.
///
/// Both sides count from a moment of their own. A server records a tunnel between the sending of the request and the
/// coming of the first answer; half-way is taken, and no stage before the one that it follows.
pub fn stages(trace: &TunnelTrace, seen: Option<&Record>) -> Vec<Reached> {
    let seen = seen.filter(|seen| seen.request == trace.info.tunnel);
    let shift = seen.map_or(0, |seen| {
        let sent = seen.sent_ms.unwrap_or(0);
        sent.midpoint(seen.accepted_ms.unwrap_or(sent))
    });
    let theirs = |ms: Option<u32>| ms.map(|ms| ms.saturating_add(shift));
    let ours = |at: fn(&Record) -> Option<u32>| seen.and_then(at);
    let all = [
        (Stage::Request, ours(|seen| seen.sent_ms)),
        (Stage::Accepted, Some(shift)),
        (Stage::Device, theirs(trace.answered_ms)),
        // A later landing of the same tunnel says nothing about its first.
        (Stage::Ssh, theirs(trace.landed_ms)),
        (Stage::Claim, theirs(trace.claimed_ms)),
        (Stage::Listener, theirs(trace.active_ms)),
        (Stage::Route, ours(|seen| seen.route_ms)),
        (Stage::FirstByte, ours(|seen| seen.first_byte_ms)),
        (Stage::Proof, ours(|seen| seen.proof_ms)),
    ];
    let mut latest = 0;
    // After a reconnect the servers' times are of the last landing: the proof came before, and keeps its own time.
    let orderly = trace.claims <= 1;
    all.into_iter()
        .filter_map(|(stage, at)| {
            let at_ms = if orderly { at?.max(latest) } else { at? };
            latest = at_ms;
            Some(Reached { stage, at_ms })
        })
        .collect()
}

/// What to do about a tunnel that is not as it should be, where its failure does not say so itself.
pub fn advice(trace: &TunnelTrace) -> Option<String> {
    let device = &trace.info.device;
    match trace.info.state {
        TunnelState::Requested if trace.answered_ms.is_none() => Some(format!(
            "{device} has not acknowledged its order; it may be offline: rssh devices"
        )),
        TunnelState::Requested => Some(format!(
            "{device} is on it, but its ssh has not come; check that it reaches the load balancer, and its agent's log"
        )),
        TunnelState::Claimed => Some(format!(
            "{device} has a port but does not listen yet; check its agent's log"
        )),
        TunnelState::Reconnecting => Some(format!(
            "{device} lost its connection and is to come back by itself; check its network, and its agent's log"
        )),
        TunnelState::Active | TunnelState::Closed | TunnelState::Failed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::info;

    fn trace() -> TunnelTrace {
        TunnelTrace {
            info: info("device-1", TunnelState::Active),
            requested_at: 2_000_000_000,
            answered_ms: Some(10),
            landed_ms: Some(60),
            claimed_ms: Some(70),
            active_ms: Some(75),
            ended_ms: None,
            claims: 1,
            failure: None,
        }
    }

    fn record(request: TunnelId) -> Record {
        Record {
            device: "device-1".parse().unwrap(),
            target: Target::ssh(),
            request,
            tunnel: Some(request),
            at: 2_000_000_000,
            sent_ms: Some(20),
            accepted_ms: Some(40),
            name_ms: Some(100),
            route_ms: Some(104),
            first_byte_ms: Some(120),
            proof_ms: Some(120),
            failure: None,
        }
    }

    fn times(stages: &[Reached]) -> Vec<u32> {
        stages.iter().map(|reached| reached.at_ms).collect()
    }

    #[test]
    fn both_sides_stages_are_told_on_one_scale() {
        let trace = trace();
        let stages = stages(&trace, Some(&record(trace.info.tunnel)));
        assert_eq!(times(&stages), [20, 30, 40, 90, 100, 105, 105, 120, 120]);
        assert_eq!(stages[6].stage, Stage::Route, "not before what it follows");
    }

    #[test]
    fn what_was_seen_of_another_tunnel_is_left_out() {
        let trace = trace();
        let other = record(TunnelId::generate());
        assert_eq!(times(&stages(&trace, Some(&other))), [0, 10, 60, 70, 75]);
        assert_eq!(times(&stages(&trace, None)), [0, 10, 60, 70, 75]);
    }

    #[test]
    fn a_failed_tunnel_ends_at_the_stage_it_reached() {
        let failed = TunnelTrace {
            answered_ms: Some(10),
            landed_ms: None,
            claimed_ms: None,
            active_ms: None,
            ..trace()
        };
        assert_eq!(stages(&failed, None).last().unwrap().stage, Stage::Device);
    }

    #[test]
    fn the_last_open_of_a_device_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records(Some(directory.path().join("alice@lb")));
        let record = record(TunnelId::generate());
        assert_eq!(records.last(&record.device), None);
        records.put(&record);
        assert_eq!(records.last(&record.device), Some(record));
        Records(None).put(&super::tests::record(TunnelId::generate()));
    }
}
