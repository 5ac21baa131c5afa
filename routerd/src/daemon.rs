//! The loop: takes what the sources say, asks the pure core, writes the files, tells HAProxy.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rssh_mqtt::renewal::{self, Renewable};
use rssh_mqtt::{Dial, Event, IdentityFiles, Message, Publish, Session, Settings, Will};
use rssh_proto::enrolment::Renew;
use rssh_proto::payload::{Presence, RouterStatus, ServerState, ServerStatus, V1};
use rssh_proto::topic::{Topic, filter};
use rssh_proto::{HttpsUrl, ServerId, payload};
use rssh_stores::Postgres;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};

use crate::config::Config;
use crate::files::Files;
use crate::log;
use crate::masters;
use crate::metrics::{self, Metrics};
use crate::plan::{Actual, Command, plan};
use crate::route::{Desired, Local, Map, Routes, Rows, Source};
use crate::runtime::{Outcome, Runtime};
use crate::source::{self, Led, Reading, Shared};
use crate::state::State;
use crate::verify::Verifier;

/// How often HAProxy is asked whether it is still the same process, and local files are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How many readings may wait; a source that is ahead waits.
const WAITING: usize = 256;

/// The daemon's state between two passes.
struct Daemon {
    config: Config,
    verifier: Verifier,
    routes: Routes,
    local: Local,
    state: State,
    files: Files,
    runtime: Runtime,
    session: Session,
    shared: Shared,
    /// What HAProxy does, as far as is known: nothing after an error or a restart of it.
    actual: Option<Actual>,
    worker: Option<u32>,
    /// When HAProxy is next read as a whole, and small changes of weights are made. Other changes in between do not
    /// put it off.
    reconcile_at: Instant,
    /// Whether enough of the registry is known to take routes away: PostgreSQL has answered, or the last good state was
    /// there.
    settled: bool,
    /// Sources that have said something, if only that they are away.
    heard: (bool, bool),
    ready: bool,
    map_generation: u64,
    /// Complete looks into PostgreSQL so far.
    looks: u64,
    published: Option<RouterStatus>,
    /// Why a server's entry is not believed.
    refused: BTreeMap<ServerId, String>,
    /// Faults that are told once, until they are over.
    faults: BTreeMap<&'static str, String>,
    metrics: Arc<Metrics>,
}

/// Runs until `shutdown` is over.
///
/// # Errors
/// When what is needed at start is missing or wrong.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let (master, previous) = config.masters()?;
    let local = Local {
        master,
        previous,
        revoked: BTreeSet::new(),
        revoked_users: BTreeSet::new(),
        revoked_serials: BTreeSet::new(),
    };
    let redis = config
        .redis()
        .context("redis.url in the configuration is not usable")?
        .with_announcements();
    let database = Postgres::parse(&config.database.url)
        .context("database.url in the configuration is not usable")?
        .map(|host| host.application_name("rssh-routerd"));
    let renewable = Renewable::load(&config.mqtt.identity())?;
    let (session, mut events, driver) = Session::new(mqtt_settings(&config, &renewable)?);
    let driver = tokio::spawn(driver);
    let shared = Shared::default();
    let (sender, mut readings) = mpsc::channel(WAITING);
    let every = config.registry.reconcile.duration();
    let log = log::listen(&config.haproxy.dir, config.haproxy.socket_group.as_ref())
        .context("cannot open the socket for HAProxy's log")?;
    let figures = Arc::new(Metrics::default());
    if let Some(metrics) = &config.metrics {
        let listener = TcpListener::bind(metrics.listen)
            .await
            .with_context(|| format!("cannot listen on {}, the metrics' address", metrics.listen))?;
        tokio::spawn(metrics::serve(figures.clone(), listener));
    }
    let tasks = [
        tokio::spawn(log::run(log, config.router.to_string(), database.clone())),
        tokio::spawn(masters::follow(config.clone())),
        tokio::spawn(renew(config.url.clone(), config.mqtt.identity(), renewable)),
        tokio::spawn(source::redis::run(redis, every, sender.clone())),
        tokio::spawn(source::postgres::revocations(database.clone(), sender.clone())),
        tokio::spawn(source::postgres::run(
            config.router.clone(),
            database,
            every,
            shared.clone(),
            sender,
        )),
    ];
    let mut daemon = Daemon {
        verifier: Verifier::load(&config.registry.servers_ca)?,
        routes: Routes::default(),
        local,
        state: State::new(&config.state_dir)?,
        files: Files::new(config.haproxy.clone())?,
        runtime: Runtime::new(config.haproxy.clone()),
        session: session.clone(),
        shared,
        actual: None,
        worker: None,
        reconcile_at: Instant::now(),
        settled: false,
        heard: (false, false),
        ready: false,
        map_generation: 0,
        looks: 0,
        published: None,
        refused: BTreeMap::new(),
        faults: BTreeMap::new(),
        metrics: figures,
        config,
    };
    daemon.restore()?;
    daemon.local.revoked = daemon.files.known_revoked()?;
    daemon.read_local();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(reading) = readings.recv() => daemon.take_reading(reading),
            Some(event) = events.recv() => daemon.take_event(event),
            _ = tick.tick() => daemon.tick().await,
        }
        // What else has come meanwhile is one change with it.
        while let Ok(reading) = readings.try_recv() {
            daemon.take_reading(reading);
        }
        while let Ok(event) = events.try_recv() {
            daemon.take_event(event);
        }
        daemon.pass().await;
    }
    for task in tasks {
        task.abort();
    }
    daemon.farewell().await;
    session.goodbye();
    let _ = timeout(TICK, driver).await;
    Ok(())
}

/// Renews the router's certificate, for ever.
async fn renew(url: Option<HttpsUrl>, files: IdentityFiles, renewable: Arc<Renewable>) {
    let Some(url) = url else { return };
    renewal::keep(renewable, |_| async {
        renewal::renew(&url, None, &files, Renew::default()).await.map(drop)
    })
    .await;
}

fn mqtt_settings(config: &Config, renewable: &Arc<Renewable>) -> anyhow::Result<Settings> {
    let topic = Topic::RouterStatus(config.router.clone()).to_string();
    let offline = payload::encode(&status(Presence::Offline));
    Ok(Settings {
        brokers: config.mqtt.brokers.clone(),
        tls: Arc::new(renewable.client_config()?),
        cn: config.router.to_string(),
        keep_alive: config.mqtt.keep_alive.duration(),
        inflight: 16,
        queue: WAITING,
        subscriptions: vec![filter::SERVER_STATUS.to_owned()],
        will: Some(Box::new(move || Will {
            topic: topic.clone(),
            payload: offline.clone(),
        })),
        reconnect: (Duration::from_millis(200), Duration::from_secs(5)),
        dial: Dial {
            everywhere: true,
            ..Dial::default()
        },
    })
}

fn status(presence: Presence) -> RouterStatus {
    RouterStatus {
        v: V1,
        presence,
        map_generation: 0,
        routed: 0,
        landing: 0,
        stale: true,
    }
}

/// Where users are to be led.
fn leads(desired: &Desired) -> Led {
    desired.maps.get(&Map::Addresses).map(led).unwrap_or_default()
}

fn led(rows: &Rows) -> Led {
    let parsed = rows
        .iter()
        .filter_map(|(server, address)| Some((server.parse().ok()?, address.parse().ok()?)));
    parsed.collect()
}

impl Daemon {
    /// Starts from the last good registry.
    fn restore(&mut self) -> anyhow::Result<()> {
        let Some(entries) = self.state.load()? else {
            return Ok(());
        };
        self.settled = true;
        for (server, text) in entries {
            self.take_entry(&server, &text, Source::Database);
        }
        Ok(())
    }

    /// Tells a fault once, until it is over or another.
    fn fault(&mut self, what: &'static str, fault: Option<String>) {
        self.metrics.fault(what, fault.is_some());
        match fault {
            Some(fault) if self.faults.get(what) != Some(&fault) => {
                tracing::warn!(what, "{fault}");
                self.faults.insert(what, fault);
            }
            Some(_) => {}
            None => {
                if self.faults.remove(what).is_some() {
                    tracing::info!(what, "works again");
                }
            }
        }
    }

    fn take_reading(&mut self, reading: Reading) {
        match reading {
            Reading::Redis(entries) => {
                self.heard.0 = true;
                self.metrics.read(Source::Redis);
                self.fault("redis", None);
                for (server, text) in &entries {
                    self.take_entry(server, text, Source::Redis);
                }
                self.routes
                    .handle_redis(&entries.into_iter().map(|(server, _)| server).collect());
            }
            Reading::Changed(server, text) => {
                let new = !self.routes.knows(&server);
                self.take_entry(&server, &text, Source::Redis);
                if new && self.routes.knows(&server) {
                    self.shared.look.notify_one();
                }
            }
            Reading::Database { rows, known_before } => {
                self.heard.1 = true;
                self.settled = true;
                self.looks += 1;
                self.metrics.read(Source::Database);
                self.fault("postgresql", None);
                let (rows, entries): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
                // First who is lost: an entry of a lost server is not news.
                self.routes.handle_database(&rows, &known_before);
                for (row, entry) in rows.iter().zip(entries) {
                    if let (false, Some(text)) = (row.lost, entry) {
                        self.take_entry(&row.server, &text, Source::Database);
                    }
                }
            }
            Reading::Revoked(Ok(users)) => {
                if users != self.local.revoked {
                    tracing::info!(count = users.len(), "users that are revoked");
                }
                self.fault("revocations", None);
                self.local.revoked = users;
            }
            Reading::Revoked(Err(reason)) => {
                let fault = format!("what was revoked before stays so: {reason}");
                self.fault("revocations", Some(fault));
            }
            Reading::Away { source, reason } => {
                self.routes.handle_away(source);
                let what = match source {
                    Source::Redis => {
                        self.heard.0 = true;
                        "redis"
                    }
                    Source::Database => {
                        self.heard.1 = true;
                        "postgresql"
                    }
                };
                self.fault(what, Some(format!("away, the last good routes stay: {reason}")));
            }
        }
        self.shared.set_known(self.routes.known());
    }

    fn take_entry(&mut self, server: &ServerId, text: &str, source: Source) {
        match self.verifier.verify(server, text, SystemTime::now()) {
            Ok(verified) => {
                self.refused.remove(server);
                self.routes.handle_registration(verified, source);
            }
            Err(error) => {
                let total = self.metrics.refused.inc() + 1;
                let reason = error.to_string();
                if self.refused.get(server) != Some(&reason) {
                    tracing::warn!(%server, ?source, total, "registration refused: {reason}");
                    self.refused.insert(server.clone(), reason);
                }
            }
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Up => {
                self.metrics.connects.inc();
                self.fault("mqtt", None);
                self.published = None;
            }
            Event::Down(down) => self.fault("mqtt", Some(down.to_string())),
            Event::Message(message) => self.take_message(&message),
        }
    }

    fn take_message(&mut self, message: &Message) {
        let Some(Topic::ServerStatus(server)) = Topic::parse(&message.topic) else {
            return;
        };
        // An empty one takes a retained status back; it says nothing about the server.
        if message.payload.is_empty() {
            return;
        }
        match payload::decode::<ServerStatus>(&message.payload) {
            Ok(status) => {
                if status.state != ServerState::Serving {
                    tracing::info!(%server, state = ?status.state, generation = %status.generation, "server says");
                }
                self.routes.handle_status(&server, &status);
            }
            Err(error) => tracing::warn!(%server, "status dropped: {error}"),
        }
    }

    async fn tick(&mut self) {
        self.read_local();
        let worker = self.runtime.worker().await.ok();
        if worker.is_none() || worker != self.worker {
            self.actual = None;
        }
        if Instant::now() >= self.reconcile_at {
            self.actual = None;
        }
    }

    /// Reads what comes from files: keys being changed, revocations.
    fn read_local(&mut self) {
        let masters = self.config.masters().map(|(master, previous)| {
            self.local.master = master;
            self.local.previous = previous;
        });
        self.fault(
            "name-master",
            masters.err().map(|error| format!("the keys before stay: {error}")),
        );
        let revoked = self.files.revoked().map(|(users, serials)| {
            self.local.revoked_users = users;
            self.local.revoked_serials = serials;
        });
        self.fault(
            "revoked",
            revoked
                .err()
                .map(|error| format!("what was revoked before stays so: {error}")),
        );
    }

    /// Makes files and HAProxy equal to what is known.
    async fn pass(&mut self) {
        if self.settled {
            let since = Instant::now();
            let outcome = self.reconcile().await;
            self.metrics.reconcile.note(since.elapsed());
            match outcome {
                Ok(()) => self.shared.set_told(self.looks),
                Err(_) => self.actual = None,
            }
            self.fault("haproxy", outcome.err().map(|error| format!("{error:#}")));
        }
        let heard = self.heard.0 && self.heard.1;
        if !self.ready && heard && (self.settled || self.routes.is_stale()) {
            self.ready = true;
            // Without systemd there is nobody to tell.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            tracing::info!(router = %self.config.router, servers = self.routes.known().len(), "ready");
        }
    }

    async fn reconcile(&mut self) -> anyhow::Result<()> {
        let desired = self.routes.desired(&self.local);
        let conflicts: Vec<String> = self
            .routes
            .conflicts()
            .into_iter()
            .map(|(server, holder)| format!("{server} is not routed: its address is {holder}'s"))
            .collect();
        self.fault("addresses", (!conflicts.is_empty()).then(|| conflicts.join("; ")));
        if let Some(actual) = &self.actual {
            let commands = plan(&desired, actual);
            if commands.iter().all(|command| command.can_wait(actual)) {
                return self.publish(&desired);
            }
        }
        // Files first: whatever happens to HAProxy from here on, it starts from them.
        self.files.write(&desired)?;
        self.state.save(&self.routes)?;
        if self.actual.is_none() {
            self.worker = Some(self.runtime.worker().await?);
            self.actual = Some(self.runtime.actual().await?);
            self.reconcile_at = Instant::now() + self.config.registry.reconcile.duration();
        }
        // First what may come, then what is: whoever reads it misses no route.
        let mut led = leads(&desired);
        led.extend(self.led_now());
        self.shared.set_led(led);
        if self.tell(&desired).await? {
            self.map_generation += 1;
        }
        self.shared.set_led(self.led_now());
        self.publish(&desired)
    }

    /// Where HAProxy leads users now, as far as is known.
    fn led_now(&self) -> Led {
        let rows = self.actual.as_ref().and_then(|actual| actual.maps.get(&Map::Addresses));
        rows.map(|rows| led(&rows.rows)).unwrap_or_default()
    }

    /// Tells HAProxy what is missing. Returns whether there was anything.
    async fn tell(&mut self, desired: &Desired) -> anyhow::Result<bool> {
        let Some(actual) = &mut self.actual else {
            return Ok(false);
        };
        let mut changed = false;
        for command in plan(desired, actual) {
            match self.runtime.execute(&command).await? {
                Outcome::Done => {
                    if command.can_wait(actual) {
                        tracing::debug!("haproxy: {command:?}");
                    } else {
                        tracing::info!("haproxy: {command:?}");
                    }
                    actual.apply(&command);
                    changed = true;
                }
                Outcome::InUse => {
                    if let Command::ServerDelete(name) = &command {
                        tracing::debug!(name, "still carries connections");
                        actual.still_leaving(name);
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Publishes our status when it has changed.
    fn publish(&mut self, desired: &Desired) -> anyhow::Result<()> {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let landing: BTreeSet<&ServerId> = desired
            .pool
            .iter()
            .filter(|(_, server)| server.enabled && server.weight > 0)
            .map(|(name, _)| &name.server)
            .collect();
        let status = RouterStatus {
            v: V1,
            presence: Presence::Online,
            map_generation: self.map_generation,
            routed: count(desired.maps.get(&Map::Addresses).map_or(0, BTreeMap::len)),
            landing: count(landing.len()),
            stale: self.routes.is_stale(),
        };
        self.metrics.reconciled(&status);
        // One that could not be sent is sent by the next pass.
        if self.published.as_ref() != Some(&status) && self.send(&status).is_ok() {
            self.published = Some(status);
        }
        Ok(())
    }

    fn send(&self, status: &RouterStatus) -> Result<(), rssh_mqtt::PublishError> {
        let topic = Topic::RouterStatus(self.config.router.clone());
        self.session
            .send(Publish::new(topic, payload::encode(status)).retained())
            .map(drop)
    }

    /// Says goodbye: a session that ends well publishes no will.
    async fn farewell(&self) {
        let topic = Topic::RouterStatus(self.config.router.clone());
        let offline = Publish::new(topic, payload::encode(&status(Presence::Offline))).retained();
        let _ = timeout(TICK, self.session.publish(offline)).await;
    }
}
