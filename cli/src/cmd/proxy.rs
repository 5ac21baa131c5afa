//! `rssh proxy`: stdin and stdout to a device, for ssh's ProxyCommand.
//!
//! While a cached name lasts, no server is asked; a name that leads nowhere is replaced by a fresh one.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rssh_proto::FailureKind;
use rssh_proto::duration::Span;
use rssh_proto::payload::{OpenRequest, Operation};

use crate::args::{Common, ProxyArgs, seconds};
use crate::cache::Cache;
use crate::cmd::{NAME_PAUSES, TRY, identify, name_of, open, unproven};
use crate::control::Control;
use crate::error::Error;
use crate::lb::{Balancer, LbError};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::relay::{Local, RelayError};
use crate::request::Answer;
use crate::signals::Signals;

/// Nobody closes a tunnel that a session opened by itself: it ends once unused for this long.
const IDLE: Span = Span::seconds(15 * 60);

/// Runs the command.
///
/// # Errors
/// The named failure; no session has begun then.
pub async fn run(common: &Common, args: &ProxyArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common)?;
    let mut signals = Signals::watch()?;
    let mut session = Session {
        args,
        deadline: Instant::now() + args.timeout.duration(),
        balancer: Balancer::new(profile.lb.clone(), tls.clone()),
        cache: Cache::of(&profile),
        local: Local::stdio().map_err(|error| failure(args, error))?,
    };
    if let Some(name) = session.cache.get(&args.device, &args.target, SystemTime::now()) {
        let begins_by = Instant::now() + TRY;
        match hushed(signals.or(session.over(&name.host, &[], begins_by)).await)? {
            None => return Ok(()),
            Some(error) if error.may_pass() => {
                tracing::debug!(%error, "cached name refused");
                session.cache.remove(&args.device, &args.target);
            }
            Some(error) => return Err(error.into()),
        }
    }
    let host = session.fresh_name(common, &profile, tls, &mut signals).await?;
    let begins_by = session.deadline;
    match hushed(signals.or(session.over(&host, &NAME_PAUSES, begins_by)).await)? {
        None => Ok(()),
        Some(error) => {
            session.cache.remove(&args.device, &args.target);
            let Session { balancer, deadline, .. } = &session;
            Err(unproven(&args.device, &args.target, &error, balancer, *deadline))
        }
    }
}

struct Session<'a> {
    args: &'a ProxyArgs,
    deadline: Instant,
    balancer: Balancer,
    cache: Cache,
    local: Local,
}

impl Session<'_> {
    /// Runs the session over a name, tried anew after each pause; the reason when none began in time.
    async fn over(&mut self, host: &str, pauses: &[Duration], begins_by: Instant) -> Result<Option<LbError>, Error> {
        let mut pauses = pauses.iter();
        loop {
            let error = match self.once(host, begins_by).await {
                Ok(()) => return Ok(None),
                Err(RelayError::NotStarted(error)) => error,
                Err(error) => return Err(failure(self.args, error)),
            };
            match pauses.next() {
                Some(&pause) if error.may_pass() && Instant::now() + pause < begins_by => {
                    tokio::time::sleep(pause).await;
                }
                _ => return Ok(Some(error)),
            }
        }
    }

    async fn once(&mut self, host: &str, begins_by: Instant) -> Result<(), RelayError> {
        let connect = async {
            let socket = self.balancer.dial().await?;
            self.balancer.greet(socket, host).await
        };
        let (stream, round_trip) = tokio::time::timeout_at(begins_by.into(), connect)
            .await
            .unwrap_or(Err(LbError::Silent))?;
        self.local
            .relay(stream, &self.balancer, &self.args.target, round_trip, begins_by)
            .await
    }

    /// Asks for a tunnel, or for the name of the live one.
    async fn fresh_name(
        &self,
        common: &Common,
        profile: &Profile,
        tls: Arc<rustls::ClientConfig>,
        signals: &mut Signals,
    ) -> Result<String, Error> {
        let args = self.args;
        let mut control = Control::start(profile, tls);
        let op = Operation::Open(OpenRequest {
            device: args.device.clone(),
            target: args.target.clone(),
            remote_port: None,
            ttl_s: None,
            idle_s: Some(seconds(IDLE)),
            new: false,
            hold: false,
        });
        let mut ask = control.ask_by(op, args.timeout, self.deadline);
        let progress = Progress::of(&args.device, common.quiet);
        let asked = async {
            let answer = control
                .carry(&mut ask, |rank, server| progress.stage(rank, server))
                .await?;
            let Answer::Opened(info) = answer else {
                return Err(Error::internal("the answer to an open was none"));
            };
            let host = name_of(&info)?.0.to_owned();
            self.cache.put(&info, SystemTime::now());
            Ok(host)
        };
        let host = signals.or(asked).await;
        progress.end(false);
        if host.is_err()
            && let Some(tunnel) = ask.left_behind()
        {
            open::give_up(&mut control, signals, tunnel).await;
        }
        control.leave().await;
        host
    }
}

/// A signal ends a session without a word: ssh sends its ProxyCommand one whenever it is done.
fn hushed<T>(outcome: Result<T, Error>) -> Result<T, Error> {
    outcome.map_err(|error| match error {
        Error::Signal(_) => Error::Silent(error.exit_code()),
        other => other,
    })
}

fn failure(args: &ProxyArgs, error: RelayError) -> Error {
    let device = &args.device;
    match error {
        RelayError::NotStarted(error) => error.into(),
        RelayError::Stdio(error) => Error::internal(format!("{device}: stdin or stdout failed: {error}")),
        RelayError::Cut(error) => Error::new(
            FailureKind::NobodyServing,
            format!("the connection to {device} was cut off: {error}"),
        ),
    }
}
