//! The control plane: carries requests over MQTT or HTTPS and brings their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_mqtt::session::Down;
use rssh_mqtt::{Delivery, Dial, Event, Publish, PublishError, Session, Settings};
use rssh_proto::duration::Span;
use rssh_proto::payload::{self, CloseRequest, Operation, Rank, Reply, TunnelInfo, Which};
use rssh_proto::topic::Topic;
use rssh_proto::{Failure, FailureKind, ServerId, SessionId, TunnelId, UserId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, yield_now};

use crate::profile::Profile;
use crate::request::{Answer, Ask, Command};
use crate::via::Api;

/// For how long a tunnel that was given up is closed at most.
const GIVING_UP: Span = Span::seconds(2);
/// How long a server may think about what is wrong with a tunnel.
const EXPLAINING: Span = Span::seconds(2);

type Acknowledged = oneshot::Receiver<Result<Delivery, PublishError>>;

/// The way to the servers, for a command's requests.
pub struct Control {
    user: UserId,
    session_id: SessionId,
    link: Link,
    brokers: usize,
}

/// By what requests go.
enum Link {
    Broker(Broker),
    Api(Api),
}

/// A session with the broker.
struct Broker {
    replies: String,
    session: Session,
    events: mpsc::Receiver<Event>,
    driver: AbortHandle,
}

impl Control {
    /// Starts to connect; must be called within a runtime.
    pub fn start(profile: &Profile, tls: Arc<rustls::ClientConfig>) -> Self {
        let session_id = SessionId::generate();
        let link = match &profile.api {
            Some(url) => Link::Api(Api::new(url.clone(), tls, profile.proxies.clone())),
            None => Link::Broker(Broker::start(profile, tls, &session_id)),
        };
        Self {
            user: profile.user.clone(),
            session_id,
            link,
            brokers: profile.brokers.len(),
        }
    }

    /// Waits until the session with the broker is up, which includes that answers can come.
    ///
    /// # Errors
    /// Why it is not, at each broker; the last reason.
    pub async fn connected(&mut self) -> Result<(), Down> {
        let Link::Broker(broker) = &mut self.link else {
            return Ok(());
        };
        let mut tries = self.brokers;
        loop {
            match broker.events.recv().await {
                Some(Event::Up) => return Ok(()),
                Some(Event::Down(down)) if tries <= 1 => return Err(down),
                Some(Event::Down(_)) => tries -= 1,
                Some(Event::Message(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }

    /// A new request, whose time runs from now.
    pub fn ask(&self, op: Operation, timeout: Span) -> Ask {
        self.ask_by(op, timeout, Instant::now() + timeout.duration())
    }

    /// A new request, some of whose time has passed.
    pub fn ask_by(&self, op: Operation, timeout: Span, deadline: Instant) -> Ask {
        Ask::new(op, self.session_id.clone(), self.brokers, timeout, deadline)
    }

    /// Carries a request to its end, telling how far it has come.
    ///
    /// # Errors
    /// The failure that ended it, ours or a server's.
    pub async fn carry(&mut self, ask: &mut Ask, mut progress: impl FnMut(Rank, &ServerId)) -> Result<Answer, Failure> {
        match &mut self.link {
            Link::Broker(broker) => broker.carry(&self.user, ask, &mut progress).await,
            Link::Api(api) => by_http(api, ask, &mut progress).await,
        }
    }

    /// Gives up the tunnel that a request made or joined, as far as that can be done in short time.
    pub async fn give_up(&mut self, request: TunnelId) {
        if matches!(&self.link, Link::Broker(broker) if !broker.session.is_up()) {
            return;
        }
        let op = Operation::Close(CloseRequest {
            which: Which::Tunnel(request),
            force: false,
        });
        let mut ask = self.ask(op, GIVING_UP);
        let outcome = self.carry(&mut ask, |_, _| {}).await;
        tracing::debug!(%request, ?outcome, "gave the tunnel up");
    }

    /// What servers say of a tunnel that they called open and that carries nothing: its name of now, when it has landed
    /// elsewhere since; nothing, when they know nothing new.
    ///
    /// # Errors
    /// What was heard against it, such as that the device found nobody at the target.
    pub async fn again(
        &mut self,
        opened: &Ask,
        tunnel: TunnelId,
        deadline: Instant,
    ) -> Result<Option<TunnelInfo>, Failure> {
        use FailureKind as Kind;
        let by = deadline.min(Instant::now() + EXPLAINING.duration());
        let mut ask = self.ask_by(Operation::Name { tunnel }, EXPLAINING, by);
        let failure = match self.carry(&mut ask, |_, _| {}).await {
            Ok(Answer::Opened(info)) => return Ok(Some(info)),
            Ok(_) => return Ok(None),
            Err(failure) => failure,
        };
        match failure.kind {
            Kind::TargetRefused | Kind::TargetNotAllowed | Kind::Offline | Kind::NotAnswering | Kind::SshFailed => {
                Err(failure)
            }
            // It has no place now: whatever it went through has ended, and the device is landing again.
            Kind::UnknownTunnel => match self.carry(&mut opened.again(), |_, _| {}).await? {
                Answer::Opened(info) => Ok(Some(info)),
                _ => Ok(None),
            },
            // The question was not answered.
            _ => Ok(None),
        }
    }

    /// Ends the session: says goodbye, but waits for no answer to that.
    pub async fn leave(self) {
        let Link::Broker(broker) = self.link else { return };
        broker.session.goodbye();
        // The driver needs a turn to take the goodbye up and one to write it.
        for _ in 0..3 {
            yield_now().await;
        }
        broker.driver.abort();
    }
}

impl Broker {
    fn start(profile: &Profile, tls: Arc<rustls::ClientConfig>, session_id: &SessionId) -> Self {
        let replies = Topic::UserReply(profile.user.clone(), session_id.clone()).to_string();
        let (session, events, driver) = Session::new(Settings {
            brokers: profile.brokers.clone(),
            tls,
            cn: profile.user.to_string(),
            keep_alive: Duration::from_secs(30),
            inflight: 8,
            queue: 16,
            subscriptions: vec![replies.clone()],
            will: None,
            reconnect: (Duration::from_millis(100), Duration::from_secs(1)),
            dial: Dial {
                proxies: profile.proxies.clone(),
                ..Dial::default()
            },
        });
        Self {
            replies,
            session,
            events,
            driver: tokio::spawn(driver).abort_handle(),
        }
    }

    async fn carry(
        &mut self,
        user: &UserId,
        ask: &mut Ask,
        progress: &mut impl FnMut(Rank, &ServerId),
    ) -> Result<Answer, Failure> {
        let mut acknowledged: Option<Acknowledged> = None;
        let mut commands = if self.session.is_up() {
            ask.handle_up(Instant::now())
        } else {
            vec![]
        };
        loop {
            for command in commands {
                match command {
                    Command::Publish(request) => {
                        let topic = Topic::UserRequest(user.clone());
                        let expiry = Duration::from_millis(u64::from(request.deadline_ms));
                        let publish = Publish::new(topic, payload::encode(&request)).expiring(expiry);
                        tracing::debug!(request = %request.id, "request sent");
                        acknowledged = self.session.send(publish).ok();
                    }
                    Command::Progress(rank, server) => progress(rank, &server),
                    Command::Finish(outcome) => return outcome,
                }
            }
            let due = ask.poll_timeout().ok_or_else(endless)?;
            commands = tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Up) => ask.handle_up(Instant::now()),
                    Some(Event::Down(down)) => ask.handle_down(&down, Instant::now()),
                    Some(Event::Message(message)) => match self.reply(&message.topic, &message.payload) {
                        Some(reply) => ask.handle_reply(reply, Instant::now()),
                        None => vec![],
                    },
                    None => return Err(Failure::new(FailureKind::Internal, "the MQTT session ended by itself")),
                },
                outcome = outcome_of(&mut acknowledged) => {
                    acknowledged = None;
                    ask.handle_delivery(&outcome, Instant::now())
                }
                () = tokio::time::sleep_until(due.into()) => ask.handle_timeout(Instant::now()),
            };
        }
    }

    fn reply(&self, topic: &str, payload: &[u8]) -> Option<Reply> {
        if topic != self.replies {
            tracing::debug!("message on another topic dropped");
            return None;
        }
        payload::decode(payload)
            .inspect(|reply: &Reply| tracing::debug!(request = %reply.request, rank = ?reply.rank, "reply"))
            .inspect_err(|error| tracing::debug!(%error, "reply dropped"))
            .ok()
    }
}

/// The same by HTTPS: each sending of the request has answers of its own.
async fn by_http(api: &Api, ask: &mut Ask, progress: &mut impl FnMut(Rank, &ServerId)) -> Result<Answer, Failure> {
    let mut answers: Option<mpsc::Receiver<Result<Reply, Failure>>> = None;
    let mut commands = ask.handle_up(Instant::now());
    loop {
        for command in commands {
            match command {
                Command::Publish(request) => answers = Some(api.post(&request)),
                Command::Progress(rank, server) => progress(rank, &server),
                Command::Finish(outcome) => return outcome,
            }
        }
        let due = ask.poll_timeout().ok_or_else(endless)?;
        let answer = async {
            match &mut answers {
                Some(answers) => answers.recv().await,
                None => std::future::pending().await,
            }
        };
        commands = tokio::select! {
            answer = answer => match answer {
                Some(Ok(reply)) => ask.handle_reply(reply, Instant::now()),
                Some(Err(failure)) => return Err(failure),
                // The connection broke, or the server has no more to say for now.
                None => {
                    answers = None;
                    vec![]
                }
            },
            () = tokio::time::sleep_until(due.into()) => ask.handle_timeout(Instant::now()),
        };
    }
}

fn endless() -> Failure {
    Failure::new(FailureKind::Internal, "the request ended without an outcome")
}

/// The acknowledgement of the latest publish, should one be awaited.
async fn outcome_of(acknowledged: &mut Option<Acknowledged>) -> Result<Delivery, PublishError> {
    match acknowledged {
        Some(receiver) => receiver.await.unwrap_or(Err(PublishError::Lost)),
        None => std::future::pending().await,
    }
}
