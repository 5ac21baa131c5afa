//! `rssh forward`: local ports that lead to a device, and services of this side offered to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rssh_proto::{DeviceId, FailureKind, Target};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::args::{Common, Forward, ForwardArgs};
use crate::certificate;
use crate::cmd::identify;
use crate::error::Error;
use crate::output;
use crate::profile::{self, Profile};
use crate::relay::Local;
use crate::session::{Client, Wanted};
use crate::signals::Signals;
use crate::ssh::{self, Proxy};

/// How long connections that a signal has told to end may take to give their tunnels up.
const GRACE: Duration = Duration::from_secs(3);
/// The pause after a connection could not be taken: out of descriptors, mostly.
const BREATH: Duration = Duration::from_millis(100);

/// A port that is listened on, as `--json` prints it.
#[derive(Serialize)]
struct Listening<'a> {
    local: SocketAddr,
    device: &'a DeviceId,
    target: &'a Target,
}

/// Runs the command, until a signal.
///
/// # Errors
/// When a port cannot be listened on, or ssh ends.
pub async fn run(common: &Common, args: &ForwardArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut signals = Signals::watch()?;
    let device = &args.destination.device;
    // All ports or none: whoever asked for two is not served by one.
    let mut listeners = Vec::new();
    for forward in &args.forwards {
        listeners.push((listen(forward, device).await?, forward.target.clone()));
    }
    let ssh = offer(common, args).await?;
    for (listener, target) in &listeners {
        let local = listener
            .local_addr()
            .map_err(|error| Error::internal(error.to_string()))?;
        tell(args.json, &Listening { local, device, target })?;
    }
    let client = Arc::new(Client::of(profile, tls));
    let mut serving = JoinSet::new();
    for (listener, target) in listeners {
        let wanted = Wanted {
            device: device.clone(),
            target,
            timeout: args.timeout,
            silent: true,
        };
        serving.spawn(serve(listener, client.clone(), wanted, common.quiet));
    }
    let ended = signals.or(over(ssh)).await;
    // Each connection has heard the same signal, and gives up the tunnel that it waits for.
    let _ = tokio::time::timeout(GRACE, async { while serving.join_next().await.is_some() {} }).await;
    match ended {
        Err(error @ Error::Signal(_)) => Err(Error::Silent(error.exit_code())),
        other => other,
    }
}

async fn listen(forward: &Forward, device: &DeviceId) -> Result<TcpListener, Error> {
    let Forward { local, target } = forward;
    TcpListener::bind((Ipv4Addr::LOCALHOST, *local)).await.map_err(|error| {
        Error::configuration(format!(
            "cannot listen on port {local} for {device} {target}: {error}; choose another, or 0 for any free port"
        ))
    })
}

fn tell(json: bool, listening: &Listening<'_>) -> Result<(), Error> {
    if json {
        return output::json(listening);
    }
    let Listening { local, device, target } = listening;
    output::data(&format!("{local} {device} {target}\n"))
}

/// Takes connections until a signal, then sees them off.
async fn serve(listener: TcpListener, client: Arc<Client>, wanted: Wanted, quiet: bool) {
    let Ok(mut signals) = Signals::watch() else {
        return;
    };
    let mut connections = JoinSet::new();
    let take = async {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    connections.spawn(connection(socket, client.clone(), wanted.clone(), quiet));
                }
                Err(error) => {
                    output::remark(&format!("a connection to {} was not taken: {error}", wanted.target));
                    tokio::time::sleep(BREATH).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    };
    let _: Result<(), Error> = signals.or(take).await;
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(socket: TcpStream, client: Arc<Client>, wanted: Wanted, quiet: bool) {
    let _ = socket.set_nodelay(true);
    let mut local = Local::socket(socket);
    let ended = match Signals::watch() {
        Ok(mut signals) => client.run(&wanted, &mut local, &mut signals).await,
        Err(error) => Err(error),
    };
    match ended {
        Err(error @ Error::Failure(_)) if !quiet => output::error(&error),
        other => tracing::debug!(?other, "connection over"),
    }
}

/// Starts the ssh that offers services to the device, where any are.
async fn offer(common: &Common, args: &ForwardArgs) -> Result<Option<Child>, Error> {
    if args.offers.is_empty() {
        return Ok(None);
    }
    let profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    let mut ssh = Command::new("ssh");
    ssh.args(certificate::arguments(&profile, &args.destination.device).await);
    ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]);
    for offer in &args.offers {
        ssh.args(["-R", &offer.to_string()]);
    }
    ssh.args(Proxy::of(common)?.quiet(common.quiet).login(&args.destination))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    ssh.spawn().map(Some).map_err(|error| ssh::not_started(&error))
}

/// Ends when ssh does; never without one.
async fn over(ssh: Option<Child>) -> Result<(), Error> {
    let Some(mut ssh) = ssh else {
        return std::future::pending().await;
    };
    let ended = ssh.wait().await;
    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(Error::new(
        FailureKind::SshFailed,
        format!("the ssh that offers services to the device ended: {how}"),
    ))
}
