//! `rssh ssh`: the system's ssh, through `rssh proxy`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::args::{Common, SshArgs};
use crate::certificate;
use crate::error::Error;
use crate::profile::{self, Profile};
use crate::ssh::{self, Proxy};

/// Becomes ssh; returns only when that fails.
///
/// # Errors
/// When the profile is missing or ssh cannot be run.
pub async fn run(common: &Common, args: &SshArgs) -> Result<(), Error> {
    // ssh would tell of a proxy that failed; the reason is better told once, and here.
    let profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    let certificate = certificate::arguments(&profile, &args.destination.device).await;
    let arguments = Proxy::of(common)?.quiet(common.quiet).login(&args.destination);
    let error = Command::new("ssh")
        .args(certificate)
        .args(arguments)
        .args(&args.args)
        .exec();
    Err(ssh::not_started(&error))
}
