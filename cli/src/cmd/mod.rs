//! The subcommands.

pub mod close;
pub mod config;
pub mod devices;
pub mod doctor;
pub mod exec;
pub mod forward;
pub mod init;
pub mod known_hosts;
pub mod ls;
pub mod open;
pub mod pick;
pub mod proxy;
pub mod share;
pub mod ssh;
pub mod watch;
pub mod why;

use std::sync::Arc;

use crate::args::{Common, Via};
use crate::error::Error;
use crate::profile::{self, Profile};

/// Reads the profile and the identity that it names.
fn identify(common: &Common) -> Result<(Profile, Arc<rustls::ClientConfig>), Error> {
    let mut profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    if common.via == Via::Http {
        profile.go_by_http()?;
    }
    let tls = profile.tls()?;
    Ok((profile, tls))
}
