//! The system `ssh`: one master per tunnel, driven over its control socket.
//!
//! ```text
//! dial -> spawn -> control socket appears -> claim -> remote forward -> carry until its end
//! ```
//! The master is started here and not by the openssh crate's own launcher, which takes `ssh` from the PATH, has it
//! daemonise, and so loses its pid. As a child it can be watched by a pidfd from the
//! first moment. All else goes through [`openssh::Session`] (native-mux).

mod changes;
pub mod config;
pub mod fault;
pub mod inherit;
mod log;
mod master;
pub mod version;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openssh::{ForwardType, Session, Socket, Stdio};
use rssh_mqtt::Way;
use rssh_mqtt::dial::{DialError, dial_any};
use rssh_mqtt::proxy::Proxies;
use rssh_proto::claim::{self, ClaimReply, Claimed};
use rssh_proto::{Failure, FailureKind, HostPort, Target, TunnelId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::process::Process;
use crate::rundir::{RunDir, TunnelDir};
use changes::Changes;
use fault::Fault;
use log::Log;
use master::{Did, Master};

/// How long the server may take for a claim, and for a forward.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// The account to log in as: safe in argv.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Account(String);

impl TryFrom<String> for Account {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Account> for String {
    fn from(account: Account) -> Self {
        account.0
    }
}

impl std::str::FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "not an account: {}; use a-z, 0-9, - and _",
                rssh_proto::text::quoted(text, 40)
            ))
        }
    }
}

impl AsRef<str> for Account {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

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
    /// It has a connection to the load balancer, and starts.
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

    async fn dial(&self, landing: &Landing) -> Result<tokio::net::TcpStream, DialError> {
        match &self.lb {
            Some(lb) => dial_any(lb, &[], &self.proxies).await,
            None => dial_any(&landing.lb, &landing.other_lbs, &self.proxies).await,
        }
    }

    /// Lands a tunnel and carries it until `stop` resolves or ssh ends, and tells the news. No process is left when it
    /// returns, unless `stop` says so, nor when it is dropped.
    pub async fn carry(
        &self,
        landing: &Landing,
        stop: impl Future<Output = Stop>,
        mut tell: impl FnMut(News),
    ) -> Ended {
        tokio::pin!(stop);
        let dialed = tokio::select! {
            biased;
            _ = &mut stop => return Ended::Stopped,
            dialed = self.dial(landing) => dialed,
        };
        let into_std = |connection: tokio::net::TcpStream| connection.into_std().map_err(|error| error.to_string());
        let connection = match dialed.map_err(|error| error.to_string()).and_then(into_std) {
            Ok(connection) => connection,
            Err(error) => return Ended::Failed(Fault::passing(error)),
        };
        if let (Ok(local), Ok(peer)) = (connection.local_addr(), connection.peer_addr()) {
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
            ended = conduct(&mut master, &dir, landing, tell) => Outcome::Ended(ended),
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
async fn conduct(master: &mut Master, dir: &TunnelDir, landing: &Landing, mut tell: impl FnMut(News)) -> Ended {
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
    let landing = async {
        let claimed = claim(&session, landing.tunnel).await?;
        forward(&session, &claimed, &landing.to).await?;
        Ok::<_, Ended>(claimed)
    };
    let claimed = tokio::select! {
        outcome = landing => match outcome {
            Ok(claimed) => claimed,
            Err(ended) => return ended,
        },
        () = master.ended() => return lost(),
    };
    match Process::of(master.pid()) {
        Ok(process) => tell(News::Landed { claimed, process }),
        Err(_) => return lost(),
    }
    watch(master, dir, tell).await
}

/// Tells what a master that has landed says, until it ends.
async fn watch(master: &mut Master, dir: &TunnelDir, mut tell: impl FnMut(News)) -> Ended {
    let reading = async {
        let mut log = Log::open(&dir.log())?;
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

/// Runs the claim; its answer is read as soon as its line is there, not when the command has ended.
async fn claim(session: &Session, tunnel: TunnelId) -> Result<Claimed, Ended> {
    let failed = |what: String| Ended::Failed(Fault::passing(format!("the claim failed: {what}; see rssh-serverd")));
    let answer = async {
        let mut command = session.raw_command(claim::command(tunnel));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().await.map_err(|error| failed(error.to_string()))?;
        let mut line = Vec::with_capacity(512);
        let stdout = child
            .stdout()
            .as_mut()
            .ok_or_else(|| failed("it has no output".into()))?;
        while !line.contains(&b'\n') && line.len() < claim::LINE_LIMIT {
            let read = stdout
                .read_buf(&mut line)
                .await
                .map_err(|error| failed(error.to_string()))?;
            if read == 0 {
                break;
            }
        }
        Ok(line)
    };
    let line = tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .map_err(|_| failed("no answer in time".into()))??;
    match serde_json::from_slice(&line) {
        Ok(ClaimReply::Claimed(claimed)) => Ok(claimed),
        Ok(ClaimReply::Refused(failure)) => Err(Ended::Refused(failure)),
        Err(_) if line.is_empty() => Err(failed("the server gave no answer".into())),
        Err(error) => Err(failed(format!("the server's answer is not a claim's: {error}"))),
    }
}

async fn forward(session: &Session, claimed: &Claimed, to: &Endpoint) -> Result<(), Ended> {
    let listen = Socket::new(claimed.bind.to_string(), claimed.port);
    let connect = Socket::new(to.host.as_str(), to.port);
    let requested = session.request_port_forward(ForwardType::Remote, listen, connect);
    let reason = match tokio::time::timeout(ANSWER_TIMEOUT, requested).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => chain(&error),
        Err(_) => "no answer in time".to_owned(),
    };
    Err(Ended::Failed(Fault::passing(format!(
        "{} did not open port {}: {reason}; see its sshd's log",
        claimed.server, claimed.port
    ))))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(FailureKind::SshFailed, fault.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_cannot_be_an_option() {
        for good in ["rssh-tunnel", "_sshd", "a1"] {
            assert!(good.parse::<Account>().is_ok(), "{good}");
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a\n", "A", "a;b", &"a".repeat(33)] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?}");
        }
    }
}
