//! A device's login: which key may log in, which port it gets, and which tunnel it claims.
//!
//! sshd's two helper programs ask over unix sockets. The kernel says who is asking (`SO_PEERCRED`); from the asking
//! process the login is found: sshd's monitor is the parent of `rssh-authorize` and the grandparent of `rssh-claim`.

mod early;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rssh_proto::audit::Event;
use rssh_proto::claim::{ClaimLine, ClaimReply, Claimed, LINE_LIMIT, parse_command, parse_line};
use rssh_proto::payload::{Rank, ReplyBody, ServerOperation, ServerRequest, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Epoch, Failure, FailureKind, TunnelId};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::lease::Terms;
use crate::process::{self, Process};
use crate::server::Server;
use crate::sessions::{self, execute};
use crate::ssh_keygen::PublicKey;
use crate::store::{ClaimOutcome, Grant, SessionMark};
use crate::{requests, sock_diag, sshd};

/// How long a helper may take to send its line.
const LINE_WITHIN: Duration = Duration::from_secs(2);
/// How many helpers are answered at once; more wait in the socket's queue.
const AT_ONCE: usize = 256;
/// How long an older session of a tunnel may take to end once it was killed.
const OLDER_WITHIN: Duration = Duration::from_secs(2);
/// How long a refused claim's session lives on, for the refusal to reach the device.
const REFUSAL_TRAVELS: Duration = Duration::from_millis(500);
/// How long a claimed tunnel's listener may take to appear.
const LISTENER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) use early::Outcome;

/// Which helper asks.
#[derive(Debug, Clone, Copy)]
enum Helper {
    Authorize,
    Claim,
}

/// Opens the sockets; they refuse everyone until [`serve`] runs.
///
/// # Errors
/// When the directory cannot be written.
pub fn listen(server: &Server) -> io::Result<[UnixListener; 2]> {
    Ok([
        bind(&server.config.socket(sshd::AUTHORIZE_SOCKET))?,
        bind(&server.config.socket(sshd::CLAIM_SOCKET))?,
    ])
}

/// Any account may connect; whoever is not sshd's session account or root is not answered.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Answers the helpers, for ever.
pub async fn serve(server: Arc<Server>, [authorize, claim]: [UnixListener; 2]) {
    tokio::join!(
        accept(server.clone(), authorize, Helper::Authorize),
        accept(server, claim, Helper::Claim)
    );
}

async fn accept(server: Arc<Server>, listener: UnixListener, helper: Helper) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(&server, stream, helper).await {
                        tracing::debug!(?helper, %error, "helper went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a helper; are there descriptors left?");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(server: &Arc<Server>, stream: UnixStream, helper: Helper) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let allowed = peer.uid() == 0 || peer.uid() == server.session_uid;
    let Some(pid) = peer.pid().filter(|_| allowed) else {
        tracing::warn!(?helper, uid = peer.uid(), "a stranger asked");
        return Ok(());
    };
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader).take(LINE_LIMIT as u64);
    tokio::time::timeout(LINE_WITHIN, reader.read_line(&mut line)).await??;
    let line = line.trim_end_matches('\n');
    let since = Instant::now();
    let answer = match helper {
        Helper::Authorize => {
            let line = authorize(server, pid, line).await;
            if line.is_none() {
                server.metrics.logins_refused.inc();
            }
            line.unwrap_or_default()
        }
        Helper::Claim => {
            let reply = claim(server, pid, line).await.unwrap_or_else(ClaimReply::Refused);
            let mut text = serde_json::to_string(&reply).map_err(io::Error::other)?;
            text.push('\n');
            text
        }
    };
    let latency = match helper {
        Helper::Authorize => &server.metrics.authorize,
        Helper::Claim => &server.metrics.claim,
    };
    latency.note(since.elapsed());
    writer.write_all(answer.as_bytes()).await
}

/// Answers `AuthorizedKeysCommand`: one line that permits one port, or nothing.
async fn authorize(server: &Arc<Server>, helper: i32, line: &str) -> Option<String> {
    if !server.open_for_landings.load(Ordering::Relaxed) {
        return None;
    }
    let counts = server.leases().counts();
    let full = usize::try_from(server.capacity.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
    if counts.held + counts.landing >= full {
        tracing::warn!(
            full,
            "login refused: the server is full; rssh-serverd capacity says what binds"
        );
        return None;
    }
    let key: PublicKey = line.parse().ok()?;
    let login = process::stat(process::stat(helper)?.parent)?.process;
    // Only sshd's monitor asks, and it is root's, whatever account it has put on for the moment: nothing that runs under
    // the session account reserves a port.
    if process::real_user(login.pid) != Some(0) {
        tracing::warn!(%login, "a stranger asked");
        return None;
    }
    let (device, candidates) = match server.store.landing(&server.id, &key).await {
        Ok(Some(landing)) => landing,
        Ok(None) => {
            server.refused(Event::now("authorize-refused").with("key", key.fingerprint()));
            return None;
        }
        Err(error) => {
            tracing::warn!(%error, "login refused: the store is away");
            return None;
        }
    };
    // A wish is honoured only when the login can mean no other tunnel.
    let wish = match &candidates[..] {
        [only] => only.port,
        _ => None,
    };
    let reserved = server.leases().handle_authorize(
        login,
        &device,
        wish,
        random,
        |port| sessions::usable(server, port),
        Instant::now(),
    );
    let port = match reserved {
        Ok(port) => port,
        Err(failure) => {
            tracing::warn!(%device, %login, %failure, "login refused");
            return None;
        }
    };
    watch(server, login);
    server.changed.notify_one();
    tracing::debug!(%device, %login, port, "port reserved");
    early::tell(server, login, &device, &candidates, port);
    server
        .audit
        .record(Event::now("authorize").device(&device).with("port", port));
    Some(sshd::authorized_key(
        &server.config,
        server.config.sshd.address,
        port,
        &device,
        &key,
    ))
}

/// Watches a process of a login; one that has ended already is told to the lease machine at once.
fn watch(server: &Arc<Server>, process: Process) {
    if let Err(error) = server.watcher.watch(process) {
        tracing::debug!(%process, %error, "not there to be watched");
        server.tell_end_of(process);
        let commands = server.leases().handle_ended(process, Instant::now());
        execute(server, commands);
    }
}

fn random() -> u64 {
    u64::from_str_radix(&rssh_proto::id::random_hex::<8>(), 16).unwrap_or(0)
}

/// Answers the forced command: the port that the tunnel now holds, or why it holds none.
async fn claim(server: &Arc<Server>, helper: i32, line: &str) -> Result<ClaimReply, Failure> {
    let bad = |why| Failure::new(FailureKind::BadRequest, why);
    let ClaimLine { device, via, command } = parse_line(line).ok_or_else(|| bad("no command"))?;
    let device: DeviceId = device.parse().map_err(|_| bad("not a device"))?;
    let tunnel = parse_command(command).ok_or_else(|| bad("only \"claim TUNNEL\" can be run here"))?;
    let gone = || Failure::new(FailureKind::Denied, "the login has ended");
    let child = process::stat(process::stat(helper).ok_or_else(gone)?.parent).ok_or_else(gone)?;
    let login = process::stat(child.parent).ok_or_else(gone)?.process;
    let child = child.process;

    let landed = Landed {
        login,
        child,
        device,
        tunnel,
    };
    if let Some(outcome) = early::outcome(server, &landed) {
        return early::answer(server, outcome, via).await;
    }
    let port = server.leases().handle_claim(login, child, &landed.device, tunnel)?;
    settle(server, landed, port, |event| {
        server.audit.record(event.with("via", via))
    })
    .await
}

/// A login that claims a tunnel.
#[derive(Debug)]
struct Landed {
    login: Process,
    child: Process,
    device: DeviceId,
    tunnel: TunnelId,
}

/// Writes the lease of a claim that has begun; what is to be audited goes to `record`.
async fn settle(
    server: &Arc<Server>,
    landed: Landed,
    port: u16,
    record: impl FnOnce(Event),
) -> Result<ClaimReply, Failure> {
    let Landed {
        login,
        child,
        device,
        tunnel,
    } = landed;
    watch(server, child);
    let mark = SessionMark {
        process: child,
        boot_id: server.boot_id.clone(),
    };
    let outcome = server
        .store
        .claim(&server.id, port, &device, tunnel, &mark, server.rest_s())
        .await;
    match outcome {
        Ok(ClaimOutcome::Granted(grant)) => {
            let event = requests::of_tunnel("claim", &grant.tunnel).with("port", port);
            record(event.with("epoch", grant.tunnel.epoch.0));
            granted(server, login, port, *grant).await
        }
        Ok(ClaimOutcome::Refused(failure)) => {
            tracing::info!(%device, %tunnel, %failure, "claim refused");
            let event = Event::now("claim-refused").device(&device).tunnel(tunnel);
            record(event.with("why", requests::kind(&failure)));
            refuse_later(server, login);
            Err(failure)
        }
        Err(error) => {
            tracing::warn!(%device, %tunnel, %error, "claim refused: the store is away");
            refuse_later(server, login);
            // The answer may have been lost after the commit: then the lease has no session, and is taken back.
            let server = server.clone();
            tokio::spawn(async move { take_back_unanswered(&server, port, tunnel, child).await });
            Err(Failure::new(
                FailureKind::Busy,
                "the server cannot reach its database; try again",
            ))
        }
    }
}

/// Ends a login whose claim was refused, once the refusal has had time to reach the device.
fn refuse_later(server: &Arc<Server>, login: Process) {
    let server = server.clone();
    tokio::spawn(async move {
        tokio::time::sleep(REFUSAL_TRAVELS).await;
        let commands = server.leases().handle_refused(login, Instant::now());
        execute(&server, commands);
    });
}

/// Releases a lease that a claim may have written although its answer never came.
async fn take_back_unanswered(server: &Arc<Server>, port: u16, tunnel: TunnelId, child: Process) {
    loop {
        match server.store.leases(&server.id).await {
            Ok(leases) => {
                let written = leases
                    .into_iter()
                    .find(|lease| lease.port == port && lease.tunnel == tunnel && lease.mark.process == child);
                let Some(lease) = written else { return };
                let released = server
                    .store
                    .release(&server.id, port, tunnel, lease.epoch, server.rest_s())
                    .await;
                if released.is_ok() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look for an unanswered claim yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn granted(server: &Arc<Server>, login: Process, port: u16, grant: Grant) -> Result<ClaimReply, Failure> {
    let tunnel = &grant.tunnel;
    let terms = Terms {
        epoch: tunnel.epoch,
        ttl: Duration::from_secs(tunnel.ttl_s.into()),
        idle: tunnel.idle_s.map(|seconds| Duration::from_secs(seconds.into())),
    };
    let held = {
        let mut leases = server.leases();
        leases
            .is_claiming(login)
            .then(|| leases.handle_granted(login, terms, Instant::now()))
    };
    let Some((older, commands)) = held else {
        let release = crate::lease::Command::Release {
            port,
            tunnel: tunnel.id,
            epoch: tunnel.epoch,
        };
        execute(server, vec![release]);
        return Err(Failure::new(FailureKind::Denied, "the login has ended"));
    };
    // The older session must be gone before the device hears of its new port: its listener may be on another port, but
    // whoever still uses it must not be left with a tunnel that carries nothing.
    let older_ended = older.map(|older| {
        server.metrics.evictions.inc();
        server.end_of(older)
    });
    execute(server, commands);
    if let Some(ended) = older_ended
        && tokio::time::timeout(OLDER_WITHIN, ended).await.is_err()
    {
        tracing::error!(tunnel = %tunnel.id, "an older session does not end");
    }
    if let Some(older) = grant.older.clone().filter(|older| *older != server.id) {
        let request = ServerRequest {
            v: V1,
            op: ServerOperation::Evict {
                tunnel: tunnel.id,
                below: tunnel.epoch,
            },
        };
        let server = server.clone();
        // Only to be quick: that server finds the eviction in the database too.
        tokio::spawn(async move { server.publish(Topic::ServerRequest(older), &request).await });
    }
    for asker in &grant.askers {
        server.progress(asker, tunnel, Rank::Claimed);
    }
    server.changed.notify_one();
    tracing::info!(tunnel = %tunnel.id, device = %tunnel.device, epoch = %tunnel.epoch, port, "claimed");
    tokio::spawn(activate(server.clone(), tunnel.id, tunnel.epoch, port));
    Ok(ClaimReply::Claimed(Claimed {
        server: server.id.clone(),
        bind: server.config.sshd.address,
        port,
        epoch: tunnel.epoch,
    }))
}

/// Waits for a claimed tunnel's listener, and tells the askers the tunnel's name. Without a listener the session ends.
pub async fn activate(server: Arc<Server>, tunnel: TunnelId, epoch: Epoch, port: u16) {
    let holds = || server.leases().held(tunnel).is_some_and(|held| held.epoch == epoch);
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        match sock_diag::listener(server.address(port)) {
            Ok(Some(listener)) if listener.uid == server.session_uid => break,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "cannot look at the kernel's sockets"),
        }
        if !holds() {
            return;
        }
        if began.elapsed() > LISTENER_WITHIN {
            tracing::warn!(%tunnel, port, "claimed, but no listener came");
            sessions::end_here(&server, tunnel);
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(Duration::from_millis(20));
    }
    while holds() {
        let asked_at = server.leases().held(tunnel).and_then(|held| held.asked_at);
        let landed_ago = asked_at.map(|at| at.elapsed());
        match server.store.activate(tunnel, epoch, landed_ago).await {
            Ok(Some((active, times, askers))) => {
                tracing::info!(%tunnel, device = %active.device, %epoch, port, "active");
                server.audit.record(requests::of_tunnel("active", &active));
                // Neither a later landing nor a session that was adopted tells how long the open took.
                if landed_ago.is_some() && epoch == Epoch::default().next() {
                    server.metrics.activated(&times);
                }
                let info = server.info(&active);
                for asker in &askers {
                    server.reply(asker, Some(&active), Rank::Final, ReplyBody::Opened(info.clone()));
                }
                return;
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%tunnel, %error, "cannot note that a tunnel is active yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
