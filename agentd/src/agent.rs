//! The agent's loop: messages, ssh and time go into [`Tunnels`], and what it commands is done.

mod answer;
mod keys;
mod prepare;
mod voice;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_mqtt::session::{Down, jittered};
use rssh_mqtt::way::Now;
use rssh_mqtt::{Event, Message, Session, Way};
use rssh_proto::DeviceId;
use rssh_proto::claim::Claimed;
use rssh_proto::payload::{self, DeviceEventKind, DeviceOrder, DeviceStatus, OpenOrder};
use rssh_proto::topic::Topic;
use sd_notify::NotifyState;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::control;
use crate::network;
use crate::process::{Process, since_boot};
use crate::renew;
use crate::rotate;
use crate::ssh::inherit::{Adopted, Inherited, Record};
use crate::ssh::{Ended, Endpoint, Landing, News, Ssh, Stop};
use crate::tunnel::{Attempt, Command, DIAL_TIMEOUT, Policy, Tunnels};

use keys::Keys;
pub use prepare::Prepared;
use voice::Voice;

/// How much may happen to tunnels between two turns of the loop: three things to each of the most that there may be.
const HAPPENINGS: usize = 4 * DeviceStatus::MAX_TUNNELS;
/// How long the end of every ssh, and each farewell, may take.
const GRACE: Duration = Duration::from_secs(3);

/// How the agent leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Every tunnel ends.
    Closing,
    /// Tunnels that are up run on, for the next agent to take.
    Keeping,
}

/// Runs the agent until SIGTERM, SIGINT or SIGHUP, which end every tunnel, or SIGUSR1, which keeps those that are up.
///
/// # Errors
/// When signals cannot be received.
pub async fn run(prepared: Prepared) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut hand_over = signal(SignalKind::user_defined1())?;
    serve(prepared, async move {
        tokio::select! {
            _ = terminate.recv() => Leave::Closing,
            _ = interrupt.recv() => Leave::Closing,
            _ = hang_up.recv() => Leave::Closing,
            _ = hand_over.recv() => Leave::Keeping,
        }
    })
    .await;
    Ok(())
}

/// Runs the agent until `shutdown` resolves; then the servers are told.
pub async fn serve(prepared: Prepared, shutdown: impl Future<Output = Leave>) {
    let Prepared {
        config,
        ssh,
        inherited,
        settings,
        renewable,
        generation,
        instance,
    } = prepared;
    let renewing = tokio::spawn(renew::run(config.clone(), renewable));
    let rotating = tokio::spawn(rotate::keep(config.clone()));
    let (session, mut events, driver) = Session::new(settings);
    let driver = tokio::spawn(driver);
    let (happenings, mut happened) = mpsc::channel(HAPPENINGS);
    let mut agent = Agent {
        keys: Keys::start(&config),
        device: config.device.clone(),
        voice: Voice::new(config.device.clone(), instance, generation, session),
        ssh: Arc::new(ssh),
        happenings,
        reins: HashMap::new(),
        ways: HashMap::new(),
        tunnels: Tunnels::new(Policy {
            device: config.device,
            max: config.tunnels.max,
            targets: config.targets,
            jitter: jittered,
        }),
        ready: false,
        dropped: 0,
        connected: false,
        since: Instant::now(),
        trouble: None,
    };
    if let Some(left) = control::kept_pause(agent.ssh.run_dir()) {
        agent.tunnels.handle_pause(Instant::now() + left);
    }
    agent.adopt(inherited).await;
    let mut orders = control::listen(agent.ssh.run_dir())
        .inspect_err(|error| tracing::warn!(%error, "cannot answer rssh-agentd status"))
        .ok();
    let mut changes = network::watch()
        .inspect_err(|error| tracing::warn!(%error, "cannot watch the network; a change is noticed by silence only"))
        .ok();
    tokio::pin!(shutdown);
    let leave = loop {
        let due = agent.tunnels.poll_timeout();
        tokio::select! {
            leave = &mut shutdown => break leave,
            event = events.recv() => match event {
                Some(event) => agent.handle_event(event),
                None => break Leave::Closing,
            },
            Some(happening) = happened.recv() => agent.handle_happening(happening),
            Some(()) = next(&mut changes) => agent.handle_network(),
            Some((order, reply)) = next(&mut orders) => {
                // Who no longer waits is no fault.
                let _ = reply.send(agent.handle_control(order));
            }
            () = until(due) => {
                let commands = agent.tunnels.handle_timeout(Instant::now());
                agent.execute(commands);
            }
        }
    };
    renewing.abort();
    rotating.abort();
    let commands = match leave {
        Leave::Closing => agent.tunnels.handle_shutdown(),
        Leave::Keeping => agent.tunnels.handle_departure(),
    };
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
    match (agent.keys.take(), leave) {
        (Some(keys), Leave::Closing) => keys.finish(GRACE).await,
        (Some(keys), Leave::Keeping) => keys.leave(),
        (None, _) => {}
    }
    agent.voice.farewell(GRACE).await;
    // Without a connection the driver would try on.
    if agent.voice.is_up() && tokio::time::timeout(GRACE, driver).await.is_err() {
        tracing::debug!("left the broker without its goodbye");
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn next<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// What the tasks of tunnels tell the loop.
enum Happening {
    /// An order whose user's key is there, or late.
    Ordered(OpenOrder),
    Dialed(Attempt, Result<(), String>),
    News(Attempt, News),
    Ended(Attempt, Ended),
}

/// What an ssh is there for.
enum Work {
    Land(Landing),
    CarryOn(Box<Adopted>),
}

/// By what a running ssh is told something.
struct Reins {
    /// Ends it when dropped.
    stop: oneshot::Sender<Stop>,
    /// Where it may listen.
    port: watch::Sender<Option<SocketAddr>>,
}

struct Agent {
    device: DeviceId,
    /// Who keeps users' keys, where the device's sshd takes no certificates.
    keys: Option<Keys>,
    voice: Voice,
    ssh: Arc<Ssh>,
    happenings: mpsc::Sender<Happening>,
    reins: HashMap<Attempt, Reins>,
    /// The connections of running ssh.
    ways: HashMap<Attempt, Way>,
    tunnels: Tunnels,
    ready: bool,
    /// Messages that were not valid orders.
    dropped: u64,
    connected: bool,
    /// When that last changed.
    since: Instant,
    /// What failed last.
    trouble: Option<(Instant, String)>,
}

impl Agent {
    /// Carries on what an earlier agent left running, if it works and is still allowed.
    async fn adopt(&mut self, inherited: Vec<Inherited>) {
        let mut checks = JoinSet::new();
        for inherited in inherited {
            let ssh = self.ssh.clone();
            checks.spawn(async move { ssh.adopt(inherited).await });
        }
        while let Some(Ok(checked)) = checks.join_next().await {
            let adopted = match checked {
                Ok(adopted) => adopted,
                Err(error) => {
                    tracing::warn!(%error, "ended the ssh of an earlier agent, which does not answer");
                    continue;
                }
            };
            let record = &adopted.record;
            let (tunnel, epoch) = (record.landing.tunnel, record.claimed.epoch);
            match self
                .tunnels
                .adopt(record.landing.clone(), epoch, Instant::now() + record.left())
            {
                Ok(attempt) => {
                    tracing::info!(%tunnel, %epoch, pid = record.process.pid, "carries on");
                    self.ways.extend(record.way.map(|way| (attempt, way)));
                    self.carry(attempt, Work::CarryOn(Box::new(adopted)));
                }
                Err(failure) => tracing::warn!(%tunnel, %failure, "ended the tunnel of an earlier agent"),
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        if let Event::Down(down) = &event {
            self.note(down.to_string());
            self.turn(false);
        }
        match event {
            Event::Up => self.handle_up(),
            Event::Down(down @ Down::Unreachable { .. }) => tracing::info!("{down}"),
            Event::Down(down) => tracing::warn!("{down}"),
            Event::Message(message) => self.handle_message(&message),
        }
    }

    fn handle_up(&mut self) {
        self.turn(true);
        self.voice.online(self.tunnels.held());
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
                Some(DeviceOrder::Open(order)) => match self.keyed(order) {
                    Some(order) => self.tunnels.handle_open(order, now),
                    None => vec![],
                },
                Some(DeviceOrder::Port(hint)) => self.tunnels.handle_port(&hint),
                None => vec![],
            },
            Some(Topic::DeviceClose(_)) => match self.decode(message) {
                Some(order) => {
                    // Who may log in may be fewer now.
                    drop(self.keys.as_ref().map(Keys::look));
                    self.tunnels.handle_close(&order)
                }
                None => vec![],
            },
            _ => self.drop_message(&message.topic, "it is not an order"),
        };
        self.execute(commands);
    }

    /// The order, at once where no key has to be there first.
    fn keyed(&self, order: OpenOrder) -> Option<OpenOrder> {
        let Some(keys) = &self.keys else {
            return Some(order);
        };
        let (looked, happenings) = (keys.look(), self.happenings.clone());
        tokio::spawn(async move {
            looked.await;
            // The loop is gone only when the agent is.
            let _ = happenings.send(Happening::Ordered(order)).await;
        });
        None
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
            Happening::Ordered(order) => self.tunnels.handle_open(order, Instant::now()),
            Happening::Dialed(attempt, outcome) => self.tunnels.handle_dialed(attempt, outcome, Instant::now()),
            Happening::News(attempt, News::Connected(way)) => {
                self.ways.insert(attempt, way);
                vec![]
            }
            Happening::News(attempt, News::TargetRefused) => self.tunnels.handle_refused(attempt, Instant::now()),
            Happening::News(attempt, News::Landed { claimed, process }) => {
                tracing::info!(
                    tunnel = %attempt.tunnel, server = %claimed.server, port = claimed.port, epoch = %claimed.epoch,
                    "landed"
                );
                let commands = self.tunnels.handle_landed(attempt, &claimed);
                self.record(attempt, claimed, process);
                commands
            }
            Happening::Ended(attempt, ended) => {
                self.reins.remove(&attempt);
                self.ways.remove(&attempt);
                tracing::debug!(tunnel = %attempt.tunnel, ?ended, "ssh ended");
                self.tunnels.handle_ended(attempt, ended, Instant::now())
            }
        };
        self.execute(commands);
    }

    fn handle_network(&mut self) {
        let stranded: BTreeSet<Attempt> = self
            .ways
            .iter()
            .filter(|(_, way)| way.now() == Now::Moved)
            .map(|(attempt, _)| *attempt)
            .collect();
        tracing::info!(stranded = stranded.len(), "the network changed");
        self.voice.network_changed();
        let commands = self.tunnels.handle_network(&stranded, Instant::now());
        self.execute(commands);
    }

    fn execute(&mut self, commands: Vec<Command>) {
        if let Some(keys) = &self.keys {
            keys.set_busy(!self.tunnels.is_empty());
        }
        for command in commands {
            match command {
                Command::Report { tunnel, epoch, event } => {
                    tracing::info!(%tunnel, ?event, "report");
                    match &event {
                        DeviceEventKind::Failed(failure) => self.note(failure.message().to_owned()),
                        DeviceEventKind::Lost { reason } => self.note(format!("tunnel {tunnel} was lost: {reason}")),
                        _ => {}
                    }
                    self.voice.report(tunnel, epoch, event);
                }
                Command::Dial { attempt, to } => {
                    let happenings = self.happenings.clone();
                    tokio::spawn(async move {
                        let outcome = dial(&to).await;
                        // The loop is gone only when the agent is.
                        let _ = happenings.send(Happening::Dialed(attempt, outcome)).await;
                    });
                }
                Command::Land { attempt, landing } => self.carry(attempt, Work::Land(landing)),
                Command::Forward { attempt, at } => {
                    if let Some(reins) = self.reins.get(&attempt) {
                        reins.port.send_replace(Some(at));
                    }
                }
                Command::End { attempt } => drop(self.reins.remove(&attempt)),
                Command::Leave { attempt } => {
                    if let Some(reins) = self.reins.remove(&attempt) {
                        // One that has just ended cannot be left.
                        let _ = reins.stop.send(Stop::Leave);
                    }
                }
            }
        }
    }

    /// Runs the task that an ssh belongs to.
    fn carry(&mut self, attempt: Attempt, work: Work) {
        let (stop, stopped) = oneshot::channel();
        let (port, told) = watch::channel(None);
        self.reins.insert(attempt, Reins { stop, port });
        let (ssh, happenings) = (self.ssh.clone(), self.happenings.clone());
        tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or(Stop::End) };
            let tell = |news| {
                if happenings.try_send(Happening::News(attempt, news)).is_err() {
                    tracing::error!(tunnel = %attempt.tunnel, "the loop does not keep up");
                }
            };
            let ended = match work {
                Work::Land(landing) => ssh.carry(&landing, stopped, told, tell).await,
                Work::CarryOn(adopted) => ssh.carry_on(*adopted, stopped, tell).await,
            };
            let _ = happenings.send(Happening::Ended(attempt, ended)).await;
        });
    }

    /// Keeps what the next agent needs to carry a tunnel on.
    fn record(&self, attempt: Attempt, claimed: Claimed, process: Process) {
        let Some((landing, deadline)) = self.tunnels.carried(attempt) else {
            return;
        };
        let record = Record {
            device: self.device.clone(),
            landing: landing.clone(),
            claimed,
            deadline: since_boot() + deadline.saturating_duration_since(Instant::now()),
            process,
            way: self.ways.get(&attempt).copied(),
        };
        if let Err(error) = self.ssh.record(&record) {
            tracing::warn!(tunnel = %attempt.tunnel, %error, "a restart of the agent will end this tunnel");
        }
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
