//! Whether this server is there, and whether it serves.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::refusals::Refusals;
use crate::http;
use crate::web::Web;
use crate::web::problem::Problem;

/// Who answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Says that the server is there.
#[utoipa::path(get, path = "/healthz", security(()), responses((status = 200, body = Health), Refusals))]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Says whether the server takes requests: its database answers, and devices may land on it.
#[utoipa::path(get, path = "/readyz", security(()), responses((status = 200, body = Health), Refusals))]
pub async fn readyz(State(web): State<Web>) -> Result<Json<Health>, Problem> {
    if let Some(fault) = http::fault(&web.server) {
        return Err(Problem::busy(format!("the server is not ready: {fault}; try another")));
    }
    web.server.store.answers().await?;
    Ok(Json(Health { status: "ok" }))
}
