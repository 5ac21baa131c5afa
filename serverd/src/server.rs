//! What the parts of the daemon share: the lease machine, the store, the broker session and this server's identity.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rssh_mqtt::{Delivery, Publish, PublishError, Session};
use rssh_proto::audit::Event;
use rssh_proto::payload::{self, Rank, Reply, ReplyBody, TunnelInfo, TunnelState, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{Failure, FailureKind, Generation, InstanceId, NameKey, ServerId, SignedName};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::audit::Recorder;
use crate::clock;
use crate::config::Config;
use crate::flood::{Floods, Flow};
use crate::landing::Outcome;
use crate::lease::Leases;
use crate::local;
use crate::metrics::Metrics;
use crate::process::Process;
use crate::store::{Asker, Store, StoreError, Tunnel};
use crate::turns::Turns;
use crate::watcher::Watcher;

/// The server; every task holds a reference.
pub struct Server {
    pub id: ServerId,
    pub generation: Generation,
    pub instance: InstanceId,
    pub config: Config,
    pub store: Store,
    pub session: Session,
    pub watcher: Watcher,
    /// Another one may take its place while the server runs.
    pub(crate) name_key: Mutex<NameKey>,
    /// The account of devices' sessions.
    pub session_uid: u32,
    pub boot_id: String,
    /// Set once the sessions from before have been adopted, and unset when this server is to take no new ones.
    pub open_for_landings: AtomicBool,
    /// How many tunnels this machine can hold, as of the last heartbeat.
    pub capacity: AtomicU32,
    /// Messages dropped because they were no valid payload of their topic.
    pub dropped: AtomicU64,
    /// Who waits in this process for answers.
    pub locals: local::Sessions,
    pub audit: Recorder,
    /// Who sends how much.
    pub(crate) floods: Mutex<Floods>,
    /// Whose request is next, and how many are worked on at once.
    pub(crate) turns: Turns,
    pub(crate) places: Semaphore,
    /// Refusals that anyone can cause: so many are written down that they are seen, and not so many that they fill a disk.
    pub(crate) refusals: Mutex<Floods>,
    pub metrics: Metrics,
    /// Wakes the timer after a change to the leases.
    pub changed: Notify,
    pub(crate) leases: Mutex<Leases>,
    /// What came of the claims that listeners made, by login: for the device, when it asks.
    pub(crate) early: Mutex<HashMap<Process, Outcome>>,
    /// Who waits for the end of which process.
    pub(crate) waiting: Mutex<HashMap<Process, Vec<oneshot::Sender<()>>>>,
}

/// What the audit trail has of a message that was refused: whose it is, and not under which name in the text.
fn refused_message(topic: &str) -> Event {
    let event = Event::now("message-refused");
    match Topic::parse(topic) {
        Some(Topic::UserRequest(user)) => event.user(&user),
        Some(Topic::DeviceStatus(device) | Topic::DeviceEvent(device)) => event.device(&device),
        _ => event.with("topic", topic),
    }
}

/// Locks a mutex whose holders never panic half-way through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// The lease machine. Never held across an await.
    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        lock(&self.leases)
    }

    /// The key that names are signed with. Never held across an await.
    pub fn name_key(&self) -> MutexGuard<'_, NameKey> {
        lock(&self.name_key)
    }

    /// Where a leased port is bound.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.config.sshd.address, port)
    }

    /// How long a port rests after a lease, in seconds.
    pub fn rest_s(&self) -> u32 {
        let tunnels = &self.config.tunnels;
        let rest = tunnels.name_ttl.duration() + tunnels.clock_skew.duration();
        u32::try_from(rest.as_secs()).unwrap_or(u32::MAX)
    }

    /// Becomes ready when a process that is watched has ended.
    pub fn end_of(&self, process: Process) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).entry(process).or_default().push(sender);
        receiver
    }

    /// Tells those who wait that a process has ended.
    pub fn tell_end_of(&self, process: Process) {
        for waiting in lock(&self.waiting).remove(&process).unwrap_or_default() {
            // Whoever no longer waits is no fault.
            let _ = waiting.send(());
        }
    }

    /// Counts what a sender made us do in vain, by a limit of its own.
    pub fn in_vain(&self, sender: &str) {
        lock(&self.floods).handle_in_vain(sender);
    }

    /// Whether a message of a sender is worked on.
    pub fn flow(&self, sender: &str) -> Flow {
        lock(&self.floods).handle_message(sender, std::time::Instant::now())
    }

    /// Records a refusal that anyone can cause, unless there were too many of those lately.
    pub fn refused(&self, event: Event) {
        let flow = lock(&self.refusals).handle_message("", std::time::Instant::now());
        if flow == Flow::Take {
            self.audit.record(event);
        }
    }

    /// Counts a message that is no valid payload of its topic.
    pub fn drop_message(&self, topic: &str, why: &dyn std::fmt::Display) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.refused(refused_message(topic));
        tracing::info!(
            topic = rssh_proto::text::sanitize(topic, 120),
            why = rssh_proto::text::sanitize(&why.to_string(), 120),
            "message dropped"
        );
    }

    /// Publishes a payload, and waits for the broker to have it.
    ///
    /// # Errors
    /// When the broker is away or refuses.
    pub async fn publish(&self, topic: Topic, payload: &impl Serialize) -> Result<Delivery, PublishError> {
        self.session
            .publish(Publish::new(topic, payload::encode(payload)))
            .await
    }

    /// Answers an asker. One that has gone away is no fault; a broker that is away is logged, and the asker repeats its
    /// request.
    pub fn reply(&self, asker: &Asker, tunnel: Option<&Tunnel>, rank: Rank, body: ReplyBody) {
        if rank == Rank::Final {
            self.metrics.answered(&body);
        }
        let reply = Reply {
            v: V1,
            request: asker.request,
            epoch: tunnel.map(|tunnel| tunnel.epoch).unwrap_or_default(),
            rank,
            body,
        };
        let Some(reply) = local::send(self, &asker.user, &asker.session, reply) else {
            return;
        };
        let topic = Topic::UserReply(asker.user.clone(), asker.session.clone());
        let publish = Publish::new(topic, payload::encode(&reply));
        let sent = match rank {
            Rank::Final => self.session.send(publish).map(drop),
            // The next word says more than one that was lost.
            _ => self.session.hint(&publish),
        };
        if let Err(error) = sent {
            tracing::warn!(user = %asker.user, request = %asker.request, %error, "cannot answer");
        }
    }

    /// Tells an asker how far its request has come.
    pub fn progress(&self, asker: &Asker, tunnel: &Tunnel, rank: Rank) {
        let body = ReplyBody::Progress {
            tunnel: tunnel.id,
            server: self.id.clone(),
        };
        self.reply(asker, Some(tunnel), rank, body);
    }

    /// Tells an asker that its request failed.
    pub fn fail(&self, asker: &Asker, tunnel: Option<&Tunnel>, failure: Failure) {
        self.reply(asker, tunnel, Rank::Final, ReplyBody::Failed(failure));
    }

    /// Tells an asker that the store is away.
    pub fn store_failed(&self, asker: &Asker, error: &StoreError) {
        tracing::error!(user = %asker.user, request = %asker.request, %error, "store");
        let message = format!("{} cannot reach its database; try again in a moment", self.id);
        self.fail(asker, None, Failure::new(FailureKind::Busy, message));
    }

    /// Signs the name of a port of this server for whoever bears it; also tells when it expires, in Unix seconds.
    pub fn bearer_name(&self, port: u16, valid_s: u32) -> (String, i64) {
        let until = clock::now().0.saturating_add(valid_s.into());
        let name = SignedName::sign(
            &self.name_key(),
            &self.id,
            port,
            u64::try_from(until).unwrap_or(0),
            None,
        );
        (name.host(&self.config.public.domain), until)
    }

    /// A tunnel as its user sees it, with a signed name when this server holds it.
    pub fn info(&self, tunnel: &Tunnel) -> TunnelInfo {
        let here = tunnel.place.as_ref().filter(|(server, _)| *server == self.id);
        let signed = here.filter(|_| tunnel.state == TunnelState::Active).map(|(_, port)| {
            let now = clock::now().0;
            let name_ttl = i64::try_from(self.config.tunnels.name_ttl.duration().as_secs()).unwrap_or(i64::MAX);
            let until = now.saturating_add(name_ttl.min(i64::from(tunnel.ttl_s)));
            let exp = u64::try_from(until).unwrap_or(0);
            let name = SignedName::sign(&self.name_key(), &self.id, *port, exp, Some(&tunnel.user));
            (name.host(&self.config.public.domain), until, until - now)
        });
        let (host, until, valid) = match signed {
            Some((host, until, valid)) => (Some(host), Some(until), u32::try_from(valid).ok()),
            None => (None, None, None),
        };
        TunnelInfo {
            tunnel: tunnel.id,
            device: tunnel.device.clone(),
            target: tunnel.target.clone(),
            state: tunnel.state,
            server: tunnel.place.as_ref().map(|(server, _)| server.clone()),
            port: host.is_some().then_some(self.config.public.port),
            host,
            expires_at: tunnel.expires_at,
            host_expires_at: until,
            host_valid_s: valid,
        }
    }
}
