//! A server's entry in the registry: what routers need to know of it, signed by the server itself.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::id::{Generation, InstanceId, ServerId};
use crate::payload::{ServerState, V1};

/// Redis: the key of a server's entry, a [`SignedRegistration`] in JSON with a TTL.
pub fn redis_key(server: &ServerId) -> String {
    format!("{REDIS_PREFIX}{server}")
}

/// Redis: what every entry's key starts with.
pub const REDIS_PREFIX: &str = "rssh:server:";
/// Redis: the channel on which a server publishes its id whenever its entry has changed in more than the counter.
pub const REDIS_CHANNEL: &str = "rssh:servers";

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    pub v: V1,
    pub server: ServerId,
    /// The address that leased ports are bound to.
    pub address: IpAddr,
    /// Where its sshd listens for devices.
    pub ssh: Vec<SocketAddr>,
    /// Where it answers `GET /healthz`.
    pub health: SocketAddr,
    /// Where it answers HTTPS; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<SocketAddr>,
    pub state: ServerState,
    /// How many tunnels it can hold, and holds.
    pub capacity: u32,
    pub tunnels: u32,
    /// How busy it is, 0 (idle) to 1 (full).
    pub load: f32,
    pub generation: Generation,
    pub instance: InstanceId,
    /// Grows with every heartbeat.
    pub counter: u64,
}

/// A [`Registration`] with the proof of its sender.
///
/// `signature` is over the bytes of `body`, made with the private key of `certificate`, whose CN is the server's id
/// and whose issuer is the servers' CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRegistration {
    /// The registration as JSON text, exactly as it was signed.
    pub body: String,
    /// The server's certificate: DER, in base64.
    pub certificate: String,
    /// ECDSA P-256 with SHA-256, ASN.1 form, in base64.
    pub signature: String,
}

impl SignedRegistration {
    /// Puts an envelope around a body with a signature over it.
    pub fn new(body: String, certificate: &[u8], signature: &[u8]) -> Self {
        Self {
            body,
            certificate: BASE64.encode(certificate),
            signature: BASE64.encode(signature),
        }
    }

    /// The certificate and signature as bytes; `None` when one is not base64.
    pub fn proof(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((
            BASE64.decode(&self.certificate).ok()?,
            BASE64.decode(&self.signature).ok()?,
        ))
    }
}
