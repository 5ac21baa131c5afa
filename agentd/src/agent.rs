//! The agent's loop: messages, ssh and time go into [`Tunnels`], and what it commands is done.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use rssh_mqtt::session::{Down, jittered};
use rssh_mqtt::{Event, Identity, Message, Publish, Session, Settings, Will};
use rssh_proto::payload::{self, DeviceEvent, DeviceStatus, Presence, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{DeviceId, Epoch, Generation, InstanceId, TunnelId};
use sd_notify::NotifyState;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::generation::Generations;
use crate::rundir::RunDir;
use crate::ssh::{Ended, Endpoint, Landing, News, Ssh, config as ssh_config};
use crate::tunnel::{Attempt, Command, DIAL_TIMEOUT, Policy, Tunnels};

/// How many acknowledged publishes may be under way; each costs memory for as long as the agent runs.
const INFLIGHT: u16 = 16;
/// How many messages may wait for the loop, and how many for the network.
const QUEUE: usize = 16;
/// Spread of the pause before the broker is tried again, at first and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long the broker keeps an event for a server that is not there.
const EVENT_EXPIRY: Duration = Duration::from_secs(60);
/// How many events wait for the broker to come back.
const BACKLOG: usize = 64;
/// How much may happen to tunnels between two turns of the loop: three things to each of the most that there may be.
const HAPPENINGS: usize = 4 * DeviceStatus::MAX_TUNNELS;
/// How long the end of every ssh, and each farewell, may take.
const GRACE: Duration = Duration::from_secs(3);

/// An agent whose configuration was found good: all that can be wrong with it is known by now.
pub struct Prepared {
    config: Config,
    ssh: Ssh,
    settings: Settings,
    generation: Arc<AtomicU64>,
    instance: InstanceId,
}

impl Prepared {
    /// Checks what the configuration names, and ends what an earlier agent left.
    ///
    /// # Errors
    /// When a part of it cannot be used.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        Self::with_program(config, &program)
    }

    /// The same, where another file is the program that dials.
    ///
    /// # Errors
    /// When a part of it cannot be used.
    pub fn with_program(config: Config, program: &Path) -> anyhow::Result<Self> {
        config.check_ssh()?;
        let tls = Identity::load(&config.identity())?.client_config()?;
        let ssh = prepare_ssh(&config, program)?;
        let generation = Arc::new(AtomicU64::new(0));
        let instance = InstanceId::generate();
        let settings = Settings {
            brokers: config.mqtt.brokers.clone(),
            tls: Arc::new(tls),
            cn: config.device.to_string(),
            keep_alive: config.mqtt.keep_alive.duration(),
            inflight: INFLIGHT,
            queue: QUEUE,
            subscriptions: vec![
                Topic::DeviceOpen(config.device.clone()).to_string(),
                Topic::DeviceClose(config.device.clone()).to_string(),
            ],
            will: Some(will_of(&config, &generation, &instance)),
            reconnect: RECONNECT,
        };
        Ok(Self {
            config,
            ssh,
            settings,
            generation,
            instance,
        })
    }
}

fn prepare_ssh(config: &Config, program: &Path) -> anyhow::Result<Ssh> {
    let run = RunDir::open(&config.state_dir, &config.device)?;
    let left = run.sweep().context("cannot clear the run directory")?;
    if left > 0 {
        tracing::info!(left, "ended the ssh of an earlier agent");
    }
    let aes = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| ssh_config::has_aes(&text));
    let file = run.ssh_config();
    std::fs::write(&file, ssh_config::render(&config.ssh, program, aes))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Ssh::new(&config.ssh.program, run))
}

/// Makes the will of each connect, which carries the generation that the connect draws.
fn will_of(config: &Config, generation: &Arc<AtomicU64>, instance: &InstanceId) -> rssh_mqtt::WillOf {
    let generations = Mutex::new(Generations::load(&config.state_dir));
    let (device, generation, instance) = (config.device.clone(), generation.clone(), instance.clone());
    Box::new(move || {
        let clock = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let drawn = generations.lock().unwrap_or_else(PoisonError::into_inner).draw(clock);
        generation.store(drawn.0, Ordering::Relaxed);
        Will {
            topic: Topic::DeviceStatus(device.clone()).to_string(),
            payload: payload::encode(&status(Presence::Offline, drawn, &instance, vec![])),
        }
    })
}

fn status(
    presence: Presence,
    generation: Generation,
    instance: &InstanceId,
    tunnels: Vec<(TunnelId, Epoch)>,
) -> DeviceStatus {
    DeviceStatus {
        v: V1,
        presence,
        generation,
        instance: instance.clone(),
        tunnels,
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be received.
pub async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    serve(prepared, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    Ok(())
}

/// Runs the agent until `shutdown` resolves; then every tunnel is ended and the servers are told.
pub async fn serve(prepared: Prepared, shutdown: impl Future<Output = ()>) {
    let Prepared {
        config,
        ssh,
        settings,
        generation,
        instance,
    } = prepared;
    let (session, mut events, driver) = Session::new(settings);
    let driver = tokio::spawn(driver);
    let (happenings, mut happened) = mpsc::channel(HAPPENINGS);
    let mut agent = Agent {
        device: config.device.clone(),
        instance,
        generation,
        session,
        ssh: Arc::new(ssh),
        happenings,
        stops: HashMap::new(),
        tunnels: Tunnels::new(Policy {
            device: config.device,
            max: config.tunnels.max,
            targets: config.targets,
            jitter: jittered,
        }),
        backlog: VecDeque::new(),
        ready: false,
        dropped: 0,
    };
    tokio::pin!(shutdown);
    loop {
        let due = agent.tunnels.poll_timeout();
        tokio::select! {
            () = &mut shutdown => break,
            event = events.recv() => match event {
                Some(event) => agent.handle_event(event),
                None => break,
            },
            Some(happening) = happened.recv() => agent.handle_happening(happening),
            () = until(due) => {
                let commands = agent.tunnels.handle_timeout(Instant::now());
                agent.execute(commands);
            }
        }
    }
    let commands = agent.tunnels.handle_shutdown();
    agent.execute(commands);
    let ending = async {
        while !agent.tunnels.is_empty() {
            // The agent itself holds a sender.
            if let Some(happening) = happened.recv().await {
                agent.handle_happening(happening);
            }
        }
    };
    if tokio::time::timeout(GRACE, ending).await.is_err() {
        tracing::warn!("an ssh did not end in time");
    }
    agent.farewell().await;
    // Without a connection the driver would try on.
    if agent.session.is_up() && tokio::time::timeout(GRACE, driver).await.is_err() {
        tracing::debug!("left the broker without its goodbye");
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What the tasks of tunnels tell the loop.
enum Happening {
    Dialed(Attempt, Result<(), String>),
    News(Attempt, News),
    Ended(Attempt, Ended),
}

struct Agent {
    device: DeviceId,
    instance: InstanceId,
    /// Of the connect that is up or was tried last.
    generation: Arc<AtomicU64>,
    session: Session,
    ssh: Arc<Ssh>,
    happenings: mpsc::Sender<Happening>,
    /// Ends the ssh of an attempt when dropped.
    stops: HashMap<Attempt, oneshot::Sender<()>>,
    tunnels: Tunnels,
    /// Events that could not be sent yet.
    backlog: VecDeque<DeviceEvent>,
    ready: bool,
    /// Messages that were not valid orders.
    dropped: u64,
}

impl Agent {
    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Up => self.handle_up(),
            Event::Down(down @ Down::Unreachable { .. }) => tracing::info!("{down}"),
            Event::Down(down) => tracing::warn!("{down}"),
            Event::Message(message) => self.handle_message(&message),
        }
    }

    /// Says who is here and what it holds; servers answer with what to open and to close.
    fn handle_up(&mut self) {
        let generation = Generation(self.generation.load(Ordering::Relaxed));
        let online = status(Presence::Online, generation, &self.instance, self.tunnels.held());
        let publish = Publish::new(Topic::DeviceStatus(self.device.clone()), payload::encode(&online)).retained();
        if let Err(error) = self.session.send(publish) {
            tracing::warn!(%error, "cannot say that this device is online");
        }
        self.flush();
        tracing::info!(device = %self.device, %generation, "connected to the broker");
        if !self.ready {
            self.ready = true;
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                tracing::warn!(%error, "cannot tell the service manager");
            }
        }
    }

    fn handle_message(&mut self, message: &Message) {
        let now = Instant::now();
        let commands = match Topic::parse(&message.topic) {
            // Orders are never retained: one that is comes from long ago, or from nobody who may give any.
            _ if message.retained => self.drop_message(&message.topic, "it is retained"),
            Some(Topic::DeviceOpen(_)) => match self.decode(message) {
                Some(order) => self.tunnels.handle_open(order, now),
                None => vec![],
            },
            Some(Topic::DeviceClose(_)) => match self.decode(message) {
                Some(order) => self.tunnels.handle_close(&order),
                None => vec![],
            },
            _ => self.drop_message(&message.topic, "it is not an order"),
        };
        self.execute(commands);
    }

    fn decode<T: DeserializeOwned>(&mut self, message: &Message) -> Option<T> {
        payload::decode(&message.payload)
            .map_err(|error| self.drop_message(&message.topic, &error.to_string()))
            .ok()
    }

    fn drop_message(&mut self, topic: &str, reason: &str) -> Vec<Command> {
        self.dropped += 1;
        tracing::info!(topic, reason, dropped = self.dropped, "dropped a message");
        vec![]
    }

    fn handle_happening(&mut self, happening: Happening) {
        let commands = match happening {
            Happening::Dialed(attempt, outcome) => self.tunnels.handle_dialed(attempt, outcome, Instant::now()),
            Happening::News(attempt, News::TargetRefused) => self.tunnels.handle_refused(attempt, Instant::now()),
            Happening::News(attempt, News::Landed(claimed)) => {
                tracing::info!(
                    tunnel = %attempt.tunnel, server = %claimed.server, port = claimed.port, epoch = %claimed.epoch,
                    "landed"
                );
                self.tunnels.handle_landed(attempt, &claimed)
            }
            Happening::Ended(attempt, ended) => {
                self.stops.remove(&attempt);
                tracing::debug!(tunnel = %attempt.tunnel, ?ended, "ssh ended");
                self.tunnels.handle_ended(attempt, ended, Instant::now())
            }
        };
        self.execute(commands);
    }

    fn execute(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Report { tunnel, epoch, event } => {
                    tracing::info!(%tunnel, ?event, "report");
                    self.report(DeviceEvent {
                        v: V1,
                        tunnel,
                        instance: self.instance.clone(),
                        epoch,
                        event,
                    });
                }
                Command::Dial { attempt, to } => {
                    let happenings = self.happenings.clone();
                    tokio::spawn(async move {
                        let outcome = dial(&to).await;
                        // The loop is gone only when the agent is.
                        let _ = happenings.send(Happening::Dialed(attempt, outcome)).await;
                    });
                }
                Command::Land { attempt, landing } => self.land(attempt, landing),
                Command::End { attempt } => drop(self.stops.remove(&attempt)),
            }
        }
    }

    fn land(&mut self, attempt: Attempt, landing: Landing) {
        let (stop, stopped) = oneshot::channel::<()>();
        self.stops.insert(attempt, stop);
        let (ssh, happenings) = (self.ssh.clone(), self.happenings.clone());
        tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            let tell = |news| {
                if happenings.try_send(Happening::News(attempt, news)).is_err() {
                    tracing::error!(tunnel = %attempt.tunnel, "the loop does not keep up");
                }
            };
            let ended = ssh.carry(&landing, stopped, tell).await;
            let _ = happenings.send(Happening::Ended(attempt, ended)).await;
        });
    }

    /// Sends an event, after those that still wait.
    fn report(&mut self, event: DeviceEvent) {
        if self.backlog.len() == BACKLOG {
            self.backlog.pop_front();
        }
        self.backlog.push_back(event);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(event) = self.backlog.front() {
            let topic = Topic::DeviceEvent(self.device.clone());
            let publish = Publish::new(topic, payload::encode(event)).expiring(EVENT_EXPIRY);
            if let Err(error) = self.session.send(publish) {
                tracing::debug!(%error, waiting = self.backlog.len(), "events wait for the broker");
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Says that the device leaves; without the will's delay, and so that no will is published.
    async fn farewell(&mut self) {
        let generation = Generation(self.generation.load(Ordering::Relaxed));
        let offline = status(Presence::Offline, generation, &self.instance, vec![]);
        let publish = Publish::new(Topic::DeviceStatus(self.device.clone()), payload::encode(&offline)).retained();
        let _ = tokio::time::timeout(GRACE, self.session.publish(publish)).await;
        self.session.goodbye();
    }
}

/// Whether the target accepts a connection.
async fn dial(to: &Endpoint) -> Result<(), String> {
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((to.host.as_str(), to.port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DIAL_TIMEOUT.as_secs())),
    }
}
