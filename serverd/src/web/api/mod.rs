//! The API: everything that `rssh` does, for programs that speak HTTP.
//!
//! A request goes the way of one that came over MQTT ([`crate::requests`]), with a session of this process for its
//! answers; so both ways allow, refuse and share the same.

pub mod ask;
pub mod devices;
pub mod document;
pub mod events;
pub mod health;
pub mod messages;
pub mod model;
pub mod query;
pub mod refusals;
pub mod tunnels;

use axum::Router;
use axum::routing::{get, post};

use super::Web;

/// The routes.
pub fn router() -> Router<Web> {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/v1/openapi.json", get(document::serve))
        .route("/v1/devices", get(devices::list))
        .route("/v1/devices/{device}/host-keys", get(devices::host_keys))
        .route(
            "/v1/tunnels",
            get(tunnels::list).post(tunnels::open).delete(tunnels::close_device),
        )
        .route("/v1/tunnels/{tunnel}", get(tunnels::show).delete(tunnels::close))
        .route("/v1/tunnels/{tunnel}/name", post(tunnels::name))
        .route("/v1/tunnels/{tunnel}/share", post(tunnels::share))
        .route("/v1/events", get(events::follow))
        .route("/v1/requests", post(messages::carry))
}
