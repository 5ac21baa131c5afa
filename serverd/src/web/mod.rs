//! HTTPS: enrolment, renewal, and the API.
//!
//! TLS 1.3 only. A client certificate is asked for and need not be shown: whoever enrols has none yet, and scripts bring
//! a bearer token. Sessions are never resumed, since a resumed one shows the certificate of the day it began. Every
//! error is a problem document (RFC 9457).

pub mod api;
pub mod body;
pub mod caller;
mod enrol;
pub mod problem;
mod renew;
mod shares;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ring::hmac;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::office::Office;
use crate::server::Server;
use crate::token;
use problem::Problem;
use shares::Shares;
use tls::{Acceptor, Shown};

/// How many connections are held at once; more wait in the listener's queue.
const CONNECTIONS: usize = 1024;
/// How many requests are worked on at once, and how many of one caller; more are told to come again.
const AT_ONCE: usize = 64;
const OF_ONE: usize = 16;
/// How many streams of events are open at once, and how many of one user.
const STREAMS: usize = 64;
const STREAMS_OF_ONE: usize = 16;
/// How long a TLS handshake, and a request's head, may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request may take as a whole.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest body of a request, in bytes, where a route sets no smaller limit.
pub const BODY_LIMIT: usize = 16 << 10;

/// What handlers share.
#[derive(Clone)]
pub struct Web {
    pub server: Arc<Server>,
    /// Where identities are made; a server without the authorities has none.
    office: Option<Arc<Office>>,
    /// What this process seals its challenges with.
    seal: hmac::Key,
    places: Shares,
    /// How many streams of events may be open.
    streams: Shares,
}

/// The port, and the identity that is shown on it.
pub struct Door {
    listener: TcpListener,
    acceptor: Arc<Acceptor>,
}

impl Door {
    /// What shakes hands at it.
    pub fn acceptor(&self) -> Arc<Acceptor> {
        self.acceptor.clone()
    }
}

/// Opens the port; `None` when the configuration has no `[https]`.
///
/// # Errors
/// When the port is taken, or the certificate is missing.
pub async fn open(server: &Server) -> anyhow::Result<Option<Door>> {
    let Some(https) = &server.config.https else {
        return Ok(None);
    };
    let acceptor = Acceptor::load(&server.config)?;
    let listener = TcpListener::bind(https.listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on {} for HTTPS: {error}", https.listen))?;
    Ok(Some(Door {
        listener,
        acceptor: Arc::new(acceptor),
    }))
}

/// Answers, for ever.
pub async fn serve(server: Arc<Server>, door: Door) {
    let web = Web {
        office: Office::of(&server.config, &server.store).map(Arc::new),
        server,
        seal: hmac::Key::new(hmac::HMAC_SHA256, &token::random()),
        places: Shares::new(AT_ONCE, OF_ONE),
        streams: Shares::new(STREAMS, STREAMS_OF_ONE),
    };
    let router = router(web);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match door.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for HTTPS");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, router) = (door.acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = converse(&acceptor, router, stream).await {
                tracing::debug!(%error, "https");
            }
            drop(place);
        });
    }
}

/// One connection, from the handshake to its end.
async fn converse(acceptor: &Acceptor, router: Router, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    let (stream, shown) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(timed_out)??;
    let router = router.layer(axum::Extension(shown));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(32 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(io::Error::other)
}

/// Every route, with what holds for all of them.
fn router(web: Web) -> Router {
    Router::new()
        .route("/v1/whoami", get(caller::whoami))
        .merge(api::router())
        .merge(enrol::routes())
        .merge(renew::routes())
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(web.clone(), bound))
        .with_state(web)
}

/// Bounds a request: a place among those worked on, and a time.
async fn bound(State(web): State<Web>, request: Request, next: Next) -> Response {
    let Some(place) = web.places.take(caller(&request)) else {
        return Problem::busy("the server has its hands full; try again in a second").into_response();
    };
    let response = tokio::time::timeout(PATIENCE, next.run(request)).await;
    drop(place);
    response.unwrap_or_else(|_| Problem::busy("it took too long; try again in a moment").into_response())
}

/// Whose share a request takes, before anybody is asked who that is: the certificate's, or the token's. Those without
/// either share one.
fn caller(request: &Request) -> String {
    if let Some(header) = request.headers().get(AUTHORIZATION) {
        // A digest, since it is a secret.
        let sum = ring::digest::digest(&ring::digest::SHA256, header.as_bytes());
        return rssh_proto::text::hex(sum.as_ref());
    }
    let shown = request.extensions().get::<Shown>().and_then(|shown| shown.0.clone());
    shown.map_or_else(String::new, |certificate| {
        format!("{:?} {}", certificate.domain, certificate.name)
    })
}

async fn unknown() -> Problem {
    Problem::not_found("there is nothing at this path")
}

async fn not_allowed() -> Problem {
    Problem::method_not_allowed()
}
