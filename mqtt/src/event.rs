//! What happens to a session, and what goes over it.

use std::time::Duration;

use rssh_proto::HostPort;
use rumqttc::v5::mqttbytes::Error as MqttError;
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use rumqttc::v5::{ConnectionError, StateError};

use crate::relay::RelayError;

/// What happens to a session.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed.
    Up,
    /// The connection is gone, or could not be made; the session goes on trying.
    Down(Down),
    Message(Message),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    #[error("cannot reach the broker {broker}: {reason}")]
    Unreachable { broker: HostPort, reason: String },
    #[error("the broker {broker} and this program do not accept each other's certificates: {reason}")]
    Certificate { broker: HostPort, reason: String },
    #[error("the broker {broker} does not know this identity")]
    NotEnrolled { broker: HostPort },
    #[error("the broker {broker} refused the session: {reason}")]
    Refused { broker: HostPort, reason: String },
    #[error("the broker {broker} refused the subscription to {filter}")]
    Subscription { broker: HostPort, filter: String },
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retained: bool,
}

/// What became of an acknowledged publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The broker has it, and knows of a subscriber; whether that one lives is not known.
    Accepted,
    /// The broker has it and nobody subscribes (MQTT 5, reason 16).
    NoSubscriber,
}

/// Why a publish failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("not connected to the broker")]
    Away,
    #[error("the broker does not take messages fast enough")]
    Full,
    #[error("the connection to the broker was lost before it acknowledged")]
    Lost,
    #[error("the broker refused the message: {0}")]
    Refused(String),
    #[error("payload of {0} bytes is over the limit")]
    TooLarge(usize),
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    /// The broker drops it when it could not be delivered within this time.
    pub expiry: Option<Duration>,
}

impl Publish {
    /// A message that is not retained and does not expire.
    pub fn new(topic: impl ToString, payload: Vec<u8>) -> Self {
        Self {
            topic: topic.to_string(),
            payload,
            retain: false,
            expiry: None,
        }
    }

    /// The same, kept by the broker for later subscribers.
    #[must_use]
    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    /// The same, dropped by the broker after this time.
    #[must_use]
    pub fn expiring(mut self, after: Duration) -> Self {
        self.expiry = Some(after);
        self
    }
}

/// Names the reason for a connection's end.
pub(crate) fn down(broker: &HostPort, error: &ConnectionError) -> Down {
    let broker = broker.clone();
    let reason = error.to_string();
    match error {
        ConnectionError::Tls(rumqttc::TlsError::TLS(_)) => Down::Certificate { broker, reason },
        ConnectionError::Tls(rumqttc::TlsError::Io(io)) if is_tls(io) => Down::Certificate { broker, reason },
        ConnectionError::Io(io) if is_tls(io) => Down::Certificate { broker, reason },
        ConnectionError::MqttState(StateError::Io(io)) if is_tls(io) => Down::Certificate { broker, reason },
        // With TLS 1.3 the broker's alert on our certificate comes after our side of the handshake is done.
        ConnectionError::MqttState(StateError::Deserialization(MqttError::Io(io))) if is_tls(io) => {
            Down::Certificate { broker, reason }
        }
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
        ) => Down::NotEnrolled { broker },
        ConnectionError::ConnectionRefused(code) => Down::Refused {
            broker,
            reason: format!("{code:?}"),
        },
        _ => Down::Unreachable { broker, reason },
    }
}

/// Names the reason why a relay to the broker does not come up, or ended.
pub(crate) fn relay_down(broker: &HostPort, error: &RelayError) -> Down {
    let broker = broker.clone();
    let reason = error.to_string();
    match error {
        RelayError::Tls(io) if is_tls(io) => Down::Certificate { broker, reason },
        _ => Down::Unreachable { broker, reason },
    }
}

/// Why the broker ended the connection, if it was the broker and not the way to it.
pub(crate) fn by_broker(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            Some(format!("{reason_code:?}"))
        }
        // mosquitto 2.0 closes a session that is taken over without a word.
        ConnectionError::MqttState(StateError::ConnectionAborted) => Some("it closed the connection".to_owned()),
        _ => None,
    }
}

/// Whether an I/O error carries a TLS error, such as the peer's alert that our certificate is unknown to it.
fn is_tls(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some())
}
