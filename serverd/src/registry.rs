//! What this server says of itself: to routers by Redis and MQTT, to everyone by PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::AsyncConnectionConfig;
use rssh_mqtt::renewal::Renewable;
use rssh_mqtt::{Identity, Publish};
use rssh_proto::payload::{self, ServerState, ServerStatus, V1};
use rssh_proto::registration::{REDIS_CHANNEL, Registration, SignedRegistration, redis_key};
use rssh_proto::topic::Topic;
use rssh_stores::{Redis, UrlError};
use rustls_pki_types::PrivateKeyDer;

use crate::capacity;
use crate::server::Server;

/// How long Redis may take to answer.
const REDIS_PATIENCE: Duration = Duration::from_millis(500);

/// Why a registration cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the server's private key cannot sign; it must be ECDSA P-256, as rssh-serverd server init makes it")]
    Key,
    #[error("the redis url is wrong: {0}")]
    Url(#[from] UrlError),
    #[error("this server's id is held by another process now, or was declared lost; it ends")]
    Fenced,
}

/// Signs registrations with the private key of the server's certificate.
pub struct Signer {
    key: ring::signature::EcdsaKeyPair,
    renewable: Arc<Renewable>,
}

impl Signer {
    /// Takes the key of an identity.
    ///
    /// # Errors
    /// When it is not an ECDSA P-256 key in PKCS#8.
    pub fn new(identity: &Identity, renewable: Arc<Renewable>) -> Result<Self, RegistryError> {
        let PrivateKeyDer::Pkcs8(key) = &identity.key else {
            return Err(RegistryError::Key);
        };
        let random = ring::rand::SystemRandom::new();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, key.secret_pkcs8_der(), &random)
            .map_err(|_| RegistryError::Key)?;
        Ok(Self { key, renewable })
    }

    /// Signs what a server says of itself.
    ///
    /// # Errors
    /// When the key does not sign.
    pub fn sign(&self, registration: &Registration) -> Result<String, RegistryError> {
        let body = serde_json::to_string(registration).map_err(|_| RegistryError::Key)?;
        let random = ring::rand::SystemRandom::new();
        let signature = self
            .key
            .sign(&random, body.as_bytes())
            .map_err(|_| RegistryError::Key)?;
        let signed = SignedRegistration::new(body, &self.renewable.certificate(), signature.as_ref());
        serde_json::to_string(&signed).map_err(|_| RegistryError::Key)
    }
}

/// The state that this server announces.
pub fn state(server: &Server) -> ServerState {
    if server.open_for_landings.load(Ordering::Relaxed) {
        ServerState::Serving
    } else {
        ServerState::Draining
    }
}

/// This server's status as routers read it from the broker.
pub fn status(server: &Server, state: ServerState) -> ServerStatus {
    ServerStatus {
        v: V1,
        state,
        generation: server.generation,
        instance: server.instance.clone(),
    }
}

/// Announces this server to routers by MQTT; retained.
pub fn announce(server: &Server, state: ServerState) {
    let publish = Publish::new(
        Topic::ServerStatus(server.id.clone()),
        payload::encode(&status(server, state)),
    );
    if let Err(error) = server.session.send(publish.retained()) {
        tracing::warn!(%error, "cannot announce this server");
    }
}

/// Registers and beats until the server is fenced.
///
/// # Errors
/// When another process has this server's id, or the key cannot sign.
pub async fn run(server: Arc<Server>, signer: Signer) -> Result<(), RegistryError> {
    let ttl = server.config.redis.ttl.duration();
    let redis = server.config.redis()?;
    let mut connection = None;
    let mut ticks = tokio::time::interval(ttl / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    for counter in 1_u64.. {
        ticks.tick().await;
        let state = state(&server);
        let counts = server.leases().counts();
        let capacity = capacity::capacity(&capacity::look(&server.config.sshd, counts));
        server.capacity.store(capacity.tunnels, Ordering::Relaxed);
        let registration = Registration {
            v: V1,
            server: server.id.clone(),
            address: server.config.sshd.address,
            ssh: server.config.sshd.listen.clone(),
            health: server.config.http.listen,
            https: server.config.https.as_ref().map(|https| https.listen),
            state,
            capacity: capacity.tunnels,
            tunnels: u32::try_from(counts.held).unwrap_or(u32::MAX),
            load: crate::load::average(),
            generation: server.generation,
            instance: server.instance.clone(),
            counter,
        };
        let signed = signer.sign(&registration)?;
        let news = last != Some(state);
        let since = Instant::now();
        match beat_redis(&redis, &mut connection, &server, &signed, ttl, news).await {
            Ok(()) => server.metrics.beat_redis(since),
            Err(error) => {
                tracing::warn!(%error, "cannot register with redis");
                connection = None;
            }
        }
        // The heartbeat keeps the id; the whole entry is written when it says something new, and now and then for
        // routers that read it without Redis.
        if news || counter % 8 == 0 {
            match server
                .store
                .register(&server.id, server.generation, state, server.config.http.listen, &signed)
                .await
            {
                Ok(true) => last = Some(state),
                Ok(false) => return Err(RegistryError::Fenced),
                Err(error) => tracing::warn!(%error, "cannot register with the database"),
            }
        }
        match server.store.heartbeat(&server.id, server.generation, counter).await {
            Ok(true) => server.metrics.beat_database(),
            Ok(false) => return Err(RegistryError::Fenced),
            Err(error) => tracing::warn!(%error, "heartbeat missed"),
        }
    }
    Ok(())
}

async fn beat_redis(
    redis: &Redis,
    connection: &mut Option<redis::aio::MultiplexedConnection>,
    server: &Server,
    signed: &str,
    ttl: Duration,
    news: bool,
) -> redis::RedisResult<()> {
    let timed_out = |_| redis::RedisError::from((redis::ErrorKind::Io, "redis does not answer"));
    let beat = async {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(redis.connect(&AsyncConnectionConfig::new()).await?),
        };
        let mut pipe = redis::pipe();
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        pipe.pset_ex(redis_key(&server.id), signed, ttl_ms).ignore();
        if news {
            pipe.publish(REDIS_CHANNEL, server.id.as_str()).ignore();
        }
        pipe.query_async::<()>(connection).await
    };
    tokio::time::timeout(REDIS_PATIENCE, beat).await.map_err(timed_out)?
}

/// Takes this server's entry out of Redis: a goodbye, so that routers need not wait for the TTL.
pub async fn leave(server: &Server) {
    announce(server, ServerState::Offline);
    let forget = async {
        let redis = server.config.redis()?;
        let mut connection = redis.connect(&AsyncConnectionConfig::new()).await?;
        redis::pipe()
            .del(redis_key(&server.id))
            .ignore()
            .publish(REDIS_CHANNEL, server.id.as_str())
            .ignore()
            .query_async::<()>(&mut connection)
            .await?;
        Ok::<_, UrlError>(())
    };
    match tokio::time::timeout(REDIS_PATIENCE, forget).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot leave redis"),
        Err(_) => tracing::warn!("cannot leave redis: it does not answer"),
    }
}
