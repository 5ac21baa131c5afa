//! `rssh open`: a tunnel, proven.

use std::time::{Duration, Instant, SystemTime};

use rssh_proto::Target;
use rssh_proto::payload::{OpenRequest, Operation, TunnelInfo};
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
use crate::progress::Progress;
use crate::request::{Answer, Ask};
use crate::session::{NAME_PAUSES, Refusals, TRY, give_up, name_of, unproven};
use crate::signals::Signals;

type Dialled = JoinHandle<Result<TcpStream, LbError>>;

/// Runs the command.
///
/// # Errors
/// The named failure; the tunnel is given up then.
pub async fn run(common: &Common, args: &OpenArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common)?;
    let balancer = Balancer::new(profile.lb.clone(), tls.clone());
    let mut control = Control::start(&profile, tls);
    // The load balancer takes the connection while the request is on its way; the name follows.
    let dialled: Dialled = tokio::spawn({
        let balancer = balancer.clone();
        async move { balancer.dial().await }
    });
    let mut signals = Signals::watch()?;
    let target = args.target.given().unwrap_or_else(Target::ssh);
    let timeout = args.wait.unwrap_or(args.timeout);
    let deadline = Instant::now() + timeout.duration();
    let mut ask = control.ask_by(
        Operation::Open(OpenRequest {
            device: args.device.clone(),
            target: target.clone(),
            remote_port: args.remote_port.map(Into::into),
            ttl_s: Some(seconds(args.ttl)),
            idle_s: args.idle.map(seconds),
            new: args.new,
            wait: args.wait.is_some(),
            hold: true,
        }),
        timeout,
        deadline,
    );
    let progress = Progress::of(&args.device, common.quiet || args.json);
    let opened = signals
        .or(open(&mut control, &mut ask, &progress, &balancer, dialled, deadline))
        .await;
    progress.end(opened.is_ok());
    let told = match &opened {
        Ok((info, proof)) => {
            Cache::of(&profile).put(info, SystemTime::now());
            Known::of(&profile).saw(info);
            print(info, proof, args.json)
        }
        Err(error) => Err(error.clone()),
    };
    // A tunnel whose name nobody learns is of no use to anyone.
    if told.is_err() {
        give_up(&mut control, &mut signals, &ask).await;
    }
    control.leave().await;
    told
}

async fn open(
    control: &mut Control,
    ask: &mut Ask,
    progress: &Progress,
    balancer: &Balancer,
    dialled: Dialled,
    deadline: Instant,
) -> Result<(TunnelInfo, Proof), Error> {
    let answer = control.carry(ask, |rank, server| progress.stage(rank, server)).await?;
    let Answer::Opened(info) = answer else {
        return Err(Error::internal("the answer to an open was none"));
    };
    progress.proving();
    let proof = prove(control, balancer, dialled, &info, deadline).await?;
    Ok((info, proof))
}

/// Proves a tunnel through the load balancer, more than once while that may help.
async fn prove(
    control: &mut Control,
    balancer: &Balancer,
    dialled: Dialled,
    info: &TunnelInfo,
    deadline: Instant,
) -> Result<Proof, Error> {
    let (host, _) = name_of(info)?;
    let mut refusals = Refusals::default();
    let mut dialled = Some(dialled);
    let mut pauses = NAME_PAUSES.iter();
    loop {
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
            balancer.prove(socket, host, &info.target, left.min(TRY)).await
        };
        let error = match tokio::time::timeout(left, attempt).await {
            Ok(Ok(proof)) => return Ok(proof),
            Ok(Err(error)) => error,
            Err(_) => LbError::Silent,
        };
        tracing::debug!(%error, "not proven");
        // The load balancer may have closed a connection that waited long for its name.
        let pause = if was_early && matches!(error, LbError::Closed) {
            Some(&Duration::ZERO)
        } else {
            if refusals.raise_a_question(&error)
                && let Some(failure) = control.objection(info.tunnel, deadline).await
            {
                return Err(failure.into());
            }
            pauses.next()
        };
        match pause {
            Some(&pause) if error.may_pass() && Instant::now() + pause < deadline => tokio::time::sleep(pause).await,
            _ => return Err(unproven(&info.device, &info.target, &error, balancer, deadline)),
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
