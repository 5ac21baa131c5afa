//! The subcommands.

pub mod certify;
pub mod close;
pub mod config;
pub mod devices;
pub mod doctor;
pub mod exec;
pub mod forward;
pub mod init;
pub mod known_hosts;
pub mod login;
pub mod ls;
pub mod open;
pub mod pick;
pub mod proxy;
pub mod share;
pub mod ssh;
pub mod watch;
pub mod why;

use std::sync::Arc;
use std::time::Duration;

use rssh_mqtt::life::Life;
use rssh_mqtt::renewal::{self};
use rssh_proto::enrolment::Renew;

use crate::args::{Common, Via};
use crate::error::Error;
use crate::profile::{self, Profile};

/// Reads the profile and the identity that it names, whose certificate is renewed first where it is due.
async fn identify(common: &Common) -> Result<(Profile, Arc<rustls::ClientConfig>), Error> {
    let mut profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    if common.via == Via::Http {
        profile.go_by_http()?;
    }
    freshen(&profile).await;
    let tls = profile.tls()?;
    Ok((profile, tls))
}

/// How long a renewal may keep the user waiting; there are many more tries before the certificate's end.
const RENEWAL: Duration = Duration::from_secs(3);

/// Renews the certificate in the last third of its life.
async fn freshen(profile: &Profile) {
    let files = profile.identity();
    let (Some(url), Ok(life)) = (&profile.url, Life::of(&files.cert)) else {
        return;
    };
    let now = renewal::now();
    if now < life.renew_at() || life.is_over(now) {
        return;
    }
    match tokio::time::timeout(
        RENEWAL,
        renewal::renew(url, Some(profile.proxies.clone()), &files, Renew::default()),
    )
    .await
    {
        Ok(Ok(_)) => tracing::debug!("the certificate is renewed"),
        Ok(Err(error)) => tracing::debug!(%error, "the certificate could not be renewed yet"),
        Err(_) => tracing::debug!("the certificate could not be renewed in time"),
    }
}
