//! Masters that outlive their agent, and are carried on by the next.
//!
//! ```text
//! landed -> run/<tunnel>/record -> the agent is gone -> the next finds the record
//!     -> the same boot, device and process? -> its control socket answers? -> carried on
//! ```
//! Whatever does not pass is ended and removed.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use openssh::Session;
use rssh_mqtt::Way;
use rssh_proto::DeviceId;
use rssh_proto::claim::Claimed;
use serde::{Deserialize, Serialize};

use super::log::Log;
use super::master::Master;
use super::{Ended, Landing, News, Outcome, Ssh, Stop, conclude, watch};
use crate::process::{Process, since_boot};
use crate::rundir::TunnelDir;

/// How long a master may take to answer on its control socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What the next agent has to know of a tunnel that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub device: DeviceId,
    pub landing: Landing,
    pub claimed: Claimed,
    /// When the tunnel ends, by [`since_boot`].
    pub deadline: Duration,
    /// Its ssh.
    pub process: Process,
    /// The connection that it has; an agent before this one may not have noted it.
    #[serde(default)]
    pub way: Option<Way>,
}

impl Record {
    /// How long the tunnel may still live.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_sub(since_boot())
    }
}

/// A master that runs on from an earlier agent.
#[derive(Debug)]
pub struct Inherited {
    record: Record,
    handle: OwnedFd,
}

/// A master that was found to be working; ended when dropped.
pub struct Adopted {
    pub record: Record,
    master: Master,
    dir: TunnelDir,
}

impl Ssh {
    /// Writes down what the next agent needs to carry a tunnel on.
    ///
    /// # Errors
    /// When it cannot be written; the next agent will end the tunnel then.
    pub fn record(&self, record: &Record) -> io::Result<()> {
        // A record that was written in part is no record.
        fs::write(self.run.record(record.landing.tunnel), serde_json::to_vec(record)?)
    }

    /// Finds the masters that an earlier agent of this device left, and ends all else that it left.
    ///
    /// # Errors
    /// When the run directory cannot be read.
    pub fn inherit(&self, device: &DeviceId) -> io::Result<Vec<Inherited>> {
        let inherited: Vec<Inherited> = self
            .run
            .records()?
            .into_iter()
            .filter_map(|(tunnel, record)| {
                let record: Record = serde_json::from_slice(&record).ok()?;
                let ours = record.device == *device
                    && record.landing.tunnel == tunnel
                    && !record.left().is_zero()
                    && self.run.is_master(record.process.pid);
                let handle = ours.then(|| record.process.open()).flatten()?;
                Some(Inherited { record, handle })
            })
            .collect();
        let kept: BTreeMap<_, _> = inherited
            .iter()
            .map(|inherited| (inherited.record.landing.tunnel, inherited.record.process.pid))
            .collect();
        let swept = self.run.sweep(&kept)?;
        if swept > 0 {
            tracing::info!(swept, "ended what an earlier agent left unfinished");
        }
        Ok(inherited)
    }

    /// Sees whether an inherited master works; one that does not is ended.
    ///
    /// # Errors
    /// When it does not answer on its control socket.
    pub async fn adopt(&self, inherited: Inherited) -> io::Result<Adopted> {
        let Inherited { record, handle } = inherited;
        let dir = self.run.dir(record.landing.tunnel);
        let master = Master::adopt(record.process.pid, handle, &dir, &self.changes)?;
        let adopted = Adopted { record, master, dir };
        let session = Session::resume_mux(adopted.dir.socket().into(), None);
        match tokio::time::timeout(ANSWER_TIMEOUT, session.check()).await {
            Ok(Ok(())) => Ok(adopted),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Carries an adopted tunnel as [`Ssh::carry`] does after the landing.
    pub async fn carry_on(&self, adopted: Adopted, stop: impl Future<Output = Stop>, tell: impl FnMut(News)) -> Ended {
        let Adopted { mut master, dir, .. } = adopted;
        let log = Log::continue_at_end(&dir.log());
        let outcome = tokio::select! {
            biased;
            stop = stop => Outcome::Stopped(stop),
            ended = watch(&mut master, &dir, log, tell) => Outcome::Ended(ended),
        };
        conclude(master, dir, outcome).await
    }
}
