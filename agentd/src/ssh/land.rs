//! The claim and the remote forward, over a master's control socket.

use std::net::SocketAddr;
use std::time::Duration;

use openssh::{ForwardType, Session, Socket, Stdio};
use rssh_proto::TunnelId;
use rssh_proto::claim::{self, ClaimReply, Claimed};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use super::fault::Fault;
use super::{Ended, Endpoint, Landing};

/// How long the server may take for a claim, and for a forward.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// Claims a port and has it forwarded; the port that is told meanwhile without waiting for the claim's answer, which has
/// the last word all the same.
pub(super) async fn land(
    session: &Session,
    landing: &Landing,
    port: watch::Receiver<Option<SocketAddr>>,
) -> Result<Claimed, Ended> {
    let to = &landing.to;
    let early = async {
        let at = told(port.clone()).await;
        (at, forward(session, at, to).await)
    };
    let claim = claim(session, landing.tunnel);
    tokio::pin!(early, claim);
    let mut forwarded = None;
    let claimed = loop {
        tokio::select! {
            claimed = &mut claim => break claimed?,
            outcome = &mut early, if forwarded.is_none() => forwarded = Some(outcome),
        }
    };
    let at = SocketAddr::new(claimed.bind, claimed.port);
    if *port.borrow() == Some(at) {
        // One that is under way is waited for: asked for twice, ssh would refuse the second.
        let outcome = match forwarded {
            Some(outcome) => outcome,
            None => early.await,
        };
        if outcome == (at, Ok(())) {
            return Ok(claimed);
        }
    }
    match forward(session, at, to).await {
        Ok(()) => Ok(claimed),
        Err(reason) => Err(Ended::Failed(Fault::passing(format!(
            "{} did not open port {}: {reason}; see its sshd's log",
            claimed.server, claimed.port
        )))),
    }
}

/// The port, once it is told; never where nobody tells.
async fn told(mut port: watch::Receiver<Option<SocketAddr>>) -> SocketAddr {
    let at = port.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    match at {
        Some(at) => at,
        None => std::future::pending().await,
    }
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

/// Asks for the remote forward; why there is none.
async fn forward(session: &Session, at: SocketAddr, to: &Endpoint) -> Result<(), String> {
    let listen = Socket::new(at.ip().to_string(), at.port());
    let connect = Socket::new(to.host.as_str(), to.port);
    let requested = session.request_port_forward(ForwardType::Remote, listen, connect);
    match tokio::time::timeout(ANSWER_TIMEOUT, requested).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
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
