//! What Prometheus reads of this server, at `GET /metrics` beside the health check.
//!
//! Counters and times are noted where things happen, without a lock; how full the server is, is looked up when someone
//! reads. The names and their meanings are in `docs/metrics.md`. Nothing here names a user or a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use rssh_proto::FailureKind;
use rssh_proto::payload::ReplyBody;
use rssh_stores::Latency;
use tokio::sync::Mutex;

use crate::server::Server;
use crate::store::Times;
use crate::{capacity, process};

/// How old the figures that cost the machine or the database something may be: whoever may read, may read often.
const COSTLY_EVERY: Duration = Duration::from_secs(10);

/// One label: its name is the same for a whole family.
type Label = [(&'static str, String); 1];
type Gauges = Family<Label, Gauge>;

fn label(name: &'static str, value: impl Into<String>) -> Label {
    [(name, value.into())]
}

/// The figures of a running server.
pub struct Metrics {
    registry: Registry,
    opened: Counter,
    told: Counter,
    failed: Vec<(FailureKind, Counter)>,
    answered_after: Latency,
    landed_after: Latency,
    claimed_after: Latency,
    active_after: Latency,
    pub(crate) authorize: Latency,
    pub(crate) claim: Latency,
    pub(crate) logins_refused: Counter,
    pub(crate) evictions: Counter,
    pub(crate) strays: Counter,
    pub(crate) expired: Counter,
    pub(crate) look: Latency,
    pub(crate) redis: Latency,
    in_redis: Gauge,
    in_database: Gauge,
    connects: Counter,
    connected: Gauge,
    dropped: Counter<u64, AtomicU64>,
    ports: Gauges,
    limits: Gauges,
    capacity: Gauge,
    open_for_landings: Gauge,
    processes: Gauge,
    fleet: Gauges,
    devices: Gauge,
    /// When the costly figures were looked up.
    costly_at: Mutex<Option<Instant>>,
}

/// Registers a metric, and hands it back.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A member of a family, which is there from now on: the first of a kind is a rise too.
fn member<M: Clone, C: MetricConstructor<M>>(family: &Family<Label, M, C>, name: &'static str, value: &str) -> M {
    family.get_or_create(&label(name, value)).clone()
}

impl Metrics {
    /// All at zero; `database` is what the store notes its calls in.
    pub fn new(database: Latency) -> Self {
        let mut registry = Registry::with_prefix("rssh");
        let all = &mut registry;
        let answers: Family<Label, Counter> = Family::default();
        all.register("answers", "Requests of users answered, by result", answers.clone());
        let stages: Family<Label, Latency> = Family::default();
        all.register(
            "open_stage_seconds",
            "From a request to each stage of its tunnel",
            stages.clone(),
        );
        let helpers: Family<Label, Latency> = Family::default();
        all.register(
            "helper_seconds",
            "How long sshd waited for an answer about a login",
            helpers.clone(),
        );
        let registered: Gauges = Family::default();
        all.register(
            "registered_timestamp_seconds",
            "When a store last took this server's heartbeat",
            registered.clone(),
        );
        all.register("database_seconds", "How long calls to PostgreSQL took", database);
        let failed = FailureKind::ALL.iter();
        Self {
            opened: member(&answers, "result", "opened"),
            told: member(&answers, "result", "told"),
            failed: failed
                .map(|kind| (*kind, member(&answers, "result", &name(kind))))
                .collect(),
            answered_after: member(&stages, "stage", "answered"),
            landed_after: member(&stages, "stage", "landed"),
            claimed_after: member(&stages, "stage", "claimed"),
            active_after: member(&stages, "stage", "active"),
            authorize: member(&helpers, "helper", "authorize"),
            claim: member(&helpers, "helper", "claim"),
            in_redis: member(&registered, "store", "redis"),
            in_database: member(&registered, "store", "postgresql"),
            logins_refused: register(
                all,
                "logins_refused",
                "Logins of devices that got no port",
                Counter::default(),
            ),
            evictions: register(
                all,
                "evictions",
                "Sessions ended since a newer claim took their tunnel",
                Counter::default(),
            ),
            strays: register(all, "strays", "Listeners found without a lease", Counter::default()),
            expired: register(
                all,
                "tunnels_expired",
                "Tunnels ended since their time was over",
                Counter::default(),
            ),
            look: register(
                all,
                "sweep_seconds",
                "How long a look at the kernel's sockets took",
                Latency::default(),
            ),
            redis: register(
                all,
                "redis_seconds",
                "How long heartbeats to Redis took",
                Latency::default(),
            ),
            connects: register(
                all,
                "broker_connects",
                "Connections made to the broker",
                Counter::default(),
            ),
            connected: register(
                all,
                "broker_connected",
                "Whether the broker is connected",
                Gauge::default(),
            ),
            dropped: register(
                all,
                "messages_dropped",
                "Messages that were no valid payload of their topic",
                Counter::default(),
            ),
            ports: register(all, "ports", "Ports to lease, by state", Family::default()),
            limits: register(
                all,
                "capacity_limit",
                "Tunnels that each resource would allow",
                Family::default(),
            ),
            capacity: register(all, "capacity", "Tunnels that this server can hold", Gauge::default()),
            open_for_landings: register(all, "open_for_landings", "Whether devices may land", Gauge::default()),
            processes: register(
                all,
                "sshd_processes",
                "Processes of devices' sessions",
                Gauge::default(),
            ),
            fleet: register(
                all,
                "fleet_tunnels",
                "Live tunnels of all servers, by state",
                Family::default(),
            ),
            devices: register(
                all,
                "fleet_devices_online",
                "Devices that are connected",
                Gauge::default(),
            ),
            costly_at: Mutex::default(),
            registry,
        }
    }

    /// A final answer to a user.
    pub(crate) fn answered(&self, body: &ReplyBody) {
        match body {
            ReplyBody::Failed(failure) => {
                let counter = self.failed.iter().find(|(kind, _)| *kind == failure.kind);
                if let Some((_, counter)) = counter {
                    counter.inc();
                }
            }
            ReplyBody::Opened(_) => {
                self.opened.inc();
            }
            _ => {
                self.told.inc();
            }
        }
    }

    /// A tunnel became active for the first time.
    pub(crate) fn activated(&self, times: &Times) {
        for (stage, ms) in [
            (&self.answered_after, times.answered_ms),
            (&self.landed_after, times.landed_ms),
            (&self.claimed_after, times.claimed_ms),
            (&self.active_after, times.active_ms),
        ] {
            if let Some(ms) = ms {
                stage.note(Duration::from_millis(ms.into()));
            }
        }
    }

    /// Redis took a heartbeat that was sent then.
    pub(crate) fn beat_redis(&self, since: Instant) {
        self.redis.note(since.elapsed());
        self.in_redis.set(crate::clock::now().0);
    }

    /// The database took a heartbeat.
    pub(crate) fn beat_database(&self) {
        self.in_database.set(crate::clock::now().0);
    }

    /// The broker was connected, or lost.
    pub(crate) fn broker(&self, connected: bool) {
        if connected {
            self.connects.inc();
        }
        self.connected.set(connected.into());
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// Never in practice: a `String` takes all that is written to it.
    pub(crate) async fn text(server: &Arc<Server>) -> Result<String, std::fmt::Error> {
        let metrics = &server.metrics;
        let counts = server.leases().counts();
        for (state, count) in [
            ("held", counts.held),
            ("landing", counts.landing),
            ("free", counts.free),
            ("resting", counts.resting),
        ] {
            member(&metrics.ports, "state", state).set(number(count));
        }
        let there = capacity::look(&server.config.sshd, counts);
        for (bound, tunnels) in capacity::limits(&there) {
            member(&metrics.limits, "resource", &name(&bound)).set(number(tunnels));
        }
        metrics.capacity.set(capacity::capacity(&there).tunnels.into());
        let open = server.open_for_landings.load(Ordering::Relaxed);
        metrics.open_for_landings.set(open.into());
        let dropped = server.dropped.load(Ordering::Relaxed);
        metrics.dropped.inner().store(dropped, Ordering::Relaxed);
        metrics.look_up_costly(server).await;
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry)?;
        Ok(text)
    }

    /// Looks up what costs something, unless that was done lately.
    async fn look_up_costly(&self, server: &Arc<Server>) {
        let mut looked_up = self.costly_at.lock().await;
        if looked_up.is_some_and(|at| at.elapsed() < COSTLY_EVERY) {
            return;
        }
        *looked_up = Some(Instant::now());
        let uid = server.session_uid;
        if let Ok(processes) = tokio::task::spawn_blocking(move || process::of_user(uid).len()).await {
            self.processes.set(number(processes));
        }
        // Away: the last figures stand, and the database's own say why.
        if let Ok((tunnels, online)) = server.store.fleet().await {
            for (state, count) in tunnels {
                member(&self.fleet, "state", state).set(count);
            }
            self.devices.set(online);
        }
    }
}

/// A count as a gauge has it.
fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// What a kind is called in JSON.
fn name(kind: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use rssh_proto::Failure;

    use super::*;

    fn text_of(metrics: &Metrics) -> String {
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry).unwrap();
        text
    }

    #[test]
    fn what_was_noted_can_be_read() {
        let metrics = Metrics::new(Latency::default());
        metrics.broker(true);
        metrics.broker(false);
        metrics.expired.inc_by(3);
        metrics.authorize.note(Duration::from_millis(5));
        metrics.answered(&ReplyBody::Failed(Failure::new(
            FailureKind::Offline,
            "device-1 is offline",
        )));
        metrics.answered(&ReplyBody::Closed { items: Vec::new() });
        metrics.activated(&Times {
            requested_at: 0,
            answered_ms: Some(20),
            landed_ms: Some(90),
            claimed_ms: None,
            active_ms: Some(150),
            ended_ms: None,
        });
        let text = text_of(&metrics);
        for line in [
            "rssh_broker_connects_total 1\n",
            "rssh_broker_connected 0\n",
            "rssh_tunnels_expired_total 3\n",
            "rssh_helper_seconds_count{helper=\"authorize\"} 1\n",
            "rssh_helper_seconds_bucket{le=\"0.004\",helper=\"authorize\"} 0\n",
            "rssh_helper_seconds_bucket{le=\"0.008\",helper=\"authorize\"} 1\n",
            "rssh_answers_total{result=\"offline\"} 1\n",
            "rssh_answers_total{result=\"told\"} 1\n",
            "rssh_answers_total{result=\"opened\"} 0\n",
            "rssh_open_stage_seconds_count{stage=\"claimed\"} 0\n",
            "rssh_open_stage_seconds_sum{stage=\"active\"} 0.15\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn every_kind_of_failure_is_there_before_the_first_of_it() {
        let text = text_of(&Metrics::new(Latency::default()));
        for kind in FailureKind::ALL {
            let line = format!("rssh_answers_total{{result=\"{}\"}} 0\n", name(kind));
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
