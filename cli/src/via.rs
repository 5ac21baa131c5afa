//! Requests by HTTPS: each is posted, and its answers come as lines of JSON on the same connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rssh_mqtt::dial::dial;
use rssh_mqtt::proxy::Proxies;
use rssh_proto::payload::{self, LIMIT, Reply, Request};
use rssh_proto::{Failure, FailureKind, HttpsUrl};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a connection may take.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// The longest error document, in bytes.
const PROBLEM_LIMIT: usize = 16 * 1024;

/// Where requests go.
#[derive(Clone)]
pub struct Api {
    url: HttpsUrl,
    tls: Arc<rustls::ClientConfig>,
    proxies: Proxies,
}

/// What of an error document (RFC 9457) matters here.
#[derive(Deserialize)]
struct Problem {
    code: FailureKind,
    detail: String,
}

impl Api {
    /// The API at this address.
    pub fn new(url: HttpsUrl, tls: Arc<rustls::ClientConfig>, proxies: Proxies) -> Self {
        Self { url, tls, proxies }
    }

    /// Posts a request; its answers come until the server has no more, or a failure instead.
    pub fn post(&self, request: &Request) -> mpsc::Receiver<Result<Reply, Failure>> {
        let (sender, answers) = mpsc::channel(16);
        let (api, body) = (self.clone(), payload::encode(request));
        tokio::spawn(async move {
            if let Err(failure) = api.exchange(body, &sender).await {
                // Whoever no longer listens needs no reason.
                let _ = sender.send(Err(failure)).await;
            }
        });
        answers
    }

    async fn exchange(&self, body: Vec<u8>, answers: &mpsc::Sender<Result<Reply, Failure>>) -> Result<(), Failure> {
        let away = |error: &dyn std::fmt::Display| {
            Failure::new(
                FailureKind::NobodyServing,
                format!(
                    "cannot reach {}: {error}; check the network, and url in the profile",
                    self.url
                ),
            )
        };
        let address = self.url.address();
        let connect = async {
            let name = ServerName::try_from(self.url.host()).map_err(io::Error::other)?;
            let socket = dial(address, &self.proxies).await.map_err(io::Error::other)?;
            TlsConnector::from(self.tls.clone()).connect(name, socket).await
        };
        let stream = timeout(CONNECTS_WITHIN, connect)
            .await
            .map_err(|_| away(&"it does not answer"))?
            .map_err(|error| away(&error))?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| away(&error))?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri("/v1/requests")
            .header(HOST, address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        let passed = async {
            let response = sender.send_request(request).await.map_err(|error| away(&error))?;
            let status = response.status();
            match status {
                StatusCode::OK => pass_on(response.into_body(), answers).await,
                _ => Err(refusal(status, response.into_body()).await),
            }
        };
        let outcome = tokio::select! {
            outcome = passed => outcome,
            // Nobody waits for answers any more.
            () = answers.closed() => Ok(()),
        };
        connection.abort();
        outcome
    }
}

/// Passes answers on, line by line. A connection that breaks says nothing: the request is repeated in time.
async fn pass_on(mut body: Incoming, answers: &mpsc::Sender<Result<Reply, Failure>>) -> Result<(), Failure> {
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match payload::decode(&line) {
                Ok(reply) => {
                    if answers.send(Ok(reply)).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => tracing::debug!(%error, "answer dropped"),
            }
        }
        if buffer.len() > LIMIT {
            return Err(Failure::new(
                FailureKind::Internal,
                "the server's answer is no line of JSON",
            ));
        }
    }
    Ok(())
}

/// What a refusal says.
async fn refusal(status: StatusCode, body: Incoming) -> Failure {
    let document = Limited::new(body, PROBLEM_LIMIT).collect().await;
    let problem = document
        .ok()
        .and_then(|document| serde_json::from_slice::<Problem>(&document.to_bytes()).ok());
    match problem {
        Some(problem) => Failure::new(problem.code, problem.detail),
        None => Failure::new(
            FailureKind::NobodyServing,
            format!("the server answered {status}; check url in the profile"),
        ),
    }
}
