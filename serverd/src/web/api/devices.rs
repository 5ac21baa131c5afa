//! Devices.

use axum::Json;
use axum::extract::State;
use rssh_proto::payload::Operation;
use rssh_proto::{DeviceId, TunnelId};
use serde::Deserialize;

use super::ask::{Answer, PATIENCE, ask, unexpected};
use super::model::{Device, Devices, HostKeys};
use super::query::{Named, Page, Query, tags};
use super::refusals::Refusals;
use crate::clock;
use crate::token::Scope;
use crate::web::Web;
use crate::web::caller::Caller;
use crate::web::problem::Problem;

/// Which devices.
#[derive(Debug, Deserialize)]
pub struct Which {
    tag: Option<String>,
    #[serde(default)]
    limit: Option<u16>,
    #[serde(default)]
    after: Option<String>,
}

/// Lists the devices that you may open something on, by name.
#[utoipa::path(
    get,
    path = "/v1/devices",
    params(
        ("tag" = Option<String>, Query, description = "Only devices that have these tags: `site=berlin`, several separated by commas"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 500),
        ("after" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses((status = 200, body = Devices), Refusals)
)]
pub async fn list(
    State(web): State<Web>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Json<Devices>, Problem> {
    let user = caller.user(Scope::Read)?;
    let wanted = tags(which.tag.as_deref())?;
    let Answer::Devices(mut devices) =
        ask(&web.server, user, TunnelId::generate(), Operation::Devices, PATIENCE).await?
    else {
        return Err(unexpected().into());
    };
    devices.retain(|info| wanted.iter().all(|tag| tag.is_in(&info.tags)));
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    let page = Page::new(which.limit, which.after);
    let (items, next) = page.of(devices, |info| info.device.to_string())?;
    let now = clock::now().0;
    let items = items.into_iter().map(|info| Device::at(now, info)).collect();
    Ok(Json(Devices { items, next }))
}

/// Tells the host keys of a device's own sshd.
#[utoipa::path(
    get,
    path = "/v1/devices/{device}/host-keys",
    params(("device" = String, Path, pattern = "^[a-z0-9][a-z0-9-]{0,62}$")),
    responses((status = 200, body = HostKeys), Refusals)
)]
pub async fn host_keys(
    State(web): State<Web>,
    caller: Caller,
    Named(device): Named<DeviceId>,
) -> Result<Json<HostKeys>, Problem> {
    let user = caller.user(Scope::Read)?;
    let op = Operation::HostKeys { device: device.clone() };
    match ask(&web.server, user, TunnelId::generate(), op, PATIENCE).await? {
        Answer::HostKeys(keys) => Ok(Json(HostKeys {
            device: device.into(),
            keys,
        })),
        _ => Err(unexpected().into()),
    }
}
