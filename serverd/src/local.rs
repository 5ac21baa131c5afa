//! Answers to requests that came by HTTP: they go to a session in this process, or to the server in whose process it is.
//!
//! Whoever commits a transition answers, as with sessions at the broker. A session's id says which server it is at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rssh_proto::id::random_hex;
use rssh_proto::payload::{Reply, ServerOperation, ServerRequest, V1};
use rssh_proto::topic::Topic;
use rssh_proto::{ServerId, SessionId, UserId};
use tokio::sync::mpsc;

use crate::server::Server;

/// What an id of such a session begins with; the length of the server's id follows in two digits, then that id.
const PREFIX: &str = "api";
/// How many answers may wait in a session: the longest list.
const WAITING: usize = 2048;

/// The sessions of this process.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SessionId, (UserId, mpsc::Sender<Reply>)>>);

/// One session; it ends with the value.
pub struct Session {
    server: Arc<Server>,
    pub id: SessionId,
    pub replies: mpsc::Receiver<Reply>,
}

impl Session {
    /// Begins a session of a user.
    pub fn begin(server: &Arc<Server>, user: &UserId) -> Self {
        let id = id_at(&server.id);
        let (sender, replies) = mpsc::channel(WAITING);
        server.locals.lock().insert(id.clone(), (user.clone(), sender));
        Self {
            server: server.clone(),
            id,
            replies,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.server.locals.lock().remove(&self.id);
    }
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, (UserId, mpsc::Sender<Reply>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer to a session of its user; one that has ended has nobody to tell.
    pub fn deliver(&self, user: &UserId, session: &SessionId, reply: Reply) {
        let sessions = self.lock();
        if let Some((owner, sender)) = sessions.get(session)
            && owner == user
            && let Err(error) = sender.try_send(reply)
        {
            tracing::debug!(%session, %error, "an answer was dropped");
        }
    }
}

/// Sends an answer to where its session is; gives it back where that is the broker.
pub fn send(server: &Server, user: &UserId, session: &SessionId, reply: Reply) -> Option<Reply> {
    match place(session) {
        None => return Some(reply),
        Some(place) if place == server.id => server.locals.deliver(user, session, reply),
        Some(place) => {
            let request = ServerRequest {
                v: V1,
                op: ServerOperation::Relay {
                    user: user.clone(),
                    session: session.clone(),
                    reply: Box::new(reply),
                },
            };
            let topic = Topic::ServerRequest(place);
            let publish = rssh_mqtt::Publish::new(topic, rssh_proto::payload::encode(&request));
            if let Err(error) = server.session.send(publish) {
                tracing::warn!(%session, %error, "cannot pass an answer on");
            }
        }
    }
    None
}

/// Draws an id for a session at a server.
fn id_at(server: &ServerId) -> SessionId {
    let name = server.as_str();
    let mut id = format!("{PREFIX}{:02}{name}{}", name.len(), random_hex::<16>());
    id.truncate(32);
    // Letters and digits, and longer than eight.
    id.parse().unwrap_or_else(|_| SessionId::generate())
}

/// At which server a session is; `None` for one at the broker.
fn place(session: &SessionId) -> Option<ServerId> {
    let rest = session.as_str().strip_prefix(PREFIX)?;
    let length: usize = rest.get(..2)?.parse().ok()?;
    rest.get(2..2 + length)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_id_says_where_it_is() {
        for server in ["s1", "s", "abcdefghijkl", "a12"] {
            let server: ServerId = server.parse().unwrap();
            let id = id_at(&server);
            assert_eq!(place(&id), Some(server), "{id}");
            assert_ne!(id, id_at(&place(&id).unwrap()), "and is nobody's to guess");
        }
        for other in ["0123456789abcdef", "apixxs1aaaa", "api99s1aaaa", "api0212aaaaaa"] {
            assert_eq!(place(&other.parse().unwrap()), None, "{other}");
        }
    }
}
