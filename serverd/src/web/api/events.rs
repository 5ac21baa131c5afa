//! What happens to a user's tunnels, as it happens: server-sent events.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use rssh_proto::{TunnelId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{Explained, Reached};
use super::query::Query;
use super::refusals::Refusals;
use crate::requests;
use crate::server::Server;
use crate::token::Scope;
use crate::web::Web;
use crate::web::caller::Caller;
use crate::web::problem::Problem;
use crate::web::shares::Place;

/// How often the database is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How often a quiet stream says that it lives.
const ALIVE: Duration = Duration::from_secs(15);

/// Which tunnels.
#[derive(Debug, Deserialize)]
pub struct Which {
    tunnel: Option<String>,
}

/// The data of a `stage` event.
#[derive(Debug, Serialize, ToSchema)]
pub struct StageEvent {
    tunnel: String,
    device: String,
    target: String,
    #[serde(flatten)]
    reached: Reached,
}

/// Tells of your tunnels as server-sent events: those that are open now, and whatever happens to them.
///
/// `stage` events tell each stage that a tunnel reaches, with its time; `tunnel` events tell the tunnel as it is whenever
/// that has changed. A stream begins with the present.
#[utoipa::path(
    get,
    path = "/v1/events",
    params(("tunnel" = Option<uuid::Uuid>, Query, description = "Only of this tunnel")),
    responses(
        (status = 200, description = "Events: `stage` and `tunnel`", body = String, content_type = "text/event-stream"),
        Refusals
    )
)]
pub async fn follow(
    State(web): State<Web>,
    caller: Caller,
    Query(which): Query<Which>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let user = caller.user(Scope::Read)?.clone();
    let only: Option<TunnelId> = which
        .tunnel
        .map(|tunnel| tunnel.parse())
        .transpose()
        .map_err(|error: rssh_proto::id::IdError| Problem::bad_request(error.to_string()))?;
    let place = web
        .streams
        .take(user.to_string())
        .ok_or_else(|| Problem::busy("too many streams are open on this server; try again in a second"))?;
    let feed = Feed {
        server: web.server.clone(),
        user,
        only,
        seen: HashMap::new(),
        ready: VecDeque::new(),
        first: true,
        _place: place,
    };
    let events = stream::unfold(feed, |mut feed| async move {
        loop {
            if let Some(event) = feed.ready.pop_front() {
                return Some((Ok(event), feed));
            }
            feed.look().await;
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)))
}

/// One stream.
struct Feed {
    server: Arc<Server>,
    user: UserId,
    only: Option<TunnelId>,
    seen: HashMap<TunnelId, Explained>,
    ready: VecDeque<Event>,
    first: bool,
    _place: Place,
}

impl Feed {
    /// Waits a while, looks, and makes events of what has changed.
    async fn look(&mut self) {
        if !std::mem::take(&mut self.first) {
            tokio::time::sleep(EVERY).await;
        }
        let traces = match self.server.store.traces_of(&self.user, self.only).await {
            Ok(traces) => traces,
            Err(error) => return tracing::debug!(%error, "no events for now"),
        };
        let mut there = HashMap::new();
        for (tunnel, times) in traces {
            let mut trace = requests::trace(&self.server, &tunnel, times);
            // Who may only look gets no name.
            (trace.info.host, trace.info.port, trace.info.host_expires_at) = (None, None, None);
            let now = Explained::from(trace);
            let before = self.seen.remove(&tunnel.id);
            self.tell(before.as_ref(), &now);
            there.insert(tunnel.id, now);
        }
        self.seen = there;
    }

    fn tell(&mut self, before: Option<&Explained>, now: &Explained) {
        if before == Some(now) {
            return;
        }
        let told = before.map_or(&[][..], |before| &before.stages);
        for reached in now.stages.iter().filter(|reached| !told.contains(reached)) {
            let stage = StageEvent {
                tunnel: now.tunnel.tunnel.clone(),
                device: now.tunnel.device.clone(),
                target: now.tunnel.target.clone(),
                reached: *reached,
            };
            self.push("stage", &stage);
        }
        self.push("tunnel", now);
    }

    fn push(&mut self, name: &str, data: &impl Serialize) {
        match Event::default().event(name).json_data(data) {
            Ok(event) => self.ready.push_back(event),
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
    }
}
