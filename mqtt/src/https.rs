//! A small HTTPS client: JSON there, JSON or a problem document (RFC 9457) back.
//!
//! It trusts the servers' CA alone: by its certificate, or, before that is known, by the fingerprint in a token.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rssh_proto::{Failure, FailureKind, HostPort, HttpsUrl};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_rustls::TlsConnector;

use crate::dial::dial;
use crate::identity::{Identity, IdentityError};
use crate::proxy::Proxies;
use crate::session::jittered;
use crate::verify::Pinned;

/// How long a connection, and an answer, may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// The largest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// For how long a busy server, or one that cannot do it, is left for another.
const ELSEWHERE: Duration = Duration::from_secs(20);
/// The longest pause before that.
const PAUSE: Duration = Duration::from_millis(600);

/// Whom the client trusts, and what it shows.
pub struct Client {
    url: HttpsUrl,
    tls: Arc<ClientConfig>,
    /// Nothing: as the environment says.
    proxies: Option<Proxies>,
    /// How long a connection may take.
    connects_within: Duration,
    /// Where to connect; nothing: where the URL says.
    at: Option<HostPort>,
}

impl Client {
    /// A client with an identity.
    ///
    /// # Errors
    /// When the identity's certificate and key do not belong together.
    pub fn new(url: HttpsUrl, identity: &Identity) -> Result<Self, IdentityError> {
        Ok(Self::over(url, Arc::new(identity.client_config()?)))
    }

    /// A client that trusts and shows what this configuration says.
    pub fn over(url: HttpsUrl, tls: Arc<ClientConfig>) -> Self {
        Self {
            url,
            tls,
            proxies: None,
            connects_within: PATIENCE,
            at: None,
        }
    }

    /// A client without an identity, that trusts these authorities.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn anonymous(url: HttpsUrl, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::over(url, Arc::new(tls)))
    }

    /// A client that knows no more than the SHA-256 of the servers' CA.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn pinned(url: HttpsUrl, authority: [u8; 32]) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { authority, provider }))
            .with_no_client_auth();
        Ok(Self::over(url, Arc::new(tls)))
    }

    /// The same, through the proxies of a configuration; else those of the environment are taken.
    #[must_use]
    pub fn by(mut self, proxies: Proxies) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// The same, with a connection made within a time.
    #[must_use]
    pub fn connects_within(mut self, time: Duration) -> Self {
        self.connects_within = time;
        self
    }

    /// The same, at another address, if one is given: who answers there must be who the URL names all the same.
    #[must_use]
    pub fn at(mut self, address: Option<HostPort>) -> Self {
        self.at = address;
        self
    }

    /// Posts, and again elsewhere while a server is busy: what is posted can be repeated.
    ///
    /// # Errors
    /// When no server answers, or the answer is no success.
    pub async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Failure> {
        let (answer, _) = self.begin(path, body).await?;
        Ok(answer)
    }

    /// The same, with the connection to the server that has answered, for what has to come to that one.
    ///
    /// # Errors
    /// When no server answers, or the answer is no success.
    pub async fn begin<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(A, Connection), Failure> {
        let until = Instant::now() + ELSEWHERE;
        loop {
            let exchange = async {
                let mut connection = self.connect().await?;
                let answer = connection.post(path, body).await?;
                Ok::<_, Failure>((answer, connection))
            };
            match exchange.await {
                Err(failure) if failure.kind == FailureKind::Busy && Instant::now() < until => {}
                other => return other,
            }
            // Servers take turns. Clients that all come back after the same pause could meet the same one each time.
            tokio::time::sleep(jittered(PAUSE)).await;
        }
    }

    /// One connection, for requests that have to come to the same server.
    ///
    /// # Errors
    /// When the server cannot be reached, or is not who it should be.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let address = self.url.address();
        let away = |error: io::Error| {
            let kind = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => FailureKind::WrongCertificate,
                _ => FailureKind::NobodyServing,
            };
            let (what, remedy) = match kind {
                FailureKind::WrongCertificate => ("is not who it should be", "check the clock, and the url"),
                _ => ("cannot be reached", "check the network, and the url"),
            };
            Failure::new(kind, format!("{} {what}: {error}; {remedy}", self.url))
        };
        let connect = async {
            let name = ServerName::try_from(address.host())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let proxies = match &self.proxies {
                Some(proxies) => proxies.clone(),
                None => Proxies::of_process(None, None).map_err(io::Error::other)?,
            };
            let stream = dial(self.at.as_ref().unwrap_or(address), &proxies)
                .await
                .map_err(io::Error::other)?;
            let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
            handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let timed_out = |_| away(io::ErrorKind::TimedOut.into());
        let (sender, connection) = tokio::time::timeout(self.connects_within, connect)
            .await
            .map_err(timed_out)?
            .map_err(away)?;
        tokio::spawn(connection);
        Ok(Connection {
            sender,
            host: address.to_string(),
            url: self.url.clone(),
        })
    }
}

/// A connection to one server.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    url: HttpsUrl,
}

/// What of a problem document matters.
#[derive(Deserialize)]
struct Problem {
    code: FailureKind,
    detail: String,
}

impl Connection {
    /// Posts JSON.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is no success: the server's own words.
    pub async fn post<A: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<A, Failure> {
        let internal = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Internal, error.to_string());
        let body = serde_json::to_vec(body).map_err(|error| internal(&error))?;
        let exchange = async {
            let response = self.send(path, body).await?;
            self.body(response).await
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        let answer = answer.map_err(|error| self.broken(&error))??;
        serde_json::from_slice(&answer)
            .map_err(|error| internal(&format!("{} gave an answer that is not understood: {error}", self.url)))
    }

    /// Posts JSON, for an answer that may come bit by bit.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is no success: the server's own words.
    pub async fn stream(&mut self, path: &str, body: Vec<u8>) -> Result<Incoming, Failure> {
        let response = self.send(path, body).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            _ => Err(self.refusal(response).await),
        }
    }

    async fn send(&mut self, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        let response = self.sender.send_request(request).await;
        response.map_err(|error| self.broken(&error))
    }

    /// The whole of an answer that is a success.
    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        match response.status() {
            StatusCode::OK => {
                let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
                Ok(body.map_err(|error| self.broken(&error))?.to_bytes())
            }
            _ => Err(self.refusal(response).await),
        }
    }

    /// What an answer says that is no success.
    async fn refusal(&self, response: Response<Incoming>) -> Failure {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let problem = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
        match problem {
            Some(Problem { code, detail }) => Failure::new(code, detail),
            None => Failure::new(
                FailureKind::NobodyServing,
                format!("{} answered {status}; is it an installation of rssh?", self.url),
            ),
        }
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(
            FailureKind::NobodyServing,
            format!("the connection to {} broke: {error}", self.url),
        )
    }
}
