//! Tunnels: opening, listing, naming, sharing and closing them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use rssh_proto::payload::{CloseRequest, OpenRequest, Operation, Which};
use rssh_proto::{DeviceId, FailureKind, Target, TunnelId};
use serde::Deserialize;

use super::ask::{Answer, PATIENCE, ask, unexpected};
use super::model::{Closed, ClosedTunnels, Explained, Open, Share, ShareFor, Tunnel, Tunnels};
use super::query::{Named, Page, Query, request_id};
use super::refusals::Refusals;
use crate::prove;
use crate::token::Scope;
use crate::web::Web;
use crate::web::body;
use crate::web::caller::Caller;
use crate::web::problem::Problem;

/// How long an open may take: below what any request may.
const OPENS_WITHIN_MS: u32 = 15_000;
const SHORTEST_OPEN_MS: u32 = 1_000;
const LONGEST_OPEN_MS: u32 = 25_000;

/// Opens a tunnel, or gets the live one to the same target.
///
/// The answer comes when it is active: with a signed host name, and with `prove` once the device has answered through
/// the load balancer. The same `Idempotency-Key` finds the first outcome; a UUID becomes the tunnel's id.
#[utoipa::path(
    post,
    path = "/v1/tunnels",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255)),
    request_body = Open,
    responses(
        (status = 201, body = Tunnel, headers(("Location" = String, description = "The tunnel's path"))),
        Refusals
    )
)]
pub async fn open(
    State(web): State<Web>,
    caller: Caller,
    headers: HeaderMap,
    body::Json(open): body::Json<Open>,
) -> Result<Response, Problem> {
    let user = caller.user(Scope::Open)?;
    let id = request_id(&headers, user)?;
    let bad = |error: &dyn std::fmt::Display| Problem::bad_request(error.to_string());
    let positive = |name: &str, value: Option<u32>| match value {
        Some(0) => Err(Problem::bad_request(format!("{name} is 0; leave it out or take more"))),
        other => Ok(other),
    };
    let device: DeviceId = open.device.parse().map_err(|error| bad(&error))?;
    let target: Target = match &open.target {
        Some(target) => target.parse().map_err(|error| bad(&error))?,
        None => Target::ssh(),
    };
    let timeout_ms = open.timeout_ms.unwrap_or(OPENS_WITHIN_MS);
    if !(SHORTEST_OPEN_MS..=LONGEST_OPEN_MS).contains(&timeout_ms) {
        return Err(Problem::bad_request(format!(
            "timeout_ms is not from {SHORTEST_OPEN_MS} to {LONGEST_OPEN_MS}"
        )));
    }
    if open.remote_port == Some(0) {
        return Err(Problem::bad_request("remote_port is 0; leave it out for any port"));
    }
    let request = OpenRequest {
        device: device.clone(),
        target: target.clone(),
        remote_port: open.remote_port,
        ttl_s: positive("ttl_s", open.ttl_s)?,
        idle_s: positive("idle_s", open.idle_s)?,
        new: open.new,
        wait: false,
        hold: open.hold.unwrap_or(true),
    };
    let patience = Duration::from_millis(timeout_ms.into());
    let Answer::Opened(info) = ask(&web.server, user, id, Operation::Open(request), patience).await? else {
        return Err(unexpected().into());
    };
    if (&info.device, &info.target) != (&device, &target) {
        return Err(Problem::bad_request(format!(
            "the Idempotency-Key was used for {} of {} before; take another",
            info.target, info.device
        )));
    }
    let mut tunnel = Tunnel::from(info.clone());
    if open.prove.is_some() {
        match prove::prove(&web.server, user, &info).await {
            Ok(banner) => tunnel.banner = banner,
            Err(failure) => {
                give_up(&web, &caller, id).await;
                return Err(failure.into());
            }
        }
    }
    let mut response = (StatusCode::CREATED, Json(&tunnel)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/tunnels/{}", tunnel.tunnel)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Gives a request's tunnel up that is of no use to anyone.
async fn give_up(web: &Web, caller: &Caller, request: TunnelId) {
    let close = Operation::Close(CloseRequest {
        which: Which::Tunnel(request),
        force: false,
    });
    if let Ok(user) = caller.user(Scope::Open) {
        let closed = ask(&web.server, user, TunnelId::generate(), close, PATIENCE).await;
        tracing::debug!(%request, ?closed, "gave the tunnel up");
    }
}

/// Which part of the list.
#[derive(Debug, Deserialize)]
pub struct Part {
    limit: Option<u16>,
    after: Option<String>,
}

/// Lists your open tunnels, the oldest first; without names.
#[utoipa::path(
    get,
    path = "/v1/tunnels",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 500),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses((status = 200, body = Tunnels), Refusals)
)]
pub async fn list(State(web): State<Web>, caller: Caller, Query(part): Query<Part>) -> Result<Json<Tunnels>, Problem> {
    let user = caller.user(Scope::Read)?;
    let Answer::Tunnels(mut tunnels) = ask(&web.server, user, TunnelId::generate(), Operation::List, PATIENCE).await?
    else {
        return Err(unexpected().into());
    };
    tunnels.sort_by_key(|info| info.tunnel);
    let (items, next) = Page::new(part.limit, part.after).of(tunnels, |info| info.tunnel.to_string())?;
    let unnamed = |tunnel: Tunnel| Tunnel {
        host: None,
        port: None,
        host_expires_at: None,
        ..tunnel
    };
    let items = items.into_iter().map(|info| unnamed(info.into())).collect();
    Ok(Json(Tunnels { items, next }))
}

/// Tells how a tunnel is and how it came about; also of one that is over.
#[utoipa::path(
    get,
    path = "/v1/tunnels/{tunnel}",
    params(("tunnel" = uuid::Uuid, Path)),
    responses((status = 200, body = Explained), Refusals)
)]
pub async fn show(
    State(web): State<Web>,
    caller: Caller,
    Named(tunnel): Named<TunnelId>,
) -> Result<Json<Explained>, Problem> {
    let user = caller.user(Scope::Read)?;
    let op = Operation::Trace { tunnel };
    match ask(&web.server, user, TunnelId::generate(), op, PATIENCE).await? {
        Answer::Trace(mut trace) => {
            // Who may only look gets no name.
            trace.info.host = None;
            trace.info.port = None;
            trace.info.host_expires_at = None;
            Ok(Json(trace.into()))
        }
        _ => Err(unexpected().into()),
    }
}

/// Signs a fresh name for a tunnel.
#[utoipa::path(
    post,
    path = "/v1/tunnels/{tunnel}/name",
    params(("tunnel" = uuid::Uuid, Path)),
    responses((status = 200, body = Tunnel), Refusals)
)]
pub async fn name(
    State(web): State<Web>,
    caller: Caller,
    Named(tunnel): Named<TunnelId>,
) -> Result<Json<Tunnel>, Problem> {
    let user = caller.user(Scope::Open)?;
    let op = Operation::Name { tunnel };
    match ask(&web.server, user, TunnelId::generate(), op, PATIENCE).await? {
        Answer::Opened(info) => Ok(Json(info.into())),
        _ => Err(unexpected().into()),
    }
}

/// Makes a URL by which whoever has it gets in, from the first address that uses it.
#[utoipa::path(
    post,
    path = "/v1/tunnels/{tunnel}/share",
    params(("tunnel" = uuid::Uuid, Path)),
    request_body = ShareFor,
    responses((status = 200, body = Share), Refusals)
)]
pub async fn share(
    State(web): State<Web>,
    caller: Caller,
    Named(tunnel): Named<TunnelId>,
    body::Json(share): body::Json<ShareFor>,
) -> Result<Json<Share>, Problem> {
    let user = caller.user(Scope::Open)?;
    if !(1..=rssh_proto::payload::SharedName::LONGEST_S).contains(&share.valid_s) {
        return Err(Problem::bad_request("valid_s is not from 1 to 600"));
    }
    let op = Operation::Share {
        tunnel,
        valid_s: share.valid_s,
    };
    match ask(&web.server, user, TunnelId::generate(), op, PATIENCE).await? {
        Answer::Shared(shared) => Ok(Json(shared.into())),
        _ => Err(unexpected().into()),
    }
}

/// Whether others' holds count.
#[derive(Debug, Deserialize)]
pub struct Force {
    #[serde(default)]
    force: bool,
}

/// Gives a tunnel up; it closes with its last holder, or by `force`.
#[utoipa::path(
    delete,
    path = "/v1/tunnels/{tunnel}",
    params(
        ("tunnel" = uuid::Uuid, Path),
        ("force" = Option<bool>, Query),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255),
    ),
    responses((status = 200, body = ClosedTunnels), Refusals)
)]
pub async fn close(
    State(web): State<Web>,
    caller: Caller,
    headers: HeaderMap,
    Named(tunnel): Named<TunnelId>,
    Query(Force { force }): Query<Force>,
) -> Result<Json<ClosedTunnels>, Problem> {
    let none = || format!("there is no open tunnel {tunnel}; GET /v1/tunnels lists them");
    let which = Which::Tunnel(tunnel);
    given_up(&web, &caller, &headers, which, force, none).await
}

/// To which device.
#[derive(Debug, Deserialize)]
pub struct ToDevice {
    device: String,
    target: Option<String>,
    #[serde(default)]
    force: bool,
}

/// Gives up all of your tunnels to a device, or those to one of its targets.
#[utoipa::path(
    delete,
    path = "/v1/tunnels",
    params(
        ("device" = String, Query, pattern = "^[a-z0-9][a-z0-9-]{0,62}$"),
        ("target" = Option<String>, Query),
        ("force" = Option<bool>, Query),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255),
    ),
    responses((status = 200, body = ClosedTunnels), Refusals)
)]
pub async fn close_device(
    State(web): State<Web>,
    caller: Caller,
    headers: HeaderMap,
    Query(to): Query<ToDevice>,
) -> Result<Json<ClosedTunnels>, Problem> {
    let bad = |error: &dyn std::fmt::Display| Problem::bad_request(error.to_string());
    let device: DeviceId = to.device.parse().map_err(|error| bad(&error))?;
    let target: Option<Target> = to
        .target
        .map(|target| target.parse())
        .transpose()
        .map_err(|error| bad(&error))?;
    let none = || format!("there is no open tunnel to {}; GET /v1/tunnels lists them", to.device);
    let which = Which::Device { device, target };
    given_up(&web, &caller, &headers, which, to.force, none).await
}

async fn given_up(
    web: &Web,
    caller: &Caller,
    headers: &HeaderMap,
    which: Which,
    force: bool,
    none: impl FnOnce() -> String,
) -> Result<Json<ClosedTunnels>, Problem> {
    let user = caller.user(Scope::Open)?;
    let id = request_id(headers, user)?;
    let op = Operation::Close(CloseRequest { which, force });
    match ask(&web.server, user, id, op, PATIENCE).await? {
        Answer::Closed(items) if items.is_empty() => Err(Problem::new(FailureKind::UnknownTunnel, none())),
        Answer::Closed(items) => Ok(Json(ClosedTunnels {
            items: items.into_iter().map(Closed::from).collect(),
        })),
        _ => Err(unexpected().into()),
    }
}
