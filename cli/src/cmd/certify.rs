//! `rssh certify`: a certificate for logging in to a device.

use rssh_proto::FailureKind;

use crate::args::{CertifyArgs, Common};
use crate::certificate::Certificates;
use crate::error::Error;
use crate::profile::{self, Profile};

/// Runs the command.
///
/// # Errors
/// When there is no certificate to be had; with `--quiet`, without a word: ssh's configuration asks whether there is one.
pub async fn run(common: &Common, args: &CertifyArgs) -> Result<(), Error> {
    let outcome = ensure(common, args).await;
    match outcome {
        Err(error) if common.quiet => {
            tracing::debug!(%error, "no certificate");
            Err(Error::Silent(error.exit_code()))
        }
        other => other,
    }
}

async fn ensure(common: &Common, args: &CertifyArgs) -> Result<(), Error> {
    let profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    let none = || {
        Error::new(
            FailureKind::Configuration,
            "the profile has no url, so nobody can be asked for a certificate; log in with: rssh login URL",
        )
    };
    let certificates = Certificates::of(&profile).ok_or_else(none)?;
    certificates.ensure(&args.destination.device).await
}
