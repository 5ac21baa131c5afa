//! `GET /healthz`: whether this server takes landings, for the load balancers' checks; `GET /metrics`, for Prometheus.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::server::Server;
use crate::{sock_diag, sshd};

/// OpenMetrics 1.0.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the check says.
#[derive(Debug, Serialize)]
struct Health {
    server: String,
    /// Why it takes no landings; absent when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    tunnels: usize,
    landing: usize,
    ports_free: usize,
    ports_resting: usize,
    /// Messages that were no valid payload of their topic.
    messages_dropped: u64,
}

/// Opens the port.
///
/// # Errors
/// When the address is not this machine's, or is taken.
pub async fn listen(server: &Server) -> io::Result<TcpListener> {
    TcpListener::bind(server.config.http.listen).await
}

/// Answers checks, for ever.
///
/// # Errors
/// When the listener fails.
pub async fn serve(server: Arc<Server>, listener: TcpListener) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(server);
    axum::serve(listener, router).await
}

async fn healthz(State(server): State<Arc<Server>>) -> Response {
    let fault = fault(&server);
    let counts = server.leases().counts();
    let health = Health {
        server: server.id.to_string(),
        fault,
        tunnels: counts.held,
        landing: counts.landing,
        ports_free: counts.free,
        ports_resting: counts.resting,
        messages_dropped: server.dropped.load(Ordering::Relaxed),
    };
    let status = match fault {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health)).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    match Metrics::text(&server).await {
        Ok(text) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Why devices should not land here. sshd is looked at, never connected to: a busy one would answer late, be taken out,
/// and pass its load on to the next.
pub fn fault(server: &Server) -> Option<&'static str> {
    if !server.open_for_landings.load(Ordering::Relaxed) {
        return Some("not serving");
    }
    if server.leases().counts().free == 0 {
        return Some("no free port");
    }
    let listens = server
        .config
        .sshd
        .listen
        .iter()
        .all(|address| matches!(sock_diag::listener(*address), Ok(Some(_))));
    if !listens {
        return Some("sshd does not listen");
    }
    let stopped = sshd::running(&server.config.sshd).is_none_or(|stat| matches!(stat.state, 'T' | 't'));
    stopped.then_some("sshd does not run")
}
