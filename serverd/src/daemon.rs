//! The daemon: puts its parts together in the order that safety wants, and takes them apart again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rssh_mqtt::renewal::Renewable;
use rssh_mqtt::{Dial, Event, Identity, Message, Session, Settings, Will};
use rssh_proto::audit::Event as Audited;
use rssh_proto::payload::{self, DeviceEvent, DeviceStatus, Request, ServerRequest, ServerState};
use rssh_proto::topic::{Topic, filter};
use rssh_proto::{Generation, InstanceId, ServerId};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::config::Config;
use crate::flood::{Floods, Flow};
use crate::home::Home;
use crate::lease::{Leases, Limits};
use crate::metrics::Metrics;
use crate::pause::{self, Pulse};
use crate::process::{self, Holder};
use crate::registry::{self, Signer};
use crate::server::Server;
use crate::store::Store;
use crate::turns::Turns;
use crate::watcher::Watcher;
use crate::{
    address, audit, capacity, control, devices, failover, history, http, landing, local, name_key, peers, renewal,
    requests, sessions, sshd, web,
};

/// How many messages are worked on at once; more wait at the broker.
const AT_ONCE: usize = 256;
/// Refusals per second that go into the audit trail.
const REFUSALS: u32 = 5;
/// How often the database is tried while it is away at the start.
const DATABASE_AGAIN: Duration = Duration::from_secs(1);

/// Serves until a signal ends it. Tunnels live on without it.
///
/// # Errors
/// When something it needs is missing, or another process holds its id.
pub async fn run(config: Config) -> Result<()> {
    let home = Home::open(&config)?;
    let id = home.id()?;
    let _lock = home.lock()?;
    let name_key = home.name_key()?;
    let identity = Identity::load(&config.identity())?;
    let renewable = Renewable::load(&config.identity())?;
    let signer = Signer::new(&identity, renewable.clone())?;
    let account = nix::unistd::User::from_name(&config.sshd.user)
        .ok()
        .flatten()
        .with_context(|| format!("the account {} does not exist; the package makes it", config.sshd.user))?;
    sshd::render(&config)?;
    if let Some(conflict) = capacity::port_conflict(config.sshd.ports) {
        bail!(conflict);
    }
    capacity::raise_descriptors();

    let store = Store::new(&config.database)?;
    store.is_up_to_date().await?;
    let generation = take_id(&store, &id, config.redis.ttl.duration()).await?;
    let instance = InstanceId::generate();
    let tunnels = &config.tunnels;
    let leases = Leases::new(
        config.sshd.ports,
        Limits {
            claim_within: tunnels.claim_within.duration(),
            rest: tunnels.name_ttl.duration() + tunnels.clock_skew.duration(),
        },
    );
    let (audit, sealer) = audit::recorder(id.as_str());
    let floods = Floods::new(config.limits.user_requests_per_second);
    let (watcher, ended) = Watcher::start()?;
    let (session, events, mqtt) = Session::new(mqtt_settings(&config, &renewable, &id, generation, &instance)?);
    let metrics = Metrics::new(store.latency());
    let server = Arc::new(Server {
        id,
        generation,
        instance,
        config,
        store,
        session,
        watcher,
        name_key: Mutex::new(name_key),
        session_uid: account.uid.as_raw(),
        boot_id: process::boot_id()?,
        open_for_landings: AtomicBool::new(false),
        capacity: AtomicU32::new(u32::MAX),
        dropped: AtomicU64::new(0),
        locals: local::Sessions::default(),
        audit,
        floods: Mutex::new(floods),
        turns: Turns::default(),
        places: Semaphore::new(AT_ONCE),
        refusals: Mutex::new(Floods::new(REFUSALS)),
        metrics,
        changed: Notify::new(),
        leases: Mutex::new(leases),
        early: Mutex::default(),
        waiting: Mutex::default(),
    });

    // From here on nothing may be authorized before every session from before is known.
    let watching = tokio::spawn(sessions::run(server.clone(), ended));
    until_done("the database does not answer yet", || sessions::adopt(&server)).await;
    // Before this server answers a health check: as long as it does not, whoever had its address can be found lost.
    let watching_others = tokio::spawn(failover::run(server.clone()));
    address::wait(&server).await;
    let sockets = landing::listen(&server).context("cannot open the sockets for sshd's helpers")?;
    let health = http::listen(&server)
        .await
        .with_context(|| format!("cannot listen on {}", server.config.http.listen))?;
    let door = web::open(&server).await?;
    let orders = control::listen(&server).context("cannot open the control socket")?;
    server.open_for_landings.store(true, Ordering::Relaxed);

    let tasks = [
        tokio::spawn(landing::serve(server.clone(), sockets)),
        tokio::spawn(sessions::evictions(server.clone())),
        tokio::spawn(sessions::sweep(server.clone())),
        tokio::spawn(sessions::expire(server.clone())),
        tokio::spawn(history::run(server.clone())),
        watching_others,
        tokio::spawn(mqtt),
        tokio::spawn(hear(server.clone(), events)),
        watching,
    ];
    let sealing = sealer.start(server.store.clone());
    let mut serving = tokio::spawn(http::serve(server.clone(), health));
    let acceptor = door.as_ref().map(web::Door::acceptor);
    let https = door.map(|door| tokio::spawn(web::serve(server.clone(), door)));
    let renewing = [
        tokio::spawn(renewal::run(server.config.clone(), renewable, acceptor)),
        tokio::spawn(name_key::follow(server.clone())),
    ];
    let mut controlled = tokio::spawn(control::serve(server.clone(), orders));
    let mut registered = tokio::spawn(registry::run(server.clone(), signer));
    tracing::info!(server = %server.id, generation = %server.generation, "serving");
    let started = Audited::now("server-started").with("generation", server.generation.0);
    server.audit.record(started);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let outcome = tokio::select! {
        () = ended_by_signal() => Ok(()),
        drained = &mut controlled => {
            // What is left when its time is over lands elsewhere.
            sessions::end_all(&server);
            Ok(drained?)
        }
        fenced = &mut registered => match fenced? {
            Err(fenced) => {
                sessions::end_all(&server);
                Err(fenced.into())
            }
            Ok(()) => Ok(()),
        },
        served = &mut serving => served?.context("the health port failed"),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    server.open_for_landings.store(false, Ordering::Relaxed);
    registered.abort();
    controlled.abort();
    registry::leave(&server).await;
    server.session.goodbye();
    for task in tasks.into_iter().chain(https).chain(renewing) {
        task.abort();
    }
    sealing.finish().await;
    outcome
}

/// Repeats a step of the start until the database answers it.
async fn until_done<T, E, F>(what: &str, mut step: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    loop {
        match step().await {
            Ok(done) => return done,
            Err(error) => tracing::warn!(%error, "{what}"),
        }
        tokio::time::sleep(DATABASE_AGAIN).await;
    }
}

/// Takes this server's id, unless another process lives under it.
async fn take_id(store: &Store, id: &ServerId, ttl: Duration) -> Result<Generation> {
    let this = Holder::this()?;
    let first = store.takeover(id).await?;
    if let Some(holder) = &first.holder {
        let lives = match holder.lives(&this) {
            Some(lives) => lives,
            // Another machine, or another boot: watch its heartbeat for as long as it may be silent.
            None => {
                tracing::info!(%id, %holder, "the id was held elsewhere; watching for its heartbeat");
                tokio::time::sleep(ttl).await;
                store.takeover(id).await?.counter != first.counter
            }
        };
        if lives {
            bail!(
                "the server id {id} is held by {holder}; stop that one, or give this server an id of its own \
                 with a state directory of its own"
            );
        }
    }
    match store.take(id, first.generation, &this).await? {
        Some(generation) => Ok(generation),
        None => bail!("another process took the server id {id} at the same moment; only one may run under it"),
    }
}

fn mqtt_settings(
    config: &Config,
    renewable: &Arc<Renewable>,
    id: &ServerId,
    generation: Generation,
    instance: &InstanceId,
) -> Result<Settings> {
    let will = Will {
        topic: Topic::ServerStatus(id.clone()).to_string(),
        payload: payload::encode(&payload::ServerStatus {
            v: payload::V1,
            state: ServerState::Offline,
            generation,
            instance: instance.clone(),
        }),
    };
    Ok(Settings {
        brokers: config.mqtt.brokers.clone(),
        tls: Arc::new(renewable.client_config()?),
        cn: id.to_string(),
        keep_alive: Duration::from_secs(15),
        inflight: 4096,
        queue: 8192,
        subscriptions: vec![
            filter::REQUESTS.to_owned(),
            filter::DEVICE_STATUS.to_owned(),
            filter::DEVICE_EVENTS.to_owned(),
            Topic::ServerRequest(id.clone()).to_string(),
        ],
        will: Some(Box::new(move || will.clone())),
        reconnect: (Duration::from_millis(200), Duration::from_secs(5)),
        dial: Dial {
            everywhere: true,
            ..Dial::default()
        },
    })
}

/// Hands messages to their handlers, until the session ends.
async fn hear(server: Arc<Server>, mut events: mpsc::Receiver<Event>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut pulse = Pulse::new(Instant::now());
    let mut beats = tokio::time::interval(pause::BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = beats.tick() => {
                pulse.handle_beat(Instant::now());
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            Event::Up => {
                server.metrics.broker(true);
                tracing::info!("connected to the broker");
                registry::announce(&server, registry::state(&server));
            }
            Event::Down(down) => {
                server.metrics.broker(false);
                tracing::warn!(%down, "not connected to the broker");
            }
            Event::Message(message) => {
                // A user's request waits for its own user's turn first, and keeps nobody else waiting meanwhile.
                let place = match Topic::parse(&message.topic) {
                    Some(Topic::UserRequest(_)) => None,
                    _ => places.clone().acquire_owned().await.ok(),
                };
                let waited = pulse.handle_message(Instant::now());
                let server = server.clone();
                tokio::spawn(async move {
                    hear_one(server, message, waited).await;
                    drop(place);
                });
            }
        }
    }
}

/// Why a message of one who floods is dropped.
const TOO_MANY: &str = "its sender sends too many";

async fn hear_one(server: Arc<Server>, message: Message, waited: Duration) {
    let bytes = &message.payload;
    let topic = Topic::parse(&message.topic);
    let flow = match &topic {
        Some(Topic::UserRequest(user)) => server.flow(user.as_str()),
        Some(Topic::DeviceStatus(device) | Topic::DeviceEvent(device)) => server.flow(device.as_str()),
        _ => Flow::Take,
    };
    let heard = match topic {
        Some(Topic::UserRequest(user)) => match payload::decode::<Request>(bytes) {
            Ok(request) if flow != Flow::Take => match flow {
                Flow::Refuse { retry_after_s } => return requests::too_many(&server, user, request, retry_after_s),
                _ => TOO_MANY.to_owned(),
            },
            Ok(request) => match requests::in_time(request, waited) {
                Some(request) => return requests::handle(server, user, request).await,
                None => "it came too late: this server stood still".to_owned(),
            },
            Err(error) => error.to_string(),
        },
        // There is nowhere to answer.
        Some(Topic::DeviceStatus(_) | Topic::DeviceEvent(_)) if flow != Flow::Take => TOO_MANY.to_owned(),
        Some(Topic::DeviceStatus(device)) => match payload::decode::<DeviceStatus>(bytes) {
            Ok(status) => return devices::status(server, device, status, message.retained).await,
            Err(error) => error.to_string(),
        },
        Some(Topic::DeviceEvent(device)) => match payload::decode::<DeviceEvent>(bytes) {
            Ok(event) => return devices::event(server, device, event).await,
            Err(error) => error.to_string(),
        },
        Some(Topic::ServerRequest(_)) => match payload::decode::<ServerRequest>(bytes) {
            Ok(request) => return peers::handle(server, request.op).await,
            Err(error) => error.to_string(),
        },
        _ => "not a topic that servers listen to".to_owned(),
    };
    server.drop_message(&message.topic, &heard);
}

async fn ended_by_signal() {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}
