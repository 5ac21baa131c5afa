//! The session: connect, subscribe, deliver, reconnect.
//!
//! rumqttc keeps one event loop per connection. After a disconnect its loop may hold publishes that vanish silently, or
//! never get past a packet-id collision; so each connection gets a fresh loop, everything unacknowledged is reported to
//! its sender as lost, and the subscriptions are made anew. What must not be lost is kept by the caller (in PostgreSQL,
//! or by repeating a request with its id).

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rssh_proto::HostPort;
use rssh_proto::id::random_hex;
use rssh_proto::payload;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Packet, PubAckReason, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::acknowledge::Acknowledge;
pub use crate::event::Down;
use crate::event::{Delivery, Event, Message, Publish, PublishError, by_broker, down, relay_down};
use crate::identity::with_alpn;
use crate::pace::{Pace, Was};
use crate::proxy::Proxy;
use crate::relay;
use crate::settings::Settings;
use crate::way::{Now, Way};

/// How long the broker may take to answer, a ping for instance: with the keep-alive, how soon a dead link is noticed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The same after a change of this machine's network: what TCP sends again may come much later than a new connection.
const CHANGED_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a session lasts at most that is counted as taken away: those of two programs that fight for one are short.
const SHORT: Duration = Duration::from_secs(20);

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
    /// One, or one for each broker.
    links: Arc<[Place]>,
    network: Arc<Notify>,
}

/// Where a link is while there is one.
type Place = Mutex<Option<Link>>;

impl Session {
    /// Starts a session. The future drives it until it is dropped or [`Session::goodbye`] was sent; the receiver gets
    /// its events.
    pub fn new(settings: Settings) -> (Self, mpsc::Receiver<Event>, impl Future<Output = ()> + Send) {
        let links = if settings.dial.everywhere {
            settings.brokers.len()
        } else {
            1
        };
        let session = Self {
            links: (0..links).map(|_| Mutex::new(None)).collect(),
            network: Arc::new(Notify::new()),
        };
        let (events, receiver) = mpsc::channel(settings.queue);
        let driver = drive_all(Arc::new(settings), session.clone(), events);
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
        let (acknowledge, acknowledged) = Acknowledge::new();
        let mut outcome = Err(PublishError::Away);
        for place in self.links.iter() {
            if let Some(link) = lock(place).as_mut() {
                let sent = link.send(publish.clone(), acknowledge.clone());
                outcome = outcome.or(sent);
            }
        }
        outcome.map(|()| acknowledged)
    }

    /// Publishes what nobody needs to hear, and nobody acknowledges (QoS 0).
    ///
    /// # Errors
    /// When there is no connection or no room.
    pub fn hint(&self, publish: &Publish) -> Result<(), PublishError> {
        let mut outcome = Err(PublishError::Away);
        for place in self.links.iter() {
            if let Some(link) = lock(place).as_ref() {
                outcome = outcome.or(link.publish(publish.clone(), QoS::AtMostOnce));
            }
        }
        outcome
    }

    /// Tells that this machine's network has changed: a connection from an address that is gone is given up, any other
    /// has to show that it works, and a pause before the next ends.
    pub fn network_changed(&self) {
        self.network.notify_one();
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        self.links.iter().any(|place| lock(place).is_some())
    }

    /// Ends the session with a goodbye, so that the broker does not publish the will. Publish "offline" first.
    pub fn goodbye(&self) {
        for place in self.links.iter() {
            if let Some(link) = lock(place).as_ref() {
                let _ = link.client.try_disconnect();
            }
        }
    }
}

impl Session {
    fn seat(&self, at: usize) -> Seat<'_> {
        Seat {
            place: &self.links[at],
            network: &self.network,
        }
    }
}

fn lock(place: &Place) -> MutexGuard<'_, Option<Link>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn send(&mut self, publish: Publish, acknowledge: Acknowledge) -> Result<(), PublishError> {
        // The queue to the event loop is taken in order, so the lock keeps the two queues in step.
        self.publish(publish, QoS::AtLeastOnce)?;
        self.unnumbered.push_back(acknowledge);
        Ok(())
    }

    fn publish(&self, publish: Publish, qos: QoS) -> Result<(), PublishError> {
        let properties = PublishProperties {
            message_expiry_interval: publish
                .expiry
                .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
            ..PublishProperties::default()
        };
        self.client
            .try_publish_with_properties(publish.topic, qos, publish.retain, publish.payload, properties)
            .map_err(|_| PublishError::Full)
    }

    /// Hands the next unnumbered publish its packet id.
    fn number(&mut self, packet: u16) {
        if let Some(acknowledge) = self.unnumbered.pop_front() {
            self.numbered.insert(packet, acknowledge);
        }
    }

    fn acknowledge(&mut self, packet: u16, reason: PubAckReason) {
        let outcome = match reason {
            PubAckReason::Success => Ok(Delivery::Accepted),
            PubAckReason::NoMatchingSubscribers => Ok(Delivery::NoSubscriber),
            other => Err(PublishError::Refused(format!("{other:?}"))),
        };
        if let Some(acknowledge) = self.numbered.remove(&packet) {
            acknowledge.handle(outcome);
        }
    }
}

/// What one driver of a session works on.
#[derive(Clone, Copy)]
struct Seat<'a> {
    place: &'a Place,
    network: &'a Notify,
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

async fn drive_all(settings: Arc<Settings>, session: Session, events: mpsc::Sender<Event>) {
    if !settings.dial.everywhere {
        return drive(&settings, &settings.brokers, session.seat(0), &events).await;
    }
    // Dropped with the future, which ends them all.
    let mut drivers = JoinSet::new();
    for at in 0..settings.brokers.len() {
        let (settings, session, events) = (settings.clone(), session.clone(), events.clone());
        drivers.spawn(async move {
            let only = std::slice::from_ref(&settings.brokers[at]);
            drive(&settings, only, session.seat(at), &events).await;
        });
    }
    while drivers.join_next().await.is_some() {}
}

async fn drive(settings: &Settings, brokers: &[HostPort], seat: Seat<'_>, events: &mpsc::Sender<Event>) {
    let mut pace = Pace::new(settings.reconnect);
    for broker in brokers.iter().cycle() {
        let mut up_since = None;
        let ended = connection(settings, broker, seat, events, &mut up_since).await;
        // Dropping the link tells everyone who waits for an acknowledgement that it is lost.
        lock(seat.place).take();
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
        let pausing = tokio::time::sleep(pause.least + jittered(pause.spread));
        if pause.contested.is_some() {
            pausing.await;
            continue;
        }
        tokio::select! {
            () = pausing => {}
            () = seat.network.notified() => tokio::time::sleep(jittered(settings.reconnect.0)).await,
        }
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
    seat: Seat<'_>,
    events: &mpsc::Sender<Event>,
    up_since: &mut Option<Instant>,
) -> Ended {
    let unreachable = |reason: String| {
        let broker = broker.clone();
        Ended::Lost(Down::Unreachable { broker, reason })
    };
    let first_hop = settings.dial.proxies.of(broker).map(Proxy::address);
    let way = if settings.dial.roams {
        way_to(first_hop.unwrap_or(broker)).await
    } else {
        None
    };
    let tls = with_alpn(&settings.tls);
    let mut relay: Relay = Box::pin(std::future::pending());
    let via = if first_hop.is_some() {
        match relay::open(broker, tls, &settings.dial.proxies).await {
            Ok((path, carry)) => {
                relay = Box::pin(async move {
                    match carry.await {
                        // rumqttc sees the end as well, after what came before it.
                        Ok(()) => std::future::pending().await,
                        Err(error) => error,
                    }
                });
                Via::Relay(path)
            }
            Err(error) => return Ended::Lost(relay_down(broker, &error)),
        }
    } else {
        Via::Tls(tls)
    };
    let (client, mut event_loop) = open(settings, broker, via);
    let mut leaving = false;
    // When the broker has to have answered; rumqttc itself would wait for the next ping to be due.
    let mut answer_due = None;
    loop {
        let mut polling = std::pin::pin!(event_loop.poll());
        let polled = loop {
            tokio::select! {
                // What ended it says more than that rumqttc's side of it has ended.
                biased;
                error = &mut relay => return Ended::Lost(relay_down(broker, &error.into())),
                polled = &mut polling => break polled,
                () = until(answer_due) => return unreachable("no answer in time".to_owned()),
                () = seat.network.notified() => match way.map(|way| way.now()) {
                    Some(Now::Moved) => return unreachable("the address of this machine has changed".to_owned()),
                    // Another network may have given it the same address: what it says again has to be answered.
                    Some(Now::Same) if up_since.is_some() && subscribe(settings, &client) => {
                        let due = Instant::now() + CHANGED_TIMEOUT;
                        answer_due = Some(answer_due.map_or(due, |sooner: Instant| sooner.min(due)));
                    }
                    _ => {}
                },
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
        match &event {
            Incoming(_) => answer_due = None,
            Sent(Outgoing::PingReq | Outgoing::Publish(1..)) => {
                answer_due.get_or_insert_with(|| Instant::now() + ANSWER_TIMEOUT);
            }
            Sent(_) => {}
        }
        let told = match event {
            Incoming(Packet::ConnAck(_)) => {
                if settings.subscriptions.is_empty() {
                    up(seat.place, &client, events, up_since).await
                } else if !subscribe(settings, &client) {
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
                match up_since {
                    // It was asked for again.
                    Some(_) => Ok(()),
                    None => up(seat.place, &client, events, up_since).await,
                }
            }
            Incoming(Packet::PubAck(ack)) => {
                if let Some(link) = lock(seat.place).as_mut() {
                    link.acknowledge(ack.pkid, ack.reason);
                }
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
            // A hint has no number and is not acknowledged.
            Sent(Outgoing::Publish(packet @ 1..)) => {
                if let Some(link) = lock(seat.place).as_mut() {
                    link.number(packet);
                }
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

/// The way to the first address of a broker that one leads to.
async fn way_to(broker: &HostPort) -> Option<Way> {
    tokio::net::lookup_host((broker.host(), broker.port()))
        .await
        .ok()?
        .find_map(Way::to)
}

/// Asks for everything that the session is to hear of; whether there was room for that.
fn subscribe(settings: &Settings, client: &AsyncClient) -> bool {
    let filters = settings
        .subscriptions
        .iter()
        .map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce));
    client.try_subscribe_many(filters).is_ok()
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn up(
    place: &Place,
    client: &AsyncClient,
    events: &mpsc::Sender<Event>,
    up_since: &mut Option<Instant>,
) -> Result<(), mpsc::error::SendError<Event>> {
    *up_since = Some(Instant::now());
    *lock(place) = Some(Link {
        client: client.clone(),
        unnumbered: VecDeque::new(),
        numbered: HashMap::new(),
    });
    events.send(Event::Up).await
}

/// What carries a connection that is not rumqttc's own, until it fails.
type Relay = Pin<Box<dyn Future<Output = io::Error> + Send>>;

/// How rumqttc reaches the broker.
enum Via {
    Tls(Arc<rustls::ClientConfig>),
    /// By a unix socket.
    Relay(String),
}

fn open(settings: &Settings, broker: &HostPort, via: Via) -> (AsyncClient, EventLoop) {
    let client_id = format!("{}-{}", settings.cn, random_hex::<16>());
    let (host, transport) = match via {
        Via::Tls(tls) => (broker.host(), Transport::tls_with_config(TlsConfiguration::Rustls(tls))),
        Via::Relay(path) => (path, Transport::unix()),
    };
    let mut options = MqttOptions::new(client_id, host, broker.port());
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_network_options(network)
        .set_transport(transport)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Dial;

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
            dial: Dial::default(),
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
