//! The OpenAPI document, made from the handlers.

use std::collections::BTreeMap;

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::{devices, events, health, messages, model, tunnels};

/// The errors that every route may answer with.
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [
            (400, "The request is malformed"),
            (401, "Nobody knows who calls"),
            (403, "The caller may not do this, or the device does not allow it"),
            (404, "There is no such device, tunnel or path"),
            (405, "The path does not have this method"),
            (409, "The device holds as many tunnels as it may, or is quarantined"),
            (413, "The body is too large"),
            (500, "A fault of the server"),
            (
                502,
                "The device is offline, its ssh failed, or nothing answers at the target",
            ),
            (503, "The server is busy; Retry-After says when to come again"),
            (504, "The device does not answer, or the time is over"),
        ]
        .into_iter()
        .map(|(status, description): (u16, &str)| {
            let content = Content::new(Some(Ref::from_schema_name("Problem")));
            let response = ResponseBuilder::new()
                .description(description)
                .content("application/problem+json", content);
            (status.to_string(), RefOr::T(response.build()))
        })
        .collect()
    }
}

/// Callers show a client certificate, or a bearer token.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme("token", SecurityScheme::Http(bearer));
        }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "rssh",
        description = "Tunnels to devices behind NAT, on demand. Callers show a bearer token, or a user's client certificate."
    ),
    paths(
        health::healthz,
        health::readyz,
        devices::list,
        devices::host_keys,
        tunnels::open,
        tunnels::list,
        tunnels::close_device,
        tunnels::show,
        tunnels::close,
        tunnels::name,
        tunnels::share,
        events::follow,
        messages::carry,
    ),
    components(schemas(model::ProblemDocument, events::StageEvent)),
    modifiers(&Security),
    security(("token" = []))
)]
struct Document;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented_with_its_errors() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 10, "{paths:?}");
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(operation["summary"].is_string(), "{method} {path}");
                assert!(operation["responses"]["401"].is_object(), "{method} {path}");
            }
        }
        assert!(document["components"]["schemas"]["Problem"].is_object());
    }
}
