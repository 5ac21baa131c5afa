//! Watching devices' sessions: carries out what the lease machine decides, and looks for sessions it does not know.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rssh_proto::audit::Event;
use rssh_proto::payload::{CloseOrder, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{Epoch, TunnelId};
use tokio::sync::mpsc;

use crate::lease::{Command, Leases, Terms};
use crate::orphans::Strangers;
use crate::process::{self, Process, end_session};
use crate::server::Server;
use crate::store::{StoreError, Tunnel};
use crate::{sock_diag, sshd};

/// How often evictions, unknown sessions and idle tunnels are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// A look at the kernel's tables may take at most one part in this many of a processor: on a full server it is long.
const LOOK_SHARE: u32 = 200;
/// The longest pause between two looks, however long one takes.
const LOOK_MOST: Duration = Duration::from_secs(5);
/// How long after the database refused what a session's end has to leave there it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Runs the timers and the watcher's news, until the watcher ends.
pub async fn run(server: Arc<Server>, mut ended: mpsc::UnboundedReceiver<Process>) {
    loop {
        let due = server.leases().poll_timeout();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let commands = tokio::select! {
            process = ended.recv() => {
                let Some(process) = process else { return };
                server.tell_end_of(process);
                server.leases().handle_ended(process, Instant::now())
            }
            () = timer => server.leases().handle_timeout(Instant::now()),
            () = server.changed.notified() => Vec::new(),
        };
        execute(&server, commands);
    }
}

/// Carries out the lease machine's commands.
pub fn execute(server: &Arc<Server>, commands: Vec<Command>) {
    for command in commands {
        match command {
            Command::Kill { login, child } => kill(server, login, child),
            Command::Release { port, tunnel, epoch } => {
                let server = server.clone();
                tokio::spawn(async move { release(&server, port, tunnel, epoch).await });
            }
            Command::Close { tunnel, epoch, why } => {
                let server = server.clone();
                tokio::spawn(async move {
                    tracing::info!(%tunnel, ?why, "tunnel over");
                    let event = Event::now("closed").tunnel(tunnel);
                    server.audit.record(event.with("by", format!("{why:?}").to_lowercase()));
                    close(&server, tunnel, epoch).await;
                });
            }
        }
    }
}

fn kill(server: &Arc<Server>, login: Process, child: Option<Process>) {
    let monitor = server
        .leases()
        .knows_login(login)
        .then_some(login)
        .filter(|login| Some(*login) != child);
    end_session(monitor, child);
    // Its end may have come and gone before it was watched.
    let watched = child.unwrap_or(login);
    if watched.handle().is_err() {
        server.tell_end_of(watched);
        let commands = server.leases().handle_ended(watched, Instant::now());
        execute(server, commands);
    }
}

/// Takes a lease back, however long the database is away: the port itself rests in memory meanwhile.
async fn release(server: &Arc<Server>, port: u16, tunnel: TunnelId, epoch: Epoch) {
    loop {
        match server
            .store
            .release(&server.id, port, tunnel, epoch, server.rest_s())
            .await
        {
            Ok(waits) => {
                let rest = Duration::from_secs(server.rest_s().into());
                server.leases().rest(port, Instant::now() + rest);
                tracing::info!(%tunnel, %epoch, port, waits, "lease released");
                return;
            }
            Err(error) => {
                tracing::warn!(%tunnel, port, %error, "cannot release a lease yet");
                tokio::time::sleep(TELL_AGAIN).await;
            }
        }
    }
}

/// Closes a tunnel whose life or idle time is over, however long the database is away. One that has landed again
/// meanwhile is not closed: its new session counts anew.
async fn close(server: &Arc<Server>, tunnel: TunnelId, epoch: Epoch) {
    while let Err(error) = server.store.end(tunnel, Some(epoch)).await {
        tracing::warn!(%tunnel, %error, "cannot close a tunnel that is over yet");
        tokio::time::sleep(TELL_AGAIN).await;
    }
}

/// Whether nothing is bound to a port. The test does not listen, so nobody can connect to it meanwhile.
pub fn usable(server: &Server, port: u16) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

    let address = server.address(port);
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| bind(&socket, &address))
        .is_ok()
}

/// Takes over the sessions that hold a current lease, and ends every other one. Runs before the first authorization.
///
/// # Errors
/// When the database is away: nothing is ended then.
pub async fn adopt(server: &Arc<Server>) -> Result<(), StoreError> {
    let leases = server.store.leases(&server.id).await?;
    let resting = server.store.resting(&server.id).await?;
    let now = Instant::now();
    let mut adopted = 0_usize;
    let mut lost = Vec::new();
    for lease in leases {
        let child = lease.mark.process;
        let lives = lease.mark.boot_id == server.boot_id
            && process::owner(child.pid) == Some(server.session_uid)
            && server.watcher.watch(child).is_ok();
        let terms = Terms {
            epoch: lease.epoch,
            ttl: Duration::from_secs(lease.ttl_s.into()),
            idle: lease.idle_s.map(|seconds| Duration::from_secs(seconds.into())),
        };
        if lives
            && server
                .leases()
                .adopt(child, lease.port, lease.device.clone(), lease.tunnel, terms, now)
        {
            adopted += 1;
            if !lease.active {
                tokio::spawn(crate::landing::activate(
                    server.clone(),
                    lease.tunnel,
                    lease.epoch,
                    lease.port,
                ));
            }
        } else {
            lost.push(lease);
        }
    }
    for lease in &lost {
        server
            .store
            .release(&server.id, lease.port, lease.tunnel, lease.epoch, server.rest_s())
            .await?;
    }
    let ended = end_unknown(server, process::of_user(server.session_uid));
    {
        let mut leases = server.leases();
        for rest in resting {
            leases.rest(rest.port, now + Duration::from_millis(rest.for_ms.into()));
        }
        for lease in &lost {
            leases.rest(lease.port, now + Duration::from_secs(server.rest_s().into()));
        }
    }
    tracing::info!(adopted, lost = lost.len(), ended, "sessions from before");
    Ok(())
}

/// Ends those of some processes that are sessions of this server's sshd and hold no lease; returns how many.
fn end_unknown(server: &Server, suspects: Vec<Process>) -> usize {
    let mut unknown = ours(server, suspects);
    unknown.retain(|process| !is_known(&server.leases(), *process));
    for process in &unknown {
        tracing::warn!(%process, "session without a lease ended");
        end_session(None, Some(*process));
    }
    unknown.len()
}

/// Whether a process belongs to a login that is known: its child, its forced command, or still on its way to either.
fn is_known(leases: &Leases, process: Process) -> bool {
    let parent = |process: &Process| {
        let parent = process::stat(process::stat(process.pid)?.parent)?;
        Some(parent.process)
    };
    std::iter::successors(Some(process), parent)
        .take(GENERATIONS)
        .any(|ancestor| leases.knows_child(ancestor) || leases.knows_login(ancestor))
}

/// A monitor's child, and the forced command that the child runs.
const GENERATIONS: usize = 3;

/// Ends every session of this server's sshd: it is fenced, and its leases are others' to give now.
pub fn end_all(server: &Server) {
    for process in ours(server, process::of_user(server.session_uid)) {
        end_session(None, Some(process));
    }
}

/// Those of some processes of the session account that are this server's sshd's.
///
/// Another sshd may run sessions under the same account, in a container for one. They are told apart by the control
/// group, which systemd gives each service and which anyone may read; where sshd does not run, the account decides.
fn ours(server: &Server, mut processes: Vec<Process>) -> Vec<Process> {
    if processes.is_empty() {
        return processes;
    }
    let sshd = sshd::running(&server.config.sshd).and_then(|sshd| process::control_group(sshd.process.pid));
    if let Some(group) = sshd {
        processes.retain(|process| process::control_group(process.pid).is_some_and(|other| other == group));
    }
    processes
}

/// Looks for evictions by other servers, for ever.
pub async fn evictions(server: Arc<Server>) {
    loop {
        evict(&server).await;
        tokio::time::sleep(SWEEP).await;
    }
}

/// Looks for what the watcher cannot tell, for ever: listeners and sessions without a lease, idle tunnels.
pub async fn sweep(server: Arc<Server>) {
    let strangers = Arc::new(Mutex::new(Strangers::default()));
    loop {
        let looked = {
            let (server, strangers) = (server.clone(), strangers.clone());
            tokio::task::spawn_blocking(move || {
                let (began, since) = (processor_time(), Instant::now());
                let looked = look(&server, &mut strangers.lock().unwrap_or_else(PoisonError::into_inner));
                server.metrics.look.note(since.elapsed());
                looked.map(|()| processor_time().saturating_sub(began))
            })
            .await
        };
        let spent = match looked {
            Ok(Ok(spent)) => spent,
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot look at the kernel's sockets");
                Duration::ZERO
            }
            Err(_) => Duration::ZERO,
        };
        tokio::time::sleep((spent * LOOK_SHARE).clamp(SWEEP, LOOK_MOST)).await;
    }
}

/// What this thread has used of a processor. Waiting for one does not count: a busy machine is to look no less often.
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.try_into().unwrap_or_default()
}

async fn evict(server: &Arc<Server>) {
    match server.store.evictions(&server.id).await {
        Ok(evictions) => {
            for (tunnel, epoch) in evictions {
                let held = server.leases().held(tunnel);
                if held.is_some_and(|held| held.epoch <= epoch) {
                    let event = Event::now("evicted").tunnel(tunnel);
                    server.audit.record(event.with("epoch", epoch.0));
                    server.metrics.evictions.inc();
                    let commands = server.leases().handle_evict(tunnel, epoch.next(), Instant::now());
                    execute(server, commands);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot ask for evictions"),
    }
}

fn look(server: &Arc<Server>, strangers: &mut Strangers) -> io::Result<()> {
    let address = server.config.sshd.address;
    let stray = sock_diag::listeners(address)?
        .into_iter()
        .find(|listener| listener.uid == server.session_uid && !server.leases().permits(listener.port));
    if let Some(listener) = stray {
        server.metrics.strays.inc();
        tracing::warn!(port = listener.port, "listener without a lease");
        end_unknown(server, process::of_user(server.session_uid));
    }
    // A child whose monitor has died belongs to the system's first process.
    let is_ours = |pid| process::owner(pid) == Some(server.session_uid);
    let orphans = strangers
        .handle_children(&process::children(1), is_ours, Instant::now())
        .into_iter()
        .filter_map(|pid| process::stat(pid).map(|stat| stat.process))
        .collect();
    end_unknown(server, orphans);
    let counts_connections = server.leases().counts_connections();
    if counts_connections {
        let counts = sock_diag::connections(address)?;
        server
            .leases()
            .handle_connections(|port| counts.get(&port).copied().unwrap_or(0), Instant::now());
    }
    Ok(())
}

/// How often tunnels past their deadline or their life are looked for.
const EXPIRY: Duration = Duration::from_secs(1);

/// Ends tunnels that are past their deadline or their life, wherever they are; for ever.
pub async fn expire(server: Arc<Server>) {
    loop {
        tokio::time::sleep(EXPIRY).await;
        match server.store.sweep().await {
            Ok(tunnels) => {
                server.metrics.expired.inc_by(tunnels.len() as u64);
                for tunnel in tunnels {
                    tracing::info!(tunnel = %tunnel.id, device = %tunnel.device, state = ?tunnel.state, "tunnel over");
                    let event = crate::requests::of_tunnel("closed", &tunnel);
                    server.audit.record(event.with("by", "time"));
                    order_close(&server, &tunnel).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for expired tunnels"),
        }
    }
}

/// Tells a device, and the server that holds the tunnel, that it is over. Both are told only to be quick: the device
/// knows the tunnel's life, and the server finds the eviction in the database.
pub async fn order_close(server: &Arc<Server>, tunnel: &Tunnel) {
    let order = CloseOrder {
        v: V1,
        tunnel: tunnel.id,
        epoch: tunnel.epoch,
    };
    if let Err(error) = server.publish(Topic::DeviceClose(tunnel.device.clone()), &order).await {
        tracing::debug!(tunnel = %tunnel.id, %error, "cannot tell the device");
    }
}

/// The tunnel is over: end its session here at once.
pub fn end_here(server: &Arc<Server>, tunnel: TunnelId) {
    let commands = server.leases().handle_evict(tunnel, Epoch(u64::MAX), Instant::now());
    execute(server, commands);
}
