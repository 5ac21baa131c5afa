//! The messages of MQTT by HTTP: one request as [`rssh_proto::payload::Request`] has it, and its answers line by line
//! as they come. `rssh --via http` speaks this.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use rssh_proto::payload::{self, Operation, Rank, Request};

use super::refusals::Refusals;
use crate::local::Session;
use crate::requests;
use crate::token::Scope;
use crate::web::Web;
use crate::web::caller::Caller;
use crate::web::{body, problem::Problem};

/// The longest that answers are waited for; whoever waits longer asks again with the same id.
const LONGEST: Duration = Duration::from_secs(60);

/// Carries one message of the protocol (docs/protocol.md); the answers come as lines of JSON.
#[utoipa::path(
    post,
    path = "/v1/requests",
    request_body = Object,
    responses(
        (status = 200, description = "Answers, one JSON object in each line", body = String, content_type = "application/x-ndjson"),
        Refusals
    )
)]
pub async fn carry(
    State(web): State<Web>,
    caller: Caller,
    body::Json(mut request): body::Json<Request>,
) -> Result<Response, Problem> {
    let user = caller.user(scope(&request.op))?;
    let session = Session::begin(&web.server, user);
    request.session = session.id.clone();
    let patience = Duration::from_millis(request.deadline_ms.into()).min(LONGEST);
    let deadline = Instant::now() + patience;
    tokio::spawn(requests::handle(web.server.clone(), user.clone(), request));
    let lines = stream::unfold(Some(session), move |session| async move {
        let mut session = session?;
        let reply = tokio::time::timeout_at(deadline.into(), session.replies.recv()).await;
        let reply = reply.ok().flatten()?;
        let over = reply.rank == Rank::Final && !more_follows(&reply);
        let mut line = payload::encode(&reply);
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(line), (!over).then_some(session)))
    });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((head, Body::from_stream(lines)).into_response())
}

/// Whether a list has another page.
fn more_follows(reply: &payload::Reply) -> bool {
    use payload::ReplyBody as Body;
    matches!(
        reply.body,
        Body::Tunnels { last: false, .. } | Body::Devices { last: false, .. }
    )
}

/// What a token must be good for.
fn scope(op: &Operation) -> Scope {
    match op {
        Operation::Open(_) | Operation::Close(_) | Operation::Name { .. } | Operation::Share { .. } => Scope::Open,
        Operation::List
        | Operation::Devices
        | Operation::Trace { .. }
        | Operation::Latest { .. }
        | Operation::HostKeys { .. } => Scope::Read,
    }
}
