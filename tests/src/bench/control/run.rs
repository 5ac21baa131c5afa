//! The generator: simulated users ask, simulated devices answer and land. A process of its own, beside the servers.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rssh_mqtt::{Event, Publish, Session};
use rssh_proto::payload::{
    self, DeviceEvent, DeviceEventKind, OpenOrder, OpenRequest, Operation, Rank, Reply, ReplyBody, Request, V1,
};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Epoch, InstanceId, SessionId, Target, TunnelId, UserId};
use rssh_serverd::config::Config;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::super::inside::{say, told};
use super::fleet::{Device, Registrar};
use super::logins::{Logins, Server};
use super::standin::Answer;
use super::tally::{Outcome, Tally};

/// How long a user waits before an open counts as lost.
const DEADLINE: Duration = Duration::from_secs(10);

/// How large the simulated fleet is, and what it does.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// The lab's directory, as programs in it see it
    #[arg(long)]
    pub dir: PathBuf,
    /// The program that stands in for sshd's processes
    #[arg(long)]
    pub standin: PathBuf,
    #[arg(long)]
    pub servers: u32,
    #[arg(long)]
    pub users: u32,
    #[arg(long)]
    pub devices: u32,
    /// How many opens are counted, and how many come before those
    #[arg(long)]
    pub opens: u32,
    #[arg(long)]
    pub warm_up: u32,
    /// How many are under way at once
    #[arg(long)]
    pub in_flight: u32,
}

/// What the generator has measured.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ran {
    pub outcome: Outcome,
    /// From the first counted request to the last answer.
    pub seconds: f64,
    /// Opens in each whole second of it.
    pub each_second: Vec<u32>,
    /// Messages that went through the broker to or from a user or device.
    pub messages: u64,
}

/// Makes the fleet and says so; opens once told to; says what came of it; keeps everything until told to end.
///
/// # Errors
/// When the fleet does not come up.
pub fn serve(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let fleet = Fleet::up(args).await?;
        fleet.open_all(0, args.warm_up).await;
        say("ready")?;
        told().await?;
        let warm = fleet.tally().opened();
        let ran = fleet.measure(args, warm).await;
        say(&serde_json::to_string(&ran)?)?;
        told().await
    })
}

/// The simulated fleet.
struct Fleet {
    users: Vec<Asking>,
    devices: Vec<DeviceId>,
    shared: Arc<Shared>,
    in_flight: Arc<Semaphore>,
}

/// A user as requests need it.
struct Asking {
    id: UserId,
    session: Session,
    place: SessionId,
}

/// What its tasks share.
struct Shared {
    landings: Vec<(Logins, Server)>,
    /// Which server the next login is sent to: they take turns.
    turn: AtomicUsize,
    tally: Mutex<Tally>,
    waiting: Mutex<HashMap<TunnelId, oneshot::Sender<ReplyBody>>>,
    orders: Mutex<HashSet<(TunnelId, Epoch)>>,
    messages: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    async fn up(args: &Args) -> Result<Self> {
        let keys = args.dir.join("fleet");
        std::fs::create_dir_all(&keys)?;
        let logins = (args.warm_up + args.opens).div_ceil(args.servers) + 1;
        let mut landings = Vec::new();
        for n in 1..=args.servers {
            let server = server(&args.dir, n)?;
            let dir = keys.join(format!("s{n}"));
            landings.push((Logins::start(&args.standin, dir, &server, logins).await?, server));
        }
        let shared = Arc::new(Shared {
            landings,
            turn: AtomicUsize::new(0),
            tally: Mutex::default(),
            waiting: Mutex::default(),
            orders: Mutex::default(),
            messages: AtomicU64::new(0),
        });
        let admin = Config::load(&args.dir.join("servers/s1/admin.toml"))?;
        let mut registrar = Registrar::open(admin, &keys).await?;
        let (mut users, mut devices) = (Vec::new(), Vec::new());
        for n in 1..=args.users {
            let user = registrar.user(n).await?;
            tokio::spawn(shared.clone().hear_answers(user.events));
            users.push(Asking {
                id: user.id,
                session: user.session,
                place: user.place,
            });
        }
        for n in 1..=args.devices {
            let device = registrar.device(n).await?;
            devices.push(device.id.clone());
            tokio::spawn(shared.clone().hear_orders(device));
        }
        Ok(Self {
            users,
            devices,
            shared,
            in_flight: Arc::new(Semaphore::new(args.in_flight as usize)),
        })
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.shared.tally)
    }

    async fn measure(&self, args: &Args, warm: usize) -> Ran {
        let messages = || self.shared.messages.load(Ordering::Relaxed);
        let (before, began) = (messages(), Instant::now());
        let mut each_second = Vec::new();
        let mut opened = warm;
        let opening = self.open_all(args.warm_up, args.opens);
        tokio::pin!(opening);
        let mut seconds = tokio::time::interval_at((began + SECOND).into(), SECOND);
        let seconds_of = loop {
            tokio::select! {
                () = &mut opening => break began.elapsed().as_secs_f64(),
                _ = seconds.tick() => {
                    let now = self.tally().opened();
                    each_second.push(u32::try_from(now - opened).unwrap_or(u32::MAX));
                    opened = now;
                }
            }
        };
        Ran {
            outcome: std::mem::take(&mut *self.tally()).outcome(warm),
            seconds: seconds_of,
            each_second,
            messages: messages() - before,
        }
    }

    /// Opens a part of all that this fleet can open, as many at once as may be under way; returns once each is over.
    async fn open_all(&self, first: u32, count: u32) {
        let mut opens = JoinSet::new();
        for n in first..first + count {
            // It is never closed.
            let place = self.in_flight.clone().acquire_owned().await.ok();
            let (user, device, target) = self.triple(n as usize);
            let (shared, session, device) = (self.shared.clone(), user.session.clone(), device.clone());
            let asker = (user.id.clone(), user.place.clone());
            opens.spawn(async move {
                shared.open(&session, asker, device, target).await;
                drop(place);
            });
        }
        opens.join_all().await;
    }

    /// Who opens what as the `n`th: no two are equal as long as there are devices and users enough.
    fn triple(&self, n: usize) -> (&Asking, &DeviceId, Target) {
        let (users, devices) = (self.users.len(), self.devices.len());
        let round = n / devices;
        (
            &self.users[(n + round) % users],
            &self.devices[n % devices],
            Target::ssh(),
        )
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A server of the lab, as its configuration has it.
fn server(dir: &Path, n: u32) -> Result<Server> {
    let home = dir.join(format!("servers/s{n}"));
    let config = Config::load(&home.join("serverd.toml"))?;
    let passwd = std::fs::read_to_string(home.join("passwd"))?;
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(&config.sshd.user));
    let uid = line.and_then(|line| line.split(':').nth(2));
    let session_uid = uid
        .with_context(|| format!("s{n} has no account for sessions"))?
        .parse()?;
    Ok(Server { config, session_uid })
}

impl Shared {
    /// One open of a user's, from the request until its end.
    async fn open(&self, session: &Session, (user, place): (UserId, SessionId), device: DeviceId, target: Target) {
        let request = Request {
            v: V1,
            id: TunnelId::generate(),
            session: place,
            deadline_ms: u32::try_from(DEADLINE.as_millis()).unwrap_or(u32::MAX),
            op: Operation::Open(OpenRequest::new(device, target)),
        };
        let tunnel = request.id;
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(tunnel, sender);
        let began = Instant::now();
        let publish = Publish::new(Topic::UserRequest(user), payload::encode(&request)).expiring(DEADLINE);
        let outcome = match session.send(publish) {
            Ok(_) => {
                self.messages.fetch_add(1, Ordering::Relaxed);
                tokio::time::timeout(DEADLINE, answer).await
            }
            Err(error) => return lock(&self.tally).handle_lost(tunnel, error),
        };
        lock(&self.waiting).remove(&tunnel);
        let mut tally = lock(&self.tally);
        match outcome {
            Ok(Ok(ReplyBody::Opened(info))) => match info.host.as_deref().and_then(|host| self.leads_to(host)) {
                Some(at) => tally.handle_opened(tunnel, at, began.elapsed()),
                None => tally.handle_lost(tunnel, "its name leads nowhere"),
            },
            Ok(Ok(ReplyBody::Failed(failure))) => tally.handle_lost(tunnel, failure),
            Ok(other) => tally.handle_lost(tunnel, format!("{other:?}")),
            Err(_) => tally.handle_lost(tunnel, "no answer by its deadline"),
        }
    }

    /// Where a signed name leads: its first two fields are the server and the port.
    fn leads_to(&self, host: &str) -> Option<SocketAddr> {
        let mut fields = host.split('-');
        let server = fields.next()?.strip_prefix('s')?.parse::<usize>().ok()?;
        let port = fields.next()?.parse().ok()?;
        let (_, server) = self.landings.get(server.checked_sub(1)?)?;
        Some(SocketAddr::new(server.config.sshd.address, port))
    }

    /// Takes what a user is told.
    async fn hear_answers(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            let Event::Message(message) = event else { continue };
            self.messages.fetch_add(1, Ordering::Relaxed);
            if let Ok(reply) = payload::decode::<Reply>(&message.payload)
                && reply.rank == Rank::Final
                && let Some(waits) = lock(&self.waiting).remove(&reply.request)
            {
                // One that has given up is no fault.
                let _ = waits.send(reply.body);
            }
        }
    }

    /// Takes a device's orders.
    async fn hear_orders(self: Arc<Self>, mut device: Device) {
        while let Some(event) = device.events.recv().await {
            let Event::Message(message) = event else { continue };
            self.messages.fetch_add(1, Ordering::Relaxed);
            let Ok(order) = payload::decode::<OpenOrder>(&message.payload) else {
                continue;
            };
            // An order is repeated until it is acknowledged.
            if !lock(&self.orders).insert((order.tunnel, order.epoch)) {
                continue;
            }
            self.acknowledge(&device.session, &device.id, &device.instance, order.tunnel);
            let (shared, id, key) = (self.clone(), device.id.clone(), device.key.clone());
            tokio::spawn(async move {
                if let Err(error) = shared.land(&id, key.as_str(), order.tunnel).await
                    && let Some(waits) = lock(&shared.waiting).remove(&order.tunnel)
                {
                    drop(waits);
                    lock(&shared.tally).handle_lost(order.tunnel, format!("{error:#}"));
                }
            });
        }
    }

    fn acknowledge(&self, session: &Session, device: &DeviceId, instance: &InstanceId, tunnel: TunnelId) {
        let event = DeviceEvent {
            v: V1,
            tunnel,
            instance: instance.clone(),
            epoch: Epoch::default(),
            event: DeviceEventKind::Accepted,
        };
        let publish = Publish::new(Topic::DeviceEvent(device.clone()), payload::encode(&event));
        if session.send(publish).is_ok() {
            self.messages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a device's ssh does at a server: it logs in, claims, and listens.
    async fn land(&self, device: &DeviceId, key: &str, tunnel: TunnelId) -> Result<()> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (logins, _) = &self.landings[turn % self.landings.len()];
        let login = logins.log_in(key).await?;
        let answer = login.claim(device, tunnel).await?;
        let mut tally = lock(&self.tally);
        match answer {
            Answer::Listening(at) => tally.handle_listening(tunnel, at),
            Answer::Taken(at) => tally.handle_taken(tunnel, at),
            other => ensure!(false, "the claim was refused: {other:?}"),
        }
        Ok(())
    }
}
