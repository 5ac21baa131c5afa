//! `rssh open`: a tunnel, proven.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rssh_proto::duration::Span;
use rssh_proto::payload::{OpenRequest, Operation, TunnelInfo};
use rssh_proto::{ServerId, Target};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::args::{Common, OpenArgs, seconds};
use crate::cache::Cache;
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::lb::{Balancer, LbError, Proof};
use crate::output::{self, TunnelObject};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::request::{Answer, Ask};
use crate::session::{ASKED, Next, TRY, Tries, give_up, is_elsewhere, name_of, unproven};
use crate::signals::Signals;
use crate::trace::Notes;

type Dialled = JoinHandle<Result<TcpStream, LbError>>;

/// Runs the command.
///
/// # Errors
/// The named failure; the tunnel is given up then.
pub async fn run(common: &Common, args: &OpenArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut signals = Signals::watch()?;
    let wanted = OpenRequest {
        device: args.device.clone(),
        target: args.target.given().unwrap_or_else(Target::ssh),
        remote_port: args.remote_port.map(Into::into),
        ttl_s: Some(seconds(args.ttl)),
        idle_s: args.idle.map(seconds),
        new: args.new,
        wait: args.wait.is_some(),
        hold: true,
    };
    let timeout = args.wait.unwrap_or(args.timeout);
    let mut control = Control::start(&profile, tls.clone());
    let silent = common.quiet || args.json;
    let opened = proven(&profile, tls, &mut control, &mut signals, wanted, timeout, silent).await;
    let told = match opened {
        Ok(opened) => {
            let told = print(&opened.info, &opened.proof, args.json);
            // A tunnel whose name nobody learns is of no use to anyone.
            if told.is_err() {
                give_up(&mut control, &mut signals, &opened.ask).await;
            }
            told
        }
        Err(error) => Err(error),
    };
    control.leave().await;
    told
}

/// A tunnel that works.
pub(super) struct Opened {
    pub(super) info: TunnelInfo,
    proof: Proof,
    /// The request that it came by.
    ask: Ask,
}

/// Opens a tunnel and proves it.
///
/// # Errors
/// The named failure; the tunnel is given up then.
pub(super) async fn proven(
    profile: &Profile,
    tls: Arc<rustls::ClientConfig>,
    control: &mut Control,
    signals: &mut Signals,
    wanted: OpenRequest,
    timeout: Span,
    silent: bool,
) -> Result<Opened, Error> {
    let balancer = Balancer::new(profile.lb.clone(), tls, profile.proxies.clone());
    // The load balancer takes the connection while the request is on its way; the name follows.
    let dialled: Dialled = tokio::spawn({
        let balancer = balancer.clone();
        async move { balancer.dial().await }
    });
    let deadline = Instant::now() + timeout.duration();
    let (device, target) = (wanted.device.clone(), wanted.target.clone());
    let mut ask = control.ask_by(Operation::Open(wanted), timeout, deadline);
    let progress = Progress::of(&device, silent);
    let notes = Notes::begin(profile, &device, &target, ask.id());
    let opening = Opening {
        progress: &progress,
        notes: &notes,
        balancer: &balancer,
        deadline,
    };
    let opened = signals.or(opening.open(control, &mut ask, dialled)).await;
    progress.end(opened.is_ok());
    match opened {
        Ok((info, proof)) => {
            notes.proven(matches!(proof, Proof::Banner(_)));
            Cache::of(profile).put(&info, SystemTime::now());
            Known::of(profile).saw(&info);
            Ok(Opened { info, proof, ask })
        }
        Err(error) => {
            notes.failed(&error);
            give_up(control, signals, &ask).await;
            Err(error)
        }
    }
}

/// One open on its way.
struct Opening<'a> {
    progress: &'a Progress,
    notes: &'a Notes,
    balancer: &'a Balancer,
    deadline: Instant,
}

impl Opening<'_> {
    async fn open(&self, control: &mut Control, ask: &mut Ask, dialled: Dialled) -> Result<(TunnelInfo, Proof), Error> {
        let told = |rank, server: &ServerId| {
            self.notes.stage(rank);
            self.progress.stage(rank, server);
        };
        let answer = control.carry(ask, told).await?;
        let Answer::Opened(info) = answer else {
            return Err(Error::internal("the answer to an open was none"));
        };
        self.notes.named(info.tunnel, ask.sent_at());
        self.progress.proving();
        self.prove(control, ask, dialled, info).await
    }

    /// Proves a tunnel through the load balancer, more than once while that may help; returns it as it was proven.
    async fn prove(
        &self,
        control: &mut Control,
        ask: &Ask,
        dialled: Dialled,
        mut info: TunnelInfo,
    ) -> Result<(TunnelInfo, Proof), Error> {
        let Self { balancer, deadline, .. } = *self;
        let mut tries = Tries::by(deadline);
        let mut dialled = Some(dialled);
        loop {
            let (host, _) = name_of(&info)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let early = dialled.take();
            let was_early = early.is_some();
            let attempt = async {
                let socket = match early {
                    // A failed early call is no reason to give up: make another.
                    Some(early) => match early.await {
                        Ok(Ok(socket)) => socket,
                        _ => balancer.dial().await?,
                    },
                    None => balancer.dial().await?,
                };
                let routed = || self.notes.routed();
                balancer.prove(socket, host, &info.target, left.min(TRY), routed).await
            };
            let error = match tokio::time::timeout(left, attempt).await {
                Ok(Ok(proof)) => return Ok((info, proof)),
                Ok(Err(error)) => error,
                Err(_) => LbError::Silent,
            };
            tracing::debug!(%error, "not proven");
            // The load balancer may have closed a connection that waited long for its name.
            if was_early && matches!(error, LbError::Closed) {
                continue;
            }
            let next = tries.handle(&error, Instant::now());
            if next == Next::Ask
                && let Some(now) = control.again(ask, info.tunnel, deadline).await?
                && is_elsewhere(&now, name_of(&info)?.0)
            {
                info = now;
                tries.begin_again();
                continue;
            }
            match next {
                Next::GiveUp => return Err(unproven(&info.device, &info.target, &error, balancer, deadline)),
                Next::Ask => tokio::time::sleep(ASKED).await,
                Next::Wait(pause) => tokio::time::sleep(pause).await,
            }
        }
    }
}

fn print(info: &TunnelInfo, proof: &Proof, json: bool) -> Result<(), Error> {
    let (host, port) = name_of(info)?;
    if json {
        let banner = match proof {
            Proof::Banner(banner) => Some(banner.as_str()),
            Proof::Open => None,
        };
        output::json(&TunnelObject::new(info, banner))
    } else {
        output::data(&format!("{host} {port}\n"))
    }
}
