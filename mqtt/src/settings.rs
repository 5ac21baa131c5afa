//! What a session is given.

use std::sync::Arc;
use std::time::Duration;

use rssh_proto::HostPort;

use crate::proxy::Proxies;

/// How to reach the broker and what to say there.
pub struct Settings {
    /// Brokers, tried in turn.
    pub brokers: Vec<HostPort>,
    pub tls: Arc<rustls::ClientConfig>,
    /// The identity; the client id is this with 128 random bits, so that nobody can guess it and take the session over.
    pub cn: String,
    pub keep_alive: Duration,
    /// How many acknowledged publishes may be under way at once; rumqttc reserves 216 bytes for each.
    pub inflight: u16,
    /// How many messages may wait for their reader, and how many for the network.
    pub queue: usize,
    pub subscriptions: Vec<String>,
    /// Asked before each connect, so that a will can carry the generation of its connection.
    pub will: Option<WillOf>,
    /// Spread of the pause before each reconnect; it doubles from the first to the second.
    pub reconnect: (Duration, Duration),
    pub dial: Dial,
}

/// How connections are made.
#[derive(Debug, Clone, Default)]
pub struct Dial {
    /// Whether this machine's network changes, and [`Session::network_changed`] tells it.
    pub roams: bool,
    pub proxies: Proxies,
    /// Whether there is a connection with every broker, rather than with one: whoever is at one of them is heard and
    /// reached. Brokers that are no cluster need this of those who serve.
    pub everywhere: bool,
}

/// What the broker publishes when the session ends without a goodbye; retained.
#[derive(Debug, Clone)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// Makes the will of the next connection.
pub type WillOf = Box<dyn Fn() -> Will + Send + Sync>;
