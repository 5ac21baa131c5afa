//! What other servers ask of this one.

use std::sync::Arc;
use std::time::Instant;

use rssh_proto::payload::{Rank, ReplyBody, ServerOperation, TunnelState};

use crate::requests;
use crate::server::Server;
use crate::sessions::{self, execute};
use crate::store::Asker;

/// Carries a request of another server out. The broker lets servers only publish here. A name is signed for what the
/// database says, not for what the message says; ending a session that was not over costs its device a new landing.
pub async fn handle(server: Arc<Server>, op: ServerOperation) {
    match op {
        ServerOperation::Evict { tunnel, below } => {
            let commands = server.leases().handle_evict(tunnel, below, Instant::now());
            tracing::info!(%tunnel, %below, sessions = commands.len(), "evicted");
            execute(&server, commands);
        }
        ServerOperation::Relay { user, session, reply } => server.locals.deliver(&user, &session, *reply),
        ServerOperation::End { tunnel } => sessions::end_here(&server, tunnel),
        ServerOperation::Sign {
            tunnel,
            user,
            session,
            request,
            bearer_s,
        } => match server.store.tunnel_of(&user, tunnel).await {
            Ok(Some(found)) if found.state == TunnelState::Active => {
                let asker = Asker { user, session, request };
                if let Some(valid_s) = bearer_s {
                    return requests::sign_bearer(&server, &asker, &found, valid_s).await;
                }
                let body = ReplyBody::Opened(server.info(&found));
                server.reply(&asker, Some(&found), Rank::Final, body);
            }
            Ok(_) => tracing::info!(%tunnel, %user, "asked to sign a name for no tunnel"),
            Err(error) => tracing::warn!(%tunnel, %error, "cannot sign a name"),
        },
    }
}
