//! The system `ssh`: one master per tunnel, driven over its control socket.
//!
//! ```text
//! dial -> spawn -> control socket appears -> claim -> remote forward -> carry until its end
//!                                            a hint -> the same, beside the claim
//! ```
//! The master is started here and not by the openssh crate's own launcher, which takes `ssh` from the PATH, has it
//! daemonise, and so loses its pid. As a child it can be watched by a pidfd from the
//! first moment. All else goes through [`openssh::Session`] (native-mux).

mod changes;
pub mod config;
pub mod fault;
pub mod inherit;
mod land;
mod log;
mod master;
pub mod version;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use openssh::Session;
use rssh_mqtt::Way;
use rssh_mqtt::dial::{DialError, dial_any};
use rssh_mqtt::proxy::Proxies;
use rssh_proto::claim::Claimed;
use rssh_proto::{Account, Failure, FailureKind, HostPort, Target, TunnelId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::process::Process;
use crate::rundir::{RunDir, TunnelDir};
use changes::Changes;
use fault::Fault;
use log::Log;
use master::{Did, Master};

/// What one ssh is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landing {
    pub tunnel: TunnelId,
    /// What was asked for.
    pub target: Target,
    pub lb: HostPort,
    /// Load balancers to try when that one does not answer.
    #[serde(default)]
    pub other_lbs: Vec<HostPort>,
    /// The account to log in as.
    pub account: Account,
    /// Where the remote forward leads, as the device sees it.
    pub to: Endpoint,
}

impl Landing {
    /// Begins with the next load balancer: one may take connections and lead nowhere.
    pub fn turn(&mut self) {
        if !self.other_lbs.is_empty() {
            let next = self.other_lbs.remove(0);
            let last = std::mem::replace(&mut self.lb, next);
            self.other_lbs.push(last);
        }
    }
}

/// A host and port as the device dials it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a running ssh may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    End,
    /// Run on without the agent; said of one that has landed only.
    Leave,
}

/// Why the agent no longer carries an ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The server did not grant the claim.
    Refused(Failure),
    Failed(Fault),
}

/// What an ssh tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It has a connection to the load balancer, or makes one by what it says first, and starts.
    Connected(Way),
    /// It has claimed a port and forwards it.
    Landed { claimed: Claimed, process: Process },
    /// A connection through the forward did not reach the target.
    TargetRefused,
}

/// What is the same for every ssh.
#[derive(Debug)]
pub struct Ssh {
    program: PathBuf,
    config: PathBuf,
    run: RunDir,
    changes: Changes,
    proxies: Proxies,
    /// Where to land instead of where orders say.
    lb: Option<HostPort>,
}

impl Ssh {
    /// Runs this program in this run directory.
    pub fn new(program: &Path, run: RunDir) -> Self {
        Self {
            program: program.to_owned(),
            config: run.ssh_config(),
            run,
            changes: Changes::default(),
            proxies: Proxies::default(),
            lb: None,
        }
    }

    /// The same, with every connection through its proxy, and to this load balancer if one is given.
    #[must_use]
    pub fn by(self, proxies: Proxies, lb: Option<HostPort>) -> Self {
        Self { proxies, lb, ..self }
    }

    /// The directory that it runs in.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// A connection to a load balancer, which may begin with what ssh says first, and its address.
    async fn dial(&self, landing: &Landing) -> Result<(tokio::net::TcpStream, SocketAddr), DialError> {
        match &self.lb {
            Some(lb) => dial_any(lb, &[], &self.proxies).await,
            None => dial_any(&landing.lb, &landing.other_lbs, &self.proxies).await,
        }
    }

    /// Lands a tunnel, at `port` if that is told in time, and carries it until `stop` resolves or ssh ends, and tells the
    /// news. No process is left when it returns, unless `stop` says so, nor when it is dropped.
    pub async fn carry(
        &self,
        landing: &Landing,
        stop: impl Future<Output = Stop>,
        port: watch::Receiver<Option<SocketAddr>>,
        mut tell: impl FnMut(News),
    ) -> Ended {
        tokio::pin!(stop);
        let dialed = tokio::select! {
            biased;
            _ = &mut stop => return Ended::Stopped,
            dialed = self.dial(landing) => dialed,
        };
        let (connection, peer) = match dialed {
            Ok(dialed) => dialed,
            Err(error) => return Ended::Failed(Fault::passing(error.to_string())),
        };
        let connection = match connection.into_std() {
            Ok(connection) => connection,
            Err(error) => return Ended::Failed(Fault::passing(error.to_string())),
        };
        if let Ok(local) = connection.local_addr() {
            let local = local.ip();
            tell(News::Connected(Way { local, peer }));
        }
        let dir = match self.run.prepare(landing.tunnel) {
            Ok(dir) => dir,
            Err(error) => {
                return Ended::Failed(Fault::passing(format!(
                    "cannot make the tunnel's directory: {error}; see the device's disk"
                )));
            }
        };
        let spawned = Master::spawn(&self.program, &self.config, &dir, landing, connection, &self.changes);
        let mut master = match spawned {
            Ok(master) => master,
            Err(error) => {
                return Ended::Failed(Fault::passing(format!(
                    "cannot start {}: {error}; see the device's limits and fs.inotify.max_user_instances",
                    self.program.display()
                )));
            }
        };
        let outcome = tokio::select! {
            biased;
            stop = &mut stop => Outcome::Stopped(stop),
            ended = conduct(&mut master, &dir, landing, port, tell) => Outcome::Ended(ended),
        };
        conclude(master, dir, outcome).await
    }
}

/// Why a master is no longer watched.
enum Outcome {
    Stopped(Stop),
    Ended(Ended),
}

/// Ends a master and removes its directory, unless it is to run on.
async fn conclude(mut master: Master, dir: TunnelDir, outcome: Outcome) -> Ended {
    let ended = match outcome {
        Outcome::Stopped(Stop::Leave) => {
            master.leave();
            dir.keep();
            return Ended::Stopped;
        }
        Outcome::Stopped(Stop::End) => Ended::Stopped,
        Outcome::Ended(ended) => ended,
    };
    let status = master.end().await;
    match ended {
        // Its own words say more than what it left half done.
        Ended::Failed(fault) => Ended::Failed(master::last_words(&dir.log(), status).unwrap_or(fault)),
        ended => ended,
    }
}

/// The life of a master, from its start until it ends or fails.
async fn conduct(
    master: &mut Master,
    dir: &TunnelDir,
    landing: &Landing,
    port: watch::Receiver<Option<SocketAddr>>,
    mut tell: impl FnMut(News),
) -> Ended {
    match master.started().await {
        Ok(Did::It) => {}
        Ok(Did::Ended) => return lost(),
        Err(error) => {
            return Ended::Failed(Fault::passing(format!(
                "cannot watch for ssh's control socket: {error}"
            )));
        }
    }
    let session = Session::resume_mux(dir.socket().into(), None);
    let claimed = tokio::select! {
        outcome = land::land(&session, landing, port) => match outcome {
            Ok(claimed) => claimed,
            Err(ended) => return ended,
        },
        () = master.ended() => return lost(),
    };
    match Process::of(master.pid()) {
        Ok(process) => tell(News::Landed { claimed, process }),
        Err(_) => return lost(),
    }
    watch(master, dir, Log::open(&dir.log()), tell).await
}

/// Tells what a master that has landed says, until it ends.
async fn watch(master: &mut Master, dir: &TunnelDir, log: io::Result<Log>, mut tell: impl FnMut(News)) -> Ended {
    let reading = async {
        let mut log = log?;
        while let Did::It = master.wrote().await? {
            if log.target_refused()? {
                tell(News::TargetRefused);
            }
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = reading.await {
        tracing::warn!(%error, tunnel = %dir.path().display(), "cannot read on in ssh's log");
        master.ended().await;
    }
    lost()
}

/// An ssh that ended without an order.
fn lost() -> Ended {
    Ended::Failed(Fault::passing("ssh ended"))
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(FailureKind::SshFailed, fault.reason)
    }
}
