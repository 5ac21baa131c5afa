//! `rssh ls`: the user's open tunnels.

use std::time::{SystemTime, UNIX_EPOCH};

use rssh_proto::payload::Operation;

use crate::args::{Common, LsArgs};
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::output::{self, TunnelObject};
use crate::request::Answer;

/// Runs the command.
///
/// # Errors
/// The named failure.
pub async fn run(common: &Common, args: &LsArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common)?;
    let mut control = Control::start(&profile, tls);
    let mut ask = control.ask(Operation::List, args.timeout);
    let answer = control.carry(&mut ask, |_, _| {}).await;
    control.leave().await;
    let Answer::Tunnels(mut tunnels) = answer? else {
        return Err(Error::internal("the answer to a list was none"));
    };
    tunnels.sort_by(|a, b| (&a.device, &a.target, a.tunnel).cmp(&(&b.device, &b.target, b.tunnel)));
    Known::of(&profile).listed(&tunnels);
    if args.json {
        return tunnels
            .iter()
            .try_for_each(|tunnel| output::json(&TunnelObject::new(tunnel, None)));
    }
    if tunnels.is_empty() {
        if !common.quiet {
            output::remark("no open tunnels");
        }
        return Ok(());
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    output::data(&output::table(&tunnels, now, output::width()))
}
