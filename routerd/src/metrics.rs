//! What Prometheus reads of this router, at `GET /metrics`. The names and their meanings are in `docs/metrics.md`.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rssh_proto::payload::RouterStatus;
use rssh_stores::Latency;
use tokio::net::TcpListener;

use crate::route::Source;

/// OpenMetrics 1.0.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label: its name is the same for a whole family.
type Label = [(&'static str, &'static str); 1];
type Gauges = Family<Label, Gauge>;

/// What may be wrong with a router; each is told in the log too.
const FAULTS: [&str; 8] = [
    "addresses",
    "haproxy",
    "mqtt",
    "name-master",
    "postgresql",
    "redis",
    "revocations",
    "revoked",
];

/// The figures of a running router.
pub struct Metrics {
    registry: Registry,
    servers: Gauges,
    stale: Gauge,
    map_generation: Gauge,
    map_changed: Gauge,
    reconciled: Gauge,
    pub reconcile: Latency,
    read: Gauges,
    pub refused: Counter,
    pub connects: Counter,
    faults: Gauges,
}

/// Seconds since 1970 began.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Default for Metrics {
    /// All at zero.
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("rssh_router"),
            servers: Family::default(),
            stale: Gauge::default(),
            map_generation: Gauge::default(),
            map_changed: Gauge::default(),
            reconciled: Gauge::default(),
            reconcile: Latency::default(),
            read: Family::default(),
            refused: Counter::default(),
            connects: Counter::default(),
            faults: Family::default(),
        };
        let all = &mut metrics.registry;
        all.register(
            "servers",
            "Servers in HAProxy, by what they get",
            metrics.servers.clone(),
        );
        all.register(
            "stale",
            "Whether the routes are the last good ones, since a store is away",
            metrics.stale.clone(),
        );
        all.register(
            "map_generation",
            "Changes made to HAProxy",
            metrics.map_generation.clone(),
        );
        all.register(
            "map_changed_timestamp_seconds",
            "When HAProxy was last changed",
            metrics.map_changed.clone(),
        );
        all.register(
            "reconciled_timestamp_seconds",
            "When HAProxy was last known to be equal to the registry",
            metrics.reconciled.clone(),
        );
        all.register(
            "reconcile_seconds",
            "How long making HAProxy equal to the registry took",
            metrics.reconcile.clone(),
        );
        all.register(
            "registry_timestamp_seconds",
            "When a store was last read",
            metrics.read.clone(),
        );
        all.register(
            "registrations_refused",
            "Entries that were not believed",
            metrics.refused.clone(),
        );
        all.register(
            "broker_connects",
            "Connections made to the broker",
            metrics.connects.clone(),
        );
        all.register("fault", "Whether this does not work now", metrics.faults.clone());
        for what in FAULTS {
            metrics.fault(what, false);
        }
        metrics
    }
}

impl Metrics {
    /// A store was read as a whole.
    pub fn read(&self, source: Source) {
        let store = match source {
            Source::Redis => "redis",
            Source::Database => "postgresql",
        };
        self.read.get_or_create(&[("store", store)]).set(now());
    }

    /// Something does not work now, or works again.
    pub fn fault(&self, what: &'static str, is: bool) {
        self.faults.get_or_create(&[("what", what)]).set(is.into());
    }

    /// HAProxy is equal to the registry, and this is what we say of it.
    pub fn reconciled(&self, status: &RouterStatus) {
        self.reconciled.set(now());
        self.stale.set(status.stale.into());
        for (state, count) in [("routed", status.routed), ("landing", status.landing)] {
            self.servers.get_or_create(&[("state", state)]).set(count.into());
        }
        let generation = i64::try_from(status.map_generation).unwrap_or(i64::MAX);
        if self.map_generation.set(generation) != generation {
            self.map_changed.set(now());
        }
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Answers Prometheus, for ever.
///
/// # Errors
/// When the listener fails.
pub async fn serve(metrics: Arc<Metrics>, listener: TcpListener) -> io::Result<()> {
    let router = Router::new().route("/metrics", get(answer)).with_state(metrics);
    axum::serve(listener, router).await
}

async fn answer(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use rssh_proto::payload::{Presence, V1};

    use super::*;

    #[test]
    fn what_was_noted_can_be_read() {
        let metrics = Metrics::default();
        metrics.fault("redis", true);
        metrics.read(Source::Database);
        metrics.refused.inc();
        metrics.reconciled(&RouterStatus {
            v: V1,
            presence: Presence::Online,
            map_generation: 7,
            routed: 3,
            landing: 2,
            stale: true,
        });
        let text = metrics.text().unwrap();
        for line in [
            "rssh_router_fault{what=\"redis\"} 1\n",
            "rssh_router_fault{what=\"haproxy\"} 0\n",
            "rssh_router_registrations_refused_total 1\n",
            "rssh_router_map_generation 7\n",
            "rssh_router_servers{state=\"routed\"} 3\n",
            "rssh_router_servers{state=\"landing\"} 2\n",
            "rssh_router_stale 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(
            !text.contains("rssh_router_map_changed_timestamp_seconds 0\n"),
            "{text}"
        );
        assert!(
            !text.contains("rssh_router_registry_timestamp_seconds{store=\"postgresql\"} 0\n"),
            "{text}"
        );
    }
}
