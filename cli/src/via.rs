//! Requests by HTTPS: each is posted, and its answers come as lines of JSON on the same connection.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rssh_mqtt::https::Client;
use rssh_mqtt::proxy::Proxies;
use rssh_proto::payload::{self, LIMIT, Reply, Request};
use rssh_proto::{Failure, FailureKind, HttpsUrl};
use tokio::sync::mpsc;

/// How long a connection may take.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// Where requests go.
#[derive(Clone)]
pub struct Api {
    client: Arc<Client>,
}

impl Api {
    /// The API at this address.
    pub fn new(url: HttpsUrl, tls: Arc<rustls::ClientConfig>, proxies: Proxies) -> Self {
        let client = Client::over(url, tls).by(proxies).connects_within(CONNECTS_WITHIN);
        Self {
            client: Arc::new(client),
        }
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
        let passed = async {
            let mut connection = self.client.connect().await?;
            pass_on(connection.stream("/v1/requests", body).await?, answers).await
        };
        tokio::select! {
            outcome = passed => outcome,
            // Nobody waits for answers any more.
            () = answers.closed() => Ok(()),
        }
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
