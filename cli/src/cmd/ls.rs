//! `rssh ls`: the user's open tunnels.

use rssh_proto::Failure;
use rssh_proto::duration::Span;
use rssh_proto::payload::{Operation, TunnelInfo};

use crate::args::{Common, LsArgs};
use crate::cmd::identify;
use crate::control::Control;
use crate::error::Error;
use crate::known::Known;
use crate::output::{self, TunnelObject};
use crate::request::Answer;
use crate::table;

/// Runs the command.
///
/// # Errors
/// The named failure.
pub async fn run(common: &Common, args: &LsArgs) -> Result<(), Error> {
    let (profile, tls) = identify(common).await?;
    let mut control = Control::start(&profile, tls);
    let tunnels = list(&mut control, args.timeout).await;
    control.leave().await;
    let tunnels = tunnels?;
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
    let now = jiff::Timestamp::now().as_second();
    output::data(&table::tunnels(&tunnels, now, table::width()))
}

/// Asks for the user's tunnels, in the order in which they are shown.
pub(super) async fn list(control: &mut Control, timeout: Span) -> Result<Vec<TunnelInfo>, Failure> {
    let mut ask = control.ask(Operation::List, timeout);
    match control.carry(&mut ask, |_, _| {}).await? {
        Answer::Tunnels(mut tunnels) => {
            tunnels.sort_by(|a, b| (&a.device, &a.target, a.tunnel).cmp(&(&b.device, &b.target, b.tunnel)));
            Ok(tunnels)
        }
        _ => Err(Failure::new(
            rssh_proto::FailureKind::Internal,
            "the answer to a list was none",
        )),
    }
}
