//! The OpenAPI document, made from the handlers.

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{devices, events, health, messages, model, tunnels};

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
