//! `rssh proxy`: stdin and stdout to a device, for ssh's ProxyCommand.

use crate::args::{Common, ProxyArgs};
use crate::cmd::identify;
use crate::error::Error;
use crate::relay::Local;
use crate::session::{Client, Wanted};
use crate::signals::Signals;

/// Runs the command.
///
/// # Errors
/// The named failure; no session has begun then.
pub async fn run(common: &Common, args: &ProxyArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut signals = Signals::watch()?;
    let mut local = Local::stdio().map_err(|error| Error::internal(format!("{}: {error}", args.device)))?;
    let wanted = Wanted {
        device: args.device.clone(),
        target: args.target.clone(),
        timeout: args.timeout,
        silent: common.quiet,
    };
    Client::of(profile, tls).run(&wanted, &mut local, &mut signals).await
}
