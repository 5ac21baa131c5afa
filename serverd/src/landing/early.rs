//! A login that can mean one tunnel only need not say which: its device is told the port while the login is under way, and
//! listens there before it has claimed. That claims the tunnel; the device asks meanwhile, and hears what came of it.
//!
//! ```text
//! authorize -> word of the port, to the device -> the login listens there -> the lease is written -> active
//!                                                                                  \-> the answer to the device's claim
//! ```
//! The kernel says who listens: a port is bound by nobody when it is reserved, sshd permits it to that one login, and the
//! account of the listener is that of devices' sessions. So it is the device, as sure as when it claims.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_mqtt::Publish;
use rssh_proto::audit::Event;
use rssh_proto::claim::ClaimReply;
use rssh_proto::payload::{self, PortHint, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Failure, FailureKind};
use tokio::sync::oneshot;

use super::{Landed, settle};
use crate::process::{self, Process};
use crate::server::{Server, lock};
use crate::sock_diag;
use crate::store::{Candidate, Waits};

/// How long the broker keeps word of a port for a device that does not hear it at once.
const WORD_LIVES: Duration = Duration::from_secs(1);
/// The shortest and the longest pause between two looks for a listener; between them, a part of the time that it has taken:
/// where a round trip is long, a little more delays nobody.
const LOOK: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(50));
const LOOK_PART: u32 = 20;
/// For how long the device may ask what came of its claim.
const ASKS_WITHIN: Duration = Duration::from_secs(10);

/// What came of a claim, and what is to be audited once it is known from where the device came.
pub(crate) type Outcome = oneshot::Receiver<(Result<ClaimReply, Failure>, Option<Event>)>;

/// Tells the device the port of its login, where exactly one of its tunnels waits to land, for the first time; a listener there
/// claims it. Whoever knows the public key can cause it, so it is good for nothing else.
pub(super) fn tell(server: &Arc<Server>, login: Process, device: &DeviceId, candidates: &[Candidate], port: u16) {
    let mut waiting = candidates.iter().filter(|candidate| candidate.waits != Waits::No);
    let (Some(only), None) = (waiting.next(), waiting.next()) else {
        return;
    };
    if only.waits != Waits::First {
        return;
    }
    if !server.leases().handle_told(login, only.tunnel) {
        return;
    }
    let hint = PortHint {
        v: V1,
        tunnel: only.tunnel,
        bind: server.config.sshd.address,
        port,
    };
    let publish = Publish::new(Topic::DeviceOpen(device.clone()), payload::encode(&hint)).expiring(WORD_LIVES);
    if let Err(error) = server.session.hint(&publish) {
        tracing::debug!(%device, %error, "cannot tell a port");
        return;
    }
    tokio::spawn(claim_by_listener(server.clone(), login, port));
}

/// Waits until a login listens, and claims for it; ends when it has claimed by itself or is over.
async fn claim_by_listener(server: Arc<Server>, login: Process, port: u16) {
    let began = Instant::now();
    loop {
        tokio::time::sleep((began.elapsed() / LOOK_PART).clamp(LOOK.0, LOOK.1)).await;
        if !server.leases().awaits_listener(login) {
            return;
        }
        match sock_diag::listener(server.address(port)) {
            Ok(Some(listener)) if listener.uid == server.session_uid => break,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "cannot look at the kernel's sockets"),
        }
    }
    let Some(child) = child_of(&server, login) else {
        return;
    };
    let (tell, outcome) = oneshot::channel();
    // Before the lease machine knows: from then on the device may ask.
    lock(&server.early).insert(login, outcome);
    let claimed = server.leases().handle_listening(login, child);
    if let Some((port, device, tunnel)) = claimed {
        let landed = Landed {
            login,
            child,
            device,
            tunnel,
        };
        let mut audited = None;
        let reply = settle(&server, landed, port, |event| audited = Some(event)).await;
        // It is kept below for as long as nobody has taken it.
        let _ = tell.send((reply, audited));
        tokio::time::sleep(ASKS_WITHIN).await;
    }
    let unasked = lock(&server.early).remove(&login);
    if let Some(Ok((_, Some(event)))) = unasked.map(|mut outcome| outcome.try_recv()) {
        server.audit.record(event);
    }
}

/// The user-side process of a login, which owns its listeners.
fn child_of(server: &Server, login: Process) -> Option<Process> {
    process::children(login.pid)
        .into_iter()
        .find(|pid| process::owner(*pid) == Some(server.session_uid))
        .and_then(process::stat)
        .map(|stat| stat.process)
}

/// Where the outcome of this claim comes, if the login's listener has made it already.
pub(super) fn outcome(server: &Server, landed: &Landed) -> Option<Outcome> {
    let Landed {
        login,
        child,
        device,
        tunnel,
    } = landed;
    let asked = server.leases().handle_asked(*login, *child, device, *tunnel);
    asked.then(|| lock(&server.early).remove(login)).flatten()
}

/// Answers a claim that the login's listener has made.
pub(super) async fn answer(server: &Server, outcome: Outcome, via: &str) -> Result<ClaimReply, Failure> {
    let gone = |_| Failure::new(FailureKind::Denied, "the login has ended");
    let (reply, event) = outcome.await.map_err(gone)?;
    if let Some(event) = event {
        server.audit.record(event.with("via", via));
    }
    reply
}
