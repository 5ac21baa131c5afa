//! What every route may refuse with, for the OpenAPI document.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};

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
