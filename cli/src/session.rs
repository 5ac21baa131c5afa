//! One session with a target: by a cached name while it lasts, else by the fresh name of a tunnel, opened when needed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rssh_proto::duration::Span;
use rssh_proto::payload::{OpenRequest, Operation, TunnelInfo};
use rssh_proto::{DeviceId, FailureKind, ServerId, Target, TunnelId};
use tokio::sync::Mutex;

use crate::args::seconds;
use crate::cache::Cache;
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::lb::{Balancer, LbError};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::relay::{Local, RelayError};
use crate::request::{Answer, Ask};
use crate::signals::Signals;
use crate::trace::Notes;

/// The pauses between the tries of a name: routers learn of a new server within moments.
pub(crate) const NAME_PAUSES: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
/// One try of a name lasts at most this long: a connection that hangs is lost, another one may not be.
pub(crate) const TRY: Duration = Duration::from_secs(5);
/// Nobody closes a tunnel that a session opened by itself: it ends once unused for this long.
const IDLE: Span = Span::seconds(15 * 60);

/// What a session leads to, and how long it may take to begin.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub device: DeviceId,
    pub target: Target,
    pub timeout: Span,
    /// Shows no progress.
    pub silent: bool,
}

/// A user's sessions.
pub struct Client {
    profile: Profile,
    tls: Arc<rustls::ClientConfig>,
    balancer: Balancer,
    cache: Cache,
    /// Sessions that begin at once need one tunnel: the first asks, the others find its name.
    asking: Mutex<()>,
}

impl Client {
    /// The sessions of a profile.
    pub fn of(profile: Profile, tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            balancer: Balancer::new(profile.lb.clone(), tls.clone(), profile.proxies.clone()),
            cache: Cache::of(&profile),
            asking: Mutex::new(()),
            profile,
            tls,
        }
    }

    /// Runs a session to its end.
    ///
    /// # Errors
    /// The named failure; no session has begun then, or it was cut off.
    pub async fn run(&self, wanted: &Wanted, local: &mut Local, signals: &mut Signals) -> Result<(), Error> {
        let deadline = Instant::now() + wanted.timeout.duration();
        let mut session = Session {
            client: self,
            wanted,
            deadline,
            local,
        };
        if let Some(name) = self.cache.get(&wanted.device, &wanted.target, SystemTime::now()) {
            let begins_by = Instant::now() + TRY;
            match hushed(signals.or(session.by_cached(&name.host, begins_by)).await)? {
                None => return Ok(()),
                Some(error) if error.may_pass() => {
                    tracing::debug!(%error, "cached name refused");
                    self.cache.forget(&name, &wanted.device, &wanted.target);
                }
                Some(error) => return Err(error.into()),
            }
        }
        let mut found = self.fresh(wanted, deadline, signals).await?;
        let outcome = hushed(signals.or(session.by_fresh(&mut found)).await);
        if let Err(error @ Error::Failure(_)) = &outcome {
            if let Some(notes) = &found.notes {
                notes.failed(error);
            }
            self.cache.remove(&wanted.device, &wanted.target);
        }
        outcome
    }

    /// Sees to it that there is a tunnel and the cache has a name of it.
    ///
    /// # Errors
    /// The named failure.
    pub async fn reach(&self, wanted: &Wanted, signals: &mut Signals) -> Result<(), Error> {
        let deadline = Instant::now() + wanted.timeout.duration();
        self.ask(wanted, deadline, signals).await.map(drop)
    }

    /// The name that another session has just been given, or a fresh one.
    async fn fresh(&self, wanted: &Wanted, deadline: Instant, signals: &mut Signals) -> Result<Found, Error> {
        let asking = self.asking.lock();
        let _one = signals.or(async { Ok(asking.await) }).await?;
        if let Some(name) = self.cache.get(&wanted.device, &wanted.target, SystemTime::now()) {
            return Ok(Found {
                host: name.host,
                tunnel: name.tunnel,
                notes: None,
            });
        }
        self.ask(wanted, deadline, signals).await
    }

    /// Asks for a tunnel, or for the name of the live one.
    async fn ask(&self, wanted: &Wanted, deadline: Instant, signals: &mut Signals) -> Result<Found, Error> {
        let mut control = Control::start(&self.profile, self.tls.clone());
        let mut ask = control.ask_by(operation(wanted), wanted.timeout, deadline);
        let progress = Progress::of(&wanted.device, wanted.silent);
        let notes = Notes::begin(&self.profile, &wanted.device, &wanted.target, ask.id());
        let asked = async {
            let told = |rank, server: &ServerId| {
                notes.stage(rank);
                progress.stage(rank, server);
            };
            let answer = control.carry(&mut ask, told).await?;
            let Answer::Opened(info) = answer else {
                return Err(Error::internal("the answer to an open was none"));
            };
            let host = self.keep(&info)?;
            notes.named(info.tunnel, ask.sent_at());
            Ok((host, info.tunnel))
        };
        let found = signals.or(asked).await;
        progress.end(false);
        if let Err(error) = &found {
            notes.failed(error);
            give_up(&mut control, signals, &ask).await;
        }
        control.leave().await;
        found.map(|(host, tunnel)| Found {
            host,
            tunnel,
            notes: Some(notes),
        })
    }

    /// Keeps the name of a tunnel, and returns it.
    fn keep(&self, info: &TunnelInfo) -> Result<String, Error> {
        let host = name_of(info)?.0.to_owned();
        self.cache.put(info, SystemTime::now());
        Known::of(&self.profile).saw(info);
        Ok(host)
    }

    /// What servers say of a tunnel that carries nothing; see [`Control::again`].
    async fn again(&self, wanted: &Wanted, found: &Found, deadline: Instant) -> Result<Option<TunnelInfo>, Error> {
        let mut control = Control::start(&self.profile, self.tls.clone());
        let open = control.ask_by(operation(wanted), wanted.timeout, deadline);
        let now = control.again(&open, found.tunnel, deadline).await;
        control.leave().await;
        Ok(now?)
    }
}

/// A tunnel that a session opens by itself.
fn operation(wanted: &Wanted) -> Operation {
    Operation::Open(OpenRequest {
        idle_s: Some(seconds(IDLE)),
        hold: false,
        ..OpenRequest::new(wanted.device.clone(), wanted.target.clone())
    })
}

/// A name, and the tunnel that it leads to.
struct Found {
    host: String,
    tunnel: TunnelId,
    /// Of the open that brought it; none of a name that another session was given.
    notes: Option<Notes>,
}

struct Session<'a> {
    client: &'a Client,
    wanted: &'a Wanted,
    deadline: Instant,
    local: &'a mut Local,
}

impl Session<'_> {
    /// Runs the session over a cached name, tried once; the reason when none began in time.
    async fn by_cached(&mut self, host: &str, begins_by: Instant) -> Result<Option<LbError>, Error> {
        match self.once(host, begins_by, None).await {
            Ok(()) => Ok(None),
            Err(RelayError::NotStarted(error)) => Ok(Some(error)),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Runs the session over a fresh name, tried anew after each pause while that may help.
    async fn by_fresh(&mut self, found: &mut Found) -> Result<(), Error> {
        let mut tries = Tries::by(self.deadline);
        loop {
            let error = match self.once(&found.host, self.deadline, found.notes.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(RelayError::NotStarted(error)) => error,
                Err(error) => return Err(self.failure(error)),
            };
            let next = tries.handle(&error, Instant::now());
            if next == Next::Ask
                && let Some(now) = self.client.again(self.wanted, found, self.deadline).await?
                && is_elsewhere(&now, &found.host)
            {
                found.host = self.client.keep(&now)?;
                found.tunnel = now.tunnel;
                tries.begin_again();
                continue;
            }
            match next {
                Next::Ask => tokio::time::sleep(ASKED).await,
                Next::Wait(pause) => tokio::time::sleep(pause).await,
                Next::GiveUp => {
                    let Wanted { device, target, .. } = self.wanted;
                    return Err(unproven(device, target, &error, &self.client.balancer, self.deadline));
                }
            }
        }
    }

    async fn once(&mut self, host: &str, begins_by: Instant, notes: Option<&Notes>) -> Result<(), RelayError> {
        let balancer = &self.client.balancer;
        let connect = async {
            let socket = balancer.dial().await?;
            balancer.greet(socket, host).await
        };
        let (stream, round_trip) = tokio::time::timeout_at(begins_by.into(), connect)
            .await
            .unwrap_or(Err(LbError::Silent))?;
        if let Some(notes) = notes {
            notes.routed();
        }
        let begun = |first_byte| {
            if let Some(notes) = notes {
                notes.proven(first_byte);
            }
        };
        self.local
            .relay(stream, balancer, &self.wanted.target, round_trip, begins_by, begun)
            .await
    }

    fn failure(&self, error: RelayError) -> Error {
        let device = &self.wanted.device;
        match error {
            RelayError::NotStarted(error) => error.into(),
            RelayError::Local(error) => Error::internal(format!("{device}: stdin or stdout failed: {error}")),
            RelayError::Cut(error) => Error::new(
                FailureKind::NobodyServing,
                format!("the connection to {device} was cut off: {error}"),
            ),
        }
    }
}

/// How long a load balancer may be away: one that restarts comes back, one that is not there does not.
const AWAY: Duration = Duration::from_secs(8);
/// The pause after a question that brought nothing new.
pub(crate) const ASKED: Duration = Duration::from_millis(400);

/// The tries of a fresh name.
///
/// The first ones may come before the routers know the server. Servers are asked when that is no longer likely and a
/// device has had the time to report what it found; and again, since a tunnel may land anew meanwhile, with another name.
pub(crate) struct Tries {
    deadline: Instant,
    pauses: std::slice::Iter<'static, Duration>,
    closed: u32,
    away_since: Option<Instant>,
}

/// What to do about a name that led nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask what has become of the tunnel.
    Ask,
    Wait(Duration),
    GiveUp,
}

impl Tries {
    pub(crate) fn by(deadline: Instant) -> Self {
        Self {
            deadline,
            pauses: NAME_PAUSES.iter(),
            closed: 0,
            away_since: None,
        }
    }

    /// There is another name to try.
    pub(crate) fn begin_again(&mut self) {
        *self = Self::by(self.deadline);
    }

    /// Takes why a try came to nothing.
    pub(crate) fn handle(&mut self, error: &LbError, now: Instant) -> Next {
        let pause = match error {
            _ if !error.may_pass() => None,
            LbError::Unreachable(_) => {
                let since = *self.away_since.get_or_insert(now);
                // Whoever goes through it has lost the connection too.
                self.closed = 2;
                (now.saturating_duration_since(since) < AWAY).then_some(NAME_PAUSES[3])
            }
            _ => self.pauses.next().copied(),
        };
        self.closed += u32::from(matches!(error, LbError::Closed));
        match pause {
            Some(pause) if now + pause < self.deadline => match error {
                LbError::Closed if self.closed >= 3 => Next::Ask,
                _ => Next::Wait(pause),
            },
            _ => Next::GiveUp,
        }
    }
}

/// Whether a tunnel has another place than a name leads to: a name begins with server and port.
pub(crate) fn is_elsewhere(now: &TunnelInfo, host: &str) -> bool {
    let place = |host: &str| -> Vec<String> { host.splitn(3, '-').take(2).map(str::to_owned).collect() };
    now.host.as_deref().is_some_and(|now| place(now) != place(host))
}

/// A signal ends a session without a word: ssh sends its ProxyCommand one whenever it is done.
fn hushed<T>(outcome: Result<T, Error>) -> Result<T, Error> {
    outcome.map_err(|error| match error {
        Error::Signal(_) => Error::Silent(error.exit_code()),
        other => other,
    })
}

/// The name and port of an opened tunnel.
pub(crate) fn name_of(info: &TunnelInfo) -> Result<(&str, u16), Error> {
    match (&info.host, info.port) {
        (Some(host), Some(port)) => Ok((host, port)),
        _ => Err(Error::internal(format!(
            "the server opened tunnel {} but sent no name for it",
            info.tunnel
        ))),
    }
}

/// The failure of a tunnel that is up by the server's word and does not work.
pub(crate) fn unproven(
    device: &DeviceId,
    target: &Target,
    error: &LbError,
    balancer: &Balancer,
    deadline: Instant,
) -> Error {
    let lb = balancer.address();
    match error {
        _ if Instant::now() >= deadline => Error::new(
            FailureKind::Deadline,
            format!("{device} connected, but {target} did not answer through {lb} in time; raise --timeout"),
        ),
        LbError::Closed => Error::new(
            FailureKind::NameRefused,
            format!(
                "the tunnel to {device} is up, but {lb} closes connections to {target}: the name is refused there, or \
                 nothing answers on the device; check that the service runs"
            ),
        ),
        LbError::Silent => Error::new(
            FailureKind::SshFailed,
            format!("the tunnel to {device} is up, but {target} says nothing; check that an ssh server answers there"),
        ),
        other => Error::new(other.kind(), format!("{device}: {other}")),
    }
}

/// Closes what an unfinished open may have left; a second signal ends the wait.
pub(crate) async fn give_up(control: &mut Control, signals: &mut Signals, ask: &Ask) {
    let Some(request) = ask.left_behind() else {
        return;
    };
    let _ = signals
        .or(async {
            control.give_up(request).await;
            Ok(())
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> LbError {
        LbError::Unreachable("connection refused".to_owned())
    }

    #[test]
    fn a_load_balancer_that_restarts_is_waited_for_and_the_tunnel_asked_after() {
        let now = Instant::now();
        let at = |ms: u64| now + Duration::from_millis(ms);
        let mut tries = Tries::by(at(15_000));
        assert_eq!(tries.handle(&away(), at(0)), Next::Wait(NAME_PAUSES[3]));
        assert_eq!(tries.handle(&away(), at(5_000)), Next::Wait(NAME_PAUSES[3]));
        // It is back, and the tunnel went through it.
        assert_eq!(tries.handle(&LbError::Closed, at(5_500)), Next::Ask);
        tries.begin_again();
        assert_eq!(tries.handle(&LbError::Closed, at(6_000)), Next::Wait(NAME_PAUSES[0]));
    }

    #[test]
    fn a_load_balancer_that_is_not_there_is_given_up_and_so_is_a_name_that_is_refused() {
        let now = Instant::now();
        let mut tries = Tries::by(now + Duration::from_secs(60));
        tries.handle(&away(), now);
        assert_eq!(tries.handle(&away(), now + AWAY), Next::GiveUp);
        let mut tries = Tries::by(now + Duration::from_secs(60));
        let next: Vec<Next> = (0..7).map(|_| tries.handle(&LbError::Closed, now)).collect();
        assert_eq!(next[2..6], [Next::Ask, Next::Ask, Next::Ask, Next::Ask]);
        assert_eq!(next[6], Next::GiveUp);
        assert_eq!(tries.handle(&LbError::NotSsh("x".into()), now), Next::GiveUp);
    }
}
