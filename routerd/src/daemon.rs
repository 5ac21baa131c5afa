//! The loop: takes what the sources say, asks the pure core, writes the files, tells HAProxy.

mod hear;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rssh_mqtt::renewal::{self, Renewable};
use rssh_mqtt::{Dial, IdentityFiles, Publish, Session, Settings, Will};
use rssh_proto::enrolment::Renew;
use rssh_proto::payload::{Presence, RouterStatus, V1};
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
use crate::plan::Actual;
use crate::route::{Local, Routes};
use crate::runtime::Runtime;
use crate::source::{self, Shared};
use crate::state::State;
use crate::verify::Verifier;

/// How often HAProxy is asked whether it is still the same process, and local files are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How many readings may wait; a source that is ahead waits.
const READINGS: usize = 4;
/// How many messages may wait.
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
    let database = Postgres::parse(config.database.url.as_str())
        .context("database.url in the configuration is not usable")?
        .map(|host| host.application_name("rssh-routerd"));
    let renewable = Renewable::load(&config.mqtt.identity())?;
    let (session, mut events, driver) = Session::new(mqtt_settings(&config, &renewable)?);
    let driver = tokio::spawn(driver);
    let shared = Shared::default();
    let (sender, mut readings) = mpsc::channel(READINGS);
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

impl Daemon {
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

    /// Says goodbye: a session that ends well publishes no will.
    async fn farewell(&self) {
        let topic = Topic::RouterStatus(self.config.router.clone());
        let offline = Publish::new(topic, payload::encode(&status(Presence::Offline))).retained();
        let _ = timeout(TICK, self.session.publish(offline)).await;
    }
}
