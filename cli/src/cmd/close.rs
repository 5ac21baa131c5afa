//! `rssh close`: gives tunnels up.

use rssh_proto::payload::{CloseRequest, ClosedTunnel, Operation, Which};
use rssh_proto::{DeviceId, FailureKind};

use crate::args::{CloseArgs, Common, DeviceOrTunnel};
use crate::cache::Cache;
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::output::{self, ClosedObject};
use crate::request::Answer;

/// Runs the command.
///
/// # Errors
/// The named failure.
pub async fn run(common: &Common, args: &CloseArgs) -> Result<(), Error> {
    let which = which(args)?;
    let (profile, tls) = identify(common).await?;
    let mut control = Control::start(&profile, tls);
    let close = CloseRequest {
        which,
        force: args.force,
    };
    let mut ask = control.ask(Operation::Close(close), args.timeout);
    let answer = control.carry(&mut ask, |_, _| {}).await;
    control.leave().await;
    let Answer::Closed(items) = answer? else {
        return Err(Error::internal("the answer to a close was none"));
    };
    if items.is_empty() {
        let what = match &args.which {
            DeviceOrTunnel::Device(device) => none_to(device, args),
            DeviceOrTunnel::Tunnel(tunnel) => format!("there is no open tunnel {tunnel}"),
        };
        return Err(Error::new(FailureKind::UnknownTunnel, format!("{what}; see rssh ls")));
    }
    let cache = Cache::of(&profile);
    let known = Known::of(&profile);
    for closed in &items {
        cache.remove(&closed.device, &closed.target);
        if closed.holders_left == 0 {
            known.closed(closed.tunnel);
        }
        if args.json {
            output::json(&ClosedObject::from(closed))?;
        } else if !common.quiet {
            output::data(&told(closed))?;
        }
    }
    Ok(())
}

fn which(args: &CloseArgs) -> Result<Which, Error> {
    match (&args.which, args.target.given()) {
        (DeviceOrTunnel::Device(device), target) => Ok(Which::Device {
            device: device.clone(),
            target,
        }),
        (DeviceOrTunnel::Tunnel(tunnel), None) => Ok(Which::Tunnel(*tunnel)),
        (DeviceOrTunnel::Tunnel(_), Some(_)) => Err(Error::usage(
            "a tunnel has one target; leave --port and --to out, or name the device instead of the tunnel",
        )),
    }
}

fn none_to(device: &DeviceId, args: &CloseArgs) -> String {
    match args.target.given() {
        Some(target) => format!("there is no open tunnel to {target} of {device}"),
        None => format!("there is no open tunnel to {device}"),
    }
}

fn told(closed: &ClosedTunnel) -> String {
    let (device, target) = (&closed.device, &closed.target);
    match closed.holders_left {
        0 => format!("closed {device} {target}\n"),
        1 => format!("left open {device} {target}: one other holds it; --force closes it\n"),
        others => format!("left open {device} {target}: {others} others hold it; --force closes it\n"),
    }
}
