//! The session: connect, subscribe, deliver, reconnect.
//!
//! rumqttc keeps one event loop per connection. After a disconnect its loop may hold publishes that vanish silently, or
//! never get past a packet-id collision; so each connection gets a fresh loop, everything unacknowledged is reported to
//! its sender as lost, and the subscriptions are made anew. What must not be lost is kept by the caller (in PostgreSQL,
//! or by repeating a request with its id).

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rssh_proto::HostPort;
use rssh_proto::id::random_hex;
use rssh_proto::payload;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, Filter, LastWill, Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as MqttError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use tokio::sync::{mpsc, oneshot};

use crate::pace::{Pace, Was};

/// How long the broker may take to answer a ping: with the keep-alive, how soon a dead link is noticed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a session lasts at most that is counted as taken away: those of two programs that fight for one are short.
const SHORT: Duration = Duration::from_secs(20);

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
}

/// What the broker publishes when the session ends without a goodbye; retained.
#[derive(Debug, Clone)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// Makes the will of the next connection.
pub type WillOf = Box<dyn Fn() -> Will + Send + Sync>;

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

type Acknowledge = oneshot::Sender<Result<Delivery, PublishError>>;

/// The sender's side of a connection, while there is one.
struct Link {
    client: AsyncClient,
    /// Acknowledged publishes that the event loop has not numbered yet, in their order.
    unnumbered: VecDeque<Acknowledge>,
    numbered: HashMap<u16, Acknowledge>,
}

/// The handle of a session; clones share it.
#[derive(Clone)]
pub struct Session {
    link: Arc<Mutex<Option<Link>>>,
}

impl Session {
    /// Starts a session. The future drives it until it is dropped or [`Session::goodbye`] was sent; the receiver gets
    /// its events.
    pub fn new(settings: Settings) -> (Self, mpsc::Receiver<Event>, impl Future<Output = ()> + Send) {
        let session = Self {
            link: Arc::new(Mutex::new(None)),
        };
        let (events, receiver) = mpsc::channel(settings.queue);
        let driver = drive(settings, session.clone(), events);
        (session, receiver, driver)
    }

    /// Publishes and waits for the broker's acknowledgement (QoS 1).
    ///
    /// # Errors
    /// When there is no connection, it is lost meanwhile, or the broker refuses.
    pub async fn publish(&self, publish: Publish) -> Result<Delivery, PublishError> {
        self.send(publish)?.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Publishes (QoS 1) and returns at once; the receiver gets the acknowledgement.
    ///
    /// # Errors
    /// When there is no connection or no room.
    pub fn send(&self, publish: Publish) -> Result<oneshot::Receiver<Result<Delivery, PublishError>>, PublishError> {
        if publish.payload.len() > payload::LIMIT {
            return Err(PublishError::TooLarge(publish.payload.len()));
        }
        let mut guard = self.lock();
        let link = guard.as_mut().ok_or(PublishError::Away)?;
        let properties = PublishProperties {
            message_expiry_interval: publish
                .expiry
                .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
            ..PublishProperties::default()
        };
        // The queue to the event loop is taken in order, so the lock keeps the two queues in step.
        link.client
            .try_publish_with_properties(
                publish.topic,
                QoS::AtLeastOnce,
                publish.retain,
                publish.payload,
                properties,
            )
            .map_err(|_| PublishError::Full)?;
        let (acknowledge, acknowledged) = oneshot::channel();
        link.unnumbered.push_back(acknowledge);
        Ok(acknowledged)
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        self.lock().is_some()
    }

    /// Ends the session with a goodbye, so that the broker does not publish the will. Publish "offline" first.
    pub fn goodbye(&self) {
        if let Some(link) = self.lock().as_ref() {
            let _ = link.client.try_disconnect();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the next unnumbered publish its packet id.
    fn number(&self, packet: u16) {
        if let Some(link) = self.lock().as_mut()
            && let Some(acknowledge) = link.unnumbered.pop_front()
        {
            link.numbered.insert(packet, acknowledge);
        }
    }

    fn acknowledge(&self, packet: u16, reason: PubAckReason) {
        let outcome = match reason {
            PubAckReason::Success => Ok(Delivery::Accepted),
            PubAckReason::NoMatchingSubscribers => Ok(Delivery::NoSubscriber),
            other => Err(PublishError::Refused(format!("{other:?}"))),
        };
        let waiting = self.lock().as_mut().and_then(|link| link.numbered.remove(&packet));
        if let Some(acknowledge) = waiting {
            // A sender that no longer waits is no fault.
            let _ = acknowledge.send(outcome);
        }
    }
}

/// How a connection ended.
enum Ended {
    Goodbye,
    Lost(Down),
    /// By the broker: what that looks like once, and its reason.
    ByBroker(Down, String),
    /// Nobody reads the events any more.
    Unread,
}

async fn drive(settings: Settings, session: Session, events: mpsc::Sender<Event>) {
    let mut pace = Pace::new(settings.reconnect);
    for broker in settings.brokers.iter().cycle() {
        let mut up_since = None;
        let ended = connection(&settings, broker, &session, &events, &mut up_since).await;
        // Dropping the link tells everyone who waits for an acknowledgement that it is lost.
        session.lock().take();
        let now = Instant::now();
        let was = match (&ended, up_since) {
            (_, None) => Was::Down,
            (Ended::ByBroker(..), Some(since)) if now - since < SHORT => Was::EndedByBroker,
            (_, Some(_)) => Was::Up,
        };
        let pause = pace.handle_end(was, now);
        let down = match (ended, pause.contested) {
            (Ended::Goodbye | Ended::Unread, _) => return,
            (Ended::ByBroker(_, reason), Some(times)) => Down::Refused {
                broker: broker.clone(),
                reason: format!(
                    "it ended it {times} times within a minute ({reason}): another program uses the identity {}; give \
                     each its own, or stop one",
                    settings.cn
                ),
            },
            (Ended::ByBroker(down, _) | Ended::Lost(down), _) => down,
        };
        tracing::debug!(%down, "mqtt session down");
        if events.send(Event::Down(down)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause.least + jittered(pause.spread)).await;
    }
}

/// A random span up to `longest`: full jitter, so that a fleet does not return in step.
pub fn jittered(longest: Duration) -> Duration {
    let fraction = u32::from_str_radix(&random_hex::<4>(), 16).unwrap_or(u32::MAX);
    longest.mul_f64(f64::from(fraction) / f64::from(u32::MAX))
}

async fn connection(
    settings: &Settings,
    broker: &HostPort,
    session: &Session,
    events: &mpsc::Sender<Event>,
    up_since: &mut Option<Instant>,
) -> Ended {
    let (client, mut event_loop) = open(settings, broker);
    let mut leaving = false;
    // When a ping has to be answered; rumqttc itself would wait for the next one to be due.
    let mut answer_due = None;
    loop {
        let polled = tokio::select! {
            polled = event_loop.poll() => polled,
            () = until(answer_due) => {
                let reason = format!("no answer for {} s", PING_TIMEOUT.as_secs());
                let broker = broker.clone();
                return Ended::Lost(Down::Unreachable { broker, reason });
            }
        };
        let event = match polled {
            Ok(event) => event,
            Err(_) if leaving => return Ended::Goodbye,
            Err(error) => {
                let down = down(broker, &error);
                return match by_broker(&error) {
                    Some(reason) => Ended::ByBroker(down, reason),
                    None => Ended::Lost(down),
                };
            }
        };
        use rumqttc::v5::Event::{Incoming, Outgoing as Sent};
        let told = match event {
            Incoming(Packet::ConnAck(_)) => {
                let filters = settings
                    .subscriptions
                    .iter()
                    .map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
                if settings.subscriptions.is_empty() {
                    up(session, &client, events, up_since).await
                } else if client.try_subscribe_many(filters).is_err() {
                    let reason = "its queue is full".to_owned();
                    let broker = broker.clone();
                    return Ended::Lost(Down::Refused { broker, reason });
                } else {
                    Ok(())
                }
            }
            Incoming(Packet::SubAck(suback)) => {
                let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                if let Some(index) = suback.return_codes.iter().position(refused) {
                    let filter = settings.subscriptions.get(index).cloned().unwrap_or_default();
                    let broker = broker.clone();
                    return Ended::Lost(Down::Subscription { broker, filter });
                }
                up(session, &client, events, up_since).await
            }
            Incoming(Packet::PubAck(ack)) => {
                session.acknowledge(ack.pkid, ack.reason);
                Ok(())
            }
            Incoming(Packet::Publish(publish)) => {
                let message = Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload.to_vec(),
                    retained: publish.retain,
                };
                events.send(Event::Message(message)).await
            }
            Sent(Outgoing::Publish(packet)) => {
                session.number(packet);
                Ok(())
            }
            Sent(Outgoing::PingReq) => {
                answer_due = Some(Instant::now() + PING_TIMEOUT);
                Ok(())
            }
            Incoming(Packet::PingResp(_)) => {
                answer_due = None;
                Ok(())
            }
            Sent(Outgoing::Disconnect) => {
                leaving = true;
                Ok(())
            }
            _ => Ok(()),
        };
        if told.is_err() {
            return Ended::Unread;
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn up(
    session: &Session,
    client: &AsyncClient,
    events: &mpsc::Sender<Event>,
    up_since: &mut Option<Instant>,
) -> Result<(), mpsc::error::SendError<Event>> {
    *up_since = Some(Instant::now());
    *session.lock() = Some(Link {
        client: client.clone(),
        unnumbered: VecDeque::new(),
        numbered: HashMap::new(),
    });
    events.send(Event::Up).await
}

fn open(settings: &Settings, broker: &HostPort) -> (AsyncClient, EventLoop) {
    let client_id = format!("{}-{}", settings.cn, random_hex::<16>());
    let mut options = MqttOptions::new(client_id, broker.host(), broker.port());
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
            settings.tls.clone(),
        )))
        // rumqttc panics below five seconds.
        .set_keep_alive(settings.keep_alive.max(Duration::from_secs(5)))
        .set_clean_start(true)
        .set_connection_timeout(5)
        .set_outgoing_inflight_upper_limit(settings.inflight)
        // The payload's limit and room for topic and properties; rumqttc loops for ever on a larger packet without it.
        .set_max_packet_size(Some(payload::LIMIT as u32 + 1024));
    if let Some(will) = settings.will.as_ref().map(|will| will()) {
        options.set_last_will(LastWill::new(will.topic, will.payload, QoS::AtLeastOnce, true, None));
    }
    AsyncClient::new(options, settings.queue)
}

/// Names the reason for a connection's end.
fn down(broker: &HostPort, error: &ConnectionError) -> Down {
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

/// Why the broker ended the connection, if it was the broker and not the way to it.
fn by_broker(error: &ConnectionError) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_span_and_differs() {
        let longest = Duration::from_secs(10);
        let drawn: Vec<Duration> = (0..64).map(|_| jittered(longest)).collect();
        assert!(drawn.iter().all(|pause| *pause <= longest));
        assert!(drawn.iter().any(|pause| *pause < longest / 2));
        assert!(drawn.iter().any(|pause| *pause > longest / 2));
    }

    #[tokio::test]
    async fn without_a_broker_a_publish_fails_at_once_and_the_reason_is_told() {
        let settings = Settings {
            brokers: vec!["127.0.0.1:1".parse().unwrap()],
            tls: Arc::new(empty_tls()),
            cn: "device-1".into(),
            keep_alive: Duration::from_secs(30),
            inflight: 4,
            queue: 4,
            subscriptions: vec![],
            will: None,
            reconnect: (Duration::from_millis(1), Duration::from_millis(2)),
        };
        let (session, mut events, driver) = Session::new(settings);
        let driver = tokio::spawn(driver);
        let event = events.recv().await.expect("the driver lives");
        assert!(matches!(event, Event::Down(Down::Unreachable { .. })), "{event:?}");
        let outcome = session.publish(Publish::new("rssh/v1/x", vec![])).await;
        assert_eq!(outcome, Err(PublishError::Away));
        driver.abort();
    }

    fn empty_tls() -> rustls::ClientConfig {
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has default versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    }
}
