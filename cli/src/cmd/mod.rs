//! The subcommands.

pub mod close;
pub mod init;
pub mod ls;
pub mod open;
pub mod proxy;
pub mod ssh;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rssh_proto::payload::TunnelInfo;
use rssh_proto::{DeviceId, FailureKind, Target};

use crate::args::Common;
use crate::error::Error;
use crate::lb::{Balancer, LbError};
use crate::profile::{self, Profile};

/// The pauses between the tries of a name: routers learn of a new server within moments.
const NAME_PAUSES: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// One try of a name lasts at most this long: a connection that hangs is lost, another one may not be.
const TRY: Duration = Duration::from_secs(5);

/// Reads the profile and the identity that it names.
fn identify(common: &Common) -> Result<(Profile, Arc<rustls::ClientConfig>), Error> {
    let profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    let tls = profile.tls()?;
    Ok((profile, tls))
}

/// The name and port of an opened tunnel.
fn name_of(info: &TunnelInfo) -> Result<(&str, u16), Error> {
    match (&info.host, info.port) {
        (Some(host), Some(port)) => Ok((host, port)),
        _ => Err(Error::internal(format!(
            "the server opened tunnel {} but sent no name for it",
            info.tunnel
        ))),
    }
}

/// The failure of a tunnel that is up by the server's word and does not work.
fn unproven(device: &DeviceId, target: &Target, error: &LbError, balancer: &Balancer, deadline: Instant) -> Error {
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
